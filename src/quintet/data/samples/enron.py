"""Made-up e-mails in Enron1's layout, latin-1 with CRLF: `data=enron_sample`, no download."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quintet.common.errors import UserError
from quintet.data.examples.enron import CLASSES, Enron
from quintet.data.store import build_once, digest

VERSION = 1  # raise when other e-mails are written
SUBJECTS = {
    "ham": ("meter reading", "gas nomination", "staff meeting", "revised contract", "holiday schedule"),
    "spam": ("cheap software", "you are a winner", "fast weight loss", "low mortgage rates", "secret stock tip"),
}
SENTENCES = {
    "ham": (
        *("please find the volumes of the pipeline attached .", "the plant nominates gas for march 30 , 2001 ."),
        *("daren will call the counterparty about the contract .", "we meet in the office after lunch ."),
        *("let me know if the meter shows another volume .", "thanks for the file , i will forward it ."),
    ),
    "spam": (
        *("click here to order your free bottle today !", "this stock will double , buy it now !"),
        *("no prescription needed , discreet shipping .", "lose 20 pounds with our pills , guaranteed ."),
        *("claim the prize of £ 500 before midnight !", "refinance now and save money every month ."),
    ),
}
SHARED = ("this is the first message .", "see the web page for more .", "the offer is open until friday .")


def email(kind: str, rng: random.Random) -> str:
    """A subject and two to five sentences, most of its kind."""
    sentences = [rng.choice(SENTENCES[kind] if rng.random() < 0.8 else SHARED) for _ in range(rng.randint(2, 5))]
    return "\r\n".join([f"Subject: {rng.choice(SUBJECTS[kind])}", *sentences])


def write_enron_sample(folder: Path, num_ham: int = 70, num_spam: int = 30) -> None:
    """`folder/enron1/ham/0001.2000-01-01.sample.ham.txt` and so on; every tenth e-mail is the one before, again."""
    rng = random.Random(VERSION)
    for kind, count in zip(CLASSES, (num_ham, num_spam), strict=True):
        place = folder / "enron1" / kind
        place.mkdir(parents=True, exist_ok=True)
        text = ""
        for number in range(1, count + 1):
            text = text if number % 10 == 0 else email(kind, rng)
            name = f"{number:04d}.2000-01-01.sample.{kind}.txt"
            (place / name).write_bytes(text.encode("latin-1"))


@dataclass
class SampleEnron(Enron):
    """Writes the e-mails under `root` on first use, then reads them as the official ones."""

    num_ham: int = 70
    num_spam: int = 30

    name: ClassVar[str] = "the e-mail sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.num_ham, self.num_spam) < 1:
            raise UserError(f"data.source.num_ham={self.num_ham}, num_spam={self.num_spam}: give 1 or more of each")

    def find(self, cache_dir: str | Path) -> Path:
        sizes = (self.num_ham, self.num_spam)
        return build_once(Path(self.root) / digest(VERSION, *sizes), lambda path: write_enron_sample(path, *sizes))
