"""What `load_dataset` reads, from local folders in the Hub's layouts: pictures in parquet, tables in csv."""

import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture

from quintet.common.errors import UserError
from quintet.data.examples.datamodule import ExampleDataModule
from quintet.data.examples.hub import HubExamples


def png(colour, side=6):
    file = io.BytesIO()
    Picture.fromarray(np.full((side, side, *np.shape(colour)), colour, np.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write_pictures(folder, splits, names=("cat", "dog")):
    """`train.parquet` ... as Hub data sets of pictures are stored: encoded bytes and a ClassLabel."""
    folder.mkdir(exist_ok=True)
    label = ClassLabel(names=list(names)) if names else Value("string")
    for split, rows in splits.items():
        cells = {"image": [png(colour) for colour, _ in rows], "label": [label for _, label in rows]}
        Dataset.from_dict(cells, Features({"image": Image(), "label": label})).to_parquet(folder / f"{split}.parquet")
    return folder


PICTURES = {"train": [((10, 20, 30), 0), ((40, 50, 60), 1), (70, 1)], "test": [((1, 2, 3), 1), ((4, 5, 6), 0)]}


def first_pixels(dataset):
    return dataset.with_format("numpy")["inputs"][:].reshape(len(dataset), 3, -1)[:, :, 0].tolist()


def test_pictures_of_parquet_files(tmp_path):
    folder = write_pictures(tmp_path / "set", PICTURES | {"validation": [((7, 8, 9), 0)]})
    source = HubExamples(str(folder), image_size=4, names={"train": "train", "val": "validation", "test": "test"})
    splits = source.splits(tmp_path / "cache")
    assert first_pixels(splits["train"]) == [[10, 20, 30], [40, 50, 60], [70, 70, 70]]
    assert first_pixels(splits["val"]) == [[7, 8, 9]] and list(splits["test"]["label"]) == [1, 0]
    assert splits["train"].features["label"].names == ["cat", "dog"] and source.input_shape == (3, 4, 4)
    module = ExampleDataModule(HubExamples(str(folder), image_size=4, grey=True), str(tmp_path / "cache"))
    module.setup()
    assert module.data_info == {"input_shape": [1, 4, 4], "num_classes": 2, "classes": ["cat", "dog"], "num_train": 3}
    assert module.arrays("train")[0][2].unique().tolist() == [pytest.approx(70 / 255)] and not module.val_dataloader()
    assert module.preview("test", 1).title == "test/000001"


def test_read_again_when_the_files_change(tmp_path):
    def pixel():
        return first_pixels(HubExamples(str(tmp_path / "set"), image_size=4).splits(tmp_path / "cache")["test"])[0]

    write_pictures(tmp_path / "set", PICTURES)
    assert pixel() == pixel() == [1, 2, 3]
    write_pictures(tmp_path / "set", PICTURES | {"test": [((9, 9, 9), 1)]})
    assert pixel() == [9, 9, 9]


def test_labels_without_a_list_of_classes_are_sorted(tmp_path):
    rows = {"train": [(1, "wolf"), (2, "fox"), (3, "wolf")], "test": [(4, "fox")]}
    splits = HubExamples(str(write_pictures(tmp_path / "set", rows, None)), image_size=4).splits(tmp_path / "cache")
    assert splits["train"].features["label"].names == ["fox", "wolf"]
    assert list(splits["train"]["label"]) == [1, 0, 1] and list(splits["test"]["label"]) == [0]
    write_pictures(tmp_path / "set", rows | {"test": [(4, "bear")]}, None)
    with pytest.raises(UserError, match=r"label_column=label: split test has 'bear', not one of fox, wolf"):
        HubExamples(str(tmp_path / "set"), image_size=4).splits(tmp_path / "cache")


def test_an_example_without_a_label_is_told(tmp_path):
    folder = write_pictures(tmp_path / "set", PICTURES | {"test": [(4, -1)]})
    with pytest.raises(UserError, match=r"label_column=label: split test has -1, not one of cat, dog"):
        HubExamples(str(folder), image_size=4).splits(tmp_path / "cache")


def table(folder, train="x,y,kind\n1,2.5,a\n3,4,b\n", test="x,y,kind\n5,6,b\n"):
    folder.mkdir(exist_ok=True)
    (folder / "train.csv").write_text(train)
    (folder / "test.csv").write_text(test)
    return folder


def hub_table(folder, **options):
    return HubExamples(str(folder), image_column=None, **({"label_column": "kind"} | options))


def test_tables_of_csv_files(tmp_path):
    source = hub_table(table(tmp_path / "set"))
    splits = source.splits(tmp_path / "cache")
    assert splits["train"].with_format("numpy")["inputs"][:].tolist() == [[1, 2.5], [3, 4]]
    assert source.feature_names == ["x", "y"] and list(splits["test"]["label"]) == [1]
    one = hub_table(tmp_path / "set", feature_columns=["y"])
    assert one.splits(tmp_path / "cache")["test"].with_format("numpy")["inputs"][:].tolist() == [[6]]


@pytest.mark.parametrize("value", ["", "much"])
def test_what_is_no_number_is_told(tmp_path, value):
    folder = table(tmp_path / "set", f"x,y,kind\n5,{value},b\n6,1,a\n")
    with pytest.raises(
        UserError, match=r"column y of split train has .*, not a number: see data\.source\.feature_columns"
    ):
        hub_table(folder).splits(tmp_path / "cache")


def test_files_that_contradict_each_other_are_told_in_one_line(tmp_path):
    folder = table(tmp_path / "set", test="x,y,kind\n5,much,b\n")
    with pytest.raises(UserError, match=r"data\.root=.*set \(split train\) cannot be loaded: .*much") as error:
        hub_table(folder).splits(tmp_path / "cache")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "class"}, r"data\.source\.label_column=class: .*set has the columns x, y, kind"),
        ({"feature_columns": ["x", "z"]}, r"data\.source\.feature_columns=z: .*set has the columns x, y, kind"),
        ({"names": {"train": "train", "test": "dev"}}, r"data\.root=.*set \(split dev\) cannot be loaded: .*dev"),
        ({"names": {"train": "train"}}, r"data\.source\.names=.*: name a split for train, for test"),
        ({"names": {"train": "a", "test": "b", "dev": "c"}}, r"data\.source\.names="),
        ({"image_size": 0}, r"data\.source\.image_size=0"),
    ],
)
def test_impossible_settings(tmp_path, options, message):
    table(tmp_path / "set")
    with pytest.raises(UserError, match=message):
        hub_table(tmp_path / "set", **options).splits(tmp_path / "cache")


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(UserError, match=r"no Hub data set at data\.root=\S*/nothing"):
        HubExamples(str(tmp_path / "nothing")).splits(tmp_path)
