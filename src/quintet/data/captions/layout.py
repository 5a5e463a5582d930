"""Where a captioned data set keeps its folders, lists and archives, and how its text files are read."""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintet.common.errors import UserError
from quintet.data.archives import find_root, is_archive, unpack
from quintet.data.segmentation.layout import locate


@dataclass
class Place:
    """The folder of a data set, or its unpacked archive; archives inside it are unpacked when they are needed.

    Raises UserError(`missing`) where there is nothing at `root`.
    """

    root: str | Path
    cache_dir: Path
    missing: str

    def __post_init__(self) -> None:
        self.folder = find_root(self.root, self.cache_dir, self.missing)

    def find(self, names: tuple[str, ...], archives: tuple[str, ...] = ()) -> Path | None:
        """The first of `names`, a file or a folder, at most three levels deep; then inside archives like `archives`."""
        for name in names:
            if found := locate(self.folder, name, file="." in name):
                return found
        packed = [path for pattern in archives for path in sorted(self.folder.glob(pattern)) if is_archive(path)]
        for archive in packed:
            inside = unpack(archive, self.cache_dir / "unpacked")
            for name in names:
                if found := locate(inside, name, file="." in name):
                    return found
        return None

    def need(self, names: tuple[str, ...], archives: tuple[str, ...] = ()) -> Path:
        """Raises UserError naming what is missing."""
        found = self.find(names, archives)
        if found is None:
            wanted = " or ".join((*names, *archives))
            raise UserError(f"{self.folder} has no {wanted}: put it there, or correct data.root")
        return found


def file_status(path: Path) -> os.stat_result | None:
    """Size and times; None for what is not a file, or not a valid file name."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def read_lines(path: Path) -> list[str]:
    """Lines of UTF-8 text without their ends. Raises UserError naming file and line of what is not UTF-8."""
    lines = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
    return lines


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON object with lists under these keys. Raises UserError naming the file and what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}; download it again") from error
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise UserError(f"{path} has no {key!r}: is it another data set's?")
        if not isinstance(content[key], list):
            raise UserError(f"{path}: {key!r} is not a list but {str(content[key])[:60]!r}: is it another data set's?")
    return content
