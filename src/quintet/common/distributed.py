"""What distributed ranks do together: examples in rank order, the mean of a global batch."""

import torch
from torch import Tensor, distributed


def _alone() -> bool:
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1


def batch_mean(losses_b: Tensor) -> Tensor:
    """The rank's part in the mean of all ranks' losses (B,), where ranks differ in B.

    DDP takes the mean of the ranks' gradients; that of these is the gradient of the global batch's mean.
    """
    if _alone():
        return losses_b.mean()
    count = torch.tensor(float(len(losses_b)), device=losses_b.device)
    distributed.all_reduce(count)
    return losses_b.sum() * (distributed.get_world_size() / count)


def over_ranks(loss: Tensor) -> Tensor:
    """The ranks' mean of a loss, to be logged: that of the global batch. No gradient, and no barrier as `sync_dist`."""
    if _alone():
        return loss
    mean = loss.detach().clone()
    distributed.all_reduce(mean)
    return mean / distributed.get_world_size()


def largest_of_ranks(count: int, device: torch.device) -> tuple[int, int]:
    """Number of ranks, and the largest `count` among them."""
    if _alone():
        return 1, count
    largest = torch.tensor(count, device=device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return distributed.get_world_size(), int(largest)


def gather_ranks(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Each tensor (B, ...) with the other ranks' rows below and above its own; ranks may differ in B. No gradient."""
    if _alone():
        return tensors
    world = distributed.get_world_size()
    sizes = torch.zeros(world, dtype=torch.int64, device=tensors[0].device)
    sizes[distributed.get_rank()] = len(tensors[0])
    distributed.all_reduce(sizes)
    rows = sizes.tolist()
    return tuple(_gather(tensor, rows) for tensor in tensors)


def _gather(tensor: Tensor, rows: list[int]) -> Tensor:
    sent = tensor.new_zeros(max(rows), *tensor.shape[1:])
    sent[: len(tensor)] = tensor
    received = [torch.empty_like(sent) for _ in rows]
    distributed.all_gather(received, sent)
    return torch.cat([part[:count] for part, count in zip(received, rows, strict=True)])
