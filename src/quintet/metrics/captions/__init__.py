"""Caption metrics as defined by coco-caption (Chen et al. 2015, arXiv 1504.00325), without Java."""

from quintet.metrics.captions.metrics import CaptionMetrics

__all__ = ["CaptionMetrics"]
