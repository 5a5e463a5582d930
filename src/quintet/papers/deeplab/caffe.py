"""Converted Caffe weights, DeepLab's own among them: their names as torchvision's, their images as ours.

Three spellings go round for ResNet: torchvision's names behind a `Scale` prefix (deeplab_resnet of isht7, and the
MS-COCO weights that many weakly supervised methods start from), `layer2.block1.reduce.conv` (K. Nakashima), and Caffe's
own layer names, which VGG-16 has too. What belongs to the old classes (fc8, aspp, layer5) is left out.
Caffe reads BGR in [0, 255] and subtracts a mean: with the first convolution's channels turned round, RGB with the mean
in that order and a deviation of 1/255 is the same.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

MEAN = (122.675 / 255, 116.669 / 255, 104.008 / 255)  # RGB in [0, 1]
STD = (1 / 255, 1 / 255, 1 / 255)
LEFT_OUT = re.compile(r"(fc8|fc1_|fc1000|fc\.|aspp|layer5\.conv2d_list|score|classifier\.6\.)|num_batches_tracked$")
PREFIX = re.compile(r"^(module\.|base\.|scale\.|Scale\d?\.)+")
PARTS = {"reduce": 1, "conv3x3": 2, "increase": 3, "2a": 1, "2b": 2, "2c": 3}


def from_caffe(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under torchvision's names for `name`, first convolution in RGB; unknown names stay as they are."""
    named = {}
    for key, tensor in state.items():
        bare = PREFIX.sub("", key)
        if not LEFT_OUT.search(bare):
            named[_vgg(bare) if name.startswith("vgg") else _resnet(bare)] = tensor
    first = "features.0.weight" if name.startswith("vgg") else "conv1.weight"
    if first in named:
        named[first] = named[first].flip(1)
    for key in [k for k in named if re.search(r"classifier\.\d\.weight$", k)]:
        named[key] = named[key].flatten(1)  # fully connected layers kept as convolutions
    return named


def _vgg(key: str) -> str:
    """conv3_2.weight -> features.12.weight, fc6.bias -> classifier.0.bias."""
    found = re.fullmatch(r"(conv(\d)_(\d)|fc([67]))\.(weight|bias)", key)
    if not found:
        return key
    if found[4]:
        return f"classifier.{0 if found[4] == '6' else 3}.{found[5]}"
    before = sum((2, 2, 3, 3)[: int(found[2]) - 1])  # convolutions of the blocks before, each with a ReLU
    return f"features.{2 * before + int(found[2]) - 1 + 2 * (int(found[3]) - 1)}.{found[5]}"


def _resnet(key: str) -> str:
    for spelling in (_nakashima, _caffe_layer):
        found = spelling(key)
        if found:
            return found
    return key


def _nakashima(key: str) -> str | None:
    """layer2.block1.reduce.conv.weight -> layer1.0.conv1.weight, layer1.conv1.bn.bias -> bn1.bias."""
    if found := re.fullmatch(r"layer1\.conv1\.(conv|bn)\.(\w+)", key):
        return f"{found[1]}1.{found[2]}"
    found = re.fullmatch(r"layer(\d)\.block(\d+)\.(reduce|conv3x3|increase|proj|shortcut)\.(conv|bn)\.(\w+)", key)
    if not found:
        return None
    block = f"layer{int(found[1]) - 1}.{int(found[2]) - 1}"
    if found[3] in PARTS:
        return f"{block}.{found[4]}{PARTS[found[3]]}.{found[5]}"
    return f"{block}.downsample.{int(found[4] == 'bn')}.{found[5]}"


def _caffe_layer(key: str) -> str | None:
    """res4b3_branch2c.weight -> layer3.3.conv3.weight, bn2a_branch1.running_mean -> layer1.0.downsample.1.running_mean.

    Caffe keeps statistics in `bn...` and the affine part in `scale...`.
    """
    if found := re.fullmatch(r"(bn|scale)_conv1\.(\w+)", key):
        return f"bn1.{found[2]}"
    found = re.fullmatch(r"(res|bn|scale)(\d)(a|b|c|d|e|f|b\d+)_branch(1|2a|2b|2c)\.(\w+)", key)
    if not found:
        return None
    norm = found[1] != "res"
    number = int(found[3][1:]) if len(found[3]) > 1 else "abcdef".index(found[3])
    block = f"layer{int(found[2]) - 1}.{number}"
    if found[4] == "1":
        return f"{block}.downsample.{int(norm)}.{found[5]}"
    return f"{block}.{'bn' if norm else 'conv'}{PARTS[found[4]]}.{found[5]}"


def stride_in_first(network: nn.Module) -> None:
    """Caffe's ResNet strides in a bottleneck's first 1x1 convolution, torchvision's in its 3x3: move it, in place."""
    block: Any
    for block in network.modules():
        if hasattr(block, "conv3") and hasattr(block, "downsample"):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
