"""Which captions, or images, are in which batch: by length in training, every image once in evaluation."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from quintet.data.pairs.order import LengthSampler
from quintet.data.resumable import ViewSampler
from quintet.errors import UserError


class CaptionSampler(ViewSampler, LengthSampler):
    """Batches of captions of like length; the index `epoch * num_items + i` tells the dataset which view is meant."""


class EvalSampler(Sampler[list[int]]):
    """Every image once, in order: rank r takes its share of consecutive ones.

    All ranks have the same number of batches, as collective calls in a forward pass need it, and no image is repeated
    for that: the sizes of batches differ by one at most. A batch is larger than `batch_size` only where there are
    fewer images than batches otherwise. Errors: UserError for fewer images than ranks.
    """

    def __init__(self, num_items: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1:
            raise UserError(f"data.eval_batch_size={batch_size}: give 1 or more")
        if num_items < world_size:
            raise UserError(f"{num_items} images to evaluate on {world_size} devices: use fewer devices")
        self.num_items, self.rank, self.world_size = num_items, rank, world_size
        wanted = -(-num_items // (batch_size * world_size))
        self.num_batches = min(wanted, num_items // world_size)  # a rank's; none of them empty

    def __iter__(self) -> Iterator[list[int]]:
        chunks = self.num_batches * self.world_size
        for chunk in range(self.rank * self.num_batches, (self.rank + 1) * self.num_batches):
            yield list(range(chunk * self.num_items // chunks, (chunk + 1) * self.num_items // chunks))

    def __len__(self) -> int:
        return self.num_batches
