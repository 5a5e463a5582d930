"""From features to class scores: LargeFOV and atrous spatial pyramid pooling (ASPP), sections 3.1 and 3.2, figure 7.

Legend: B images, F channels of the features, C classes, h x w positions of the feature map.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from math import isqrt

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError
from quintet.papers.deeplab.config import DeepLabConfig


class LargeFOV(nn.Module):
    """Features (B, F, h, w) -> scores (B, C, h, w) through one atrous convolution with a large field of view.

    In the VGG form (`hidden_channels` given) the layers are fc6 (atrous), fc7 and the classifier (the paper's fc8),
    with ReLU and dropout after fc6 and fc7 (figure 7a). In the ResNet form the classifier is the atrous convolution.
    Errors: UserError for an even kernel with an odd rate, whose output cannot have the size of its input.
    """

    def __init__(self, in_channels: int, num_classes: int, rate: int, kernel_size: int = 3,
                 hidden_channels: int | None = None, dropout: float = 0.5) -> None:  # fmt: skip
        super().__init__()
        self.fully_connected = hidden_channels is not None
        if hidden_channels is None:
            self.classifier = atrous(in_channels, num_classes, kernel_size, rate)
        else:
            self.fc6 = atrous(in_channels, hidden_channels, kernel_size, rate)
            self.fc7 = nn.Conv2d(hidden_channels, hidden_channels, 1)
            self.classifier = nn.Conv2d(hidden_channels, num_classes, 1)
            self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """The authors' initialization: scores from N(0, 0.01), biases 0; fc6 and fc7 preserve the variance."""
        if self.fully_connected:
            for layer in (self.fc6, self.fc7):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        for layer in self.layers():
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def load_fc(self, weights: Mapping[str, Tensor]) -> None:
        """fc6 and fc7 from those of VGG-16, decimated to this head's size (section 4.1.1).

        DeepLab's own weights, decimated before, are accepted as well: their fc6 may have any square kernel.
        """
        fc6 = weights["classifier.0.weight"]
        channels = self.fc6.in_channels
        side = isqrt(fc6.shape[1] // channels)
        if side * side * channels != fc6.shape[1]:
            raise UserError(
                f"fc6 of model.backbone.weights has {fc6.shape[1]} inputs, which is not a square kernel on {channels}"
                " channels: use the weights of VGG-16"
            )
        sources = {"fc6.weight": fc6.unflatten(1, (channels, side, side)), "fc6.bias": weights["classifier.0.bias"],
                   "fc7.weight": weights["classifier.3.weight"][..., None, None],
                   "fc7.bias": weights["classifier.3.bias"]}  # fmt: skip
        with torch.no_grad():
            for name, source in sources.items():
                parameter = self.get_parameter(name)
                parameter.copy_(decimated(source, parameter.shape))

    def classifier_input(self, x_bfhw: Tensor) -> Tensor:
        """The features that the classifier reads."""
        if self.fully_connected:
            x_bfhw = self.dropout(self.fc6(x_bfhw).relu())
            x_bfhw = self.dropout(self.fc7(x_bfhw).relu())
        return x_bfhw

    def forward(self, x_bfhw: Tensor) -> Tensor:
        return self.classifier(self.classifier_input(x_bfhw))

    def layers(self) -> list[nn.Conv2d]:
        """The convolutions from the features to the scores."""
        return [self.fc6, self.fc7, self.classifier] if self.fully_connected else [self.classifier]

    def branch_list(self) -> list["LargeFOV"]:
        return [self]


class ASPP(nn.Module):
    """Features (B, F, h, w) -> scores (B, C, h, w): the sum of parallel LargeFOV branches, one per rate (figure 7b)."""

    def __init__(self, branches: Sequence[LargeFOV]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x_bfhw: Tensor) -> Tensor:
        return reduce(torch.add, (branch(x_bfhw) for branch in self.branches))

    def branch_list(self) -> list[LargeFOV]:
        return list(self.branches)  # type: ignore[arg-type]  # a ModuleList has no element type


def build_head(config: DeepLabConfig, in_channels: int, num_classes: int, output_stride: int) -> LargeFOV | ASPP:
    """The head that the settings describe, initialized: LargeFOV for one rate, ASPP for several."""
    if config.head == "none":
        branches = [LargeFOV(in_channels, num_classes, rate=1, kernel_size=1)]
    else:
        hidden = config.channels if config.form == "vgg" else None
        options = (config.kernel_size, hidden, config.dropout)
        branches = [LargeFOV(in_channels, num_classes, rate, *options) for rate in config.rates_at(output_stride)]
    for branch in branches:  # after all are made: a seed gives the same weights as in earlier versions
        branch.reset_parameters()
    return branches[0] if len(branches) == 1 else ASPP(branches)


def atrous(in_channels: int, out_channels: int, kernel_size: int, rate: int) -> nn.Conv2d:
    """An atrous convolution whose output has the size of its input (odd kernels, or even rates)."""
    spread = rate * (kernel_size - 1)
    if spread % 2:
        raise UserError(f"model.network.kernel_size={kernel_size} with rate {rate}: an even kernel needs even rates")
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=spread // 2, dilation=rate)


def decimated(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Evenly spaced entries along each dimension, first and last included."""
    for dim, (have, want) in enumerate(zip(weight.shape, shape, strict=True)):
        if want > have:
            raise UserError(
                f"the head is larger than VGG's fc6 and fc7: {want} of {have}; lower model.network.channels"
            )
        if want < have:
            weight = weight.index_select(dim, torch.linspace(0, have - 1, want).round().long())
    return weight
