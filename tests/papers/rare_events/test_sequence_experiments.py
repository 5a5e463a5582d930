"""The sequence experiments on samples: fit, stop, resume exactly, evaluate; and what their yaml files say."""

import importlib
import inspect
from dataclasses import fields

import pytest
import torch
import yaml
from omegaconf import OmegaConf, open_dict

from quintet.common.checkpoints import load_checkpoint
from quintet.common.errors import UserError
from quintet.harness.config import compose, config
from quintet.harness.run.evaluate import evaluate
from quintet.harness.run.fit import fit
from quintet.papers.rare_events.memory.memory import MemoryConfig
from quintet.papers.rare_events.memory.token_memory import RecallConfig
from quintet.papers.rare_events.neural_gpu import NeuralGPUConfig
from quintet.papers.rare_events.translator import TranslatorConfig

EXPERIMENTS = ["rare_events/translation_multi30k", "rare_events/translation_wmt14", "rare_events/synthetic_rare"]
SMALL_MEMORY = ["model.memory.slots=256", "model.memory.width=8", "model.memory.neighbours=8"]
SAMPLES = {
    "translation": ["data=pairs_sample", "model.network.width=8", "data.source.num_train=60"],
    "synthetic": ["model.network.maps=6", "data.source.largest=60", "data.source.num_train=50",
                  "data.source.num_val=8", "data.source.num_test=8", "model.network.steps=1"],
}  # fmt: skip
QUICK = ["trainer=cpu", "callbacks=quiet", "trainer.enable_progress_bar=false", "data.batch_size=8",
         "trainer.limit_val_batches=1", "trainer.val_check_interval=1.0", "trainer.precision=32-true"]  # fmt: skip


def composed(experiment, folder, *more):
    sample = SAMPLES[experiment.split("/")[1].split("_")[0]]
    overrides = [f"experiment={experiment}", *sample, *SMALL_MEMORY, *QUICK, f"paths.cache_dir={folder}/cache"]
    cfg = compose.compose_checked("train", [*overrides, "run_id=x", *more])
    config.check(cfg, config.Origin())
    OmegaConf.resolve(cfg)
    return cfg


def evaluated(run, protocol, *more):
    request = compose.compose_checked("eval", [f"run={run}", f"protocol={protocol}", "trainer=cpu", *more])
    with open_dict(request):
        request.trainer.enable_progress_bar = False
    return evaluate(compose.saved_config(run), request, command="test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sequences")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_stopped_and_resumed_run_ends_bit_for_bit_like_a_whole_one(experiment, folder):
    """Weights, optimiser, memory (keys, values, ages, hints): all of the checkpoint's tensors."""
    if experiment.endswith("wmt14"):  # the same module and data as multi30k: fit and evaluate only
        fit(composed(experiment, folder, f"run_dir={folder}/{experiment}", "trainer.max_steps=2"))
        assert "test/accuracy" in evaluated(folder / experiment, "test", "trainer.limit_test_batches=1")
        return
    steps = 11  # into the second epoch
    fit(composed(experiment, folder, f"run_dir={folder}/{experiment}-whole", f"trainer.max_steps={steps}"))
    run = folder / experiment
    fit(composed(experiment, folder, f"run_dir={run}", "trainer.max_steps=4"))
    saved = compose.saved_config(run)
    compose.apply_overrides(saved, [f"trainer.max_steps={steps}"], root="train")
    with open_dict(saved):
        saved.resume = str(run)
    fit(saved)
    whole, resumed = (
        load_checkpoint(path / "checkpoints" / "last.ckpt") for path in (folder / f"{experiment}-whole", run)
    )
    assert whole["global_step"] == resumed["global_step"] == steps
    assert int(whole["state_dict"]["token_memory.memory.step"]) == steps
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    if "synthetic" in experiment:
        found = evaluated(run, "rare_symbols")
        assert {"rare_symbols/accuracy_no_memory", "rare_symbols/accuracy_shown"} <= set(found)
    else:
        found = evaluated(run, "one_shot_translation", "protocol.max_lines=4", "protocol.beam_size=1")
        assert {"one_shot/bleu_no_memory", "one_shot/bleu_memory", "one_shot/bleu_shown"} <= set(found)


def test_without_memory_by_its_own_key(folder):
    cfg = composed(EXPERIMENTS[0], folder, f"run_dir={folder}/none", "trainer.max_steps=1", "model.memory.search=none")
    metrics = fit(cfg)
    assert "train/loss" in metrics and "train/memory_accuracy" not in metrics
    names = load_checkpoint(folder / "none" / "checkpoints" / "last.ckpt")["state_dict"]
    assert not any(name.startswith("token_memory.") for name in names)


KEYS = ["model.memory.slosts", "model.recall.weight", "model.network.steeps"]


@pytest.mark.parametrize(("experiment", "key"), zip(EXPERIMENTS, KEYS, strict=True))
def test_unknown_keys_are_refused(experiment, key, folder):
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        composed(experiment, folder, f"+{key}=3")


@pytest.mark.parametrize(("name", "network"), [("translator", TranslatorConfig), ("neural_gpu", NeuralGPUConfig)])
def test_model_configs_name_every_setting_of_network_and_recall_at_its_default(name, network):
    node = yaml.safe_load((config.CONF / "model" / f"{name}.yaml").read_text())
    assert network(**node["network"]) == network() and set(node["network"]) == {f.name for f in fields(network)}
    assert RecallConfig(**node["recall"]) == RecallConfig() and len(node["recall"]) == len(fields(RecallConfig))
    MemoryConfig(**node["memory"])


@pytest.mark.parametrize("name", ["one_shot_translation", "rare_symbols"])
def test_protocol_config_is_the_constructors_defaults(name):
    node = yaml.safe_load((config.CONF / "protocol" / f"{name}.yaml").read_text())
    module, _, cls = node.pop("_target_").rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), cls)).parameters
    assert set(node) == set(parameters)
    for key, value in node.items():
        default = parameters[key].default
        assert (list(default) if isinstance(default, tuple) else default) == value
