"""How many examples and vectors to take derivatives of at once within a memory budget."""

from collections.abc import Callable

import torch
from torch import Tensor

BUDGET = 2 << 30  # bytes on a CPU; of a GPU an eighth
MOST = 512  # examples: more are not faster
VECTORS = 8  # that a batch of examples leaves room for


def saved_bytes(losses: Callable[[Tensor], Tensor], theta_p: Tensor) -> int:
    """What autograd keeps for the backward pass of these losses, the parameters themselves left out."""
    theta = theta_p.detach().requires_grad_()
    kept: dict[int, int] = {}

    def note(part: Tensor) -> Tensor:
        own, whole = part.numel() * part.element_size(), part.untyped_storage()
        kept[whole.data_ptr()] = max(kept.get(whole.data_ptr(), 0), min(own, whole.nbytes()))
        return part

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda part: part):
        losses(theta)
    kept.pop(theta.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def examples_at_once(bytes_each: int, num_params: int, element_size: int, device: torch.device) -> int:
    """A batch that leaves room for VECTORS tangents, and for a gradient of every example."""
    free = budget(device) // VECTORS
    return max(1, min(MOST, free // max(1, bytes_each), budget(device) // (num_params * element_size)))


def vectors_at_once(bytes_each: int, examples: int, device: torch.device) -> int:
    """Tangents of such a batch: each is as large as what autograd keeps, in the pass forward and in the one back."""
    return max(1, budget(device) // max(1, 2 * bytes_each * examples))


def budget(device: torch.device) -> int:
    """Bytes; not of what is free, so that all ranks cut the examples alike."""
    return BUDGET if device.type != "cuda" else torch.cuda.get_device_properties(device).total_memory // 8
