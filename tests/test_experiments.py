"""The contract of every experiment file: composes, refuses unknown keys, builds, fits, resumes and evaluates.

The experiments' own model settings are kept but for the widths; their data is replaced by a synthetic sample of the
same kind, so that no data set is needed.
"""

import json

import pytest
import yaml
from omegaconf import OmegaConf, open_dict

from quintet.app import compose, config
from quintet.app.evaluate import evaluate
from quintet.app.fit import fit
from quintet.callbacks.checkpoint import load_checkpoint
from quintet.errors import UserError

EXPERIMENTS = sorted((config.CONF / "experiment").glob("*.yaml"))
SAMPLES = {
    "vctk": "vctk_sample",
    "librispeech": "vctk_sample",
    "ljspeech": "vctk_sample",
    "piano": "clips_sample",
    "magnatagatune": "clips_sample",
    "timit": "timit_sample",
    "ljspeech_phones": "timit_sample",
    "vctk_linguistic": "vctk_sample_linguistic",
    "ljspeech_linguistic": "vctk_sample_linguistic",
    "ljspeech_mel": "vctk_sample_mel",
}
NARROW = [f"model.network.{k}=8" for k in ("residual_channels", "gate_channels", "skip_channels", "head_channels")]
SHORT = ["model.network.stacks=1", "model.network.layers_per_stack=3", "data.chunk_samples=800", "data.batch_size=2"]
QUICK = ["trainer=cpu", "callbacks=quiet", "trainer.limit_val_batches=1", "trainer.limit_train_batches=3"]


def data_of(path):
    defaults = yaml.safe_load(path.read_text())["defaults"]
    return next(d["override /data"] for d in defaults if isinstance(d, dict) and "override /data" in d)


def composed(path, folder, *more):
    data = data_of(path)
    overrides = [f"experiment={path.stem}", f"data={SAMPLES.get(data, data)}", *NARROW, *SHORT, *QUICK]
    overrides += [f"paths.cache_dir={folder}/cache", f"run_dir={folder}/{path.stem}", "run_id=x", *more]
    if data == "librispeech":  # its own key, which the sample's source does not have
        overrides += ["~data.source.subsets"]
    if "ema:" in path.read_text():  # the quiet callbacks have none
        overrides += ["callbacks.ema=null"]
    if "context_stack" in path.stem:
        overrides += ["model.network.context_stack.layers_per_stack=2"]
    cfg = compose.compose_checked("train", overrides)
    config.check(cfg, config.Origin(tuple(overrides)))
    OmegaConf.resolve(cfg)
    return cfg


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


def test_there_are_experiments():
    assert len(EXPERIMENTS) >= 10


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_header_and_length(path):
    text = path.read_text()
    for word in ("Paper:", "Command: python train.py experiment=" + path.stem, "Hardware and time:", "Ours:"):
        assert word in text, word
    assert len(text.splitlines()) <= 25


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_fit_resume_and_evaluate(path, folder):
    cfg = composed(path, folder, "trainer.max_steps=1", "trainer.limit_test_batches=1")
    fit(cfg)
    run = folder / path.stem
    saved = compose.saved_config(run)
    compose.apply_overrides(saved, ["trainer.max_steps=2"], root="train")
    with open_dict(saved):
        saved.resume = str(run)
    fit(saved)
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 2
    request = compose.compose_checked("eval", [f"run={run}", "trainer=cpu", "trainer.limit_test_batches=1"])
    with open_dict(request):
        request.trainer.enable_progress_bar = False
    metrics = evaluate(compose.saved_config(run), request, command="test")
    assert 0 < metrics["test/bits"] < 12
    assert json.loads((run / "eval" / "test" / "result.json").read_text())["rows"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_unknown_keys_are_refused(path, folder):
    with pytest.raises(UserError, match=r"model\.network\.stakcs"):
        composed(path, folder, "+model.network.stakcs=3")
