"""Shared fixtures."""

import os

import pytest
from commands import House
from hypothesis import settings

import quintet  # noqa: F401  before Lightning: see quintet.common.compat

settings.register_profile("same_each_time", derandomize=True)  # a change fails by what it changes, not by chance
settings.register_profile("new_each_time", derandomize=False)  # QUINTET_FUZZ: to find what is wrong by chance
settings.load_profile("new_each_time" if "QUINTET_FUZZ" in os.environ else "same_each_time")


@pytest.fixture(scope="session")
def house(tmp_path_factory) -> House:
    """One folder a session, so that the sample data set is prepared once."""
    return House(tmp_path_factory.mktemp("house"))
