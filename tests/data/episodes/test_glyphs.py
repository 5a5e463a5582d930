"""The sample: real letters, each another one, drawn differently by every drawer, the same on every machine."""

import zipfile
from itertools import pairwise

import numpy as np
import pytest

from quintet.common.errors import UserError
from quintet.data.episodes.datamodule import EpisodeDataModule
from quintet.data.samples.glyphs import ALPHABETS, SampleGlyphs, write_glyphs


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glyphs")
    source = SampleGlyphs(str(folder / "root"), characters=6, drawers=4)
    module = EpisodeDataModule(source, str(folder / "cache"), length=10, shots=[1], val_alphabets=1)
    module.setup()
    return module


def test_every_letter_is_in_the_font_and_in_one_alphabet():
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    known = FT2Font(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf").get_charmap()
    letters = [letter for part in ALPHABETS.values() for alphabet in part.values() for letter in alphabet]
    assert [letter for letter in letters if ord(letter) not in known] == []
    assert len(set(letters)) == len(letters)


def test_it_is_read_as_omniglot(sample):
    assert sample.images("test").shape == (3 * 6, 4, 28, 28)
    assert sample.data_info["num_classes_train"] == 4 * 6 * (len(ALPHABETS["background"]) - 1)
    ink = sample.images("test").reshape(-1, 28 * 28) / 255
    assert (ink.mean(1) > 0.01).all() and (ink.mean(1) < 0.35).all(), "a thin letter on white paper"
    assert next(iter(sample.train_dataloader())).images.shape == (16, 10, 1, 28, 28)


def test_letters_differ_more_than_drawers(sample):
    ink_nx = sample.images("test").reshape(18 * 4, -1).astype(float)
    ink_nx /= np.linalg.norm(ink_nx, axis=1, keepdims=True)
    cosine = ink_nx @ ink_nx.T - 2 * np.eye(18 * 4)
    assert cosine.max() < 0.999, "the drawers differ"
    nearest = cosine.argmax(1) // 4
    chance = 3 / 71
    assert (nearest == np.arange(18 * 4) // 4).mean() > 8 * chance, "a letter is recognisable, even by its pixels"


def test_the_same_files_on_every_machine(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        write_glyphs(folder, 1, 2)
    for part in ("background", "evaluation"):
        one, other = ((folder / f"images_{part}.zip").read_bytes() for folder in folders)
        assert one == other
    names = zipfile.ZipFile(folders[0] / "images_background.zip").namelist()
    assert names[0] == "images_background/Latin/character01/0001_01.png" and len(names) == 2 * 7
    numbers = [int(name.split("/")[3][:4]) for name in names[::2]]
    assert all(b == a + 1 for a, b in pairwise(numbers)), "each class has a number of its own, as in Omniglot"


@pytest.mark.parametrize(("key", "value"), [("characters", 0), ("characters", 99), ("drawers", 1), ("drawers", 100)])
def test_impossible_sizes(tmp_path, key, value):
    with pytest.raises(UserError, match=rf"data\.source\.{key}={value}"):
        SampleGlyphs(str(tmp_path), **{key: value}).folder()
