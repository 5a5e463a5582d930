"""PASCAL-Person-Part (Chen et al. 2016): six parts of people and background on images of VOC 2010."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quintet.data.segmentation.labels import IGNORED, LabelMap, plain_map, voc_colours
from quintet.data.segmentation.layout import Item, pair, read_list
from quintet.data.segmentation.source import SPLITS, SegmentationSource

CLASSES = ["background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs"]


@dataclass
class PersonPart(SegmentationSource):
    """VOC2010's JPEGImages with the authors' lists and masks; 1,716 training and 1,817 test images.

    masks: pascal_person_part_gt, the authors' PNGs; or Annotations_Part, the .mat files of PASCAL-Part that they were
    made from, whose 24 parts of a person become six here. lists: the folder with train.txt and val.txt.
    """

    train: str = "train"
    val: str = "val"
    test: str = "val"
    masks: str = "pascal_person_part_gt"
    lists: str = "pascal_person_part_trainval_list"

    name: ClassVar[str] = "PASCAL-Person-Part"
    put: ClassVar[str] = "VOC 2010 (VOCtrainval_03-May-2010.tar) and the folder pascal_person_part"
    year: ClassVar[str] = "2010"
    classes: ClassVar[list[str]] = CLASSES

    def label_map(self, cache_dir: Path) -> LabelMap:
        colours = voc_colours().tolist()
        return plain_map(self.classes, {n: colours[n] for n in (*range(len(self.classes)), IGNORED)})

    def items(self, cache_dir: Path) -> dict[str, list[Item]]:
        images = self.find(cache_dir, "JPEGImages", "VOCtrainval*")
        masks = self.find(cache_dir, self.masks, "pascal_person_part*", "trainval*")
        lists = self.find(cache_dir, self.lists, "pascal_person_part*")
        suffix = ".mat" if any(masks.glob("*.mat")) else ".png"
        found = {}
        for split in SPLITS:
            path = lists / f"{getattr(self, split)}.txt"
            found[split] = pair(read_list(path, f"data.source.{split}"), path, images, masks, ".jpg", suffix)
        return found
