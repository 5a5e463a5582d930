"""Pascal sentences, SBU, a table of one's own and the Hub: layouts, and what a mistake is answered with."""

import numpy as np
import pytest
from caption_files import captions_of, content, numbers, write_image, write_json, write_lines

from quintet.common.errors import UserError
from quintet.data.captions.csv_folder import CaptionCSV
from quintet.data.captions.datamodule import CaptionDataModule
from quintet.data.captions.hub import HubCaptions
from quintet.data.captions.pascal import PascalSentences
from quintet.data.captions.sbu import SBU
from quintet.data.special_ids import SPECIAL


def test_pascal_sentences_as_a_page_and_as_files(tmp_path):
    page, files, cells = tmp_path / "page", tmp_path / "files", []
    for n in range(3):
        source = f"{'cat' if n else 'aeroplane'}/2008_00{n}.jpg"
        write_image(page / source, n)
        write_image(files / "dataset" / source, n)
        write_lines(files / "sentence" / source.replace(".jpg", ".txt"), [*captions_of(n), ""])
        rows = "".join(f"<tr><td> {text.replace('dog', '<b>dog</b> &amp;')}</td></tr>\n" for text in captions_of(n))
        cells.append(f'<tr><td><img src="{source}"></td>\n<td><table>\n{rows}</table></td></tr>\n')
    (page / "index.html").write_text(f"<html><h1>A <td>heading</td></h1><table>{''.join(cells)}</table></html>")
    source = PascalSentences(str(page))
    read = content(source.splits(tmp_path / "cache"))
    assert list(read) == ["test"] and set(source.missing) == {"train", "val"}
    assert [n for _, n, _ in read["test"]] == [0, 1, 2] and read["test"][1] == ("cat/2008_001.jpg", 1, captions_of(1))
    assert read["test"][0][2][0] == "A dog & ."
    assert content(PascalSentences(str(files)).splits(tmp_path / "cache"))["test"][2][1:] == (2, captions_of(2))
    (page / "index.html").write_text("<html>moved</html>")
    with pytest.raises(UserError, match=r"index\.html has no table of images and sentences"):
        PascalSentences(str(page)).splits(tmp_path / "cache")
    with pytest.raises(UserError, match=r"has neither index\.html nor a folder `sentence`"):
        PascalSentences(str(page / "cat")).splits(tmp_path / "cache")


def test_a_test_set_has_no_words_of_its_own(tmp_path):
    """Training on it ends in one line; with another run's words it is evaluated."""
    for n in range(3):
        write_image(tmp_path / "dataset" / f"{n}.jpg", n)
        write_lines(tmp_path / "sentence" / f"{n}.txt", captions_of(n))
    options = {"resize_size": 10, "crop_size": 8, "eval_batch_size": 2}
    module = CaptionDataModule(PascalSentences(str(tmp_path)), str(tmp_path / "cache"), **options)
    module.setup()
    for wanted in (lambda: module.data_info, module.test_dataloader):
        with pytest.raises(UserError, match=r"Pascal sentences has no training captions .*see protocol=transfer"):
            wanted()
    module.use_vocabulary([*SPECIAL, "a", "dog", "runs"])
    batches = list(module.test_dataloader())
    assert [b.image_index.tolist() for b in batches] == [[0], [1, 2]] and module.val_dataloader() == []
    assert module.vocabulary.decode(batches[0].words[4]) == "a dog runs <unk> <unk> <unk>"
    assert module.references("test", [1]) == [captions_of(1)]
    with pytest.raises(UserError, match=r"has no train split: Pascal sentences is a test set"):
        module.train_dataloader()


def test_sbu_without_the_images_that_are_gone(tmp_path, caplog):
    there = [0, 1, 3, 4, 5, 7, 8, 9]
    root = tmp_path / "sbu"
    urls = [f"http://static.flickr.com/27/{n}_ab.jpg" for n in range(10)]
    write_lines(root / "dataset" / "SBU_captioned_photo_dataset_urls.txt", urls)
    write_lines(root / "dataset" / "SBU_captioned_photo_dataset_captions.txt", [captions_of(n)[3] for n in range(10)])
    for n in there:
        write_image(tmp_path / "photos" / f"{n}_ab.jpg", n)
    source = SBU(str(root), "skip", images=str(tmp_path / "photos"), val=2, test=3, division_seed=1)
    read = numbers(source.splits(tmp_path / "cache"))
    order = np.random.RandomState(1).permutation(10)
    for split, chosen in (("test", order[:3]), ("val", order[3:5]), ("train", order[5:])):
        assert read[split] == [n for n in sorted(chosen.tolist()) if n in there]
    assert "2 images, first: image " in caplog.text
    write_json(
        tmp_path / "json" / "sbu-captions-all.json",
        {"image_urls": urls, "captions": [captions_of(n)[3] for n in range(10)]},
    )
    other = SBU(str(tmp_path / "json"), "skip", images=str(tmp_path / "photos"), val=2, test=3, division_seed=1)
    assert content(other.splits(tmp_path / "cache")) == content(source.splits(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"image \S+_ab\.jpg is missing; repair it, or leave such out"):
        SBU(str(root), images=str(tmp_path / "photos"), val=2, test=3, division_seed=1).splits(tmp_path / "cache")
    with pytest.raises(UserError, match=r"data\.source\.images=/nowhere: there is no such folder"):
        SBU(str(root), images="/nowhere").splits(tmp_path / "cache")
    write_lines(root / "dataset" / "SBU_captioned_photo_dataset_captions.txt", ["one"])
    with pytest.raises(UserError, match=r"10 addresses but 1 captions"):
        SBU(str(root)).splits(tmp_path / "cache")


# --- your own


def write_csv(root, *rows, header="image,caption"):
    for n in range(10):
        write_image(root / "images" / f"{n}.jpg", n)
    write_lines(root / "captions.csv", [header, *rows])
    return root


PLAIN_ROWS = [f'{n}.jpg,"{text}, here"' for n in range(10) for text in captions_of(n)[:2]]


def test_a_table_of_your_own(tmp_path):
    root = write_csv(tmp_path, *PLAIN_ROWS)
    read = content(
        CaptionCSV(str(root), val_fraction=0.2, test_fraction=0.1, division_seed=2).splits(tmp_path / "cache")
    )
    order = np.random.RandomState(2).permutation(10).tolist()
    assert {s: [n for _, n, _ in rows] for s, rows in read.items()} == {
        "train": sorted(order[3:]), "val": sorted(order[1:3]), "test": order[:1]}  # fmt: skip
    assert read["test"][0] == (f"{order[0]}.jpg", order[0], [f"{t}, here" for t in captions_of(order[0])[:2]])
    rows = [f"Train;{n}.jpg;a dog" for n in (0, 1)] + [
        "validation;2.jpg;a cat",
        "test;3.jpg;a\tbird",
        "train;1.jpg;a fish",
    ]
    write_csv(tmp_path, *rows, header="﻿part;image;caption")
    split = content(CaptionCSV(str(root), split_column="part", delimiter=";").splits(tmp_path / "cache"))
    assert split["train"] == [("0.jpg", 0, ["a dog"]), ("1.jpg", 1, ["a dog", "a fish"])]
    assert [split["val"][0][1], split["test"][0][1]] == [2, 3]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ("1.jpg", {}, r"captions\.csv, row 22: no caption; repair it, or"),
        (",a dog", {}, r"captions\.csv, row 22: no image"),
        ("1.jpg,   ", {}, r"captions\.csv, row 22: no caption"),
        ("1.jpg,...", {}, r"captions\.csv, row 22: the caption '\.\.\.' of 1\.jpg is empty"),
        ("1.jpg,a dog, and a cat", {}, r"row 22: more cells than columns: put a caption with ',' in it in quotes"),
        ("77.jpg,a dog", {}, r"image \S+77\.jpg is missing"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, caplog, row, options, message):
    root = write_csv(tmp_path, *PLAIN_ROWS, row)
    with pytest.raises(UserError, match=message) as error:
        CaptionCSV(str(root), **options).splits(tmp_path / "cache")
    assert "\n" not in str(error.value)
    tables = CaptionCSV(str(root), "skip", **options).splits(tmp_path / "cache")
    assert sum(len(table) for table in tables.values()) == 20
    assert " left out 1 " in caplog.text


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (["train,1.jpg,a dog", "test,1.jpg,a dog"], {}, r"row 3: 1\.jpg is in train above: an image belongs to one"),
        (["training,1.jpg,a dog"], {}, r"row 2: part 'training' is none of train, val, test"),
        ([",1.jpg,a dog"], {}, r"row 2: no part"),
        ([], {"image_column": "file"}, r"data\.source\.image_column=file: \S+ has the columns part, image, caption"),
        (['train,1.jpg,"a "dog'], {}, r"row 2: "),
        (["train,1.jpg,a dog"], {"captions": "other.csv"}, r"has no other\.csv"),
    ],
)
def test_mistakes_in_a_table_with_splits(tmp_path, rows, options, message):
    root = write_csv(tmp_path, *rows, header="part,image,caption")
    with pytest.raises(UserError, match=message):
        CaptionCSV(str(root), split_column="part", **options).splits(tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": -0.1}, r"data\.source\.val_fraction=-0\.1"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, r"together less than 1"),
        ({"delimiter": "tab"}, r"data\.source\.delimiter='tab': give one character"),
    ],
)
def test_impossible_settings_of_a_table(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        CaptionCSV(str(tmp_path), **options)


@pytest.fixture
def parquet(tmp_path):
    """A folder that load_dataset reads, two captions a row in a list and one in a column of its own."""
    from datasets import Dataset, Features, Image, List, Value

    text = Value("string")
    columns = {"image": Image(), "caption": List(text), "more": text, "file": text, "part": text}
    for split, chosen in (("train", range(4)), ("validation", [4]), ("test", [5, 6])):
        files = [write_image(tmp_path / "picture.png", n).read_bytes() for n in chosen]
        rows = {"image": [{"bytes": file, "path": None} for file in files],
                "caption": [captions_of(n)[:2] for n in chosen], "more": [captions_of(n)[2] for n in chosen],
                "file": [f"{n // 2}" for n in chosen], "part": ["abcabcabc"[n] for n in chosen]}  # fmt: skip
        path = tmp_path / "hub" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        Dataset.from_dict(rows, features=Features(columns)).to_parquet(str(path))
    return tmp_path / "hub"


def test_a_data_set_of_the_hub(parquet, tmp_path):
    read = content(HubCaptions(str(parquet)).splits(tmp_path / "cache"))
    assert read["train"][1] == ("train/000001", 1, captions_of(1)[:2])
    assert {split: [n for _, n, _ in rows] for split, rows in read.items()} == {
        "train": [0, 1, 2, 3],
        "val": [4],
        "test": [5, 6],
    }
    columns = HubCaptions(str(parquet), caption_columns=["caption", "more"], id_column="file",
                          names={"train": "train", "val": None, "test": "test"})  # fmt: skip
    read = content(columns.splits(tmp_path / "cache"))
    assert read["train"] == [
        ("0", 0, captions_of(0)[:3] + captions_of(1)[:3]),
        ("1", 2, captions_of(2)[:3] + captions_of(3)[:3]),
    ]
    assert "val" not in read and columns.missing["val"] == "data.source.names has none for val"
    whole = HubCaptions(str(parquet), split_column="part", names={"train": "a", "val": "b", "test": "c"})
    assert numbers(whole.splits(tmp_path / "cache")) == {"train": [0, 3], "val": [1], "test": [2]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "photo"}, r"data\.source\.image_column=photo: \S+ has the columns image, .*part"),
        ({"caption_columns": ["text"]}, r"data\.source\.caption_columns=text"),
        ({"names": {"train": "learn"}}, r"data\.root=\S+ \(split learn\) cannot be loaded"),
        ({"names": {"dev": "train"}}, r"data\.source\.names=\{'dev': 'train'\}"),
        ({"caption_columns": []}, r"data\.source\.caption_columns=\[\]"),
        ({"root": "/no/where"}, r"no Hub data set at data\.root=/no/where"),
    ],
)
def test_mistakes_with_the_hub(parquet, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        HubCaptions(**{"root": str(parquet)} | options).splits(tmp_path / "cache")
