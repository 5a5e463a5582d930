"""Each layout as its archives have it, its divisions, and what a mistake in it is answered with."""

import shutil
import zipfile

import numpy as np
import pytest
from caption_files import captions_of, content, numbers, write_flickr8k, write_image, write_json, write_lines

from quintet.common.errors import UserError
from quintet.data.captions.coco import COCO
from quintet.data.captions.flickr8k import Flickr8k
from quintet.data.captions.flickr30k import Flickr30k
from quintet.data.samples.captions import COLOURS, RADII, SHAPES, SampleCaptions

# --- Flickr8k


def test_flickr8k_out_of_its_archives(tmp_path):
    folder = write_flickr8k(tmp_path / "unpacked", 3, 2, 2)
    archives = tmp_path / "archives"
    archives.mkdir()
    with zipfile.ZipFile(archives / "Flickr8k_Dataset.zip", "w") as bundle:
        for path in (folder / "Flicker8k_Dataset").iterdir():
            bundle.write(path, f"Flicker8k_Dataset/{path.name}")
            bundle.writestr(f"__MACOSX/Flicker8k_Dataset/._{path.name}", "not an image")
    with zipfile.ZipFile(archives / "Flickr8k_text.zip", "w") as bundle:
        for path in folder.glob("*.txt"):
            bundle.write(path, path.name)
    read = content(Flickr8k(str(archives)).splits(tmp_path / "cache"))
    assert read == content(Flickr8k(str(folder)).splits(tmp_path / "cache"))
    assert read["val"] == [(f"{n:04d}_ab.jpg", n, captions_of(n)) for n in (3, 4)]
    assert {split: len(rows) for split, rows in read.items()} == {"train": 3, "val": 2, "test": 2}


def test_a_split_that_is_not_there_is_said_when_it_is_asked_for(tmp_path):
    root = write_flickr8k(tmp_path / "flickr8k", 3, 2, 2)
    (root / "Flickr_8k.testImages.txt").unlink()
    source = Flickr8k(str(root))
    assert set(source.splits(tmp_path)) == {"train", "val"}
    assert source.missing == {"test": "there is no Flickr_8k.testImages.txt beside Flickr8k.token.txt"}
    write_lines(root / "Flickr_8k.testImages.txt", ["0005_ab.jpg", "0006_ab.jpg"])
    for n in (5, 6):
        (root / "Flicker8k_Dataset" / f"{n:04d}_ab.jpg").unlink()
    assert set(source.splits(tmp_path)) == {"train", "val"}
    assert source.missing["test"].startswith("none of its 2 images is there, the first would be ")
    write_lines(root / "Flickr_8k.devImages.txt", [])
    assert set(source.splits(tmp_path)) == {"train"} and source.missing["val"] == "it has no images"
    shutil.rmtree(root / "Flicker8k_Dataset")
    (root / "Flicker8k_Dataset").mkdir()
    with pytest.raises(UserError, match=r"Flickr8k at data\.root=\S+: none of its 3 images is there"):
        source.splits(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: shutil.rmtree(r), r"no Flickr8k at data\.root=\S+: put Flickr8k_Dataset\.zip and .*captions_sample"),
        (lambda r: (r / "Flickr8k.token.txt").unlink(), r"has no Flickr8k\.token\.txt or \*text\*: put it there"),
        (
            lambda r: append(r, "0000_ab.jpg no tab"),
            r"token\.txt, line 36: not `image\.jpg#0<TAB>caption` but '0000_ab",
        ),
        (
            lambda r: append(r, "0000_ab.jpg#3\tAgain ."),
            r"token\.txt, line 36: caption 3 of 0000_ab\.jpg is there twice",
        ),
        (lambda r: append(r, b"0000_ab.jpg#7\t\xff"), r"token\.txt, line 36: not UTF-8"),
        (lambda r: relist(r, ["9_zz.jpg"]), r"devImages\.txt names 9_zz\.jpg, which has no captions"),
        (lambda r: relist(r, ["0000_ab.jpg"]), r"image id 0000_ab\.jpg is in train and in val"),
        (lambda r: relist(r, ["0003_ab.jpg"] * 2), r"image id 0003_ab\.jpg is twice in val: an image belongs to one"),
    ],
)
def test_mistakes_in_flickr8k(tmp_path, damage, message):
    root = write_flickr8k(tmp_path / "flickr8k", 3, 2, 2)
    damage(root)
    with pytest.raises(UserError, match=message) as error:
        Flickr8k(str(root)).splits(tmp_path / "cache")
    assert "\n" not in str(error.value)


def append(root, line):
    with (root / "Flickr8k.token.txt").open("ab") as file:
        file.write(line if isinstance(line, bytes) else line.encode())


def relist(root, names):
    write_lines(root / "Flickr_8k.devImages.txt", names)


# --- what is wrong with single images and captions


def spoil(root):
    """Two missing, one cut off, one no picture, one caption without a word, one image without any."""
    images = root / "Flicker8k_Dataset"
    (images / "0000_ab.jpg").unlink()
    (images / "0001_ab.jpg").unlink()
    whole = (images / "0002_ab.jpg").read_bytes()
    (images / "0002_ab.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "0003_ab.jpg").write_text("<html>gone</html>")
    lines = (root / "Flickr8k.token.txt").read_text().splitlines()
    lines[20] = "0004_ab.jpg#0\t ... !"
    lines[25:30] = [f"0005_ab.jpg#{k}\t." for k in range(5)]
    write_lines(root / "Flickr8k.token.txt", lines)


def test_what_is_wrong_is_named_or_skipped_and_counted(tmp_path, caplog):
    root = write_flickr8k(tmp_path / "flickr8k", 9, 2, 2)
    spoil(root)
    with pytest.raises(
        UserError, match=r"image \S+0000_ab\.jpg is missing; repair it, or .*data\.source\.on_error=skip"
    ):
        Flickr8k(str(root)).splits(tmp_path)
    source = Flickr8k(str(root), on_error="skip")
    tables = source.splits(tmp_path)
    assert numbers(tables) == {"train": [4, 6, 7, 8], "val": [9, 10], "test": [11, 12]}
    assert content(tables)["train"][0][2] == captions_of(4)[1:]
    said = ("4 images, first: image ", "0000_ab.jpg is missing", "6 captions, first: ", "token.txt, line 21: ",
            "the caption '... !' of 0004_ab.jpg is empty", "1 images without a caption, first: image 0005")  # fmt: skip
    for text in said:
        assert text in caplog.text
    caplog.clear()
    source.splits(tmp_path)  # out of the cache
    assert "4 images, first" in caplog.text
    write_image(root / "Flicker8k_Dataset" / "0000_ab.jpg", 0)
    assert numbers(source.splits(tmp_path))["train"] == [0, 4, 6, 7, 8], "a repaired file is looked at again"


@pytest.mark.parametrize(
    ("number", "message"), [(2, "corrupt image"), (3, "corrupt image"), (4, "line 21: the caption")]
)
def test_each_broken_file_is_named(tmp_path, number, message):
    root = write_flickr8k(tmp_path / "flickr8k", 9, 2, 2)
    spoil(root)
    relist(root, ["0009_ab.jpg"])
    write_lines(root / "Flickr_8k.trainImages.txt", [f"{number:04d}_ab.jpg", "0008_ab.jpg"])
    with pytest.raises(UserError, match=rf"{message}.*{number:04d}_ab\.jpg") as error:
        Flickr8k(str(root)).splits(tmp_path)
    assert "\n" not in str(error.value) and str(error.value).count(";") == 1


def test_nothing_left_and_no_such_policy(tmp_path):
    root = write_flickr8k(tmp_path / "flickr8k", 2, 1, 1, lambda n: [".", "!"])
    with pytest.raises(UserError, match=r"the train split of Flickr8k has nothing left: 4 captions, first: .*line 1"):
        Flickr8k(str(root), "skip").splits(tmp_path)
    with pytest.raises(UserError, match=r"data\.source\.on_error=ignore: choose fail or skip"):
        Flickr8k(str(root), "ignore")


def test_looked_at_once(tmp_path, monkeypatch):
    root, calls = write_flickr8k(tmp_path / "flickr8k", 3, 2, 2), []
    original = Flickr8k.load
    monkeypatch.setattr(Flickr8k, "load", lambda self, path: calls.append(path) or original(self, path))
    Flickr8k(str(root)).splits(tmp_path)
    Flickr8k(str(root)).splits(tmp_path)
    assert len(calls) == 7


# --- Karpathy's files, Flickr30k and COCO


def karpathy(numbers_of, **extra):
    """numbers_of: split -> numbers of images."""
    return {"images": [
        {"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": text} for text in captions_of(n)]}
        | {key: value(n) for key, value in extra.items()}
        for split, chosen in numbers_of.items() for n in chosen
    ]}  # fmt: skip


def test_flickr30k_by_karpathy_and_drawn(tmp_path, monkeypatch):
    root = tmp_path / "flickr30k"
    for n in range(9):
        write_image(root / "flickr30k-images" / f"{n}.jpg", n)
    write_json(root / "dataset_flickr30k.json", karpathy({"val": [8], "train": [3, 1], "test": [0, 2]}))
    read = content(Flickr30k(str(root)).splits(tmp_path / "cache"))
    assert {split: [n for _, n, _ in rows] for split, rows in read.items()} == {
        "train": [3, 1],
        "val": [8],
        "test": [0, 2],
    }
    assert read["train"][0] == ("3.jpg", 3, captions_of(3))
    lines = [f"{n}.jpg#{k}\t{text}" for n in range(9) for k, text in enumerate(captions_of(n))]
    write_lines(root / "results_20130124.token", lines)
    monkeypatch.setattr("quintet.data.captions.flickr30k.HELD_OUT", 2)
    split = numbers(Flickr30k(str(root), division="drawn", division_seed=3).splits(tmp_path / "cache"))
    order = np.random.RandomState(3).permutation(9).tolist()
    assert split == {"train": sorted(order[4:]), "val": sorted(order[2:4]), "test": sorted(order[:2])}
    monkeypatch.setattr("quintet.data.captions.flickr30k.HELD_OUT", 5)
    with pytest.raises(UserError, match=r"data\.source\.division=drawn: 5 \+ 5 images of 9 to hold out"):
        Flickr30k(str(root), division="drawn").splits(tmp_path / "cache")
    with pytest.raises(UserError, match=r"data\.source\.division=mine: choose karpathy or drawn"):
        Flickr30k(str(root), division="mine")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"split": "dev"}, r"image 0\.jpg: split 'dev' is none of train, val, test, restval"),
        ({"sentences": [{}]}, r"image 0: no 'raw': is it Karpathy's dataset_\*\.json\?"),
        ({"filename": "1.jpg"}, r"image id 1\.jpg is in train and in val"),
    ],
)
def test_mistakes_in_karpathys_files(tmp_path, entry, message):
    for n in range(3):
        write_image(tmp_path / "flickr30k-images" / f"{n}.jpg", n)
    file = karpathy({"train": [0], "val": [1], "test": [2]})
    file["images"][0] |= entry
    path = write_json(tmp_path / "dataset_flickr30k.json", file)
    with pytest.raises(UserError, match=message):
        Flickr30k(str(tmp_path)).splits(tmp_path / "cache")
    path.write_text('{"images": [')
    with pytest.raises(UserError, match=r"dataset_flickr30k\.json is not JSON"):
        Flickr30k(str(tmp_path)).splits(tmp_path / "cache")
    write_json(path, {"annotations": []})
    with pytest.raises(UserError, match=r"dataset_flickr30k\.json has no 'images'"):
        Flickr30k(str(tmp_path)).splits(tmp_path / "cache")


TRAIN, VAL = range(10), range(10, 50)


def coco_file(chosen, part):
    images = [{"id": 1000 + n, "file_name": f"COCO_{part}_{n}.jpg"} for n in chosen]
    annotations = [{"image_id": 1000 + n, "id": 10 * n + k, "caption": captions_of(n)[k]}
                   for k in (4, 3, 2, 1, 0) for n in chosen]  # fmt: skip
    return {"images": images, "annotations": annotations}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    for part, chosen in (("train2014", TRAIN), ("val2014", VAL)):
        for n in chosen:
            write_image(root / part / f"COCO_{part}_{n}.jpg", n)
        write_json(root / "annotations" / f"captions_{part}.json", coco_file(chosen, part))
    entries = {"train": TRAIN, "restval": VAL[:20], "val": VAL[20:25], "test": VAL[25:30]}

    def part_of(n):
        return "train2014" if n in TRAIN else "val2014"

    extra = {"filepath": part_of, "cocoid": lambda n: 1000 + n, "filename": lambda n: f"COCO_{part_of(n)}_{n}.jpg"}
    write_json(root / "dataset_coco.json", karpathy(entries, **extra))
    return root


def test_the_four_divisions_of_coco(coco, tmp_path):
    def read(division, **options):
        source = COCO(str(coco), division=division, **options)
        return numbers(source.splits(tmp_path)), source

    assert read("karpathy")[0] == {"train": [*TRAIN, *VAL[:20]], "val": [*VAL[20:25]], "test": [*VAL[25:30]]}
    official, source = read("official")
    assert official == {"train": [*TRAIN], "val": [*VAL]}
    assert source.missing == {"test": "COCO's test captions are on its server only"}
    assert read("im2txt")[0] == {"train": [*TRAIN, *VAL[:34]], "val": [*VAL[34:36]], "test": [*VAL[36:]]}
    order = np.random.RandomState(5).permutation(40)
    paper = read("paper", division_seed=5, paper_test=8, paper_val=4)[0]
    assert paper == {"train": [*TRAIN], "val": [VAL[i] for i in sorted(order[8:12])],
                     "test": [VAL[i] for i in sorted(order[:8])]}  # fmt: skip
    name, _, captions = content(COCO(str(coco), division="official").splits(tmp_path))["val"][3]
    assert name == "1013" and captions == captions_of(13), "in the order of the annotations' ids"
    with pytest.raises(UserError, match=r"data\.source\.paper_val, data\.source\.paper_test: 4 \+ 37 images of 40"):
        read("paper", paper_test=37, paper_val=4)
    with pytest.raises(UserError, match=r"data\.source\.division=2017: choose karpathy, official, im2txt, paper"):
        read("2017")


def test_im2txts_division_is_the_authors_on_the_real_number_of_images():
    """Their evaluation is known to be on 4,051 of 40,504 images."""
    from quintet.data.captions.coco import IM2TXT

    first, second = (int(share * 40504) for share in IM2TXT)
    assert 82783 + first == 117211 and (second - first, 40504 - second) == (2025, 4051)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["images"].append({"id": 1010, "file_name": "again.jpg"}), r"image id 1010 is there twice"),
        (
            lambda c: c["annotations"].append({"image_id": 7, "id": 1, "caption": "x"}),
            r"a caption is of image 7, which",
        ),
        (lambda c: c["annotations"].append({"image_id": 1010, "id": 1}), r"an entry without 'caption': \{'image_id'"),
        (lambda c: c.pop("annotations"), r"captions_val2014\.json has no 'annotations'"),
        (
            lambda c: c["images"].append({"id": 99, "file_name": "COCO_val2014_11.jpg"}),
            r"image 99 has no caption; repair",
        ),
    ],
)
def test_mistakes_in_cocos_files(coco, tmp_path, damage, message):
    root = tmp_path / "coco"
    shutil.copytree(coco, root)
    file = coco_file(VAL, "val2014")
    damage(file)
    write_json(root / "annotations" / "captions_val2014.json", file)
    with pytest.raises(UserError, match=message):
        COCO(str(root), division="official").splits(tmp_path / "cache")


def test_coco_out_of_its_zips_and_without_its_images(coco, tmp_path):
    root = tmp_path / "zips"
    root.mkdir()
    for name, folder in (
        ("annotations_trainval2014", "annotations"),
        ("train2014", "train2014"),
        ("val2014", "val2014"),
    ):
        shutil.make_archive(str(root / name), "zip", coco, folder)
    assert numbers(COCO(str(root), division="official").splits(tmp_path)) == {"train": [*TRAIN], "val": [*VAL]}
    (root / "val2014.zip").unlink()
    source = COCO(str(root), division="official")
    assert set(source.splits(tmp_path)) == {"train"} and "none of its 40 images is there" in source.missing["val"]


# --- the sample


def test_the_sample_is_cocos_layout_and_its_captions_are_true(tmp_path):
    source = SampleCaptions(str(tmp_path / "sample"), num_train=60, num_val=4, num_test=5)
    tables = source.splits(tmp_path / "cache")
    assert [tables[s].num_images for s in ("train", "val", "test")] == [60, 4, 5]
    official = SampleCaptions(str(tmp_path / "sample"), num_train=60, num_val=4, num_test=5, division="official")
    assert [t.num_images for t in official.splits(tmp_path / "cache").values()] == [60, 9]
    seen, templates = set(), set()
    for image in range(60):
        pixels = tables["train"].picture(image).permute(1, 2, 0).numpy().astype(int)
        texts = list(tables["train"].texts[slice(*tables["train"].first_i[image : image + 2])]["text"])
        assert len(set(texts)) == 5
        words = " ".join(texts).lower().split()
        seen |= set(words)
        templates |= {" ".join(w for w in t.lower().split() if w not in {*COLOURS, *RADII, *SHAPES}) for t in texts}
        for colour, rgb in COLOURS.items():
            near = (np.abs(pixels - rgb).sum(-1) < 75).sum()
            assert (near > 120) == (colour in words), (image, colour, near)
    assert {*COLOURS, *RADII, *SHAPES} <= seen and len(templates) >= 10
    with pytest.raises(UserError, match=r"data\.source\.num_val=0"):
        SampleCaptions(str(tmp_path), num_val=0).splits(tmp_path)
