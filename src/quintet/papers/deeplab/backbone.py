"""Backbones: torchvision networks up to their last feature map, at an output stride, with their own normalization."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quintet.backbones.frozen_norm import freeze_batch_norm
from quintet.backbones.pooled import normalisation
from quintet.backbones.pretrained import load_weights, no_such_network, read_weights
from quintet.common.errors import UserError
from quintet.papers.deeplab import caffe
from quintet.papers.deeplab.atrous import out_channels, to_output_stride

KEY = "model.backbone"
LAYOUTS = ("torchvision", "caffe")
ENDS = ("avgpool", "classifier", "fc", "head")  # children of a torchvision network that come after its features
FAMILIES = ("vgg", "resnet", "resnext", "wide_resnet", "mobilenet", "mnasnet", "efficientnet", "regnet", "shufflenet",
            "convnext", "squeezenet")  # fmt: skip


@dataclass(frozen=True)
class BackboneConfig:
    """Everything under `model.backbone`.

    name: of a torchvision network. weights: the name of torchvision's weights, a local file, or null: random.
    layout: `caffe` for converted Caffe weights, which need another normalization and other strides in ResNet.
    frozen_bn: statistics and affine parameters of batch norm never change. frozen_blocks: number of first blocks
    (layers of VGG and MobileNet, conv1 to layer4 of ResNet) that are not trained and need no backward pass.
    """

    name: str = "resnet101"
    weights: str | None = None
    output_stride: int = 8
    layout: str = "torchvision"
    frozen_bn: bool = True
    frozen_blocks: int = 0

    def __post_init__(self) -> None:
        if not str(self.name).startswith(FAMILIES):
            raise UserError(f"{KEY}.name={self.name}: give a torchvision network of {', '.join(FAMILIES)}")
        if self.layout not in LAYOUTS:
            raise UserError(f"{KEY}.layout={self.layout}: use {' or '.join(LAYOUTS)}")
        if self.layout == "caffe" and not self.name.startswith(("vgg16", "resnet50", "resnet101", "resnet152")):
            raise UserError(f"{KEY}.layout=caffe is for vgg16, resnet50, resnet101 and resnet152, not {self.name}")
        if self.frozen_blocks < 0:
            raise UserError(f"{KEY}.frozen_blocks={self.frozen_blocks}: give 0 or more")


class Backbone(nn.Module):
    """Images (B, 3, H, W), RGB in [0, 1] -> features (B, F, h, w) at the output stride.

    channels: F. classifier: VGG's fc6 and fc7 from the weights, with which DeepLab's head starts; empty for others.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config, self.output_stride = config, config.output_stride
        network = _torchvision(config.name)
        if config.layout == "caffe":
            caffe.stride_in_first(network)
        state = _read(config)
        self.classifier: dict[str, Tensor] = {}
        if state is not None:
            self.classifier = _classifier(state, config.name)
            _load(network, state, config)
        self.body = _features(network)
        if config.name.startswith("vgg"):
            _wide_pools(self.body)
        to_output_stride(self.body, config.output_stride, f"{KEY}.output_stride")
        if config.name.startswith("vgg"):
            _last_pool_without_holes(self.body)
        if config.frozen_bn:
            freeze_batch_norm(self.body)
        self.channels = out_channels(self.body)
        self._freeze(config.frozen_blocks)
        mean, std = _normalisation(config)
        # persistent, so that a checkpoint contains the normalization of its weights
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def blocks(self) -> list[nn.Module]:
        """The blocks that `frozen_blocks` counts."""
        body = self.body[0] if len(self.body) == 1 else self.body
        return list(body.children())

    def _freeze(self, count: int) -> None:
        blocks = self.blocks()
        if count > len(blocks):
            raise UserError(f"{KEY}.frozen_blocks={count}: {self.config.name} has {len(blocks)}")
        for block in blocks[:count]:
            block.requires_grad_(False)

    def forward(self, images_bchw: Tensor) -> Tensor:
        return self.body((images_bchw - self.mean) / self.std)


def _torchvision(name: str) -> nn.Module:
    from torchvision import models

    try:
        return models.get_model(name, weights=None)
    except ValueError as error:
        raise no_such_network(name, KEY) from error


def _read(config: BackboneConfig) -> Mapping[str, Tensor] | None:
    state = read_weights(config.name, config.weights, f"{KEY}.weights")
    if state is None or config.layout == "torchvision":
        return state
    return caffe.from_caffe(state, config.name)


def _load(network: nn.Module, state: Mapping[str, Tensor], config: BackboneConfig) -> None:
    """Load everything that becomes the body; the classifier may have other classes or be missing."""
    own = network.state_dict()
    ends = tuple(f"{end}." for end in ENDS)
    counters = [k for k in own if k.endswith("num_batches_tracked")]
    kept = {k: own[k] for k in counters} | {k: v for k, v in own.items() if k.startswith(ends)}
    kept |= {k: v for k, v in state.items() if not k.startswith(ends)}
    told = f"{KEY}.weights={config.weights} is no {config.name} of torchvision"
    if config.layout == "caffe":
        told = f"{KEY}.weights={config.weights} is no {config.name} converted from Caffe"
    load_weights(network, kept, told)


def _classifier(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """VGG's fc6 and fc7, if present: torchvision's IMAGENET1K_FEATURES has NaN in their place."""
    parts = [f"classifier.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")]
    if not name.startswith("vgg") or not all(k in state and bool(state[k].isfinite().all()) for k in parts):
        return {}
    return {k: state[k].detach() for k in parts}


def _features(network: nn.Module) -> nn.Sequential:
    """The children before the classifier under their own names."""
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    for child, module in network.named_children():
        if child in ENDS:
            break
        kept[child] = module
    return nn.Sequential(kept)


def _wide_pools(body: nn.Module) -> None:
    """The authors' VGG-16 pools 3 x 3 with a border of 1, so that 8k + 1 pixels become k + 1."""
    for pool in _pools(body):
        pool.kernel_size, pool.padding = 3, 1


def _last_pool_without_holes(body: nn.Module) -> None:
    """The authors' pool5 has stride 1 and rate 1."""
    pool = _pools(body)[-1]
    pool.dilation, pool.padding = 1, 1


def _pools(body: nn.Module) -> list[nn.MaxPool2d]:
    return [module for module in body.modules() if isinstance(module, nn.MaxPool2d)]


def _normalisation(config: BackboneConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of RGB in [0, 1] that the weights were trained with."""
    return (caffe.MEAN, caffe.STD) if config.layout == "caffe" else normalisation(config.name, config.weights)
