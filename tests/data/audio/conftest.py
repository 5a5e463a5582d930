"""Fixtures of the audio tests."""

import pytest

from quintet.data.audio.datamodule import AudioDataModule


@pytest.fixture
def make(tmp_path):
    """make(source, **overrides) -> an AudioDataModule with small windows, its cache under tmp_path."""

    def build(source, **overrides):
        settings = {"sample_rate": 16000, "chunk_samples": 800, "batch_size": 2, "context": 100}
        return AudioDataModule(source=source, cache_dir=str(tmp_path / "cache"), **settings | overrides)

    return build
