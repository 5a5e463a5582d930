"""Runs as a user makes them: two stages with cached features, evaluation of each, ensembles by ckpt=[a,b]."""

import pytest
import torch
from omegaconf import OmegaConf, open_dict

from quintet.common.checkpoints import load_checkpoint
from quintet.common.errors import UserError
from quintet.harness.config import compose, config
from quintet.harness.run.evaluate import evaluate
from quintet.harness.run.fit import fit

TINY = [
    *("experiment=show_and_tell/sample", "trainer=cpu", "callbacks=quiet", "trainer.enable_progress_bar=false"),
    *("model.encoder.image_size=32", "model.network.embedding=8", "model.network.hidden=8", "data.batch_size=4"),
    *("data.source.num_train=8", "data.source.num_val=3", "data.source.num_test=3", "data.min_count=1"),
    *("data.resize_size=40", "data.crop_size=32", "trainer.num_sanity_val_steps=0", "trainer.max_epochs=2"),
    "trainer.check_val_every_n_epoch=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("captions")


def train(folder, name, *more):
    overrides = [*TINY, f"paths.cache_dir={folder}/cache", f"run_dir={folder}/{name}", "run_id=x", *more]
    cfg = compose.compose_checked("train", overrides)
    config.check(cfg, config.Origin(tuple(overrides)))
    OmegaConf.resolve(cfg)
    return folder / name, fit(cfg)


def evaluated(*arguments):
    request = compose.compose_checked("eval", [*arguments, "trainer=cpu"])
    with open_dict(request):
        request.trainer.enable_progress_bar = False
    return evaluate(compose.config_of(request.run, request.ckpt), request, command="test")


STAGES = ["data.features=${model.encoder}", "callbacks.two_stage.epochs=1", "data.group_by_image=true"]


@pytest.fixture(scope="module")
def runs(folder):
    """Stage 1 alone with two seeds, and both stages."""
    return [
        train(folder, "one", *STAGES, "callbacks.two_stage.epochs=null")[0],
        train(folder, "two", *STAGES, "callbacks.two_stage.epochs=null", "seed=2")[0],
        train(folder, "joint", *STAGES)[0],
    ]


def test_each_stage_is_evaluated_with_what_it_reads(runs):
    for run, trained in zip(runs, (False, False, True), strict=True):
        state = load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
        assert bool(state["encoder.trained"]) == trained
        values = evaluated(f"ckpt={run}/checkpoints/last.ckpt")
        images = compose.saved_config(run)
        with open_dict(images):
            images.data.features = None
        request = compose.compose_checked("eval", [f"ckpt={run}/checkpoints/last.ckpt", "trainer=cpu"])
        with open_dict(request):
            request.trainer.enable_progress_bar = False
        assert evaluate(images, request, command="test")["test/loss"] == pytest.approx(values["test/loss"], rel=1e-4)


def test_an_ensemble_of_runs(runs):
    alone = [evaluated(f"run={run}")["test/loss"] for run in runs[:2]]
    together = evaluated(f"ckpt=[{runs[0]},{runs[1]}]")
    assert together["test/loss"] < max(alone) and {"test/bleu4", "test/cider"} <= together.keys()
    mixed = evaluated(f"ckpt=[{runs[0]}/checkpoints/best.ckpt,{runs[2]}]")
    assert torch.tensor(mixed["test/loss"]).isfinite()


def test_runs_that_make_no_ensemble(folder, runs):
    other, _ = train(folder, "other", *STAGES, "data.min_count=4")
    with pytest.raises(UserError, match=r"ckpt\[1\] has another vocabulary than ckpt\[0\]"):
        evaluated(f"ckpt=[{runs[0]},{other}]")
    with pytest.raises(UserError, match=r"run '\S+' has no checkpoint in"):
        evaluated(f"ckpt=[{runs[0]},{folder}]")
