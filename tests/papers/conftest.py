"""Fixtures of the protocol tests: tones, and a network that has learned them."""

import pytest
import shapes
import torch
from tones import TINY, ToneData, fitted

from quintet.papers.wavenet.module import WaveNetModule


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Networks this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tones() -> ToneData:
    return ToneData()


@pytest.fixture(scope="session")
def trained(tones) -> WaveNetModule:
    """A tiny network that has learned which speaker has which pitch."""
    torch.manual_seed(0)  # not from every start does it learn that in so few steps
    return fitted(WaveNetModule(TINY, {"lr": 1e-2}, tones.data_info, media_seconds=0.02), tones, 40)


@pytest.fixture(scope="session")
def shapes_run(tmp_path_factory):
    """The directory of a run that tells shapes from ground, some of the time."""
    return shapes.train(tmp_path_factory.mktemp("shapes"))
