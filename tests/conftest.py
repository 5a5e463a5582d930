"""Shared fixtures."""

import pytest
from harness import House

import quintet  # noqa: F401  before Lightning: see quintet.compat


@pytest.fixture(scope="session")
def house(tmp_path_factory) -> House:
    """One folder a session, so that the sample data set is prepared once."""
    return House(tmp_path_factory.mktemp("house"))
