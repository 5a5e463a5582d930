"""What every source of sentence pairs returns, and the reading of parallel text files that most of them share."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

from quintet.common.errors import UserError
from quintet.data.archives import find_root
from quintet.data.store import build_once, digest, write_rows

SPLITS = ("train", "val", "test")
FORMAT = 1  # raise when the stored pairs change
HASHED_BYTES = 64 * 2**20  # larger files are known by size and time of change, smaller ones by their content
LINE_MARK = "\ufeff"


@dataclass
class PairSource:
    """A parallel corpus; a subclass knows its layout and nothing else.

    root: the unpacked folder, or its archive, which is unpacked into the cache.
    """

    root: str

    name: ClassVar[str] = "sentence pairs"  # in messages
    put: ClassVar[str] = "the folder of parallel files"  # what belongs at root

    def splits(self, cache_dir: Path) -> dict[str, Any]:
        """A memory-mapped `datasets.Dataset` with the text columns source and target for train, val and test.

        Sets `content`, a key of what was read.
        Raises UserError when a file is missing, cut off, not UTF-8, or has another number of lines than its twin.
        """
        from datasets import Dataset

        files = self.files(self.find(cache_dir))
        key = digest(FORMAT, {split: [[content_key(p) for p in pair] for pair in files[split]] for split in SPLITS})
        self.content: str | list[str] = key
        folder = build_once(Path(cache_dir) / "pairs" / f"text-{key}", lambda path: _write(path, files))
        return {split: Dataset.from_file(str(folder / f"{split}.arrow")) for split in SPLITS}

    def find(self, cache_dir: Path) -> Path:
        missing = f"no {self.name} at data.root={self.root}: put {self.put} there, or try data=pairs_sample"
        return find_root(self.root, cache_dir, missing)

    def files(self, root: Path) -> dict[str, list[tuple[Path, Path]]]:
        """(source file, target file) pairs of every split, in order."""
        raise NotImplementedError(f"{type(self).__name__} must say which files it reads")


def _write(folder: Path, files: dict[str, list[tuple[Path, Path]]]) -> None:
    from datasets import Value

    for split in SPLITS:
        rows = ({"source": s, "target": t} for pair in files[split] for s, t in read_pairs(*pair))
        write_rows(folder / f"{split}.arrow", {"source": Value("string"), "target": Value("string")}, rows)


def read_pairs(source: Path, target: Path) -> Iterator[tuple[str, str]]:
    """Line by line; raises UserError naming both files when one is longer."""
    for number, (left, right) in enumerate(zip_longest(read_lines(source), read_lines(target)), 1):
        if left is None or right is None:
            short, long = (source, target) if left is None else (target, source)
            raise UserError(f"{short} ends after line {number - 1}, {long} goes on: they are not line by line parallel")
        yield left, right


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file without their ends, .gz or plain; only \\n, \\r\\n end a line.

    Raises UserError naming the file when it is missing, cut off, damaged or not UTF-8.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, 1):  # noqa: B007  the message below counts from the last good line
                yield line.decode("utf-8").strip().lstrip(LINE_MARK)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
    except (EOFError, gzip.BadGzipFile, OSError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read after line {number}: {reason}; download it again") from error


def content_key(path: Path) -> str:
    """What tells one version of a file from another. Raises UserError when it is not there."""
    if not path.is_file():
        raise UserError(f"{path} is missing")
    stat = path.stat()
    if stat.st_size > HASHED_BYTES:
        return json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(path.read_bytes()).hexdigest()
