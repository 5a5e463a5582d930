"""Enron1 (Metsis et al. 2006) as bags of words: `enron1/{ham,spam}/*.txt`, 3,672 and 1,500 e-mails, for figure 6.

The authors' code: 80% of the shuffled e-mails train (4,137 of 5,172; the paper says 4,147), the others are the test.
Words are of letters only, lemmatised by spaCy, without stop words and words that spaCy does not know; those of 5 or
more training e-mails are the vocabulary, about 3,294, and their counts the features, not scaled.
Ours: neither lemmas nor a dictionary, which leaves 6,249 words; `max_words` keeps the most widespread of them, as many
as the authors had. The stop words are a list of our own. The authors' order of the files is not known, ours is drawn
by `seed`. The word "subject", which heads every e-mail, does for the intercept that the model has not.
"""

import warnings
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from quintet.common.errors import UserError
from quintet.data.archives import find_root
from quintet.data.examples.bag_of_words import STOP_WORDS, count_words, learn_vocabulary, words
from quintet.data.examples.source import SPLITS, Block, Content, ExampleSource

CLASSES = ["ham", "spam"]
DUPLICATES = ("group", "keep")
SHOWN = 300  # characters of an e-mail that a preview shows
BLOCK = 500  # rows counted at a time


@dataclass
class Enron(ExampleSource):
    """root: enron1.zip or the folder with ham/ and spam/. Class 1 is spam; the feature names are the words.

    train_fraction, val_fraction: of all e-mails; the rest is the test. The vocabulary is that of training alone.
    duplicates: `keep` splits file by file as the authors do. But 4,994 of the 5,172 files are unique, and 4,637 without
    their numbers, which are not features: 147 e-mails of the test have a twin in training. `group`, the default, keeps
    e-mails of the same words on one side, so that the test is of unseen ones; the sizes of the parts stay the same.
    min_emails: a word is in at least so many training e-mails. max_words: null takes all of these.
    binary: whether a word occurs instead of how often.
    """

    train_fraction: float = 0.8
    val_fraction: float = 0.0
    duplicates: str = "group"
    min_emails: int = 5
    max_words: int | None = 3294
    stop_words: bool = True
    binary: bool = False
    seed: int = 0

    name: ClassVar[str] = "Enron1"
    put: ClassVar[str] = "enron1.zip or the folder with ham/ and spam/"

    def __post_init__(self) -> None:
        train, val = self.train_fraction, self.val_fraction
        if not (0 < train < 1 and 0 <= val < 1 and train + val < 1):
            raise UserError(
                f"data.source.train_fraction={train}, val_fraction={val}: give fractions that leave some for the test"
            )
        if self.duplicates not in DUPLICATES:
            raise UserError(f"data.source.duplicates={self.duplicates}: choose {', '.join(DUPLICATES)}")
        if self.min_emails < 1 or (self.max_words is not None and self.max_words < 1):
            raise UserError(
                f"data.source.min_emails={self.min_emails}, max_words={self.max_words}: give 1 or more, or"
                " max_words=null"
            )
        if self.seed < 0:
            raise UserError(f"data.source.seed={self.seed}: give 0 or more")

    def find(self, cache_dir: str | Path) -> Path:
        missing = f"no {self.name} at data.root={self.root}: put {self.put} there, or try data=enron_sample"
        return find_root(self.root, cache_dir, missing)

    def files(self, cache_dir: str | Path) -> list[Path]:
        """All e-mails, ham first, by name. Raises UserError when a folder is missing or empty."""
        root = self.find(cache_dir)
        folder = next((f for f in (root, root / "enron1") if (f / "ham").is_dir() or (f / "spam").is_dir()), None)
        if folder is None:
            raise UserError(f"{root} holds neither ham/ and spam/ nor enron1/ham and enron1/spam: see data.root")
        found = []
        for kind in CLASSES:
            emails = sorted(path for path in (folder / kind).glob("*.txt") if not path.name.startswith("."))
            if not emails:
                raise UserError(f"{folder / kind} holds no e-mail *.txt: is it {self.name}?")
            found += emails
        return found

    def fingerprint(self, cache_dir: str | Path) -> list:
        files = [(path, path.stat()) for path in self.files(cache_dir)]
        return [[path.parent.name, path.name, stat.st_size, stat.st_mtime_ns] for path, stat in files]

    def read(self, cache_dir: str | Path) -> Content:
        emails = read_emails(self.files(cache_dir))
        paths, texts = list(emails), list(emails.values())
        documents = [words(text) for text in texts]
        parts = self.split(documents)
        stop_words = STOP_WORDS if self.stop_words else frozenset()
        learnt = [documents[row] for row in parts["train"]]
        vocabulary = learn_vocabulary(learnt, self.min_emails, self.max_words, stop_words)
        if not vocabulary:
            raise UserError(f"no word is in data.source.min_emails={self.min_emails} training e-mails: give fewer")

        def blocks(rows: Sequence[int]) -> Iterator[Block]:
            for start in range(0, len(rows), BLOCK):
                some = rows[start : start + BLOCK]
                counts = count_words([documents[row] for row in some], vocabulary, self.binary)
                labels = np.array([CLASSES.index(paths[row].parent.name) for row in some])
                names = [f"{paths[row].parent.name}/{paths[row].name}" for row in some]
                yield Block(counts, labels, names, [" ".join(texts[row].split())[:SHOWN] for row in some])

        found = {part: blocks(rows) for part, rows in parts.items()}
        return Content((len(vocabulary),), CLASSES, found, feature_names=vocabulary)

    def split(self, documents: Sequence[Sequence[str]]) -> dict[str, list[int]]:
        """Rows of each part, shuffled; a group of rows goes to the first part that has room for all of it."""
        rng, groups = np.random.default_rng(self.seed), defaultdict(list)
        for row in rng.permutation(len(documents)).tolist():
            groups[tuple(documents[row]) if self.duplicates == "group" else row].append(row)
        total = len(documents)
        room = {"train": int(self.train_fraction * total), "val": int(self.val_fraction * total), "test": total}
        parts: dict[str, list[int]] = {part: [] for part in SPLITS}
        for group in groups.values():
            part = next(part for part in SPLITS if len(parts[part]) + len(group) <= room[part])
            parts[part] += group
        return {part: rng.permutation(rows).astype(int).tolist() for part, rows in parts.items()}


def read_emails(paths: Sequence[Path]) -> dict[Path, str]:
    """The texts of all files but the empty ones, which are counted in a warning."""
    emails = {path: read_email(path) for path in paths}
    empty = [path for path, text in emails.items() if not text.strip()]
    if empty:
        warnings.warn(f"{len(empty)} of {len(paths)} e-mails are empty and left out, the first is {empty[0]}")
    return {path: text for path, text in emails.items() if text.strip()}


def read_email(path: Path) -> str:
    """The text, latin-1, in which every byte is a character. Raises UserError naming a file that cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise UserError(f"{path} is UTF-16, Enron1 is latin-1: convert it")
    return content.decode("latin-1")
