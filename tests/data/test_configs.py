"""Every conf/data/*.yaml names a class that exists and only parameters that it has."""

import inspect
from importlib import import_module

import pytest
from commands import REPOSITORY
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

CONF = REPOSITORY / "conf"


def nodes(config):
    if "_target_" in config:
        yield config
    for key in config:
        value = config._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none():
            yield from nodes(value)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_targets_and_their_parameters_exist(name):
    with initialize_config_dir(str(CONF / "data"), version_base="1.3"):
        config = compose(name)
    found = list(nodes(config))
    assert len(found) >= 2  # the DataModule and its source
    for node in found:
        module, attribute = node["_target_"].rsplit(".", 1)
        parameters = inspect.signature(getattr(import_module(module), attribute)).parameters
        assert set(node) - {"_target_"} <= set(parameters), (name, node["_target_"])
    assert OmegaConf.to_container(config)["source"]["root"] == "${data.root}"
