"""Audio files made in a temporary folder, and the real archives where they lie beside the checkout."""

import numpy as np
import pytest
import soundfile
from commands import REPOSITORY

REAL = REPOSITORY.parent / "shared" / "data"


def tone(seconds=0.2, rate=16000, hertz=220.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_audio(path, audio=None, rate=16000, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(rate=rate) if audio is None else audio, rate, **kwargs)
    return path


def ready(module):
    module.prepare_data()
    module.setup()
    return module


def real(name):
    """A real archive, or a skip that says what is missing."""
    path = REAL / name
    if not path.exists():
        pytest.skip(f"real data {path} is not on this machine")
    return str(path)
