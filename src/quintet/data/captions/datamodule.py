"""Captions of any source in batches, with the words that a model needs to know."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from quintet.backbones.encoder import EncoderConfig
from quintet.common.errors import UserError
from quintet.data.batches import CaptionBatch
from quintet.data.captions.dataset import SERVED, CaptionDataset, as_is
from quintet.data.captions.features import cached_features
from quintet.data.captions.source import SPLITS, CaptionSource
from quintet.data.captions.table import CaptionTable, ShardTable
from quintet.data.captions.views import Views
from quintet.data.captions.vocabulary import Vocabulary
from quintet.data.examples.store import ArrayInputs
from quintet.data.order import CaptionSampler, GroupSampler, ViewSampler, check_workers, group_ends
from quintet.data.preview import Preview
from quintet.data.resumable import ResumableDataModule, ResumableLoader
from quintet.data.special_ids import EOS, UNKNOWN

log = logging.getLogger(__name__)


class CaptionDataModule(ResumableDataModule):
    """Batches of `batch_size` captions of like length and their images, see CaptionBatch.

    min_count: words that occur so often in the training captions are known, no others. max_words: longer captions are
    left out of training (never out of val and test); so are those of unknown words only.
    group_by_image: a training batch is `batch_size` images with all their captions, which costs an encoder one pass an
    image. Evaluation: `eval_batch_size` images with all their captions, in order, each on one device only.
    resize_size ... colour_jitter: see Views. features: the frozen encoder, as `model.encoder`, whose cached features
    are served in place of images until `serve("images")`. streaming: leave the images in the source's parquet shards,
    copy and look at nothing in advance. The order of training is then that of GroupSampler, without regard to length:
    `shuffle_groups` row groups at a time, at `streams` places.
    """

    batch_type = CaptionBatch

    def __init__(self, source: CaptionSource, cache_dir: str, batch_size: int = 32, root: str | None = None,
                 min_count: int = 5, max_words: int | None = None, group_by_image: bool = False,
                 length_window: int = 50, resize_size: int = 346, crop_size: int = 299, keep_aspect: bool = False,
                 mirror: bool = True, colour_jitter: bool = True, features: EncoderConfig | None = None,
                 eval_batch_size: int = 32, seed: int = 0, num_workers: int = 0,
                 pin_memory: bool = False, streaming: bool = False, streams: int = 4,
                 shuffle_groups: int = 4) -> None:  # fmt: skip
        super().__init__()
        self.streaming, self.streams, self.shuffle_groups = streaming, streams, shuffle_groups
        self.source, self.root, self.cache_dir = source, root, Path(cache_dir)
        self.batch_size, self.eval_batch_size, self.length_window = batch_size, eval_batch_size, length_window
        self.min_count, self.max_words, self.group_by_image = min_count, max_words, group_by_image
        self.views = Views(resize_size, crop_size, keep_aspect, mirror, colour_jitter, seed)
        self.encoder = EncoderConfig(**features) if isinstance(features, Mapping) else features
        self.seed, self.num_workers, self.pin_memory = seed, num_workers, pin_memory
        self.served = SERVED[0] if features is None else SERVED[1]
        self._tables: dict[str, CaptionTable] = {}
        self._features: dict[str, ArrayInputs] = {}
        self._kept: dict[str, NDArray[np.int64]] = {}
        self._sets: dict[tuple[str, bool], CaptionDataset] = {}
        self._vocabulary: Vocabulary | None = None
        self._check()

    def _check(self) -> None:
        for key in ("batch_size", "eval_batch_size", "min_count", "max_words", "length_window"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value}: give 1 or more" + (" or null" if key == "max_words" else ""))
        if self.seed < 0:
            raise UserError(f"data.seed={self.seed}: give 0 or more")
        if self.streaming:
            if not hasattr(self.source, "streaming"):
                raise UserError(
                    f"data.streaming=true reads parquet shards, not {self.source.name}: choose data=hub_captions"
                )
            check_workers(self.num_workers, self.streams)
            self.source.streaming = True

    def prepare_data(self) -> None:
        """Look at every image, and compute features, once; safe when several processes do it at the same time."""
        if self._tables:
            return
        tables = self.source.splits(self.cache_dir)
        for table in tables.values() if self.streaming else ():
            cast(ShardTable, table).shards.keep = (self.shuffle_groups + 1) * self.streams // max(self.num_workers, 1)
        if self.encoder is not None:
            self._features = {
                split: cached_features(self.encoder, table, self.views, self.cache_dir, self.num_workers)
                for split, table in tables.items()
            }
        self._tables = tables

    def setup(self, stage: str | None = None) -> None:
        if self._vocabulary is not None:
            return
        self.prepare_data()  # cheap by now; makes setup() enough on a rank that did not prepare
        if "train" not in self._tables:
            return  # transfer: the run that is tested brings its vocabulary
        counts = np.bincount(self._tables["train"].tokens, minlength=len(self.source.words)).tolist()
        self.use_vocabulary(Vocabulary.from_counts(dict(zip(self.source.words, counts, strict=True)), self.min_count))
        sizes = ", ".join(f"{table.num_images} {split}" for split, table in self._tables.items())
        total, known = sum(counts), sum(n for n in counts if n >= self.min_count)
        log.info("%s: %s images, %d words known, %.2f%% of the training words are not", self.source.name, sizes,
                 len(self.vocabulary), 100 * (1 - known / total))  # fmt: skip
        for split, reason in self.source.missing.items():
            log.info("no %s split: %s", split, reason)

    @property
    def vocabulary(self) -> Vocabulary:
        """Raises UserError for a data set without training captions."""
        self.setup()
        if self._vocabulary is None:
            raise UserError(
                f"{self.source.name} has no training captions ({self.source.missing['train']}), hence no vocabulary: it"
                " can test a run that was trained on another data set, see protocol=transfer"
            )
        return self._vocabulary

    def use_vocabulary(self, vocabulary: Vocabulary | Sequence[str]) -> None:
        """Another run's words, its `data_info["vocabulary"]`, in place of this data set's own: transfer."""
        self.prepare_data()
        words = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary(vocabulary)
        self._vocabulary, self._kept, self._sets = words, {}, {}
        self._ids = np.array(words.encode(self.source.words), np.int64)

    @property
    def data_info(self) -> dict[str, Any]:
        """Plain values that a model needs; call after setup()."""
        return {"vocabulary": list(self.vocabulary.words), "counts": self._counts()}

    def _counts(self) -> list[int]:
        """Count of each id in the training captions in use, eos once in each; none without such captions."""
        size = len(self.vocabulary)
        if "train" not in self._tables:
            return [0] * size
        dataset, table = self.dataset("train"), self._tables["train"]
        used_n = np.zeros(len(table), bool)
        used_n[dataset.rows] = True
        counts = np.bincount(self._ids[table.tokens[np.repeat(used_n, np.diff(table.starts_n))]], minlength=size)
        counts[EOS] = used_n.sum()
        return counts.tolist()

    def table(self, split: str) -> CaptionTable:
        """A split as it is stored. Raises UserError for another name, and for a split that is not there, with why."""
        self.setup()
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}: choose {', '.join(SPLITS)}")
        if split not in self._tables:
            raise UserError(
                f"{self.source.name} at data.root={self.source.root} has no {split} split: {self._why(split)}"
            )
        return self._tables[split]

    def _why(self, split: str) -> str:
        return self.source.missing.get(split, f"it has {' and '.join(self._tables)} only")

    def dataset(self, split: str, training: bool = False) -> CaptionDataset:
        """training: captions in batches as they are trained on; else images with all captions, as evaluated."""
        table, _ = self.table(split), self.vocabulary
        if (split, training) not in self._sets:
            by_image = self.group_by_image if training else True
            if split not in self._kept:
                self._kept[split] = self._rows(split)
            made = CaptionDataset(table, self._ids, self._kept[split], self.views, self._features.get(split), by_image,
                                  augment=training)  # fmt: skip
            made.served = self.served
            self._sets[split, training] = made
        return self._sets[split, training]

    def _rows(self, split: str) -> NDArray[np.int64]:
        """Captions in use: all but the training captions that are too long or say nothing known."""
        table = self._tables[split]
        if split != "train":
            return np.arange(len(table))
        lengths = np.diff(table.starts_n)
        known = np.add.reduceat(self._ids[table.tokens] != UNKNOWN, table.starts_n[:-1]) > 0
        short = lengths <= (self.max_words or lengths.max())
        if not (known & short).all():
            log.warning("%s: left out of training: %d captions longer than %s words, %d of unknown words only",
                        self.source.name, (~short).sum(), self.max_words, (~known).sum())  # fmt: skip
        if not (known & short).any():
            raise UserError(f"data.max_words={self.max_words}: the shortest training caption has {lengths.min()} words")
        return np.flatnonzero(known & short)

    def serve(self, what: str) -> None:
        """`features` or `images` from the next pass over a loader on: call it between epochs.

        Raises UserError for features where data.features=null.
        """
        if what not in SERVED:
            raise UserError(f"serve({what!r}): choose {' or '.join(SERVED)}")
        if what == "features" and self.encoder is None:
            raise UserError("there are no cached features to serve: set data.features to the model's encoder")
        self.served = what
        for dataset in self._sets.values():
            dataset.served = what

    def num_examples(self, split: str) -> int:
        """Captions in use: without those that are left out of training."""
        return len(self.dataset(split).rows)

    def num_images(self, split: str) -> int:
        return self.table(split).num_images

    def image_ids(self, split: str) -> list[str]:
        """Names of the images, in order of `CaptionBatch.image_index`."""
        return self.table(split).names()

    def captions(self, split: str) -> list[str]:
        """All raw captions, in order of `CaptionBatch.index`."""
        return list(self.table(split).texts["text"])

    def references(self, split: str, image_indices: Sequence[int]) -> list[list[str]]:
        """All raw captions of each of these images."""
        table = self.table(split)
        rows = [table.captions_of(image) for image in self._checked(image_indices, table.num_images, split)]
        return [list(table.texts[row.start : row.stop]["text"]) for row in rows]

    def images(self, split: str, image_indices: Sequence[int]) -> Tensor:
        """(I, 3, H, W) as they are evaluated, whatever is served."""
        table = self.table(split)
        indices = self._checked(image_indices, table.num_images, split)
        return torch.stack([self.views.evaluated(table.picture(image)) for image in indices])

    def picture(self, split: str, image_index: int) -> NDArray[np.uint8]:
        """(H, W, 3) as it is in the file."""
        table = self.table(split)
        (image,) = self._checked([image_index], table.num_images, split)
        return table.picture(image).permute(1, 2, 0).numpy()

    def some_images(self, split: str, count: int) -> NDArray[np.int64]:
        """At most `count` of the images with captions in use, spread evenly, for `image_batch`."""
        images = self.dataset(split).images
        return images[:: -(-len(images) // count)]

    def image_batch(self, split: str, image_indices: Sequence[int]) -> CaptionBatch:
        """These images with all their captions in use, as evaluated."""
        dataset = self.dataset(split)
        wanted = self._checked(image_indices, dataset.table.num_images, split)
        for image in np.setdiff1d(wanted, dataset.images)[:1]:
            raise UserError(f"image {image} of split {split} has no caption that is trained on")
        return dataset.__getitems__(np.searchsorted(dataset.images, wanted))

    def example_batch(self, split: str, indices: Sequence[int]) -> CaptionBatch:
        """Exactly these captions in this order, images as they are evaluated."""
        dataset = self.dataset(split)
        return dataset.batch(dataset.rows[self._checked(indices, len(dataset.rows), split)])

    def preview(self, split: str, index: int) -> Preview:
        """The caption and its image; a group is the captions of an image."""
        dataset = self.dataset(split)
        row = int(dataset.rows[self._checked([index], len(dataset.rows), split)[0]])
        image = int(dataset.table.image_of([row])[0])
        name, text = dataset.table.images[image]["name"], dataset.table.texts[row]["text"]
        number = row - dataset.table.captions_of(image).start
        return Preview(f"{name}#{number}", text=text, image=self.picture(split, image) / 255, group=name)

    def _checked(self, indices: Sequence[int], count: int, split: str) -> NDArray[np.int64]:
        wanted = np.asarray(indices, np.int64).reshape(-1)
        for index in wanted[(wanted < 0) | (wanted >= count)][:1]:
            raise UserError(f"example {index} of split {split}: it has {count}, counted from 0")
        return wanted

    def train_dataloader(self) -> DataLoader:
        """This rank's batches, standing where the checkpoint left them."""
        dataset, (rank, world) = self.dataset("train", training=True), self.rank_and_world()
        options: dict[str, Any] = {"rank": rank, "world_size": world, "position": self.position}
        sampler: Sampler[list[int]]
        if self.streaming:
            images = dataset.images if self.group_by_image else dataset.table.image_of(dataset.rows)
            table = cast(ShardTable, dataset.table)
            ends = group_ends(table.rows_i[images], None, table.shards.ends)
            sampler = GroupSampler(ends, self.batch_size, self.seed, self.streams, self.shuffle_groups, views=True,
                                   **options)  # fmt: skip
        elif self.group_by_image:
            sampler = ViewSampler(len(dataset), self.batch_size, self.seed, **options)
        else:
            sampler = CaptionSampler(dataset.lengths(), self.batch_size, self.seed, self.length_window, **options)
        return ResumableLoader(dataset, batch_sampler=sampler, **self._loader_args())

    def val_dataloader(self) -> DataLoader | list:
        if "val" not in self._tables:
            log.warning("%s: nothing to validate on, %s", self.source.name, self._why("val"))
            return []
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        dataset = self.dataset(split)
        return self.eval_loader(dataset, self.eval_batch_size, **self._loader_args())

    def _loader_args(self) -> dict[str, Any]:
        # its own generator: making an iterator draws a number, which must not come from the training's random state
        generator = torch.Generator().manual_seed(self.seed)
        return {"num_workers": self.num_workers, "pin_memory": self.pin_memory, "collate_fn": as_is,
                "generator": generator}  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "served": self.served}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.serve(state_dict["served"])
