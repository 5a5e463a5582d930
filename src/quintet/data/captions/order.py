"""Which captions are in which batch of training: those of like length."""

from quintet.data.pairs.order import LengthSampler
from quintet.data.resumable import ViewSampler


class CaptionSampler(ViewSampler, LengthSampler):
    """Batches of captions of like length; the index `epoch * num_items + i` tells the dataset which view is meant."""
