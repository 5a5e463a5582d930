"""Invented hospital stays in the layout of UCI's diabetic_data.csv, 50 columns: `data=diabetes_sample`, no download."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from quintet.common.errors import UserError
from quintet.data.examples.diabetes import COUNTS, DISCHARGE, FILE, ID, LABEL, MEDICINES, Diabetes
from quintet.data.store import build_once, digest

VERSION = 1  # raise when other rows are written
AGES = [f"[{start}-{start + 10})" for start in range(0, 100, 10)]
AGE_SHARES = [0.28] + [0.08] * 9  # many children, so that section 5.3 can drop 20 of them
COLUMNS = (
    *(ID, "patient_nbr", "race", "gender", "age", "weight", "admission_type_id", DISCHARGE, "admission_source_id"),
    *("time_in_hospital", "payer_code", "medical_specialty", "num_lab_procedures", "num_procedures"),
    *("num_medications", "number_outpatient", "number_emergency", "number_inpatient", "diag_1", "diag_2", "diag_3"),
    *("number_diagnoses", "max_glu_serum", "A1Cresult", *MEDICINES, "change", "diabetesMed", LABEL),
)
SAME = dict.fromkeys(COLUMNS, "?") | dict.fromkeys(MEDICINES, "No")  # where nothing else is said
CHOICES = {
    "race": ("Caucasian", "AfricanAmerican", "?"),
    "gender": ("Female", "Male"),
    DISCHARGE: ("1", "3", "6", "11"),
    "max_glu_serum": ("None", "Norm", ">200"),
    "A1Cresult": ("None", "Norm", ">8"),
    "metformin": ("No", "Steady"),
    "insulin": ("No", "Steady", "Up", "Down"),
    "change": ("No", "Ch"),
    "diabetesMed": ("Yes", "No"),
}


def stay(number: int, rng: np.random.Generator) -> dict[str, str]:
    """One row: the more often a patient was in hospital, and the older, the likelier the readmission."""
    age, inpatient = int(rng.choice(len(AGES), p=AGE_SHARES)), int(rng.poisson(1))
    risk = 1 / (1 + np.exp(1.5 - 0.8 * inpatient - 0.1 * age))
    return {
        **SAME,
        **{name: str(rng.choice(choices)) for name, choices in CHOICES.items()},
        **{name: str(rng.integers(1, 15)) for name in COUNTS},
        ID: str(1000 + 6 * number),
        "age": AGES[age],
        "number_inpatient": str(inpatient),
        LABEL: "<30" if rng.random() < risk else str(rng.choice(["NO", ">30"])),
    }


def write_diabetes_sample(folder: Path, num_rows: int = 1000) -> None:
    """`folder/dataset_diabetes/diabetic_data.csv`; about a third of the rows are readmitted within 30 days."""
    rng = np.random.default_rng(VERSION)
    rows = [stay(number, rng) for number in range(num_rows)]
    path = folder / "dataset_diabetes" / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="ascii", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


@dataclass
class SampleDiabetes(Diabetes):
    """Writes the csv under `root` on first use, then reads it as the official one."""

    num_train: int = 400
    num_rows: int = 1000

    name: ClassVar[str] = "the hospital sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_rows < 10:
            raise UserError(f"data.source.num_rows={self.num_rows}: give 10 or more")

    def find(self, cache_dir: str | Path) -> Path:
        key = digest(VERSION, self.num_rows)
        return build_once(Path(self.root) / key, lambda folder: write_diabetes_sample(folder, self.num_rows))
