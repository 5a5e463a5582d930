"""The caption data configs, most of which are a few lines on top of Flickr8k's."""

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from quintet.harness.paths import CONF

CAPTIONS = "quintet.data.captions.datamodule.CaptionDataModule"


def composed(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["model=show_and_tell", f"data={name}"]).data
    return config, OmegaConf.to_container(config)


FILES = {path.stem: path.read_text() for path in (CONF / "data").glob("*.yaml")}
NAMES = sorted(name for name, text in FILES.items() if CAPTIONS in text or "[flickr8k," in text)


def test_all_of_them():
    wanted = ["captions_csv", "captions_sample", "coco", "flickr30k", "hub_captions", "pascal_sentences", "sbu"]
    assert {*wanted} <= {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_place_of_its_own_and_the_same_keys(name):
    """OmegaConf lets a `???` give way to what it stands on."""
    config, keys = composed(name)
    own = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text())
    assert keys["root"] == own["root"] and keys["source"]["root"] == "${data.root}"
    shards = {"streaming", "streams", "shuffle_groups"} if name == "hub_captions" else set()
    assert set(keys) - shards == set(composed("flickr8k")[1]), "a setting that one has, all have"
    assert shards <= set(keys)
    assert config.source._target_ == own["source"]["_target_"]
