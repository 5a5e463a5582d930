"""UCI's diabetic_data.csv: layouts, columns, the split, section 5.3, and the published fit on the real file."""

import csv
import io
import zipfile

import numpy as np
import pandas
import pytest
from commands import REPOSITORY
from scipy.special import log_expit
from sklearn.linear_model import LogisticRegression

from quintet.common.errors import UserError
from quintet.data.examples.datamodule import ExampleDataModule
from quintet.data.examples.diabetes import CATEGORIES, COUNTS, DISCHARGE, FILE, Diabetes
from quintet.data.samples.diabetes import COLUMNS, SampleDiabetes, write_diabetes_sample

REAL = REPOSITORY.parent / "shared" / "data" / "diabetes130" / "dataset_diabetes.zip"
PLAIN = dict.fromkeys(COLUMNS, "No") | dict.fromkeys((*COUNTS, DISCHARGE), "1") | {"readmitted": "NO"}


def row(number, **changes):
    return PLAIN | {"encounter_id": str(number), "age": "[50-60)"} | changes


# ten rows, four of them class 1; 0, 1 and 4 are children, of whom 1 is readmitted in time
ROWS = [
    row(0, age="[0-10)", gender="Female", discharge_disposition_id="11"),
    row(1, age="[0-10)", gender="Male", readmitted="<30", race="?"),
    row(2, gender="Male", readmitted=">30", race="Asian", num_procedures="6"),
    row(3, gender="Male", readmitted="<30", discharge_disposition_id="3"),
    row(4, age="[0-10)", gender="Female", max_glu_serum="None"),
    *(row(n, gender="Male", readmitted="<30", race="Asian") for n in (5, 6)),
    *(row(n, gender="Male", readmitted=">30", race="?") for n in (7, 8, 9)),
]


def text(rows, columns=COLUMNS):
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def write(folder, content=None):
    folder.mkdir(parents=True, exist_ok=True)
    content = text(ROWS) if content is None else content
    (folder / FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def everything(source, cache):
    """{split: (inputs, labels, names)}"""
    found = {}
    for split, rows in source.splits(cache).items():
        found[split] = (np.array(rows["inputs"], np.float32), np.array(rows["label"]), list(rows["name"]))
    return found


def read(tmp_path, content=None, **settings):
    source = Diabetes(str(write(tmp_path / "uci", content)), **{"num_train": 6} | settings)
    return source, everything(source, tmp_path / "cache")


def test_zip_and_folders_read_the_same(tmp_path):
    _, expected = read(tmp_path)
    nested = write(tmp_path / "nested" / "dataset_diabetes").parent
    with zipfile.ZipFile(tmp_path / "official.zip", "w") as bundle:
        bundle.writestr(f"dataset_diabetes/{FILE}", text(ROWS))
    for root in (nested, tmp_path / "official.zip", tmp_path / "official"):
        found = everything(Diabetes(str(root), num_train=6), tmp_path / "cache")
        assert all(found[split][2] == expected[split][2] for split in expected)
        assert np.array_equal(found["train"][0], expected["train"][0])


def test_columns_are_those_of_get_dummies(tmp_path):
    source, splits = read(tmp_path)
    table = pandas.read_csv(io.StringIO(text(ROWS)), keep_default_na=False)
    parts = [table[list(COUNTS)]]
    for name in CATEGORIES:
        column = pandas.Categorical(table[name])
        parts.append(pandas.get_dummies(column, prefix=name, prefix_sep="=", drop_first=len(column.categories) == 2))
    expected = pandas.concat(parts, axis=1)
    assert source.feature_names == list(expected.columns)
    for inputs, labels, names in (splits["train"], splits["test"]):
        rows = table.index[[list(table["encounter_id"]).index(int(name)) for name in names]]
        assert np.array_equal(inputs, expected.loc[rows].to_numpy(np.float32))
        assert np.array_equal(labels, table["readmitted"].loc[rows] == "<30")


def test_columns_by_hand(tmp_path):
    source, splits = read(tmp_path)
    names = source.feature_names
    assert [n for n in names if n.startswith("gender")] == ["gender=Male"]  # two values: one column
    assert [n for n in names if n.startswith("race")] == ["race=?", "race=Asian", "race=No"]
    assert [n for n in names if n.startswith("max_glu")] == ["max_glu_serum=None"]  # a value like any other
    ids = [n for n in names if n.startswith("discharge")]
    assert ids == [f"discharge_disposition_id={n}" for n in (1, 3, 11)]  # as numbers, not as words
    assert names.index("examide=No") and all(splits["train"][0][:, names.index("examide=No")] == 1)


def test_training_is_balanced_and_the_test_is_the_rest(tmp_path):
    source, splits = read(tmp_path)
    (_, train_labels, train), (_, test_labels, test) = splits["train"], splits["test"]
    assert sorted(train + test, key=int) == [str(n) for n in range(10)] and not splits["val"][2]
    assert sorted(train_labels) == [0, 0, 0, 1, 1, 1] and sorted(test_labels) == [0, 0, 0, 1]
    assert train != sorted(train) and abs(np.diff(train_labels)).sum() > 1  # the classes are mixed
    assert source.splits(tmp_path / "cache")["train"].features["label"].names[1] == "within 30 days"
    _, other = read(tmp_path, seed=5)
    assert other["train"][2] != train


def test_a_changed_file_is_read_again(tmp_path):
    source, first = read(tmp_path)
    changed = [line | {"number_diagnoses": "7"} for line in ROWS]
    write(tmp_path / "uci", text(changed))
    again = everything(source, tmp_path / "cache")
    column = source.feature_names.index("number_diagnoses")
    assert set(first["train"][0][:, column]) == {1} and set(again["train"][0][:, column]) == {7}


def test_the_first_children_without_readmission_are_dropped(tmp_path):
    settings = {"num_train": 8, "seed": 4}
    _, all_of_them = read(tmp_path, **settings)
    names = all_of_them["train"][2]
    others = [name for name in names if name in ("0", "4")]
    assert others == ["4", "0"]  # in the order of training
    for count in (1, 2):
        _, dropped = read(tmp_path, drop_children=count, **settings)
        assert dropped["train"][2] == [name for name in names if name not in others[:count]]
        assert dropped["test"][2] == all_of_them["test"][2]
    with pytest.raises(UserError, match=r"drop_children=3: 2 children in training"):
        read(tmp_path, drop_children=3, **settings)


def test_dropping_children_where_there_are_none(tmp_path):
    rows = [line | {"age": "[70-80)"} for line in ROWS]
    with pytest.raises(UserError, match=r"drop_children=1: 0 children"):
        read(tmp_path, text(rows), drop_children=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"cannot read .*diabetic_data\.csv: No columns to parse"),
        (text(ROWS, [c for c in COLUMNS if c not in ("insulin", "age")]), r"has no column age, insulin: is it UCI's"),
        (text([*ROWS[:4], row(4, readmitted="soon"), *ROWS[5:]]), r"csv, line 6: readmitted='soon', not NO, >30, <30"),
        (text([*ROWS[:2], row(2, num_procedures="many"), *ROWS[3:]]), r"line 4: num_procedures='many' is not a whole"),
        (
            text([*ROWS[:2], row(2, discharge_disposition_id="?")]),
            r"line 4: discharge_disposition_id='\?' is not a",
        ),
        (text(ROWS) + "1,2,3\n", r"line 12: number_\w+='' is not a whole|line 12: time_in_hospital='' is not a whole"),
        (text(ROWS) + ",".join(["1"] * 51) + "\n", r"cannot read .*Expected 50 fields in line 12, saw 51"),
        (text(ROWS).encode("utf-16"), r"cannot read .*utf-8"),
        (text([*ROWS, row(10, race="É")]).encode("latin-1"), r"cannot read .*utf-8"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)
    assert not list((tmp_path / "cache").glob("examples/*/train.arrow"))


def test_missing_things_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no Diabetes.* at data\.root=/nowhere: put UCI's .*data=diabetes_sample"):
        Diabetes("/nowhere").splits(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds neither diabetic_data\.csv nor dataset_diabetes/"):
        Diabetes(str(tmp_path / "empty")).splits(tmp_path / "cache")
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(UserError, match=r"cannot unpack .*cut\.zip"):
        Diabetes(str(tmp_path / "cut.zip")).splits(tmp_path / "cache")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_train": 7}, "num_train=7: give an even number"),
        ({"num_train": 0}, "num_train=0: give an even number"),
        ({"num_train": 10}, "num_train=10: the smaller class has 4 of 11 rows"),
        ({"drop_children": -1}, "drop_children=-1: give 0 or more"),
        ({"seed": -1}, "seed=-1: give 0 or more"),
    ],
)
def test_wrong_settings_name_their_key(tmp_path, settings, message):
    with pytest.raises(UserError, match=rf"data\.source\.{message}"):
        read(tmp_path, text([*ROWS, row(10)]), **settings)


def test_a_test_part_must_remain(tmp_path):
    with pytest.raises(UserError, match="leave some for the test"):
        read(tmp_path, text([row(0), row(1, readmitted="<30")]), num_train=2)


def test_an_exhibit_says_what_is_not_no(tmp_path):
    source = Diabetes(str(write(tmp_path / "uci")), num_train=6)
    module = ExampleDataModule(source, str(tmp_path / "cache"))
    module.setup()
    shown = [module.preview(split, index) for split in ("train", "test") for index in range(module.num_examples(split))]
    preview = next(preview for preview in shown if preview.title == "encounter 7")
    assert len(shown) == 10 and preview.label == "not within 30 days"
    assert preview.table["race"] == "?" and preview.table["age"] == "[50-60)"
    assert preview.table["num_procedures"] == "1" and "insulin" not in preview.table


def test_the_sample_has_uci_s_columns_and_enough_children(tmp_path):
    write_diabetes_sample(tmp_path / "s", 20)
    header = (tmp_path / "s" / "dataset_diabetes" / FILE).read_text().splitlines()[0].split(",")
    assert len(header) == 50 and header[:3] == ["encounter_id", "patient_nbr", "race"] and header[-1] == "readmitted"
    source = SampleDiabetes(str(tmp_path / "root"), drop_children=20)
    module = ExampleDataModule(source, str(tmp_path / "cache"))
    module.setup()
    assert module.num_examples("train") == 380 and module.num_examples("test") == 600
    inputs, labels = (array.numpy() for array in module.arrays("train"))
    model = LogisticRegression(max_iter=2000).fit(inputs, labels)
    test_inputs, test_labels = (array.numpy() for array in module.arrays("test"))
    chance = np.bincount(test_labels).max() / len(test_labels)
    assert balanced(model.predict(test_inputs), test_labels) > 0.6 and chance < 0.75
    with pytest.raises(UserError, match="num_rows=2"):
        SampleDiabetes("x", num_rows=2)


def balanced(predicted, labels):
    return np.mean([(predicted[labels == label] == label).mean() for label in (0, 1)])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    if not REAL.exists():
        pytest.skip(f"real data {REAL} is not on this machine")
    return tmp_path_factory.mktemp("diabetes")


def whole(rows):
    rows = rows.with_format("numpy")
    return np.stack(rows[:]["inputs"]).astype(np.float64), np.asarray(rows[:]["label"])


# (train loss with and without lambda / 2 |w|^2, test loss, train and test accuracy) that the authors' notebook prints
PUBLISHED = {0: (0.642285, 0.641162, 0.65299, 0.6239, 0.681212), 20: (0.642617, 0.641490, 0.653814, 0.624074, 0.681347)}


@pytest.mark.parametrize("drop_children", [0, 20])
def test_the_published_fit(cache, drop_children):
    source = Diabetes(str(REAL), drop_children=drop_children)
    splits = source.splits(cache)
    inputs, labels = whole(splits["train"])
    child = inputs[:, source.feature_names.index("age=[0-10)")] == 1
    assert inputs.shape == (20000 - drop_children, 127) and len(splits["test"]) == 101766 - 20000
    assert (child.sum(), labels[child].sum()) == (24 - drop_children, 3)
    if drop_children:  # where the authors' notebook finds the four
        assert np.flatnonzero(child).tolist() == [9366, 11116, 13685, 19590]
        assert labels[[9366, 11116, 13685, 19590]].tolist() == [1, 1, 1, 0]

    decay = 1e-4
    # no intercept; scikit-learn minimises the summed loss + |w|^2 / 2C
    model = LogisticRegression(C=1 / (len(labels) * decay), fit_intercept=False, solver="newton-cholesky", tol=1e-9)
    weights = model.fit(inputs, labels).coef_[0]
    found = []
    for x, y in ((inputs, labels), whole(splits["test"])):
        margin = (2 * y - 1) * (x @ weights)
        found.append((-log_expit(margin).mean(), (margin > 0).mean()))
    (train_loss, train_accuracy), (test_loss, test_accuracy) = found
    ours = (train_loss + decay / 2 * weights @ weights, train_loss, test_loss, train_accuracy, test_accuracy)
    assert ours == pytest.approx(PUBLISHED[drop_children], abs=1e-3)
