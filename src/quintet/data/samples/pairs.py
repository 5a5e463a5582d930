"""English-German sentence pairs from a small grammar, in Multi30k's layout: `data=pairs_sample`, no download."""

import gzip
import random
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quintet.data.pairs.multi30k import Multi30k
from quintet.data.store import build_once, digest

VERSION = 1  # raise when other sentences are written

# English, German nominative and accusative (its article tells the gender); earlier ones are more frequent.
NOUNS = [
    ("man", "Mann", "m"), ("woman", "Frau", "f"), ("child", "Kind", "n"), ("dog", "Hund", "m"), ("cat", "Katze", "f"),
    ("horse", "Pferd", "n"), ("girl", "Mädchen", "n"), ("teacher", "Lehrer", "m"), ("bird", "Vogel", "m"),
    ("ball", "Ball", "m"), ("bicycle", "Fahrrad", "n"), ("flower", "Blume", "f"), ("book", "Buch", "n"),
    ("guitar", "Gitarre", "f"), ("boat", "Boot", "n"), ("kite", "Drachen", "m"), ("ladder", "Leiter", "f"),
    ("umbrella", "Regenschirm", "m"), ("trumpet", "Trompete", "f"), ("lantern", "Laterne", "f"),
    ("wheelbarrow", "Schubkarre", "f"), ("hedgehog", "Igel", "m"), ("accordion", "Akkordeon", "n"),
    ("sledge", "Schlitten", "m"), ("squirrel", "Eichhörnchen", "n"), ("lighthouse", "Leuchtturm", "m"),
]  # fmt: skip
COLOURS = [("red", "rot"), ("black", "schwarz"), ("small", "klein"), ("old", "alt"), ("green", "grün"),
           ("striped", "gestreift")]  # fmt: skip
VERBS = [("sees", "sieht"), ("carries", "trägt"), ("paints", "malt"), ("is looking for", "sucht"), ("has", "hat")]
PLACES = [("in the garden", "im Garten"), ("on the beach", "am Strand"), ("in the street", "auf der Straße"),
          ("in front of the house", "vor dem Haus"), ("on the bridge", "auf der Brücke")]  # fmt: skip
NOMINATIVE = {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")}
ACCUSATIVE = {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es")}


def sentence_pair(rng: random.Random) -> tuple[str, str]:
    """`A small dog sees a red kite in the garden.` and its German, words drawn by a power law."""
    subject, target = _phrase(rng, NOMINATIVE), _phrase(rng, ACCUSATIVE)
    verb = _draw(rng, VERBS)
    place = _draw(rng, PLACES) if rng.random() < 0.6 else ("", "")
    english, german = (_sentence(subject[side], verb[side], target[side], place[side]) for side in (0, 1))
    return english, german


def _phrase(rng: random.Random, articles: dict[str, tuple[str, str]]) -> tuple[str, str]:
    english, german, gender = _draw(rng, NOUNS)
    article, ending = articles[gender]
    if rng.random() < 0.5:
        colour = _draw(rng, COLOURS)
        english, german = f"{colour[0]} {english}", f"{colour[1]}{ending} {german}"
    return f"{'an' if english[0] in 'aeiou' else 'a'} {english}", f"{article} {german}"


def _draw(rng: random.Random, words: list) -> tuple:
    return rng.choices(words, [1 / rank for rank in range(1, len(words) + 1)])[0]


def _sentence(*parts: str) -> str:
    text = " ".join(part for part in parts if part)
    return f"{text[0].upper()}{text[1:]}."


def write_pairs_sample(folder: Path, num_train: int = 600, num_val: int = 60, num_test: int = 60) -> None:
    """`folder/raw/train.en.gz`, `train.de.gz`, and val and test_2016_flickr alike."""
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    for name, count in (("train", num_train), ("val", num_val), ("test_2016_flickr", num_test)):
        rng = random.Random(name)
        pairs = [sentence_pair(rng) for _ in range(count)]
        for side, language in enumerate(("en", "de")):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            # without a date inside, the same sentences are the same bytes
            (folder / "raw" / f"{name}.{language}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


@dataclass
class SamplePairs(Multi30k):
    """Writes the sentences under `root` on first use, then reads them as the official files."""

    num_train: int = 600
    num_val: int = 60
    num_test: int = 60

    name: ClassVar[str] = "the sentence sample"

    def find(self, cache_dir: Path) -> Path:
        sizes = (self.num_train, self.num_val, self.num_test)
        return build_once(Path(self.root) / digest(VERSION, *sizes), lambda path: write_pairs_sample(path, *sizes))
