"""A network's last softmax layer by itself, on its input features, for when only its parameters are free.

WaveNet's last convolution, a captioner's words, DeepLab's classes: the loss is convex in such a layer, and a sweep over
the data leaves the rest of the network out.
split.py finds it in each paper's model.
Legend: B examples, T positions (samples, words, pixels), F features, C classes.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional as F

from quintet.papers.influence.risk.softmax_risk import SoftmaxParts


class LastLayerBatch(NamedTuple):
    """Inputs and targets of the last layer."""

    features: Tensor  # (B, T, F)
    targets: Tensor  # (B, T) int64 classes; any class where there is none
    weight: Tensor  # (B, T) of each position in its example's loss; 0 where there is no target


class LastLayer(nn.Module):
    """The layer `name` of a module, linear or a convolution of size 1, its parameters under the names they have there.

    l2: lambda of its weights, where that is part of the module's loss.
    """

    def __init__(self, module: nn.Module, name: str, l2: float = 0.0) -> None:
        super().__init__()
        self.name, self.l2 = name, l2
        self.optimizer_config = getattr(module, "optimizer_config", None)  # whose weight decay counts, see risk.py
        *path, last = name.split(".")
        holder: nn.Module = self
        for part in path:
            holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        holder.add_module(last, module.get_submodule(name))

    @property
    def layer(self) -> nn.Linear:
        """The layer itself; of a convolution of size 1 only weight and bias are used."""
        return cast(nn.Linear, self.get_submodule(self.name))

    def example_losses(self, batch: LastLayerBatch) -> Tensor:
        """The module's own (B,), without its L2 term."""
        logits_btc = F.linear(batch.features, self.layer.weight.flatten(1), self.layer.bias)
        nll_bt = F.cross_entropy(logits_btc.mT, batch.targets, reduction="none")
        return (nll_bt * batch.weight).sum(1)

    def regularisation(self) -> Tensor:
        return 0.5 * self.l2 * self.layer.weight.square().sum()

    def softmax_parts(self, batch: LastLayerBatch) -> SoftmaxParts:
        """Every target is a softmax of an affine function of its position's features."""
        bias = None if self.layer.bias is None else f"{self.name}.bias"
        return SoftmaxParts(batch.features, batch.targets, batch.weight, f"{self.name}.weight", bias)


def are_all_of(module: nn.Module, names: Sequence[str], name: str) -> bool:
    """Whether `names` are all parameters of that layer and no others."""
    found = {f"{name}.{part}" for part, _ in module.get_submodule(name).named_parameters()}
    return set(names) == found


def mean_weights(real_bt: Tensor) -> Tensor:
    """Weights in the mean over an example's real positions, (B, T)."""
    return real_bt / real_bt.sum(1, keepdim=True).clamp(min=1)
