"""Learning rates and weight decay of each parameter, as lr_mult and decay_mult in the authors' prototxt files."""

import torch
from torch import Tensor, nn

from quintet.papers.deeplab.network import DeepLab

BIAS_LR = 2.0  # the learning rate of biases relative to that of weights; biases do not decay


def parameter_groups(network: DeepLab, lr: float, new_layers: float = 10.0) -> list[dict]:
    """Groups with 1, 2, `new_layers` and 2 x `new_layers` times `lr`, without the frozen parameters."""
    new = {p for layer in network.new_layers() for p in layer.parameters()}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            factor = (new_layers if parameter in new else 1.0) * (BIAS_LR if is_bias(name) else 1.0)
            groups.setdefault(factor, []).append(parameter)
    return [{"params": groups[factor], "lr": lr * factor} for factor in sorted(groups)]


def decayed_names(network: nn.Module) -> list[str]:
    """Names of the trainable weights, without biases."""
    return [name for name, p in network.named_parameters() if p.requires_grad and not is_bias(name)]


def l2_term(network: nn.Module, names: list[str], weight_decay: float) -> Tensor:
    """weight_decay / 2 |weights|^2: SGD's weight decay as a part of the loss, for influence functions."""
    # Looked up by name at every call: functional_call replaces the tensors, and the new ones do not require gradients.
    wanted = set(names)
    squares = [p.square().sum() for name, p in network.named_parameters() if name in wanted]
    return 0.5 * weight_decay * torch.stack(squares).sum() if squares else torch.zeros(())


def is_bias(name: str) -> bool:
    return name.endswith("bias")
