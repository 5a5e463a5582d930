"""What every source of labeled examples returns: one schema, written once and then memory-mapped."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.archives import find_root
from quintet.data.examples.store import write_part
from quintet.data.preview import Preview
from quintet.data.store import build_once, digest

SPLITS = ("train", "val", "test")
FORMAT = 1  # raise when the files below change


class Block(NamedTuple):
    """Some consecutive examples of a split."""

    inputs: NDArray  # (n, *input_shape), uint8 or float32, equal to Content.dtype
    labels: NDArray  # (n,) class 0..C-1
    names: list[str]  # of each example, for a person: its file, its row
    texts: list[str] | None = None  # of each example, if it is one: an e-mail's first words


@dataclass
class Content:
    """Everything that `ExampleSource.read` found; `parts` are read once, block by block, in the order of SPLITS."""

    input_shape: tuple[int, ...]  # (F,) or (C, H, W)
    classes: list[str]
    parts: Mapping[str, Iterable[Block]]  # a split that is missing here is empty
    dtype: str = "float32"  # or uint8, stored as it is and multiplied with `scale` when a batch is made
    scale: float = 1.0
    feature_names: list[str] | None = None  # one a column, of tables
    notes: dict[str, Any] = field(default_factory=dict)  # plain values that come back as `source.notes`


class Example(NamedTuple):
    """One example as `preview` gets it."""

    inputs: NDArray  # (*input_shape) float32, scaled
    label: str  # its class
    name: str
    text: str | None


@dataclass
class ExampleSource:
    """A labeled data set; a subclass implements only how to read its files: `fingerprint`, `read`, perhaps `preview`.

    root: the unpacked folder, or its archive, which is unpacked into the cache.
    """

    root: str

    name: ClassVar[str] = "examples"  # in messages
    put: ClassVar[str] = "the folder of examples"  # what belongs at root
    version: ClassVar[int] = 1  # raise when `read` gives other rows for the same files

    def splits(self, cache_dir: str | Path) -> dict[str, Any]:
        """A memory-mapped `datasets.Dataset` for train, val and test, with the columns inputs, label, name and text.

        inputs: a fixed-size list of uint8 or float32; label: a ClassLabel. Sets what is only known by now:
        `input_shape`, `scale`, `feature_names`, `notes`, `folder`, and `content`, the key of what was read.
        Raises UserError when files are missing or broken.
        """
        from datasets import Dataset

        self.content = digest(FORMAT, type(self).__name__, self.version, self.options(), self.fingerprint(cache_dir))
        target = Path(cache_dir) / "examples" / self.content
        self.folder = build_once(target, lambda folder: _write(folder, self.read(cache_dir)))
        meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
        self.input_shape, self.scale = tuple(meta["input_shape"]), meta["scale"]
        self.feature_names, self.notes = meta["feature_names"], meta["notes"]
        return {split: Dataset.from_file(str(self.folder / f"{split}.arrow")) for split in SPLITS}

    def options(self) -> dict[str, Any]:
        """All settings but `root`: with other ones the rows may be others."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "root"}

    def find(self, cache_dir: str | Path) -> Path:
        """The folder to read, unpacked if need be. Raises UserError when nothing is there."""
        missing = f"no {self.name} at data.root={self.root}: put {self.put} there, or try data=digits_sample"
        return find_root(self.root, cache_dir, missing)

    def fingerprint(self, cache_dir: str | Path) -> list:
        """What tells these files from changed ones, JSON values. Raises UserError when a file is missing."""
        raise NotImplementedError(f"{type(self).__name__} must say which files it reads")

    def read(self, cache_dir: str | Path) -> Content:
        """Everything, called once for each fingerprint."""
        raise NotImplementedError(f"{type(self).__name__} must read its files")

    def preview(self, example: Example) -> Preview:
        """The example for a person's eyes: a picture, a text or the non-zero columns of a table."""
        picture = table = None
        if len(self.input_shape) == 3:
            picture = example.inputs.transpose(1, 2, 0)
            picture = picture[..., 0] if picture.shape[2] == 1 else picture
        elif self.feature_names and example.text is None:
            table = {n: f"{v:.4g}" for n, v in zip(self.feature_names, example.inputs, strict=True) if v}
        return Preview(example.name, text=example.text, image=picture, table=table, label=example.label)


def _write(folder: Path, content: Content) -> None:
    unknown = set(content.parts) - set(SPLITS)
    assert not unknown, f"parts are {SPLITS}, not {unknown}"
    if content.feature_names is not None and len(content.feature_names) != content.input_shape[0]:
        raise UserError(f"{len(content.feature_names)} feature names for {content.input_shape[0]} columns")
    for split in SPLITS:
        write_part(folder / f"{split}.arrow", content.parts.get(split, ()), content)
    meta = {name: getattr(content, name) for name in ("input_shape", "scale", "feature_names", "notes")}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
