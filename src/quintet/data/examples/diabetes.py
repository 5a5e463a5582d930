"""Diabetes 130-US hospitals (Strack et al. 2014) as Koh & Liang 2017, section 5.3 prepare it: UCI's diabetic_data.csv.

From the authors' notebook: 8 counts as they are and 31 categorical columns one-hot (one column where there are two
values) make 127 features, none scaled. Class 1 is a readmission within 30 days, class 0 a later one or none. Training
is balanced, 10,000 of each class drawn by NumPy's legacy generator with seed 2; the other 81,766 rows are the test,
11% of them class 1. There is no intercept, but examide and citoglipton have one value each: two columns of ones.
3 of the 24 children (age [0-10)) in training are readmitted; section 5.3 leaves out all but the last of the other 21.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.archives import find_root
from quintet.data.examples.source import Block, Content, Example, ExampleSource
from quintet.data.preview import Preview

FILE = "diabetic_data.csv"
ID, LABEL, CHILD = "encounter_id", "readmitted", "[0-10)"
LABELS = {"NO": 0, ">30": 0, "<30": 1}
CLASSES = ["not within 30 days", "within 30 days"]
COUNTS = ("time_in_hospital", "num_lab_procedures", "num_procedures", "num_medications", "number_outpatient",
          "number_emergency", "number_inpatient", "number_diagnoses")  # fmt: skip
MEDICINES = (
    *("metformin", "repaglinide", "nateglinide", "chlorpropamide", "glimepiride", "acetohexamide", "glipizide"),
    *("glyburide", "tolbutamide", "pioglitazone", "rosiglitazone", "acarbose", "miglitol", "troglitazone"),
    *("tolazamide", "examide", "citoglipton", "insulin", "glyburide-metformin", "glipizide-metformin"),
    *("glimepiride-pioglitazone", "metformin-rosiglitazone", "metformin-pioglitazone"),
)
DISCHARGE = "discharge_disposition_id"  # a number that names something: 1 = home
CATEGORIES = ("gender", "race", "age", DISCHARGE, "max_glu_serum", "A1Cresult", *MEDICINES, "change", "diabetesMed")


@dataclass
class Diabetes(ExampleSource):
    """root: dataset_diabetes.zip or a folder with diabetic_data.csv. The names of the rows are encounter ids.

    num_train: training rows, half of them of each class; all others are the test.
    drop_children: leave that many children without a readmission out of training, the first in its order; 20 = paper.
    seed: of the split and of the order in it; 2 gives the authors' rows at the authors' positions.
    """

    num_train: int = 20000
    drop_children: int = 0
    seed: int = 2

    name: ClassVar[str] = "Diabetes 130-US hospitals"
    put: ClassVar[str] = f"UCI's dataset_diabetes.zip or the folder with {FILE}"

    def __post_init__(self) -> None:
        if self.num_train < 2 or self.num_train % 2:
            raise UserError(f"data.source.num_train={self.num_train}: give an even number, half of it is each class")
        for key in ("drop_children", "seed"):
            if getattr(self, key) < 0:
                raise UserError(f"data.source.{key}={getattr(self, key)}: give 0 or more")

    def find(self, cache_dir: str | Path) -> Path:
        missing = f"no {self.name} at data.root={self.root}: put {self.put} there, or try data=diabetes_sample"
        return find_root(self.root, cache_dir, missing)

    def file(self, cache_dir: str | Path) -> Path:
        root = self.find(cache_dir)
        found = [path for path in (root / FILE, root / "dataset_diabetes" / FILE) if path.is_file()]
        if not found:
            raise UserError(f"{root} holds neither {FILE} nor dataset_diabetes/{FILE}: see data.root")
        return found[0]

    def fingerprint(self, cache_dir: str | Path) -> list:
        with self.file(cache_dir).open("rb") as file:
            return [hashlib.file_digest(file, "sha256").hexdigest()]

    def read(self, cache_dir: str | Path) -> Content:
        path = self.file(cache_dir)
        table = read_table(path)
        inputs, names = encode(table, path)
        labels = read_labels(table, path)
        train, test = balanced_split(labels, self.num_train, self.seed)
        if self.drop_children:
            child = (table["age"] == CHILD).to_numpy(bool)
            train = self._without_children(train, child & (labels == 0))
        ids = table[ID].to_numpy(object)
        parts = {part: [Block(inputs[rows], labels[rows], [str(name) for name in ids[rows]])]
                 for part, rows in (("train", train), ("test", test))}  # fmt: skip
        return Content((len(names),), CLASSES, parts, feature_names=names)

    def preview(self, example: Example) -> Preview:
        """The counts, and of the categories those that do not say No."""
        shown = {}
        for name, value in zip(self.feature_names, example.inputs, strict=True):
            category, equals, choice = name.partition("=")
            if not equals:
                shown[name] = f"{value:.0f}"
            elif value and choice != "No":
                shown[category] = choice
        return Preview(f"encounter {example.name}", table=shown, label=example.label)

    def _without_children(self, train: NDArray, candidate: NDArray) -> NDArray:
        positions = np.flatnonzero(candidate[train])
        if self.drop_children > len(positions):
            raise UserError(
                f"data.source.drop_children={self.drop_children}: {len(positions)} children in training were not"
                " readmitted within 30 days, give that many at most"
            )
        return np.delete(train, positions[: self.drop_children])


def read_table(path: Path) -> Any:
    """The csv as a pandas table of strings: "None" and "?" are values here, not gaps.

    Raises UserError for a file that is not such a csv file, or lacks columns.
    """
    import pandas

    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}; download it again") from error
    missing = [name for name in (ID, *COUNTS, *CATEGORIES, LABEL) if name not in table]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}: is it UCI's {FILE}?")
    return table


def read_labels(table: Any, path: Path) -> NDArray[np.int64]:
    """1 where readmitted is <30. Raises UserError with the line of any other word."""
    unknown = np.flatnonzero(~table[LABEL].isin(LABELS))
    if len(unknown):
        raise UserError(
            f"{path}, line {unknown[0] + 2}: {LABEL}={table[LABEL].iloc[unknown[0]]!r}, not {', '.join(LABELS)}"
        )
    return table[LABEL].map(LABELS).to_numpy(np.int64)


def encode(table: Any, path: Path) -> tuple[NDArray[np.float32], list[str]]:
    """(rows, features) and the features' names, `num_procedures` or `age=[0-10)`.

    Of two values only the second, in sorted order, gets a column, as in pandas.get_dummies(drop_first=True).
    """
    import pandas

    columns, names = [read_numbers(table, name, path) for name in COUNTS], list(COUNTS)
    for category in CATEGORIES:
        column = read_numbers(table, category, path) if category == DISCHARGE else table[category]
        code_n, values = pandas.factorize(column, sort=True)
        first = 1 if len(values) == 2 else 0
        columns += [code_n == code for code in range(first, len(values))]
        names += [f"{category}={value}" for value in values[first:]]
    return np.stack(columns, axis=1).astype(np.float32), names


def read_numbers(table: Any, name: str, path: Path) -> NDArray[np.int64]:
    """A column of whole numbers. Raises UserError with the line of anything else."""
    wrong = np.flatnonzero(~table[name].str.fullmatch(r"[0-9]+"))
    if len(wrong):
        raise UserError(f"{path}, line {wrong[0] + 2}: {name}={table[name].iloc[wrong[0]]!r} is not a whole number")
    return table[name].to_numpy(object).astype(np.int64)


def balanced_split(labels: NDArray[np.int64], num_train: int, seed: int) -> tuple[NDArray, NDArray]:
    """(training rows, test rows): num_train / 2 of each class, and the rest; both shuffled.

    The shuffles and their order are the authors', so that a row has the index that their notebook prints.
    """
    rng = np.random.RandomState(seed)
    rows = {label: np.flatnonzero(labels == label) for label in (1, 0)}
    half = num_train // 2
    fewest = min(len(found) for found in rows.values())
    if half > fewest or num_train == len(labels):
        raise UserError(
            f"data.source.num_train={num_train}: the smaller class has {fewest} of {len(labels)} rows, give"
            " at most twice that, and leave some for the test"
        )
    for found in rows.values():
        rng.shuffle(found)
    train = np.concatenate([found[:half] for found in rows.values()])
    test = np.concatenate([found[half:] for found in rows.values()])
    rng.shuffle(train)
    rng.shuffle(test)
    return train, test
