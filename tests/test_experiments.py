"""The contract of every experiment file: composes, refuses unknown keys, builds, fits, resumes and evaluates.

The experiments' own model settings are kept but for the widths; their data is replaced by a synthetic sample of the
same kind, so that no data set is needed.
"""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from omegaconf import OmegaConf, open_dict

from quintet.common.checkpoints import load_checkpoint
from quintet.common.errors import UserError
from quintet.harness.config import compose, config
from quintet.harness.run.evaluate import evaluate
from quintet.harness.run.fit import fit

EXPERIMENTS = sorted((config.CONF / "experiment").glob("*/*.yaml"))
QUICK = ["trainer=cpu", "callbacks=quiet", "trainer.enable_progress_bar=false", "trainer.precision=32-true"]
LIMITS = ["trainer.limit_val_batches=1", "trainer.limit_train_batches=3", "trainer.val_check_interval=1.0"]


def name(path):
    """`deeplab/sample`, as on the command line."""
    return str(path.relative_to(config.CONF / "experiment").with_suffix(""))


class Small(NamedTuple):
    """How the experiments of a model become small: a sample of the same kind for each data set, narrow widths."""

    samples: dict[str, str]
    overrides: list[str]
    metric: str  # of the test loop
    best: float  # its largest possible value
    batch_steps: int = 1  # optimiser steps a batch


WIDTHS = ("residual_channels", "gate_channels", "skip_channels", "head_channels")
SEQUENCES = ["model.memory.slots=256", "model.memory.width=8", "model.memory.neighbours=8", "data.batch_size=8"]
SMALL = {
    "wavenet": Small(
        {
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
        },
        [f"model.network.{width}=8" for width in WIDTHS]
        + ["model.network.stacks=1", "model.network.layers_per_stack=3", "data.chunk_samples=800", "data.batch_size=2"],
        "test/bits",
        12.0,
    ),
    "rare_events": Small(
        {"omniglot": "glyphs_sample"},
        [
            *("model.network.channels=[4]", "model.network.width=8", "model.memory.slots=256"),
            *("model.memory.neighbours=8", "data.width=5", "data.length=10", "data.shots=[1]", "data.batch_size=2"),
            *("data.source.characters=3", "data.source.drawers=4", "data.val_episodes=2", "data.test_episodes=2"),
            "data.episodes_per_epoch=8",
        ],
        "test/accuracy",
        1.0,
        batch_steps=10,
    ),
    "translator": Small(
        {"multi30k": "pairs_sample", "wmt14": "pairs_sample"},
        [*SEQUENCES, "model.network.width=8", "data.source.num_train=60"],
        "test/accuracy",
        1.0,
    ),
    "neural_gpu": Small(
        {},
        [
            *(*SEQUENCES, "model.network.maps=6", "model.network.steps=1", "data.source.largest=60"),
            *("data.source.num_train=50", "data.source.num_val=8", "data.source.num_test=8"),
        ],
        "test/accuracy",
        1.0,
    ),
    "logistic_regression": Small({"mnist": "digits_sample"}, [], "test/accuracy", 1.0),
    "binary_logistic": Small(
        {
            "mnist_17": "digits_sample_17",
            "dogfish_features": "digits_sample_features",
            "diabetes": "diabetes_sample",
            "enron": "enron_sample",
        },
        [],
        "test/accuracy",
        1.0,
    ),
    "linear_svm": Small({"mnist_17": "digits_sample_17"}, [], "test/accuracy", 1.0),
    "rbf_svm": Small({"dogfish": "digits_sample_17"}, ["model.network.pixels=false"], "test/accuracy", 1.0),
    "deeplab": Small(
        dict.fromkeys(["voc2012_aug", "pascal_context", "person_part", "cityscapes"], "shapes_sample"),
        [
            *("model.backbone.name=squeezenet1_1", "model.backbone.weights=null", "model.backbone.layout=torchvision"),
            *("model.backbone.output_stride=16", "model.network.channels=4", "model.mean_over=null"),
            *("data.crop_size=33", "data.batch_size=2", "data.eval_size=129", "data.eval_batch_size=2"),
            *("data.source.num_train=6", "data.source.num_val=2", "trainer.accumulate_grad_batches=1"),
        ],
        "test/miou",
        1.0,
    ),
    "show_and_tell": Small(
        dict.fromkeys(["flickr8k", "flickr30k", "coco", "sbu"], "captions_sample"),
        [
            *("model.encoder.name=shufflenet_v2_x0_5", "model.encoder.weights=null", "model.encoder.image_size=32"),
            *("model.network.embedding=8", "model.network.hidden=8", "model.network.word_vectors=null"),
            *("data.source.num_train=8", "data.source.num_val=2", "data.source.num_test=2", "data.batch_size=2"),
            *("data.resize_size=40", "data.crop_size=32", "data.min_count=1"),
        ],
        "test/bleu1",
        1.0,
    ),
    "all_cnn": Small(
        {"mnist_small": "digits_sample_images"},
        ["model.network.channels=[2,2]", "model.network.strides=[1,2]"],
        "test/accuracy",
        1.0,
    ),
}


def choice(path, group):
    """The model or data config that an experiment file chooses, itself or through the experiment it builds on."""
    defaults = yaml.safe_load(path.read_text())["defaults"]
    chosen = [d[f"override /{group}"] for d in defaults if isinstance(d, dict) and f"override /{group}" in d]
    return chosen[0] if chosen else choice(Path(f"{config.CONF}{defaults[0]}.yaml"), group)


def small_form(path):
    """How an experiment becomes small; one of a model that is not listed here must be small and need no download."""
    return SMALL.get(choice(path, "model"), Small({}, [], "test/loss", float("inf")))


def composed(path, folder, *more):
    small, data = small_form(path), choice(path, "data")
    overrides = [f"experiment={name(path)}", f"data={small.samples.get(data, data)}", *small.overrides, *QUICK, *LIMITS]
    overrides += [f"paths.cache_dir={folder}/cache", f"run_dir={folder}/{name(path)}", "run_id=x", *more]
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


def in_tiers():
    """The first experiment of each model and kind of data; the others, which differ in settings only, are slow."""
    seen = set()
    for path in EXPERIMENTS:
        kind = choice(path, "model"), small_form(path).samples.get(choice(path, "data"), choice(path, "data"))
        yield pytest.param(path, marks=pytest.mark.slow if kind in seen else ())
        seen.add(kind)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


def test_every_model_has_experiments():
    models = {path.stem for path in (config.CONF / "model").glob("*.yaml")}
    assert {choice(path, "model") for path in EXPERIMENTS} == models


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_header_and_length(path):
    text = path.read_text()
    for word in ("Paper:", "Command: python train.py experiment=" + name(path), "Hardware and time:", "Ours:"):
        assert word in text, word
    assert f"\nname: {name(path)}\n" in text
    assert len(text.splitlines()) <= 25


@pytest.mark.parametrize("path", in_tiers(), ids=name)
def test_fit_resume_and_evaluate(path, folder):
    small = small_form(path)
    one, two = small.batch_steps, 2 * small.batch_steps
    cfg = composed(path, folder, f"trainer.max_steps={one}", "trainer.limit_test_batches=1")
    fit(cfg)
    run = folder / name(path)
    saved = compose.saved_config(run)
    compose.apply_overrides(saved, [f"trainer.max_steps={two}"], root="train")
    with open_dict(saved):
        saved.resume = str(run)
    fit(saved)
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == two
    request = compose.compose_checked("eval", [f"run={run}", "trainer=cpu", "trainer.limit_test_batches=1"])
    with open_dict(request):
        request.trainer.enable_progress_bar = False
    metrics = evaluate(compose.saved_config(run), request, command="test")
    assert 0 <= metrics[small.metric] <= small.best
    assert json.loads((run / "eval" / "test" / "result.json").read_text())["rows"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_unknown_keys_are_refused(path, folder):
    with pytest.raises(UserError, match=r"model\.network\.stakcs"):
        composed(path, folder, "+model.network.stakcs=3")
