"""Which parameters learn how fast, and which ones decay: lr_mult and decay_mult of the authors' prototxt files."""

from collections.abc import Iterator

from torch import Tensor, nn

from quintet.papers.deeplab.network import DeepLab

BIAS = 2.0  # biases learn twice as fast as weights and do not decay


def parameter_groups(network: DeepLab, lr: float, new_layers: float = 10.0) -> list[dict]:
    """Groups at 1, 2, `new_layers` and 2 x `new_layers` times `lr`; what is frozen is in none of them."""
    new = {p for layer in network.head.new_layers() for p in layer.parameters()}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            factor = (new_layers if parameter in new else 1.0) * (BIAS if is_bias(name) else 1.0)
            groups.setdefault(factor, []).append(parameter)
    return [{"params": groups[factor], "lr": lr * factor} for factor in sorted(groups)]


def decayed_names(network: nn.Module) -> list[str]:
    """The trainable weights, biases left out."""
    return [name for name, p in network.named_parameters() if p.requires_grad and not is_bias(name)]


def l2_term(network: nn.Module, names: list[str], weight_decay: float) -> Tensor:
    """weight_decay / 2 |weights|^2: SGD's own decay as a part of the loss, where influence functions see it."""
    return 0.5 * weight_decay * sum(p.square().sum() for p in _named(network, names))


def is_bias(name: str) -> bool:
    return name.endswith("bias")


def _named(network: nn.Module, names: list[str]) -> Iterator[Tensor]:
    # looked up at every call: functional_call puts other tensors in their place, which no longer say requires_grad
    wanted = set(names)
    return (p for name, p in network.named_parameters() if name in wanted)
