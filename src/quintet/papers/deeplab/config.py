"""Settings of the network beyond its backbone (Chen et al. 2017, sections 3.1, 3.2 and 4.1)."""

from dataclasses import dataclass

from quintet.common.errors import UserError

RATES = {"none": (1,), "large_fov": (12,), "aspp_s": (2, 4, 8, 12), "aspp_l": (6, 12, 18, 24)}
FORMS = ("resnet", "vgg")
RATES_OUTPUT_STRIDE = 8  # the output stride for which rates are given


@dataclass(frozen=True)
class DeepLabConfig:
    """Everything under `model.network`.

    head: `large_fov`, `aspp_s` or `aspp_l`; `none` is a 1 x 1 convolution to the classes.
    form: `vgg` has the layers fc6, fc7 and fc8 in each branch, with ReLU and dropout (figure 7); `resnet` has one
        atrous convolution to the classes.
    rates: one rate per branch at output stride 8, in positions of the feature map; null = the paper's for that head.
        At another output stride the rates are scaled, so that they cover the same part of the image.
    kernel_size: of the atrous convolutions. channels: of fc6 and fc7. dropout: after fc6 and fc7.
    scales: image scales with shared weights, whose scores are fused by an element-wise maximum (MSC, section 4.1.2).
    cpu_kernels: use the faster CPU implementations of cpu_kernels.py, which are equal up to rounding.
    """

    head: str = "aspp_l"
    form: str = "resnet"
    rates: tuple[int, ...] | None = None
    kernel_size: int = 3
    channels: int = 1024
    dropout: float = 0.5
    scales: tuple[float, ...] = (1.0,)
    cpu_kernels: bool = False

    def __post_init__(self) -> None:
        where = "model.network"
        if self.head not in RATES:
            raise UserError(f"{where}.head={self.head!r} is unknown: use one of {', '.join(RATES)}")
        if self.form not in FORMS:
            raise UserError(f"{where}.form={self.form!r} is unknown: use {' or '.join(FORMS)}")
        if self.rates is not None and (not len(self.rates) or min(self.rates) < 1):
            raise UserError(f"{where}.rates={list(self.rates)}: use integers of at least 1, or null")
        for key in ("kernel_size", "channels"):
            if getattr(self, key) < 1:
                raise UserError(f"{where}.{key}={getattr(self, key)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"{where}.dropout={self.dropout} must be at least 0 and below 1")
        if not len(self.scales) or self.scales[0] != 1 or not all(0 < s <= 1 for s in self.scales):
            raise UserError(f"{where}.scales={list(self.scales)}: give 1 first, then scales below 1, as [1, 0.75, 0.5]")

    def rates_at(self, output_stride: int) -> list[int]:
        """The branches' rates on a feature map of `output_stride`, at least 1."""
        rates = RATES[self.head] if self.rates is None else self.rates
        return [max(1, round(rate * RATES_OUTPUT_STRIDE / output_stride)) for rate in rates]
