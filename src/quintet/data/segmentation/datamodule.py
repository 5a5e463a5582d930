"""Images with a class at every pixel: the data side of Chen et al. 2017 (DeepLab v2)."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from quintet.common.errors import UserError
from quintet.data.batches import SegmentationBatch
from quintet.data.examples.select import draw
from quintet.data.order import ViewSampler
from quintet.data.preview import Preview
from quintet.data.resumable import ResumableDataModule, ResumableLoader
from quintet.data.segmentation.augment import Augmentation
from quintet.data.segmentation.dataset import SegmentationDataset, as_is, grid_size
from quintet.data.segmentation.labels import IGNORED, colour_picture
from quintet.data.segmentation.source import SPLITS, SegmentationSource

log = logging.getLogger(__name__)
IMAGENET_MEAN = (0.485, 0.456, 0.406)


class SegmentationDataModule(ResumableDataModule):
    """Batches of images and masks, see SegmentationBatch.

    Training: windows of crop_size after scaling by a random one of `scales`, mirrored every other time.
    Evaluation: whole images padded to eval_size (the paper's 513 for VOC); null: each to its own next 8k + 1.
    max_train: that many training images, drawn by `seed`. tile_size, tile_overlap: read by protocols that cut large
    images into overlapping tiles (Cityscapes, section 4.4); the batches here are never cut.
    """

    batch_type = SegmentationBatch

    def __init__(self, source: SegmentationSource, cache_dir: str, batch_size: int = 10, root: str | None = None,
                 crop_size: int = 321, scales: Sequence[float] | None = None, mirror: bool = True,
                 eval_size: int | None = 513, eval_batch_size: int = 1, max_train: int | None = None,
                 pad_colour: Sequence[float] = IMAGENET_MEAN, tile_size: int | None = None, tile_overlap: int = 0,
                 seed: int = 0, num_workers: int = 0, pin_memory: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.source, self.root, self.cache_dir, self.batch_size = source, root, Path(cache_dir), batch_size
        self.crop_size, self.scales, self.mirror = crop_size, list(scales) if scales else None, mirror
        self.eval_size, self.eval_batch_size, self.max_train = eval_size, eval_batch_size, max_train
        self.pad_colour, self.tile_size, self.tile_overlap = tuple(pad_colour), tile_size, tile_overlap
        self.seed, self.num_workers, self.pin_memory = seed, num_workers, pin_memory
        self._files: dict[str, Any] = {}
        self._rows: dict[str, NDArray[np.int64]] = {}
        self._check()

    def _check(self) -> None:
        for key in ("crop_size", "eval_size", "tile_size"):
            side = getattr(self, key)
            if side is not None and (side < 1 or grid_size(side) != side):
                near = grid_size(max(side, 1))
                raise UserError(f"data.{key}={side}: give 8k + 1 pixels, such as {near}: corners are aligned")
        for key in ("batch_size", "eval_batch_size", "max_train"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value}: give 1 or more" + (" or null" if key == "max_train" else ""))
        if self.eval_size is None and self.eval_batch_size > 1:
            raise UserError(
                f"data.eval_batch_size={self.eval_batch_size}: images of their own size come one by one; give 1, or a"
                " number for data.eval_size"
            )
        if any(not (math.isfinite(scale) and scale > 0) for scale in self.scales or ()):
            raise UserError(f"data.scales={self.scales}: give factors above 0, or null")
        if len(self.pad_colour) != 3 or any(not 0 <= level <= 1 for level in self.pad_colour):
            raise UserError(f"data.pad_colour={list(self.pad_colour)}: give red, green and blue, each 0 to 1")
        if self.seed < 0:
            raise UserError(f"data.seed={self.seed}: give 0 or more")
        if not 0 <= self.tile_overlap < (self.tile_size or 1):
            raise UserError(f"data.tile_overlap={self.tile_overlap}: give 0 to less than tile_size={self.tile_size}")

    def prepare_data(self) -> None:
        """Look at every file once; safe when several processes do it at the same time."""
        if not self._files:
            self._files = self.source.splits(self.cache_dir)

    def setup(self, stage: str | None = None) -> None:
        if self._rows:
            return
        self.prepare_data()  # cheap by now; makes setup() enough on a rank that did not prepare
        rows = {split: np.arange(len(self._files[split])) for split in SPLITS}
        count = len(rows["train"])
        if self.max_train is not None:
            if self.max_train > count:
                raise UserError(f"data.max_train={self.max_train}: there are {count} training images, or give null")
            rows["train"] = draw(count, self.max_train, self.seed)[1]
        if self.batch_size > len(rows["train"]):
            raise UserError(f"data.batch_size={self.batch_size}: there are {len(rows['train'])} training images")
        for split in ("val", "test"):
            self._refuse_larger(split)
        self._rows = rows
        counts = ", ".join(f"{len(rows[split])} {split}" for split in SPLITS)
        log.info("%s: %s images of %d classes", self.source.name, counts, self.num_classes)
        self._tell_absent_classes()

    def _tell_absent_classes(self) -> None:
        """Warn of classes in no training mask: often the numbers in the masks have another meaning."""
        column = self._files["train"].data.column("classes").combine_chunks()
        seen = set(column.flatten().unique().to_pylist())
        absent = [name for c, name in enumerate(self.source.labels.classes) if c not in seen]
        if absent:
            reason = f"no training mask shows {', '.join(absent)} ({IGNORED} in a mask is never scored)"
            log.warning("%s at %s: %s", self.source.name, self.source.root, reason)

    def _largest(self, split: str) -> tuple[int, int]:
        table = self._files[split].data
        height, width = (max(table.column(side).to_numpy(), default=1) for side in ("height", "width"))
        return height, width

    def _refuse_larger(self, split: str) -> None:
        height, width = self._largest(split)
        if self.eval_size is not None and max(height, width) > self.eval_size:
            raise UserError(
                f"data.eval_size={self.eval_size}: {split} has images as large as {height} x {width}; give"
                f" {grid_size(int(max(height, width)))} or more, or null for each image's own size"
            )

    @property
    def num_classes(self) -> int:
        return len(self.source.labels.classes)

    @property
    def data_info(self) -> dict[str, Any]:
        """Plain values that a model needs; call after setup()."""
        assert self._rows, "call prepare_data() and setup() first"
        return {"num_classes": self.num_classes, "classes": list(self.source.labels.classes)}

    def _dataset(self, split: str, canvas: tuple[int, int] | None,
                 augment: Augmentation | None = None) -> SegmentationDataset:  # fmt: skip
        self.setup()
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}: choose {', '.join(SPLITS)}")
        return SegmentationDataset(
            self._files[split], self._rows[split], self.source.labels, self.pad_colour, canvas, augment
        )

    def _evaluated(self, split: str) -> SegmentationDataset:
        return self._dataset(split, None if self.eval_size is None else (self.eval_size, self.eval_size))

    def num_examples(self, split: str) -> int:
        return len(self._evaluated(split))

    def names(self, split: str) -> list[str]:
        """Of all images of a split, in its order."""
        dataset = self._evaluated(split)
        return [dataset.name(index) for index in range(len(dataset))]

    def example_batch(self, split: str, indices: Sequence[int]) -> SegmentationBatch:
        """These images as they are evaluated; with eval_size=null padded to the largest of the split.

        Not to the largest of the batch: the loss of an image would depend on its company there.
        Raises UserError for an index that the split does not have.
        """
        dataset = self._evaluated(split)
        self._refuse_larger(split)
        if dataset.canvas is None:
            height, width = self._largest(split)
            dataset.canvas = grid_size(int(height)), grid_size(int(width))
        return dataset.__getitems__(self._checked(dataset, split, indices))

    def raw(self, split: str, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, str]:
        """Image (H, W, 3), classes (H, W) or None where they are not public, and name, as they are in the files."""
        dataset = self._evaluated(split)
        return dataset.raw(self._checked(dataset, split, [index])[0])

    def preview(self, split: str, index: int) -> Preview:
        """The image under its classes in VOC's colours; `label` is the largest one but the first, the background."""
        image, labels, name = self.raw(split, index)
        if labels is None:
            return Preview(name, image=image / 255)
        painted = np.where((labels == 0)[..., None], image, (image + colour_picture(labels).astype(float)) / 2) / 255
        counts = np.bincount(labels[labels != IGNORED], minlength=self.num_classes)
        names = self.source.labels.classes
        largest = int(counts[1:].argmax()) + 1 if counts[1:].any() else 0
        shown = ", ".join(names[int(c)] for c in np.flatnonzero(counts))
        return Preview(name, text=shown, image=painted, label=names[largest])

    def _checked(self, dataset: SegmentationDataset, split: str, indices: Sequence[int]) -> list[int]:
        wanted = [int(index) for index in indices]
        for index in wanted:
            if not 0 <= index < len(dataset):
                raise UserError(f"example {index} of split {split}: it has {len(dataset)}, counted from 0")
        return wanted

    def train_dataloader(self) -> DataLoader:
        """This rank's batches, standing where the checkpoint left them."""
        rank, world = self.rank_and_world()
        augment = Augmentation(self.crop_size, self.scales, self.mirror, self.seed)
        dataset = self._dataset("train", (self.crop_size, self.crop_size), augment)
        sampler = ViewSampler(len(dataset), self.batch_size, self.seed, rank=rank, world_size=world,
                              position=self.position)  # fmt: skip
        return ResumableLoader(dataset, batch_sampler=sampler, **self._loader_args())

    def val_dataloader(self) -> DataLoader | list:
        return self._eval_loader("val") if self.num_examples("val") else []

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        dataset = self._evaluated(split)
        return self.eval_loader(dataset, self.eval_batch_size, **self._loader_args())

    def _loader_args(self) -> dict[str, Any]:
        # its own generator: making an iterator draws a number, which must not come from the training's random state
        generator = torch.Generator().manual_seed(self.seed)
        return {"num_workers": self.num_workers, "pin_memory": self.pin_memory, "collate_fn": as_is,
                "generator": generator}  # fmt: skip
