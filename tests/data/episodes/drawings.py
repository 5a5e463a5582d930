"""A few random drawings in Omniglot's layout, and a data module on them."""

import io
import zipfile

import numpy as np
import pytest
from commands import REPOSITORY
from PIL import Image

from quintet.data.episodes.datamodule import EpisodeDataModule
from quintet.data.episodes.omniglot import Omniglot

REAL = REPOSITORY.parent / "shared" / "data" / "omniglot"
BACKGROUND = {"Aleph": 3, "Beth": 4, "Gimel": 2, "Daleth": 3}
EVALUATION = {"He": 3, "Waw": 4}
DRAWERS = 6


def picture(*key, side=105):
    """Black strokes on white, 1 bit, as bytes of a PNG."""
    coarse = np.random.default_rng(key).random((7, 7)) > 0.3
    image = Image.fromarray(np.uint8(255 * coarse)).resize((side, side), Image.Resampling.NEAREST).convert("1")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def members(part, alphabets, drawers=DRAWERS):
    """Names inside the zip and their bytes."""
    number = 0 if part == "background" else 500
    for alphabet, characters in alphabets.items():
        for character in range(1, characters + 1):
            number += 1
            for drawer in range(1, drawers + 1):
                name = f"images_{part}/{alphabet}/character{character:02d}/{number:04d}_{drawer:02d}.png"
                yield name, picture(number, drawer)


def write_zips(folder, drawers=DRAWERS, **changes):
    """Both zips in `folder`; `changes` maps a part to a dict of member name -> bytes, or None to leave it out."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, alphabets in (("background", BACKGROUND), ("evaluation", EVALUATION)):
        content = dict(members(part, alphabets, drawers)) | changes.get(part, {})
        with zipfile.ZipFile(folder / f"images_{part}.zip", "w") as bundle:
            for name, data in content.items():
                if data is not None:
                    bundle.writestr(name, data)
    return folder


def module_on(root, cache, **overrides):
    """A small ready data module."""
    settings = {"width": 3, "length": 12, "shots": [1, 3], "batch_size": 2, "episodes_per_epoch": 6, "val_episodes": 3,
                "test_episodes": 5, "val_alphabets": 1, "image_size": 12}  # fmt: skip
    module = EpisodeDataModule(Omniglot(str(root)), str(cache), **settings | overrides)
    module.setup()
    return module


def real_omniglot():
    """The folder of the official zips, or a skip that says what is missing."""
    if not REAL.is_dir():
        pytest.skip(f"real data {REAL} is not on this machine")
    return str(REAL)
