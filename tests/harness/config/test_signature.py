"""Signatures read from source equal what `inspect` finds after importing."""

import inspect
import subprocess
import sys

import pytest
from hydra.utils import get_class

from quintet.harness.config.signature import class_attribute, module_file, signature_of

TARGETS = [
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.callbacks.RichProgressBar",
    "lightning.pytorch.loggers.CSVLogger",
    "quintet.papers.wavenet.module.WaveNetModule",
    "quintet.data.audio.datamodule.AudioDataModule",
    "quintet.harness.callbacks.media.Media",
    "quintet.data.samples.vctk.SampleVCTK",
]


@pytest.mark.parametrize("target", TARGETS)
def test_equals_inspect(target):
    live = inspect.signature(get_class(target).__init__).parameters
    named = [n for n, p in live.items() if n != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    assert set(signature_of(target).parameters) >= set(named)
    if not any(p.kind is p.VAR_KEYWORD for p in live.values()):
        assert set(signature_of(target).parameters) == set(named)


def test_nested_dataclass_is_found():
    nested = signature_of("quintet.papers.wavenet.module.WaveNetModule").nested
    assert nested["network"].endswith("WaveNetConfig")
    assert "kernel_size" in signature_of(nested["network"]).parameters


def test_batch_type_is_read_from_the_class_body():
    assert class_attribute("quintet.papers.wavenet.module.WaveNetModule", "batch_type") == "AudioBatch"
    assert class_attribute("quintet.data.audio.datamodule.AudioDataModule", "batch_type") == "AudioBatch"


def test_what_does_not_exist_is_none():
    assert signature_of("quintet.papers.wavenet.module.Nothing") is None
    assert module_file("no_such_package.thing") is None


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from quintet.harness import cli; from quintet.harness.config.signature import signature_of;"
        "signature_of('lightning.pytorch.Trainer');"
        "print([m for m in ('torch', 'lightning', 'datasets', 'wandb', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
