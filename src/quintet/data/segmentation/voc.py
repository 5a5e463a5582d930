"""PASCAL VOC 2012 segmentation, with or without the extra masks of SBD: 20 classes and background."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quintet.common.errors import UserError
from quintet.data.archives import find_root
from quintet.data.segmentation.labels import IGNORED, LabelMap, plain_map, voc_colours
from quintet.data.segmentation.layout import Item, locate, missing, pair, read_list
from quintet.data.segmentation.source import SPLITS, SegmentationSource

CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


@dataclass
class VOC(SegmentationSource):
    """`VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}`, unpacked or VOCtrainval_*.tar.

    train, val, test: names of lists in ImageSets/Segmentation. The paper's tables of "val" are this test split.
    masks: SegmentationClass, or SegmentationClassAug which has those of `train: trainaug` (10,582 images).
    sbd: location of SBD (benchmark.tgz or its folder); its .mat masks then serve `train: trainaug` without that folder.
    """

    train: str = "train"
    val: str = "val"
    test: str = "val"
    masks: str = "SegmentationClass"
    sbd: str | None = None

    name: ClassVar[str] = "VOC 2012"
    put: ClassVar[str] = "VOCtrainval_11-May-2012.tar or its VOCdevkit"
    year: ClassVar[str] = "2012"
    classes: ClassVar[list[str]] = CLASSES

    def label_map(self, cache_dir: Path) -> LabelMap:
        colours = voc_colours().tolist()
        return plain_map(self.classes, {n: colours[n] for n in (*range(len(self.classes)), IGNORED)})

    def items(self, cache_dir: Path) -> dict[str, list[Item]]:
        images = self.find(cache_dir, "JPEGImages", "VOCtrainval*")
        lists = images.parent / "ImageSets" / "Segmentation"
        masks = self.find(cache_dir, self.masks, "VOCtrainval*", f"{self.masks}*")
        found = {}
        for split in SPLITS:
            chosen = getattr(self, split)
            if split == "train" and chosen == "trainaug" and self.sbd is not None:
                found[split] = self._with_sbd(images, masks, lists, cache_dir)
            else:
                found[split] = self._listed(split, chosen, lists, images, masks)
        return found

    def _listed(self, split: str, chosen: str, lists: Path, images: Path, masks: Path) -> list[Item]:
        path = lists / f"{chosen}.txt"
        if chosen == "trainaug" and not path.is_file():
            raise UserError(
                f"data.source.{split}=trainaug: {path} is not part of VOC's own archive; put it there together with"
                " SegmentationClassAug, or set data.source.sbd=<folder of SBD>"
            )
        names = read_list(path, f"data.source.{split}")
        # the labels of VOC's official test images are on its server only
        return pair(names, path, images, masks, ".jpg", ".png", may_lack_masks=split == "test")

    def _with_sbd(self, images: Path, masks: Path, lists: Path, cache_dir: Path) -> list[Item]:
        """All of VOC's train and SBD's train and val that are not in VOC's val; VOC's own masks where it has one."""
        assert self.sbd is not None, "called only with data.source.sbd"
        nothing = f"no SBD at data.source.sbd={self.sbd}: put benchmark.tgz or its folder benchmark_RELEASE there"
        extra = locate(find_root(self.sbd, cache_dir, nothing), "cls")
        if extra is None:
            raise UserError(nothing)
        own = read_list(lists / "train.txt", "data.source.train")
        theirs = [n for part in ("train", "val") for n in read_list(extra.parent / f"{part}.txt", "data.source.sbd")]
        names = sorted({*own, *theirs} - set(read_list(lists / "val.txt", "data.source.val")))
        from_sbd = [name for name in names if name not in set(own)]
        missing(lists / "train.txt", own, masks, ".png", "mask")
        missing(extra.parent / "train.txt", from_sbd, extra, ".mat", "mask")
        missing(extra.parent / "train.txt", names, images, ".jpg", "image")
        mask = {name: masks / f"{name}.png" for name in own} | {name: extra / f"{name}.mat" for name in from_sbd}
        return [Item(images / f"{name}.jpg", mask[name], name) for name in names]
