"""What the protocols of captioners share: checks, a split's images in batches, the texts of its captions."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from quintet.common.errors import UserError
from quintet.data.batches import CaptionBatch
from quintet.metrics.captions.tokenizer import tokenize
from quintet.papers.show_and_tell.captioner import Captioner
from quintet.papers.show_and_tell.decoding import Caption


def need_captioner(module: Any, name: str) -> None:
    """UserError for a run that captions nothing."""
    if not isinstance(module, Captioner):
        raise UserError(f"protocol={name} captions images: give a run of model=show_and_tell")


def image_batches(datamodule: Any, split: str, device: torch.device, size: int,
                  count: int | None = None) -> Iterator[CaptionBatch]:  # fmt: skip
    """A split's images in order with all their captions, `size` at a time; count: only so many, spread over it."""
    images = spread(datamodule.num_images(split), count)
    for start in range(0, len(images), size):
        batch = datamodule.image_batch(split, images[start : start + size])
        yield CaptionBatch(*(part if part is None else part.to(device) for part in batch))


def spread(total: int, count: int | None) -> list[int]:
    """`count` of `total` rows at equal distances, or all. Errors: UserError where there are fewer."""
    if count is None:
        return list(range(total))
    if not 1 <= count <= total:
        raise UserError(f"protocol.count={count}: there are {total} images, give 1 to {total} or null for all")
    return [index * total // count for index in range(count)]


def encoded_once(module: Captioner, batch: CaptionBatch) -> CaptionBatch | Tensor:
    """What `generate` and `speaker` take, so that one encoder runs once; members of an ensemble run their own."""
    with torch.no_grad():
        return module.features(batch) if hasattr(module, "features") else batch


def words_of(texts: Sequence[str]) -> list[str]:
    """Captions as their words with a space between, in which what was generated can be compared with what was read."""
    return [" ".join(tokenize(text)) for text in texts]


def best_text(captions: Sequence[Caption]) -> str:
    """The best caption of an image; nothing where nothing was found."""
    return captions[0].text if captions else ""
