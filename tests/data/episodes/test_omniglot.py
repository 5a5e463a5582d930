"""The official layout: zips, folders, everything that can be wrong with them, and the decoded array."""

import io
import zipfile

import numpy as np
import pytest
import torch
from drawings import BACKGROUND, DRAWERS, EVALUATION, module_on, picture, write_zips
from PIL import Image

from quintet.common.errors import UserError
from quintet.data.episodes import store
from quintet.data.episodes.omniglot import Omniglot, read_ink

FIRST = "images_background/Aleph/character01/0001_01.png"


@pytest.fixture
def zips(tmp_path):
    return write_zips(tmp_path / "zips")


def opened(root, part="background"):
    with Omniglot(str(root)).open(part) as found:
        return {str(c): [found.read(name) for name in c.images] for c in found.characters}


def test_zips_folders_and_the_authors_repository_read_the_same(zips, tmp_path):
    unpacked = tmp_path / "unpacked"
    repository = tmp_path / "repository"
    (repository / "python").mkdir(parents=True)
    for part in ("background", "evaluation"):
        zipfile.ZipFile(zips / f"images_{part}.zip").extractall(unpacked)
        (repository / "python" / f"images_{part}.zip").write_bytes((zips / f"images_{part}.zip").read_bytes())
    for part, alphabets in (("background", BACKGROUND), ("evaluation", EVALUATION)):
        content = opened(zips, part)
        assert len(content) == sum(alphabets.values()) and {len(images) for images in content.values()} == {DRAWERS}
        assert content == opened(unpacked, part) == opened(repository, part)
    assert list(opened(zips))[:4] == ["Aleph/character01", "Aleph/character02", "Aleph/character03", "Beth/character01"]
    assert opened(zips)["Beth/character02"][4] == picture(5, 5)  # alphabets come in the order of BACKGROUND


def test_ink_is_bright_and_resized_with_the_support_of_an_area(zips):
    with Omniglot(str(zips)).open("background") as part:
        full, small = read_ink(part, FIRST, 105), read_ink(part, FIRST, 28)
    drawn = np.asarray(Image.open(io.BytesIO(picture(1, 1))).convert("L"))
    assert np.array_equal(full, 255 - drawn) and small.dtype == np.uint8
    reference = torch.nn.functional.interpolate(
        torch.from_numpy(full)[None, None].float(), size=(28, 28), mode="bilinear", antialias=True
    )
    assert np.abs(small - reference[0, 0].numpy()).max() <= 1


def test_missing_zip_names_it_and_the_sample(zips):
    (zips / "images_evaluation.zip").unlink()
    with pytest.raises(UserError, match=r"images_evaluation\.zip.*data\.root=.*data=glyphs_sample"):
        module_on(zips, zips / "cache")


def test_truncated_zip_is_one_line(zips):
    path = zips / "images_background.zip"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cannot open .*images_background\.zip.*truncated.*download it again"):
        module_on(zips, zips / "cache")


def test_corrupt_picture_is_named(tmp_path):
    whole = picture(1, 1)
    for number, data in enumerate((b"no picture", whole[:60], b"")):
        root = write_zips(tmp_path / str(number), background={FIRST: data})
        with pytest.raises(UserError, match=rf"corrupt image {FIRST} in .*images_background\.zip"):
            module_on(root, root / "cache")


def test_damaged_bytes_inside_the_zip_are_named(zips):
    path = zips / "images_background.zip"
    data = bytearray(path.read_bytes())
    at = data.index(picture(1, 1)) + 40
    data[at] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=f"corrupt image {FIRST}"):
        module_on(zips, zips / "cache")
    assert not list((zips / "cache" / "episodes").glob("*/*.npy")), "a failed build must leave nothing behind"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({FIRST: picture(1, 1, side=28)}, r"0001_01\.png in .* is 28 x 28: Omniglot's are 105 x 105"),
        ({FIRST: None}, r"Aleph/character01 has 5 images, others 6"),
    ],
)
def test_other_sizes_and_missing_drawings(tmp_path, changes, message):
    root = write_zips(tmp_path / "odd", background=changes)
    with pytest.raises(UserError, match=message):
        module_on(root, tmp_path / "cache")


def test_another_zip_under_the_name(zips):
    with zipfile.ZipFile(zips / "images_background.zip", "w") as bundle:
        bundle.writestr("holiday/beach.png", picture(1))
    with pytest.raises(UserError, match=r"images_background\.zip holds no <alphabet>/<character>/<image>\.png"):
        module_on(zips, zips / "cache")


def test_decoded_once_and_again_when_the_files_change(zips, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(store, "read_ink", lambda *args: calls.append(args) or read_ink(*args))
    first = module_on(zips, tmp_path / "cache").images("test").copy()
    decoded = len(calls)
    assert decoded == DRAWERS * (sum(BACKGROUND.values()) + sum(EVALUATION.values()))
    module_on(zips, tmp_path / "cache")
    assert len(calls) == decoded
    name = "images_evaluation/He/character01/0501_01.png"
    write_zips(zips, evaluation={name: picture(99)})
    assert not np.array_equal(module_on(zips, tmp_path / "cache").images("test"), first)


def test_turned_classes_are_classes_of_their_own(zips, tmp_path):
    module = module_on(zips, tmp_path / "cache", val_alphabets=0)
    images, names = module.images("train"), module.classes("train")
    count = sum(BACKGROUND.values())
    assert images.shape == (4 * count, DRAWERS, 12, 12) and len(set(names)) == 4 * count
    for turn in range(4):
        row = turn * count + 5
        assert names[row] == "Beth/character03" + ("", "@90", "@180", "@270")[turn]
        assert np.array_equal(images[row, 2], np.rot90(images[5, 2], turn))
    upright = module_on(zips, tmp_path / "cache", val_alphabets=0, rotations=False)
    assert np.array_equal(upright.images("train"), images[:count])
    assert module.images("test").shape[0] == sum(EVALUATION.values())  # not turned
