"""Cityscapes (Cordts et al. 2016): streets of 50 cities, 2048 x 1024, 19 of its 34 ids are scored."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quintet.common.errors import UserError
from quintet.data.segmentation.labels import IGNORED, LabelMap
from quintet.data.segmentation.layout import Item
from quintet.data.segmentation.source import SPLITS, SegmentationSource

IDS = 34  # 0..33 occur in the files; -1, the license plate, is never drawn
SCORED = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
IMAGE, MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"


@dataclass
class Cityscapes(SegmentationSource):
    """`leftImg8bit/<split>/<city>/*_leftImg8bit.png` and `gtFine/<split>/<city>/*_gtFine_labelIds.png`, or their zips.

    train, val, test: folders; 2,975 training and 500 validation images, on which the paper's table 9 is. The labels of
    the official test part are on its server only: all of them are ignored.
    """

    train: str = "train"
    val: str = "val"
    test: str = "val"

    name: ClassVar[str] = "Cityscapes"
    put: ClassVar[str] = "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip or what is in them"
    classes: ClassVar[list[str]] = list(SCORED.values())

    def label_map(self, cache_dir: Path) -> LabelMap:
        train_ids = {number: train_id for train_id, number in enumerate(SCORED)}
        return LabelMap(self.classes, {number: train_ids.get(number, IGNORED) for number in (*range(IDS), IGNORED)})

    def items(self, cache_dir: Path) -> dict[str, list[Item]]:
        images, masks = (self.find(cache_dir, name, f"{name}*") for name in ("leftImg8bit", "gtFine"))
        return {split: self._part(split, images, masks) for split in SPLITS}

    def _part(self, split: str, images: Path, masks: Path) -> list[Item]:
        part = getattr(self, split)
        there = sorted(path.name for path in images.iterdir() if path.is_dir())
        if part not in there:
            raise UserError(f"data.source.{split}={part}: {images} has the folders {', '.join(there) or 'none'}")
        found = []
        for image in sorted((images / part).glob(f"*/*{IMAGE}")):
            name = image.name.removesuffix(IMAGE)
            mask = masks / part / image.parent.name / (name + MASK)
            if not mask.is_file():
                raise UserError(f"image {image} has no mask {mask}: unpack gtFine_trainvaltest.zip again")
            found.append(Item(image, mask, name))
        return found
