"""Run directories written by commit f7870e1, before classes, tensors and experiments got their present names.

earlier_runs.tar.xz holds one small run a model with what that commit measured: metrics of eval.py, and the sums of
absolute weights after it resumed the run. Large weights were set to +-their mean, so that the file stays small.
"""

import json
import tarfile
from pathlib import Path

import pytest
import torch

from quintet.common.checkpoints import load_checkpoint
from quintet.harness import cli
from quintet.harness.config import compose, config
from quintet.harness.config.moved import move_experiments, moved_target
from quintet.harness.run.evaluate import evaluate

RUNS = ["wavenet", "deeplab", "show_and_tell", "rare_events", "translator", "influence"]
ROOT = "/somewhere/quintet"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The unpacked runs; their sample data is made again beside them."""
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(Path(__file__).with_name("earlier_runs.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


def moved_data(run):
    """Overrides for data that now lies below the test's folder."""
    data = compose.saved_config(run).data
    keys = ("root", "cache_dir")
    return [f"data.{k}={data[k].replace(ROOT, str(run.parent))}" for k in keys if str(data.get(k)).startswith(ROOT)]


def configured(run, *overrides):
    cfg = compose.saved_config(run)
    compose.apply_overrides(cfg, [*moved_data(run), *overrides], root="train")
    return cfg


@pytest.mark.parametrize("name", RUNS)
def test_it_evaluates_to_the_same_numbers(runs, name):
    run = runs / name
    cfg = configured(run)
    config.check(cfg, config.Origin())
    request = compose.compose_checked("eval", [f"run={run}", "trainer=cpu", "trainer.enable_progress_bar=false"])
    found = evaluate(cfg, request, command="test")
    expected = json.loads((run / "expected.json").read_text())["test"]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", RUNS)
def test_it_resumes_to_the_same_weights(runs, name):
    run = runs / name
    expected = json.loads((run / "expected.json").read_text())
    cli.resume_job(run, [*moved_data(run), *expected["more"]])
    last = load_checkpoint(run / "checkpoints" / "last.ckpt")
    assert last["global_step"] == expected["step"]
    sums = {key: float(tensor.double().abs().sum()) for key, tensor in last["state_dict"].items()}
    assert len(sums) == len(expected["sums"])
    torch.testing.assert_close(sorted(sums.values()), sorted(expected["sums"].values()), rtol=1e-4, atol=1e-5)


def test_its_classes_are_found_and_its_checkpoint_loads_without_hydra(runs):
    from quintet.papers.wavenet.module import WaveNetModule

    module = WaveNetModule.load_from_checkpoint(runs / "wavenet" / "checkpoints" / "last.ckpt")
    assert module.data_info["speakers"] == ["p225", "p226", "p227", "p228"]
    assert (
        moved_target("quintet.protocols.crf_search.CrfSearch")
        == "quintet.papers.deeplab.protocols.crf_search.CrfSearch"
    )
    assert moved_target("quintet.data.audio.vctk.VCTK") == "quintet.data.audio.vctk.VCTK"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("experiment=wavenet_sample", "experiment=wavenet/sample"),
        ("experiment=captioning_sample,influence_sample", "experiment=show_and_tell/sample,influence/sample"),
        ("+experiment=flickr8k_mobilenet_finetune", "+experiment=show_and_tell/flickr8k_mobilenet_finetune"),
        ("experiment=show_and_tell_flickr8k", "experiment=show_and_tell/flickr8k"),
        ("experiment=wavenet_of_mine", "experiment=wavenet_of_mine"),
        ("model=wavenet_sample", "model=wavenet_sample"),
    ],
)
def test_old_names_of_experiments(old, new):
    assert move_experiments(old) == new
