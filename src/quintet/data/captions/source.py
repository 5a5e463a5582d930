"""What every captioned data set returns: images and captions that were looked at once, in one form."""

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from quintet.common.errors import UserError
from quintet.data.captions.layout import Place, file_status
from quintet.data.captions.table import CaptionTable
from quintet.data.segmentation.labels import open_picture
from quintet.data.store import build_once, digest, write_rows

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
FORMAT = 1  # raise when the files below change
BLOCK = 256  # images looked at side by side
POLICIES = ("fail", "skip")
ADVICE = "repair it, or leave such out with data.source.on_error=skip"


class Caption(NamedTuple):
    text: str
    where: str  # "captions.csv, row 7": for messages


class Picture(NamedTuple):
    """One image with its captions. image: its file, or what `CaptionSource.load` knows it by."""

    name: str
    image: Any
    captions: list[Caption]


@dataclass
class Parts:
    """The images of each split.

    missing: why a split is not there, said to whoever asks for it. problems: lines that cannot be used.
    """

    pictures: dict[str, list[Picture]]
    missing: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass
class CaptionSource:
    """A captioned data set; a subclass knows its layout and nothing else: `read`.

    root: the unpacked folder, or its archive, which is unpacked into the cache.
    on_error: what becomes of an image that is missing or broken, and of a caption without a word: `fail` stops and
    names the file, `skip` leaves them out and logs how many.
    """

    root: str
    on_error: str = "fail"

    name: ClassVar[str] = "captioned images"  # in messages
    put: ClassVar[str] = "the folder"  # what belongs at root

    def __post_init__(self) -> None:
        if self.on_error not in POLICIES:
            raise UserError(f"data.source.on_error={self.on_error}: choose {' or '.join(POLICIES)}")

    def read(self, cache_dir: Path) -> Parts:
        """Lists and captions, without a look at the images. Raises UserError for what is missing or wrong."""
        raise NotImplementedError(f"{type(self).__name__} must say which images and captions it has")

    def load(self, image: Any) -> bytes:
        """The bytes of an image's file."""
        return image.read_bytes()

    def shard_row(self, image: Any) -> int | None:
        """The row of an image that stays where it is, in a shard; None for one that is looked at and stored."""
        return None

    def identity(self, image: Any) -> list:
        """What tells an image from a changed one without opening it."""
        status = file_status(image)
        return [str(image), *((status.st_size, status.st_mtime_ns) if status else ())]

    def splits(self, cache_dir: str | Path) -> dict[str, CaptionTable]:
        """The stored splits; one that has no image is not among them but in `missing`, with the reason.

        All images are decoded once before that, so that training does not end at a broken one; the result is kept for
        as long as no file changes. Raises UserError, one line, for the first that is wrong; with on_error=skip only
        where nothing is left.
        """
        cache_dir = Path(cache_dir)
        parts = self.read(cache_dir)
        for problem in parts.problems if self.on_error == "fail" else ():
            raise UserError(f"{problem}; {ADVICE}")
        self._set_absent_apart(parts)
        refuse_repeated(parts.pictures, self.name)
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "root"}
        listed = {split: [(p.name, self.identity(p.image), p.captions) for p in parts.pictures[split]]
                  for split in parts.pictures}  # fmt: skip
        key = digest(FORMAT, tokenizer_key(), options, listed, parts.problems)
        folder = build_once(cache_dir / "captions" / key, lambda path: _write(path, self, parts))
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["skipped"]:
            log.warning("%s: left out %s (data.source.on_error=skip)", self.name, "; ".join(meta["skipped"]))
        self.missing: dict[str, str] = parts.missing
        self.words: list[str] = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        return {split: CaptionTable(folder, split) for split in parts.pictures}

    def place(self, cache_dir: Path) -> Place:
        """Where its files are. Raises UserError when nothing is at root."""
        missing = f"no {self.name} at data.root={self.root}: put {self.put} there, or try data=captions_sample"
        return Place(self.root, cache_dir, missing)

    def _set_absent_apart(self, parts: Parts) -> None:
        """A split of which not one image is there was not downloaded, or is a part of the archive's that was kept."""
        parts.pictures = {split: parts.pictures[split] for split in SPLITS if split in parts.pictures}
        for split, pictures in list(parts.pictures.items()):
            paths = [picture.image for picture in pictures if isinstance(picture.image, Path)]
            if paths and not any(file_status(path) for path in paths):
                parts.missing[split] = f"none of its {len(paths)} images is there, the first would be {paths[0]}"
            if not pictures or split in parts.missing:
                parts.missing.setdefault(split, "it has no images")
                del parts.pictures[split]
        if not parts.pictures:
            raise UserError(f"{self.name} at data.root={self.root}: {next(iter(parts.missing.values()))}")


def refuse_repeated(pictures: dict[str, list[Picture]], name: str) -> None:
    """Raises UserError for an image id that occurs twice in a split, or in two: training would see the test."""
    seen: dict[str, str] = {}
    for split, listed in pictures.items():
        for picture in listed:
            if picture.name in seen:
                other = seen[picture.name]
                where = f"twice in {split}" if other == split else f"in {other} and in {split}"
                raise UserError(f"{name}: image id {picture.name} is {where}: an image belongs to one split, once")
            seen[picture.name] = split


def tokenizer_key() -> str:
    """The rules of the tokeniser: other rules, other tokens."""
    from quintet.metrics.captions import tokenizer

    return hashlib.sha256(Path(tokenizer.__file__).read_bytes()).hexdigest()


@dataclass
class Writer:
    """Token numbers of all splits, and what was left out."""

    source: CaptionSource
    numbers: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def problem(self, kind: str, text: str) -> None:
        if self.source.on_error == "fail":
            raise UserError(f"{text}; {ADVICE}")
        self.skipped.setdefault(kind, []).append(text)

    def said(self) -> list[str]:
        return [f"{len(texts)} {kind}, first: {texts[0]}" for kind, texts in self.skipped.items()]

    def write(self, folder: Path, split: str, pictures: list[Picture]) -> None:
        """`<split>-images.arrow`, `-texts.arrow`, `.npz` (where captions and tokens begin) and `.npy` (tokens)."""
        from datasets import Value

        texts, tokens, first, starts, places = [], array("i"), [0], [0], array("q")

        def rows() -> Iterator[dict[str, Any]]:
            for picture, data, code in self._loaded(pictures):
                kept = list(self._tokenised(picture))
                if not kept:
                    self.problem("images without a caption", f"image {picture.name} has no caption")
                    continue
                for text, words in kept:
                    texts.append(text)
                    tokens.extend(self.numbers.setdefault(word, len(self.numbers)) for word in words)
                    starts.append(len(tokens))
                first.append(len(texts))
                if (place := self.source.shard_row(picture.image)) is not None:
                    places.append(place)
                path = str(picture.image) if isinstance(picture.image, Path) else None
                yield {"name": picture.name, "path": path, "data": None if path else data, "hash": code}

        columns = {"name": Value("string"), "path": Value("string"), "data": Value("binary"), "hash": Value("string")}
        write_rows(folder / f"{split}-images.arrow", columns, rows(), block=BLOCK)
        write_rows(folder / f"{split}-texts.arrow", {"text": Value("string")}, ({"text": t} for t in texts), 1000)
        np.savez(folder / f"{split}.npz", first=np.array(first, np.int64), starts=np.array(starts, np.int64))
        np.save(folder / f"{split}.npy", np.array(tokens, np.int32))
        if places:
            np.save(folder / f"{split}-rows.npy", np.array(places, np.int64))
        if not texts:
            raise UserError(f"the {split} split of {self.source.name} has nothing left: {'; '.join(self.said())}")

    def _loaded(self, pictures: list[Picture]) -> Iterator[tuple[Picture, bytes | None, str]]:
        """(picture, file, its hash) of those that can be decoded, or stay in a shard. Pillow frees Python's lock."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for picture in (p for p in pictures if self.source.shard_row(p.image) is not None):
                yield picture, None, ""
            pictures = [p for p in pictures if self.source.shard_row(p.image) is None]
            for start in range(0, len(pictures), BLOCK):
                block = pictures[start : start + BLOCK]
                for picture, (data, problem) in zip(block, pool.map(self._look, block), strict=True):
                    if problem:
                        self.problem("images", problem)
                    else:
                        yield picture, data, hashlib.sha256(data).hexdigest()

    def _look(self, picture: Picture) -> tuple[bytes, str | None]:
        where = picture.image if isinstance(picture.image, Path) else picture.name
        try:
            data = self.source.load(picture.image)
            open_picture(where, data=data)
        except FileNotFoundError:
            return b"", f"image {where} is missing"
        except UserError as error:
            return b"", str(error).split(";")[0]
        except (OSError, ValueError) as error:  # also a name that no file can have
            return b"", f"image {where} cannot be read: {error}"
        return data, None

    def _tokenised(self, picture: Picture) -> Iterator[tuple[str, list[str]]]:
        from quintet.metrics.captions.tokenizer import tokenize

        for caption in picture.captions:
            if words := tokenize(caption.text):
                yield caption.text, words
            else:
                self.problem("captions", f"{caption.where}: the caption {caption.text!r} of {picture.name} is empty")


def _write(folder: Path, source: CaptionSource, parts: Parts) -> None:
    counts = ", ".join(f"{len(pictures)} {split}" for split, pictures in parts.pictures.items())
    log.info("%s: looking at %s images and their captions, once", source.name, counts)
    writer = Writer(source)
    for problem in parts.problems:
        writer.problem("lines", problem)
    for split, pictures in parts.pictures.items():
        writer.write(folder, split, pictures)
    (folder / "words.json").write_text(json.dumps(list(writer.numbers)), encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps({"skipped": writer.said()}), encoding="utf-8")
