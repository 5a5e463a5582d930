"""Your own pictures and index masks, in folders: also CamVid as SegNet's authors pass it on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quintet.common.errors import UserError
from quintet.data.archives import find_root
from quintet.data.examples.pictures import SUFFIXES
from quintet.data.segmentation.labels import IGNORED, LabelMap
from quintet.data.segmentation.layout import Item, read_list
from quintet.data.segmentation.source import SPLITS, SegmentationSource


@dataclass
class SegmentationFolder(SegmentationSource):
    """A picture and a mask of the same name (`mask_suffix` apart), one number or one known color for each class.

    classes: names of the numbers 0, 1, ... images, masks: folders below root, with `{split}` for train, val
    and test: CamVid is images={split}, masks={split}annot. Without `{split}` the lists train.txt, val.txt and test.txt
    in root say which is which. colours: [red, green, blue] of each class, for masks that are colour pictures.
    ignored: numbers that are not scored, besides 255. zero_is_ignored: 1 is the first class, 0 is not scored.
    Where there is no val or no test, the other serves as both.
    """

    classes: Sequence[str] = ()
    images: str = "images/{split}"
    masks: str = "masks/{split}"
    mask_suffix: str = ".png"
    colours: Sequence[Sequence[int]] | None = None
    ignored: Sequence[int] = ()
    zero_is_ignored: bool = False

    name: ClassVar[str] = "segmentation folder"
    put: ClassVar[str] = "the folders of pictures and masks"

    def __post_init__(self) -> None:
        self.classes = [str(name) for name in self.classes]
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes) or len(self.classes) > IGNORED:
            raise UserError(f"data.source.classes={self.classes}: give the names of 2 to {IGNORED} different classes")
        if ("{split}" in self.images) != ("{split}" in self.masks):
            raise UserError(f"data.source.images={self.images}, masks={self.masks}: put {{split}} into both or neither")
        if self.colours is not None and len(self.colours) != len(self.classes):
            raise UserError(
                f"data.source.colours has {len(self.colours)} colours for {len(self.classes)} classes: one for each"
            )

    def label_map(self, cache_dir: Path) -> LabelMap:
        first = 1 if self.zero_is_ignored else 0
        values = {number + first: number for number in range(len(self.classes))}
        values |= dict.fromkeys((*self.ignored, *range(first), IGNORED), IGNORED)
        colours = None
        if self.colours is not None:
            colours = {number + first: tuple(colour) for number, colour in enumerate(self.colours)}
        return LabelMap(self.classes, values, colours)

    def items(self, cache_dir: Path) -> dict[str, list[Item]]:
        nothing = f"no {self.name} at data.root={self.root}: put {self.put} there, or try data=shapes_sample"
        root = find_root(self.root, cache_dir, nothing)
        inner = [path for path in sorted(root.iterdir()) if path.is_dir()]
        # an archive may hold everything in one folder of its own
        root = next((path for path in (root, *inner) if (path / self._path(self.images, "train")).is_dir()), root)
        listed = "{split}" not in self.images
        found = {}
        for split in SPLITS:
            there = root / (f"{split}.txt" if listed else self._path(self.images, split))
            if there.exists() or split == "train":
                found[split] = self._listed(root, there) if listed else self._in_folder(root, split)
        for split, other in (("val", "test"), ("test", "val")):
            found.setdefault(split, found.get(other, []))
        if not found["test"]:
            raise UserError(
                f"{root} has pictures for train only: put held-out ones where val or test belongs, {self.images}"
            )
        return found

    def _path(self, pattern: str, split: str) -> str:
        return pattern.replace("{split}", split)

    def _in_folder(self, root: Path, split: str) -> list[Item]:
        folder = root / self._path(self.images, split)
        if not folder.is_dir():
            raise UserError(f"data.source.images={self.images}: there is no folder {folder}")
        files = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
        if not files:
            raise UserError(f"{folder} has no picture with one of the endings {', '.join(SUFFIXES)}")
        return [self._item(path, root / self._path(self.masks, split)) for path in sorted(files)]

    def _listed(self, root: Path, path: Path) -> list[Item]:
        files = {p.stem: p for p in sorted((root / self.images).glob("*")) if p.suffix.lower() in SUFFIXES}
        names = [Path(name).stem if name.lower().endswith(SUFFIXES) else name for name in read_list(path, "the list")]
        lost = [name for name in names if name not in files]
        if lost:
            raise UserError(
                f"{path} names {lost[0]}, but {root / self.images} has no such picture ({len(lost)} of {len(names)} are"
                " missing): put them there, or take them out of the list"
            )
        return [self._item(files[name], root / self.masks) for name in names]

    def _item(self, image: Path, masks: Path) -> Item:
        mask = masks / (image.stem + self.mask_suffix)
        if not mask.is_file():
            raise UserError(f"image {image} has no mask {mask}: add it, or set data.source.masks and mask_suffix")
        return Item(image, mask, image.stem)
