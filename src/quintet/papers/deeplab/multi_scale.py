"""Images at several scales through shared weights (MSC, section 4.1.2), and the loss on labels as coarse as the scores.

Sizes are 8k + 1 and corners stay on corners: 321 at .75 and .5 is 241 and 161, not 240 and 160.
Legend: H, W pixels; h, w positions of a score map.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = 255


def resize(x_bchw: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners on corners; in float32, so that 1/8 of a cell is not rounded to bfloat16."""
    if tuple(x_bchw.shape[-2:]) == tuple(size):
        return x_bchw
    return F.interpolate(x_bchw.float(), tuple(size), mode="bilinear", align_corners=True)


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Pixels of an image at a scale."""
    height, width = (round((side - 1) * scale) + 1 for side in size)
    return height, width


def at_scales(images_bchw: Tensor, scales: Sequence[float]) -> list[Tensor]:
    """The images at each scale."""
    return [resize(images_bchw, scaled_size(images_bchw.shape[-2:], scale)) for scale in scales]


def fuse(scores: Sequence[Tensor]) -> Tensor:
    """Element-wise maximum at the size of the first, which is that of scale 1."""
    size = scores[0].shape[-2:]
    return torch.stack([resize(s, size) for s in scores]).amax(0) if len(scores) > 1 else scores[0]


def size_step(output_stride: int, scales: Sequence[float]) -> int:
    """For sides of a multiple of this plus 1, the scores of every scale are on pixels of that scale."""
    return output_stride * lcm(*(Fraction(scale).limit_denominator(64).denominator for scale in scales))


def coarse_labels(labels_bhw: Tensor, size: Sequence[int]) -> Tensor:
    """The labels (B, h, w) of the pixels at the centres of the score map's cells: label[::8, ::8] at 8k + 1."""
    rows, columns = (
        _nearest(have, want, labels_bhw.device) for have, want in zip(labels_bhw.shape[-2:], size, strict=True)
    )
    return labels_bhw[:, rows][:, :, columns]


def _nearest(have: int, want: int, device: torch.device) -> Tensor:
    return torch.linspace(0, have - 1, want, device=device, dtype=torch.float64).round().long()


def mean_losses(scores_bchw: Tensor, labels_bhw: Tensor) -> Tensor:
    """Cross-entropy (B,) averaged over an example's labelled positions; 0 for one that has none."""
    coarse_bhw = coarse_labels(labels_bhw, scores_bchw.shape[-2:])
    losses_bhw = F.cross_entropy(scores_bchw.float(), coarse_bhw, ignore_index=IGNORE, reduction="none")
    return losses_bhw.sum((1, 2)) / (coarse_bhw != IGNORE).sum((1, 2)).clamp(min=1)


def summed_losses(scores: Sequence[Tensor], labels_bhw: Tensor) -> Tensor:
    """The loss (B,) of the fused scores plus that of each scale's; of one scale just its own.

    As in the authors' code, scores whose cells lie between pixels of the labels (scale .75) are resized first.
    """
    if len(scores) == 1:
        return mean_losses(scores[0], labels_bhw)
    size = scores[0].shape[-2:]
    kept = [s if _on_pixels(labels_bhw.shape[-2:], s.shape[-2:]) else resize(s, size) for s in scores]
    return torch.stack([mean_losses(s, labels_bhw) for s in (fuse(scores), *kept)]).sum(0)


def _on_pixels(pixels: Sequence[int], cells: Sequence[int]) -> bool:
    return all(c > 1 and (p - 1) % (c - 1) == 0 for p, c in zip(pixels, cells, strict=True))
