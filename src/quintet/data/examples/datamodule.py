"""Labelled examples of any source: the data side of Koh & Liang 2017."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from quintet.common.errors import UserError
from quintet.data.batches import ExampleBatch
from quintet.data.examples.dataset import ExampleDataset, as_is, to_images
from quintet.data.examples.select import draw, keep_classes
from quintet.data.examples.source import SPLITS, Example, ExampleSource
from quintet.data.examples.store import ArrayInputs, ArrowInputs
from quintet.data.order import EpochSampler
from quintet.data.preview import Preview
from quintet.data.resumable import ResumableDataModule, ResumableLoader

log = logging.getLogger(__name__)


class ExampleDataModule(ResumableDataModule):
    """Batches of labeled examples, see ExampleBatch; batch_size=null makes each step one pass over the split.

    source: a quintet.data.examples source. classes: keep only these, relabeled 0, 1, ... in this order ([1, 7] is
    MNIST 1-vs-7). val_fraction: of the training part, where the source has no validation part. max_train: that many
    training examples drawn by `seed`. features: a FrozenBackbone whose outputs replace the images. flatten: images as
    vectors.
    """

    batch_type = ExampleBatch

    def __init__(self, source: ExampleSource, cache_dir: str, batch_size: int | None = None, root: str | None = None,
                 eval_batch_size: int = 2000, classes: Sequence[Any] | None = None, val_fraction: float = 0.0,
                 max_train: int | None = None, features: Any = None, flatten: bool = False, seed: int = 0,
                 num_workers: int = 0, pin_memory: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.source, self.features, self.root, self.cache_dir = source, features, root, Path(cache_dir)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.classes, self.val_fraction, self.max_train = classes, val_fraction, max_train
        self.flatten, self.seed, self.num_workers, self.pin_memory = flatten, seed, num_workers, pin_memory
        self.sets: dict[str, ExampleDataset] = {}
        self._rows: dict[str, Any] = {}
        self._check()

    def _check(self) -> None:
        for key in ("batch_size", "max_train", "eval_batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(
                    f"data.{key}={value}: give 1 or more" + (" or null" if key != "eval_batch_size" else "")
                )
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"data.val_fraction={self.val_fraction}: give 0 to less than 1")
        if self.seed < 0:
            raise UserError(f"data.seed={self.seed}: give 0 or more")

    def prepare_data(self) -> None:
        """Read, decode and compute features once; safe when several processes do it at the same time."""
        if self._rows:
            return
        rows = self.source.splits(self.cache_dir)
        self._images = {split: ArrowInputs(self.source.folder / f"{split}.arrow") for split in SPLITS}
        if self.features:
            self._features = self.features.build(self.source, self._images, self.cache_dir)
        self._rows = rows

    def setup(self, stage: str | None = None) -> None:
        if self.sets:
            return
        self.prepare_data()  # cheap by now; makes setup() enough on a rank that did not prepare
        chosen, self._classes = self._choose()
        shape, scale = self.source.input_shape, self.source.scale
        shape = (int(np.prod(shape)),) if self.flatten else shape
        for split in SPLITS:
            rows, labels = chosen[split]
            inputs: ArrowInputs | ArrayInputs = self._images[self._part[split]]
            if self.features:
                inputs = ArrayInputs(self._features / f"{self._part[split]}.npy")
                shape, scale = (inputs.width,), 1.0
            self.sets[split] = ExampleDataset(inputs, rows, labels, shape, scale)
        self._check_batch()
        counts = ", ".join(f"{len(self.sets[split])} {split}" for split in SPLITS)
        log.info("%s: %s examples of %d classes", self.source.name, counts, len(self._classes))

    def _choose(self) -> tuple[dict[str, tuple[NDArray, NDArray]], list[str]]:
        """(rows of the stored part, labels) of each split, and the class names."""
        names = self._rows["train"].features["label"].names
        labels = {split: np.asarray(self._rows[split].data.column("label"), np.int64) for split in SPLITS}
        chosen = {split: keep_classes(labels[split], names, self.classes) for split in SPLITS}
        self._part = {split: split for split in SPLITS}  # the stored part that a split's rows are in
        if self.val_fraction:
            if len(self._rows["val"]):
                raise UserError(
                    f"data.val_fraction={self.val_fraction}: {self.source.name} has a validation part, give 0"
                )
            self._part["val"] = "train"
            rest, held = draw(len(chosen["train"][0]), self.val_fraction, self.seed)
            if not len(held):
                raise UserError(f"data.val_fraction={self.val_fraction} holds out none of {len(rest)} examples")
            chosen |= {"train": _take(chosen["train"], rest), "val": _take(chosen["train"], held)}
        count = len(chosen["train"][0])
        if self.max_train is not None:
            if self.max_train > count:
                raise UserError(f"data.max_train={self.max_train}: there are {count} training examples, or give null")
            chosen["train"] = _take(chosen["train"], draw(count, self.max_train, self.seed)[1])
        self._refuse_poor(chosen, names)
        return chosen, names if self.classes is None else [str(name) for name in self.classes]

    def _refuse_poor(self, chosen: dict[str, tuple[NDArray, NDArray]], names: list[str]) -> None:
        for split in ("train", "test"):
            if not len(chosen[split][0]):
                raise UserError(f"the {split} split of {self.source.name} is empty: see data.root and data.classes")
        if len(np.unique(chosen["train"][1])) < 2:
            raise UserError(
                f"the training split of {self.source.name} has one class only: a classifier needs two or more, see"
                " data.root, data.classes and data.max_train"
            )

    def _check_batch(self) -> None:
        count = len(self.sets["train"])
        if self.batch_size is not None and self.batch_size > count:
            raise UserError(f"data.batch_size={self.batch_size}: there are {count} training examples; null takes all")

    @property
    def data_info(self) -> dict[str, Any]:
        """Plain values that a model needs; call after setup()."""
        assert self.sets, "call prepare_data() and setup() first"
        return {
            "input_shape": list(self.sets["train"].shape),
            "num_classes": len(self._classes),
            "classes": list(self._classes),
            "num_train": len(self.sets["train"]),
        }

    @property
    def feature_names(self) -> list[str] | None:
        """What each column of a table is; None for images and computed features."""
        self.setup()
        return None if self.features else self.source.feature_names

    def examples(self, split: str) -> ExampleDataset:
        """The dataset of a split. Raises UserError for another name."""
        self.setup()
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}: choose {', '.join(SPLITS)}")
        return self.sets[split]

    def num_examples(self, split: str) -> int:
        return len(self.examples(split))

    def example_batch(self, split: str, indices: Sequence[int]) -> ExampleBatch:
        """Exactly these examples in this order. Raises UserError for an index that the split does not have."""
        return self.examples(split).__getitems__(self._checked(split, indices))

    def arrays(self, split: str) -> tuple[Tensor, Tensor]:
        """The whole split: inputs (N, *shape) float32, shared with the full batches, and a copy of the labels (N,)."""
        whole = self.examples(split).whole
        return whole.inputs, whole.labels.clone()

    def images(self, split: str, indices: Sequence[int]) -> Tensor:
        """The pictures of these examples (B, 3, H, W) float32 in [0, 1], also if the batches contain features.

        Raises UserError where the source has no pictures.
        """
        rows = self.examples(split).rows[self._checked(split, indices)]
        shape = self.source.input_shape
        if len(shape) != 3:
            raise UserError(f"{self.source.name} has no images but {shape[0]} columns")
        return to_images(self._images[self._part[split]].gather(rows), shape, self.source.scale)

    def preview(self, split: str, index: int) -> Preview:
        """One example for a person's eyes."""
        dataset = self.examples(split)
        (index,) = self._checked(split, [index])
        row = int(dataset.rows[index])
        part = self._part[split]
        stored = self._images[part].gather(np.array([row]))[0].astype(np.float32) * np.float32(self.source.scale)
        found = self._rows[part].data.slice(row, 1)
        name, text = (found.column(key)[0].as_py() for key in ("name", "text"))
        label = self._classes[dataset.labels[index]]
        return self.source.preview(Example(stored.reshape(self.source.input_shape), label, name, text))

    def _checked(self, split: str, indices: Sequence[int]) -> NDArray[np.int64]:
        index_b, count = np.asarray(indices, np.int64).reshape(-1), self.num_examples(split)
        if len(index_b) and not (index_b.min() >= 0 and index_b.max() < count):
            wrong = next(i for i in index_b if not 0 <= i < count)
            raise UserError(f"example {wrong} of split {split}: it has {count}, counted from 0")
        return index_b

    def train_dataloader(self) -> DataLoader:
        if self.batch_size is not None:
            return self.resumable_loader(self.sets["train"], self.batch_size, self.seed, **self._loader_args())
        if self.trainer is not None and self.trainer.world_size > 1:
            raise UserError("data.batch_size=null is one full batch on one device: set trainer.devices=1 or a number")
        # in order and in this process: the split is gathered once and never copied again
        sampler = EpochSampler(len(self.sets["train"]), len(self.sets["train"]), shuffle=False, position=self.position)
        generator = torch.Generator().manual_seed(self.seed)  # not the training's: an iterator draws a number
        args = self._loader_args() | {"num_workers": 0}
        return ResumableLoader(self.sets["train"], batch_sampler=sampler, generator=generator, **args)

    def val_dataloader(self) -> DataLoader | list:
        return self._eval_loader("val") if len(self.sets["val"]) else []

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        return self.eval_loader(self.sets[split], self.eval_batch_size, **self._loader_args())

    def _loader_args(self) -> dict[str, Any]:
        return {"num_workers": self.num_workers, "pin_memory": self.pin_memory, "collate_fn": as_is}


def _take(chosen: tuple[NDArray, NDArray], which: NDArray) -> tuple[NDArray, NDArray]:
    return chosen[0][which], chosen[1][which]
