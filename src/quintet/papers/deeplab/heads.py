"""From features to class scores: LargeFOV and atrous spatial pyramid pooling, sections 3.1 and 3.2 of the paper.

Legend: F channels of the features, C classes. Rates are pixels of a feature map at output stride 8; at another output
stride they become the nearest that cover as much of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError
from quintet.papers.deeplab.taps import summed

RATES = {"none": (1,), "large_fov": (12,), "aspp_s": (2, 4, 8, 12), "aspp_l": (6, 12, 18, 24)}
FORMS = ("resnet", "vgg")
OUTPUT_STRIDE = 8  # that rates are given for


@dataclass(frozen=True)
class NetworkConfig:
    """Everything under `model.network`.

    head: `none` is a 1 x 1 convolution to the classes. form: `vgg` has fc6, fc7 and fc8 in each branch, with ReLU and
    dropout, `resnet` one convolution to the classes; branches are summed. rates: null = the paper's for that head.
    channels: of fc6 and fc7. scales: of the images that share the weights, element-wise maximum of their scores (MSC).
    """

    head: str = "aspp_l"
    form: str = "resnet"
    rates: tuple[int, ...] | None = None
    kernel_size: int = 3
    channels: int = 1024
    dropout: float = 0.5
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        where = "model.network"
        if self.head not in RATES:
            raise UserError(f"{where}.head={self.head!r} is unknown: use one of {', '.join(RATES)}")
        if self.form not in FORMS:
            raise UserError(f"{where}.form={self.form!r} is unknown: use {' or '.join(FORMS)}")
        if self.rates is not None and (not len(self.rates) or min(self.rates) < 1):
            raise UserError(f"{where}.rates={list(self.rates)}: give whole numbers from 1, or null")
        for key in ("kernel_size", "channels"):
            if getattr(self, key) < 1:
                raise UserError(f"{where}.{key}={getattr(self, key)}: give 1 or more")
        if not 0 <= self.dropout < 1:
            raise UserError(f"{where}.dropout={self.dropout} must be at least 0 and below 1")
        if not len(self.scales) or self.scales[0] != 1 or not all(0 < s <= 1 for s in self.scales):
            raise UserError(f"{where}.scales={list(self.scales)}: give 1 first, then scales below 1, as [1, 0.75, 0.5]")


class Head(nn.Module):
    """Features (B, F, h, w) -> scores (B, C, h, w), the sum of the branches.

    pretrained: fc6 and fc7 start from VGG's weights and learn at the backbone's rate, not ten times as fast.
    """

    def __init__(self, config: NetworkConfig, in_channels: int, num_classes: int, output_stride: int,
                 pretrained: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.pretrained, self.linear = pretrained, config.form == "resnet" and config.head != "none"
        rates = scaled_rates(config, output_stride)
        if config.head == "none":
            self.branches = nn.ModuleList([nn.ModuleDict({"fc8": nn.Conv2d(in_channels, num_classes, 1)})])
        elif config.form == "resnet":
            made = [{"fc8": atrous(in_channels, num_classes, config.kernel_size, rate)} for rate in rates]
            self.branches = nn.ModuleList([nn.ModuleDict(branch) for branch in made])
        else:
            made = [self._fully_connected(config, in_channels, num_classes, rate) for rate in rates]
            self.branches = nn.ModuleList([nn.ModuleDict(branch) for branch in made])
        self.dropout = nn.Dropout(config.dropout)
        self.reset()

    @staticmethod
    def _fully_connected(config: NetworkConfig, in_channels: int, num_classes: int, rate: int) -> dict[str, nn.Module]:
        return {
            "fc6": atrous(in_channels, config.channels, config.kernel_size, rate),
            "fc7": nn.Conv2d(config.channels, config.channels, 1),
            "fc8": nn.Conv2d(config.channels, num_classes, 1),
        }

    def reset(self) -> None:
        """The authors' start: scores from N(0, .01), biases 0; fc6 and fc7 without VGG's weights keep the variance."""
        for branch in self.branches:
            for name, layer in branch.items():
                if name == "fc8":
                    nn.init.normal_(layer.weight, std=0.01)
                else:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def start_from(self, classifier: dict[str, Tensor]) -> None:
        """fc6 and fc7 of every branch from those of VGG-16, decimated to this head's size (section 4.1.1).

        Also from DeepLab's own, which were decimated before: fc6 may have any square kernel.
        """
        fc6 = classifier["classifier.0.weight"]
        channels = self.branches[0]["fc6"].in_channels
        side = isqrt(fc6.shape[1] // channels)
        if side * side * channels != fc6.shape[1]:
            raise UserError(f"fc6 of the weights has {fc6.shape[1]} inputs, no square kernel on {channels} channels")
        fc6 = fc6.unflatten(1, (channels, side, side))
        with torch.no_grad():
            for branch in self.branches:
                branch["fc6"].weight.copy_(decimated(fc6, branch["fc6"].weight.shape))
                branch["fc7"].weight.copy_(
                    decimated(classifier["classifier.3.weight"][..., None, None], branch["fc7"].weight.shape)
                )
                for name, layer in (("fc6", 0), ("fc7", 3)):
                    bias = branch[name].bias
                    bias.copy_(decimated(classifier[f"classifier.{layer}.bias"], bias.shape))

    def forward(self, features_bfhw: Tensor) -> Tensor:
        if self.linear and features_bfhw.device.type == "cpu":  # faster there: benchmarks/aspp.py
            layers = [branch["fc8"] for branch in self.branches]
            if not any(
                layer._forward_hooks or layer._forward_pre_hooks for layer in layers
            ):  # as EK-FAC's, of each call
                return summed(features_bfhw, layers)
        return self.separately(features_bfhw)

    def separately(self, features_bfhw: Tensor) -> Tensor:
        """The same numbers, branch by branch."""
        return sum(self._branch(branch, features_bfhw) for branch in self.branches)

    def _branch(self, branch: nn.ModuleDict, x_bfhw: Tensor) -> Tensor:
        return branch["fc8"](self._before_last(branch, x_bfhw))

    def _before_last(self, branch: nn.ModuleDict, x_bfhw: Tensor) -> Tensor:
        for name, layer in branch.items():
            if name != "fc8":
                x_bfhw = self.dropout(layer(x_bfhw).relu())
        return x_bfhw

    def before_last(self, features_bfhw: Tensor) -> Tensor:
        """What fc8 of the only branch sees."""
        (branch,) = self.branches
        return self._before_last(branch, features_bfhw)

    def new_layers(self) -> list[nn.Module]:
        """What learns ten times as fast as the backbone."""
        return [layer for b in self.branches for name, layer in b.items() if name == "fc8" or not self.pretrained]


def scaled_rates(config: NetworkConfig, output_stride: int) -> list[int]:
    """The branches' rates on a feature map of `output_stride`."""
    rates = RATES[config.head] if config.rates is None else config.rates
    return [max(1, round(rate * OUTPUT_STRIDE / output_stride)) for rate in rates]


def atrous(in_channels: int, out_channels: int, kernel_size: int, rate: int) -> nn.Conv2d:
    """A convolution with holes whose output is as large as its input (odd kernels, or even rates)."""
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
