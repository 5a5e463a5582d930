"""Captions and their images, or the images' cached features, as whole batches made where they are asked for."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from quintet.data.batches import CaptionBatch
from quintet.data.captions.table import CaptionTable
from quintet.data.captions.views import Views
from quintet.data.examples.store import ArrayInputs
from quintet.data.special_ids import BOS, EOS, PAD

SERVED = ("images", "features")


class CaptionDataset(Dataset):
    """Index `epoch * len + i` is item i in that epoch: a caption, or an image with all its captions (`by_image`).

    ids: the id of each of the table's token numbers. rows: the captions in use; caption i is row `rows[i]`.
    served: `images` or `features`, may be changed between epochs. augment: views of training.
    """

    def __init__(self, table: CaptionTable, ids: NDArray[np.int64], rows: NDArray[np.int64], views: Views,
                 features: ArrayInputs | None = None, by_image: bool = True,
                 augment: bool = False) -> None:  # fmt: skip
        self.table, self.ids, self.rows, self.views, self.features = table, ids, rows, views, features
        self.by_image, self.augment, self.served = by_image, augment, SERVED[0]
        images_n = table.image_of(rows)
        # of image i: rows[first[i]:first[i + 1]]
        self.images, first = np.unique(images_n, return_index=True)
        self.first = np.append(first, len(rows))

    def __len__(self) -> int:
        return len(self.images if self.by_image else self.rows)

    def lengths(self) -> NDArray[np.int64]:
        """Words of each caption in use."""
        return (self.table.starts_n[1:] - self.table.starts_n[:-1])[self.rows]

    def __getitem__(self, index: int) -> CaptionBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | NDArray[np.integer]) -> CaptionBatch:
        epochs, items = np.divmod(np.asarray(indices, np.int64), len(self))
        if self.by_image:
            rows = np.concatenate([self.rows[self.first[i] : self.first[i + 1]] for i in items])
        else:
            rows = self.rows[items]
        # one view of an image a batch; another caption's batch has another view of it
        images = self.images[items] if self.by_image else self.table.image_of(rows)
        return self.batch(rows, {int(i): (int(e), int(n)) for i, e, n in zip(images, epochs, items, strict=True)})

    def batch(self, rows: NDArray[np.int64], views: dict[int, tuple[int, int]] | None = None) -> CaptionBatch:
        """These captions in this order. views: image -> (epoch, item), of augmented ones."""
        image_n = self.table.image_of(rows)
        images, first, inverse = np.unique(image_n, return_index=True, return_inverse=True)
        order = np.argsort(first)  # by first appearance
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        images = images[order]
        captions = [self.ids[self.table.caption(row)] for row in rows]
        lengths = torch.tensor([len(ids) + 2 for ids in captions])
        words = torch.full((len(rows), int(lengths.max())), PAD, dtype=torch.int64)
        for line, ids, length in zip(words, captions, lengths.tolist(), strict=True):
            line[0], line[length - 1] = BOS, EOS
            line[1 : length - 1] = torch.from_numpy(ids)
        inputs = self.inputs(images, views if self.augment else None)
        return CaptionBatch(
            images=inputs if self.served == "images" else None,
            features=None if self.served == "images" else inputs,
            words=words,
            lengths=lengths,
            image_row=torch.from_numpy(place[inverse]),
            image_index=torch.from_numpy(images),
            index=torch.from_numpy(rows),
        )

    def inputs(self, images: NDArray[np.int64], views: dict[int, tuple[int, int]] | None = None) -> Tensor:
        """(I, 3, H, W) images or (I, F) features, whichever is served."""
        if self.served == "features":
            assert self.features is not None, "the DataModule serves features only if it has computed them"
            return torch.from_numpy(self.features.gather(images))
        if views is None:
            return torch.stack([self.views.evaluated(self.table.picture(i)) for i in images])
        return torch.stack([self.views.augmented(self.table.picture(i), *views[int(i)]) for i in images])


def as_is(batch: CaptionBatch) -> CaptionBatch:
    """The collate function: the dataset returns whole batches."""
    return batch
