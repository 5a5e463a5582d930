"""The official layouts, in folders and archives, and what each gap in them is answered with."""

import hashlib
import shutil
import tarfile

import numpy as np
import pytest
from devkit import coloured, labels_of, write_lines, write_palette, write_picture, write_voc
from scipy.io import savemat

from quintet.common.errors import UserError
from quintet.data.segmentation import source as source_room
from quintet.data.segmentation.cityscapes import Cityscapes
from quintet.data.segmentation.context import CLASSES as CONTEXT
from quintet.data.segmentation.context import PascalContext
from quintet.data.segmentation.datamodule import SegmentationDataModule
from quintet.data.segmentation.folder import SegmentationFolder
from quintet.data.segmentation.person_part import PersonPart
from quintet.data.segmentation.voc import VOC


def names(splits, split="train"):
    return list(splits[split]["name"])


def classes_of(source, cache, split="train", index=0):
    module = SegmentationDataModule(source, str(cache), batch_size=1, crop_size=17, eval_size=None)
    module.setup()
    return module.raw(split, index)[1]


def test_voc_as_tar_as_folder_and_as_the_tar_in_a_folder(tmp_path):
    write_voc(tmp_path / "voc")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    archive = downloads / "VOCtrainval_11-May-2012.tar"
    with tarfile.open(archive, "w") as bundle:
        bundle.add(tmp_path / "voc" / "VOCdevkit", "VOCdevkit")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()  # it is not the official tar of that name
    (downloads / "SHA256SUMS").write_text(f"{digest}  {archive.name}\n")
    places = [tmp_path / "voc", tmp_path / "voc" / "VOCdevkit" / "VOC2012", archive, downloads]
    for place in places:
        splits = VOC(str(place)).splits(tmp_path / "cache")
        assert [len(splits[split]) for split in ("train", "val", "test")] == [5, 3, 3]
        assert names(splits) == [f"2012_{n:06d}" for n in range(5)] and names(splits, "val") == names(splits, "test")
        assert splits["train"][0]["height"] == 20 and splits["train"][0]["width"] == 30
        assert splits["train"][0]["classes"] == [0, 1, 2, 3]  # 255 is none
        assert np.array_equal(classes_of(VOC(str(place)), tmp_path / "cache", index=2), labels_of(2))


def test_of_several_years_the_right_one(tmp_path):
    write_voc(tmp_path, train=2, val=1, year="2007")
    write_voc(tmp_path)
    assert names(VOC(str(tmp_path)).splits(tmp_path / "cache"))[0] == "2012_000000"


def test_trainaug_from_its_list_in_deeplabs_format(tmp_path):
    folder = write_voc(tmp_path)
    shutil.copytree(folder / "SegmentationClass", folder / "SegmentationClassAug")
    write_picture(folder / "JPEGImages" / "2008_000001.jpg", coloured(labels_of(9)))
    write_picture(folder / "SegmentationClassAug" / "2008_000001.png", labels_of(9))
    lines = [
        f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in ("2012_000000", "2008_000001", "2012_000000")
    ]
    write_lines(folder / "ImageSets" / "Segmentation" / "trainaug.txt", lines)
    source = VOC(str(tmp_path), train="trainaug", masks="SegmentationClassAug")
    assert names(source.splits(tmp_path / "cache")) == ["2012_000000", "2008_000001"]
    assert np.array_equal(classes_of(source, tmp_path / "cache", index=1), labels_of(9))


def test_trainaug_put_together_from_sbd(tmp_path):
    """VOC's train and SBD's train and val without VOC's val; VOC's own mask where both have one."""
    folder = write_voc(tmp_path / "voc", train=2, val=2)
    sbd = tmp_path / "benchmark_RELEASE" / "dataset"
    extra = {"2012_000000": 11, "2012_000003": 12, "2010_000007": 13, "2009_000008": 14}
    (sbd / "cls").mkdir(parents=True)
    for name, number in extra.items():
        savemat(sbd / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": labels_of(number)}})
        write_picture(folder / "JPEGImages" / f"{name}.jpg", coloured(labels_of(number)))
    write_lines(sbd / "train.txt", ["2012_000000", "2012_000003", "2010_000007"])
    write_lines(sbd / "val.txt", ["2009_000008"])
    source = VOC(str(tmp_path / "voc"), train="trainaug", sbd=str(tmp_path / "benchmark_RELEASE"))
    assert names(source.splits(tmp_path / "cache")) == ["2009_000008", "2010_000007", "2012_000000", "2012_000001"]
    expected = (14, 13, 0, 1)
    for index, number in enumerate(expected):
        assert np.array_equal(classes_of(source, tmp_path / "cache", index=index), labels_of(number))
    (sbd / "cls" / "2010_000007.mat").unlink()
    with pytest.raises(
        UserError, match=r"train\.txt names 2010_000007, but mask .*2010_000007\.mat is missing \(1 of 2"
    ):
        source.splits(tmp_path / "cache")
    with pytest.raises(UserError, match=r"no SBD at data\.source\.sbd=.*voc: put benchmark\.tgz"):
        VOC(str(tmp_path / "voc"), train="trainaug", sbd=str(tmp_path / "voc")).splits(tmp_path / "cache")


def test_files_are_looked_at_once_and_again_when_one_changes(tmp_path, monkeypatch):
    folder = write_voc(tmp_path)
    calls = []
    monkeypatch.setattr(source_room, "check", lambda *args: calls.append(args) or check(*args))
    VOC(str(tmp_path)).splits(tmp_path / "cache")
    assert len(calls) == 8  # val and test are the same three
    VOC(str(tmp_path)).splits(tmp_path / "cache")
    assert len(calls) == 8
    write_palette(folder / "SegmentationClass" / "2012_000001.png", np.zeros((20, 30), np.uint8))
    VOC(str(tmp_path)).splits(tmp_path / "cache")
    assert len(calls) == 16


check = source_room.check


def refused(folder, cache, message, **options):
    with pytest.raises(UserError, match=message) as error:
        VOC(str(folder), **options).splits(cache)
    assert "\n" not in str(error.value)
    assert not list((cache / "segmentation").glob("*/")), "a failed check must leave nothing behind"


def test_bad_files_are_one_line_that_names_them(tmp_path):
    folder = write_voc(tmp_path / "voc")
    masks, images, cache = folder / "SegmentationClass", folder / "JPEGImages", tmp_path / "cache"
    good = labels_of(1)
    write_palette(masks / "2012_000001.png", good[:, :-1].copy())
    refused(
        tmp_path, cache, r"mask .*2012_000001\.png is 29 x 20 pixels, its image .*2012_000001\.jpg 30 x 20: they must"
    )
    write_palette(masks / "2012_000001.png", np.where(good == 3, 21, good).astype(np.uint8))
    refused(tmp_path, cache, r"mask .*2012_000001\.png: label 21 at row .* legal are 0-20, 255 \(21 classes")
    write_picture(masks / "2012_000001.png", coloured(good))
    refused(tmp_path, cache, r"mask .*2012_000001\.png is a color image")
    write_palette(masks / "2012_000001.png", good)
    whole = (images / "2012_000006.jpg").read_bytes()
    (images / "2012_000006.jpg").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, cache, r"corrupt image .*2012_000006\.jpg: .*; replace it, or take it out of the list")
    (images / "2012_000006.jpg").unlink()
    refused(tmp_path, cache, r"val\.txt names 2012_000006, but image .*2012_000006\.jpg is missing \(1 of 3 are\)")
    (images / "2012_000006.jpg").write_bytes(whole)
    (masks / "2012_000004.png").unlink()
    refused(tmp_path, cache, r"train\.txt names 2012_000004, but mask .*2012_000004\.png is missing")


def test_levels_that_are_no_colours_are_refused_before_training(tmp_path):
    deep = {"floating-point levels": np.float32(0.5), "levels from 70000": np.int32(70_000)}
    for message, level in deep.items():
        for part in ("train", "test"):
            write_picture(tmp_path / "images" / part / "x.tif", np.full((9, 9), level))
            write_picture(tmp_path / "masks" / part / "x.png", np.zeros((9, 9), np.uint8))
        with pytest.raises(UserError, match=rf"^image .*x\.tif: {message}.*: save it with 8 or 16 bits$"):
            SegmentationFolder(str(tmp_path), ["a", "b"]).splits(tmp_path / "cache")


def test_odd_pictures_are_read(tmp_path):
    folder = write_voc(tmp_path, train=4)
    pictures = {
        0: (np.full((20, 30), 7, np.uint8), "L"),
        1: (np.full((20, 30, 4), 7, np.uint8), "CMYK"),
        2: (np.full((20, 1, 3), 7, np.uint8), None),
    }
    for number, (array, mode) in pictures.items():
        write_picture(folder / "JPEGImages" / f"2012_{number:06d}.jpg", array, mode)
    write_palette(folder / "SegmentationClass" / "2012_000002.png", np.zeros((20, 1), np.uint8))
    module = SegmentationDataModule(VOC(str(tmp_path)), str(tmp_path / "cache"), batch_size=4, crop_size=41,
                                    scales=[0.1], eval_size=33)  # fmt: skip
    module.setup()
    (batch,) = module.train_dataloader()
    assert batch.images.shape == (4, 3, 41, 41)
    assert {int(i): size.tolist() for i, size in zip(batch.index, batch.sizes, strict=True)} == {
        0: [2, 3], 1: [2, 3], 2: [2, 1], 3: [2, 3]}  # fmt: skip


def test_missing_lists_folders_and_archives(tmp_path):
    folder = write_voc(tmp_path / "voc")
    cache = tmp_path / "cache"
    refused(
        tmp_path / "voc", cache, r"data\.source\.val=dev: .*ImageSets/Segmentation has the lists train, val", val="dev"
    )
    refused(tmp_path / "voc", cache, r"data\.source\.train=trainaug: .*not part of VOC's own.*sbd=", train="trainaug")
    refused(tmp_path / "voc", cache, r"data\.root=.* has no folder SegmentationClassAug", masks="SegmentationClassAug")
    refused(tmp_path / "nowhere", cache, r"no VOC 2012 at data\.root=.*nowhere: put VOCtrainval.*data=shapes_sample")
    write_lines(folder / "ImageSets" / "Segmentation" / "train.txt", ["", " "])
    refused(tmp_path / "voc", cache, r"the list .*train\.txt is empty")


def labels_txt(folder):
    """459 lines in the order of the alphabet, as the authors' are: the 59 among others."""
    others = [f"zz{n}" for n in range(400)]
    named = sorted([*CONTEXT[1:], *others])
    write_lines(folder / "labels.txt", [f"{n}: {name}" for n, name in enumerate(named, 1)])
    return {name: n for n, name in enumerate(named, 1)}


def test_context_of_the_authors_and_as_pngs(tmp_path):
    folder = write_voc(tmp_path, year="2010", masks="SegmentationClassContext", lists="Main")
    number = labels_txt(tmp_path)
    (tmp_path / "trainval").mkdir()
    table = np.array([number["zz3"], number["aeroplane"], number["bag"], number["bed"]], np.uint16)
    for path in sorted((folder / "SegmentationClassContext").glob("*.png")):
        n = int(path.stem[-3:])
        inside = labels_of(n) % 4  # no 255 in Context
        savemat(tmp_path / "trainval" / f"{path.stem}.mat", {"LabelMap": table[inside]})
        write_picture(path, inside)
    assert len(CONTEXT) == 60 and sorted(CONTEXT[1:]) == CONTEXT[1:]
    for masks in ("trainval", "SegmentationClassContext"):
        source = PascalContext(str(tmp_path), masks=masks)
        splits = source.splits(tmp_path / "cache")
        assert (len(splits["train"]), len(splits["test"])) == (5, 3) and len(source.labels.classes) == 60
        assert np.array_equal(classes_of(source, tmp_path / "cache", "test", 2), labels_of(7) % 4)
    (tmp_path / "labels.txt").write_text("1: aeroplane\n")
    with pytest.raises(UserError, match=r"labels\.txt names no bag"):
        PascalContext(str(tmp_path)).splits(tmp_path / "cache")
    (tmp_path / "labels.txt").write_text("aeroplane\n")
    with pytest.raises(UserError, match=r"labels\.txt: 'aeroplane' is no `number: name`"):
        PascalContext(str(tmp_path)).splits(tmp_path / "cache")
    (tmp_path / "labels.txt").unlink()
    with pytest.raises(UserError, match=r"labels\.txt is missing"):
        PascalContext(str(tmp_path)).splits(tmp_path / "cache")


def test_person_part_of_the_authors(tmp_path):
    folder = write_voc(tmp_path, year="2010", masks="unused")
    own = tmp_path / "pascal_person_part"
    shutil.move(folder / "unused", own / "pascal_person_part_gt")
    for part in ("train", "val"):
        lines = (folder / "ImageSets" / "Segmentation" / f"{part}.txt").read_text().split()
        lines = [f"/JPEGImages/{name}.jpg /pascal_person_part_gt/{name}.png" for name in lines]
        write_lines(own / "pascal_person_part_trainval_list" / f"{part}.txt", lines)
    source = PersonPart(str(tmp_path))
    splits = source.splits(tmp_path / "cache")
    assert (len(splits["train"]), len(splits["val"]), len(source.labels.classes)) == (5, 3, 7)
    assert np.array_equal(classes_of(source, tmp_path / "cache", "val", 1), labels_of(6))
    shutil.rmtree(own / "pascal_person_part_gt")
    with pytest.raises(UserError, match=r"has no folder pascal_person_part_gt: put VOC 2010"):
        source.splits(tmp_path / "cache")


# the two columns id and trainId of the authors' labels.py
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
             28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip


def test_cityscapes_ids_become_train_ids(tmp_path):
    for part, city, count in (("train", "aachen", 2), ("train", "bochum", 1), ("val", "lindau", 1)):
        for number in range(count):
            stem = f"{city}_{number:06d}_000019"
            write_picture(
                tmp_path / "leftImg8bit" / part / city / f"{stem}_leftImg8bit.png", np.zeros((2, 17, 3), np.uint8)
            )
            ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
            write_picture(tmp_path / "gtFine" / part / city / f"{stem}_gtFine_labelIds.png", ids)
    zips = tmp_path / "zips"
    zips.mkdir()
    for name in ("leftImg8bit", "gtFine"):
        shutil.make_archive(str(zips / f"{name}_trainvaltest"), "zip", tmp_path, name)
    for root in (tmp_path, zips):
        source = Cityscapes(str(root))
        splits = source.splits(tmp_path / "cache")
        assert names(splits) == ["aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000019"]
        assert names(splits, "val") == names(splits, "test") == ["lindau_000000_000019"]
        found = classes_of(source, tmp_path / "cache", "test").reshape(-1)
        assert {n: int(c) for n, c in enumerate(found) if c != 255} == TRAIN_IDS
    assert source.labels.classes[0] == "road" and source.labels.classes[11] == "person"
    with pytest.raises(UserError, match=r"data\.source\.val=dev: .*leftImg8bit has the folders train, val"):
        Cityscapes(str(tmp_path), val="dev").splits(tmp_path / "cache")
    next((tmp_path / "gtFine" / "val" / "lindau").glob("*.png")).unlink()
    with pytest.raises(UserError, match=r"has no mask .*lindau_000000_000019_gtFine_labelIds\.png: unpack gtFine"):
        Cityscapes(str(tmp_path)).splits(tmp_path / "cache")


CAMVID = {"classes": ["sky", "road", "car"], "images": "{split}", "masks": "{split}annot", "ignored": [3]}


def test_camvid_and_a_zip_of_it(tmp_path):
    for part, count in (("train", 3), ("val", 1), ("test", 2)):
        for number in range(count):
            write_picture(tmp_path / "CamVid" / part / f"{number}.png", coloured(labels_of(number)))
            write_picture(tmp_path / "CamVid" / f"{part}annot" / f"{number}.png", labels_of(number))
    archive = shutil.make_archive(str(tmp_path / "camvid"), "zip", tmp_path, "CamVid")
    for root in (tmp_path, tmp_path / "CamVid", archive):
        source = SegmentationFolder(str(root), **CAMVID)
        splits = source.splits(tmp_path / "cache")
        assert [len(splits[split]) for split in ("train", "val", "test")] == [3, 1, 2]
        found, given = classes_of(source, tmp_path / "cache", index=1), labels_of(1)
        assert np.array_equal(found, np.where(given == 3, 255, given))
    shutil.rmtree(tmp_path / "CamVid" / "test")
    assert names(SegmentationFolder(str(tmp_path), **CAMVID).splits(tmp_path / "cache"), "test") == ["0"]  # val
    shutil.rmtree(tmp_path / "CamVid" / "val")
    with pytest.raises(UserError, match=r"has pictures for train only"):
        SegmentationFolder(str(tmp_path), **CAMVID).splits(tmp_path / "cache")


def test_lists_colours_and_a_suffix(tmp_path):
    colours = [[128, 64, 128], [0, 0, 142], [70, 130, 180], [1, 2, 3]]
    for number in range(4):
        write_picture(tmp_path / "pictures" / f"{number}.jpg", coloured(labels_of(number)))
        painted = np.array(colours, np.uint8)[labels_of(number) % 4]
        write_picture(tmp_path / "drawn" / f"{number}_L.png", painted)
    write_lines(tmp_path / "train.txt", ["0.jpg", "3.jpg"])
    write_lines(tmp_path / "val.txt", ["1"])
    options = {"classes": ["a", "b", "c", "d"], "images": "pictures", "masks": "drawn", "mask_suffix": "_L.png"}
    source = SegmentationFolder(str(tmp_path), **options, colours=colours)
    splits = source.splits(tmp_path / "cache")
    assert names(splits) == ["0", "3"] and names(splits, "val") == names(splits, "test") == ["1"]
    assert np.array_equal(classes_of(source, tmp_path / "cache", index=1), labels_of(3) % 4)
    with pytest.raises(UserError, match=r"drawn/0_L\.png is a color image: give the colour of every class"):
        SegmentationFolder(str(tmp_path), **options).splits(tmp_path / "cache")
    write_lines(tmp_path / "val.txt", ["1", "9", "8"])
    with pytest.raises(UserError, match=r"val\.txt names 9, but .*pictures has no such picture \(2 of 3 are missing\)"):
        source.splits(tmp_path / "cache")


def test_one_is_the_first_class(tmp_path):
    for part in ("train", "test"):
        write_picture(tmp_path / "images" / part / "x.png", np.zeros((1, 4, 3), np.uint8))
        write_picture(tmp_path / "masks" / part / "x.png", np.array([[0, 1, 2, 255]], np.uint8))
    source = SegmentationFolder(str(tmp_path), ["a", "b"], zero_is_ignored=True)
    source.splits(tmp_path / "cache")
    assert classes_of(source, tmp_path / "cache").tolist() == [[255, 0, 1, 255]]
    (tmp_path / "masks" / "train" / "x.png").unlink()
    with pytest.raises(
        UserError, match=r"image .*images/train/x\.png has no mask .*masks/train/x\.png: add it, or set"
    ):
        source.splits(tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["a"]}, r"data\.source\.classes=\['a'\]: give the names of 2 to 255 different classes"),
        ({"classes": ["a", "a"]}, r"different classes"),
        ({"images": "img"}, r"data\.source\.images=img, masks=masks/\{split\}: put \{split\} into both or neither"),
        ({"colours": [[1, 2, 3]]}, r"data\.source\.colours has 1 colours for 2 classes"),
    ],
)
def test_impossible_folder_settings(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        SegmentationFolder(str(tmp_path), **{"classes": ["a", "b"]} | options)
