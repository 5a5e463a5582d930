"""The experiment and protocol files: headers, sizes, and keys that their constructors take."""

import importlib
import inspect

import pytest
import yaml
from commands import REPOSITORY

from quintet.common.optim import OptimizerConfig
from quintet.papers.wavenet.module import WaveNetModule
from quintet.papers.wavenet.network import WaveNetConfig

CONF = REPOSITORY / "conf"
EXPERIMENTS = sorted((CONF / "experiment" / "wavenet").glob("*.yaml"))
PROTOCOLS = ["copy_synthesis", "generate", "phones", "speaker_swap", "test"]


def test_the_papers_experiments_are_all_there():
    names = {path.stem for path in EXPERIMENTS}
    assert names >= {
        "sample",
        "vctk_multispeaker",
        "tts_linguistic",
        "tts_linguistic_f0",
        "copy_synthesis_mel",
        "music_unconditional",
        "music_tags",
        "piano",
        "timit_phonemes",
        "context_stack",
    }


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_header_and_keys(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_" and len(lines) <= 25
    header = "\n".join(line for line in lines if line.startswith("#"))
    for opening in (
        "# Paper: ",
        "# Command: python train.py experiment=",
        "# Hardware and time: ",
        "# Paper's number: ",
    ):
        assert opening in header
    assert f"experiment=wavenet/{path.stem}" in header and "# Ours: " in header
    node = yaml.safe_load(path.read_text())
    assert node["name"] == f"wavenet/{path.stem}"
    for default in node["defaults"]:
        (group, choice), *_ = default.items()
        assert (CONF / group.removeprefix("override /") / f"{choice}.yaml").is_file()
    model = node["model"]
    assert set(model) <= set(inspect.signature(WaveNetModule).parameters)
    WaveNetConfig(**model.get("network", {}))
    OptimizerConfig(**model.get("optimizer", {}))


def test_model_config_names_every_network_setting_and_its_default():
    node = yaml.safe_load((CONF / "model" / "wavenet.yaml").read_text())
    assert WaveNetConfig(**node["network"]) == WaveNetConfig()
    assert set(node["network"]) == set(WaveNetConfig.__dataclass_fields__)
    assert OptimizerConfig(**node["optimizer"]) == OptimizerConfig()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocol_config_is_the_constructors_defaults(name):
    text = (CONF / "protocol" / f"{name}.yaml").read_text()
    node = yaml.safe_load(text)
    module, _, cls = node.pop("_target_").rpartition(".")
    constructor = getattr(importlib.import_module(module), cls)
    assert text.startswith("# ") and set(node) == set(inspect.signature(constructor).parameters)
    constructor(**node)
