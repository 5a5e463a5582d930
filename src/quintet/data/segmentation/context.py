"""PASCAL-Context (Mottaghi et al. 2014): the images of VOC 2010 with 59 classes and background."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quintet.common.errors import UserError
from quintet.data.segmentation.labels import LabelMap, plain_map
from quintet.data.segmentation.layout import Item, pair, read_list
from quintet.data.segmentation.source import SPLITS, SegmentationSource

CLASSES = [
    "background", "aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle",
    "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow", "cup", "curtain",
    "dog", "door", "fence", "floor", "flower", "food", "grass", "ground", "horse", "keyboard", "light", "motorbike",
    "mountain", "mouse", "person", "plate", "platform", "pottedplant", "road", "rock", "sheep", "shelves", "sidewalk",
    "sign", "sky", "snow", "sofa", "table", "track", "train", "tree", "truck", "tvmonitor", "wall", "water", "window",
    "wood",
]  # fmt: skip
LISTS = ("SegmentationContext", "Main")  # VOC 2010's own train and val, which are the 4,998 and 5,105 of the paper


@dataclass
class PascalContext(SegmentationSource):
    """VOC2010's JPEGImages and ImageSets with the authors' masks: `masks` is the folder that holds them.

    trainval: the authors' trainval.tar.gz, .mat files of 459 labels, with their labels.txt beside that folder; the 59
    are found by name, all others are background. Any other folder (SegmentationClassContext): PNGs of 0..59 in the
    alphabetical order of CLASSES, as they are widely passed on.
    """

    train: str = "train"
    val: str = "val"
    test: str = "val"
    masks: str = "trainval"

    name: ClassVar[str] = "PASCAL-Context"
    put: ClassVar[str] = "VOC 2010 (VOCtrainval_03-May-2010.tar) and PASCAL-Context's trainval.tar.gz and labels.txt"
    year: ClassVar[str] = "2010"
    classes: ClassVar[list[str]] = CLASSES

    def _masks(self, cache_dir: Path) -> tuple[Path, str]:
        folder = self.find(cache_dir, self.masks, f"{self.masks}*")
        return folder, ".mat" if any(folder.glob("*.mat")) else ".png"

    def label_map(self, cache_dir: Path) -> LabelMap:
        folder, suffix = self._masks(cache_dir)
        if suffix == ".png":
            return plain_map(self.classes)
        numbers = read_names(self._names_file(folder))
        lacking = [name for name in self.classes[1:] if name not in numbers.values()]
        if lacking:
            raise UserError(f"{self._names_file(folder)} names no {lacking[0]}: it must be the 459 lines of labels.txt")
        known = {name: number for number, name in enumerate(self.classes)}
        return LabelMap(self.classes, {0: 0} | {number: known.get(name, 0) for number, name in numbers.items()})

    def _names_file(self, folder: Path) -> Path:
        places = [folder, folder.parent, Path(self.root).expanduser()]
        found = [place / "labels.txt" for place in places if (place / "labels.txt").is_file()]
        if not found:
            raise UserError(
                f"{folder.parent / 'labels.txt'} is missing: it names the labels in {folder}, see the set's page"
            )
        return found[0]

    def items(self, cache_dir: Path) -> dict[str, list[Item]]:
        images = self.find(cache_dir, "JPEGImages", "VOCtrainval*")
        masks, suffix = self._masks(cache_dir)
        sets = images.parent / "ImageSets"
        lists = next((sets / name for name in LISTS if (sets / name).is_dir()), sets / LISTS[0])
        found = {}
        for split in SPLITS:
            path = lists / f"{getattr(self, split)}.txt"
            found[split] = pair(read_list(path, f"data.source.{split}"), path, images, masks, ".jpg", suffix)
        return found


def read_names(path: Path) -> dict[int, str]:
    """`2: aeroplane` a line -> {2: "aeroplane"}. Raises UserError for a line that is none."""
    names = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        number, colon, name = line.partition(":")
        if line.strip() and not (colon and number.strip().isdigit()):
            raise UserError(f"{path}: {line.strip()!r} is no `number: name`")
        if line.strip():
            names[int(number)] = name.strip()
    return names
