"""Shared by the protocols of captioning models: checks, batches of a split's images, texts of captions."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.data.batches import CaptionBatch
from quintet.metrics.captions.tokenizer import tokenize
from quintet.papers.show_and_tell.captioner import Captioner
from quintet.papers.show_and_tell.decoding import Caption
from quintet.papers.show_and_tell.module import ShowAndTellModule


def need_captioner(module: Any, name: str) -> None:
    """UserError for a run of another kind of model."""
    if not isinstance(module, Captioner):
        raise UserError(
            f"protocol={name} needs a captioning model, not {type(module).__name__}: give a run of model=show_and_tell"
        )


def image_batches(datamodule: Any, split: str, device: torch.device, size: int,
                  count: int | None = None) -> Iterator[CaptionBatch]:  # fmt: skip
    """A split's images in order with all their captions, `size` at a time; count: only so many, evenly spread."""
    images = spread(datamodule.num_images(split), count)
    for start in range(0, len(images), size):
        batch = datamodule.image_batch(split, images[start : start + size])
        yield to_device(batch, device)


def to_device(batch: CaptionBatch, device: torch.device) -> CaptionBatch:
    return CaptionBatch(*(part if part is None else part.to(device) for part in batch))  # type: ignore[arg-type]


def spread(total: int, count: int | None) -> list[int]:
    """Evenly spread `count` of `total` rows, or all. UserError if there are fewer."""
    if count is None:
        return list(range(total))
    if not 1 <= count <= total:
        raise UserError(f"protocol.count={count}: the split has {total} images, give 1 to {total} or null for all")
    return [index * total // count for index in range(count)]


def encoded_once(module: Captioner, batch: CaptionBatch) -> CaptionBatch | Tensor:
    """The images' features, so that the encoder runs once; for an ensemble the batch: each member has its own."""
    with torch.no_grad():
        return module.features(batch) if isinstance(module, ShowAndTellModule) else batch


def words_of(texts: Sequence[str]) -> list[str]:
    """Captions as tokens separated by spaces, so that generated ones can be compared with those of the data."""
    return [" ".join(tokenize(text)) for text in texts]


def best_text(captions: Sequence[Caption]) -> str:
    """The text of an image's best caption; empty if the search found none."""
    return captions[0].text if captions else ""
