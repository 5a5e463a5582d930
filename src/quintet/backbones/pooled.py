"""torchvision networks that pool their last feature map: built without auxiliary classifiers, and cut off before the
last layer.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.backbones.pretrained import IMAGENET, official

HEADS = {"googlenet": "fc", "inception_v3": "fc", "resnet": "fc", "resnext": "fc", "wide_resnet": "fc", "regnet": "fc",
         "shufflenet": "fc", "mobilenet": "classifier", "efficientnet": "classifier", "mnasnet": "classifier",
         "densenet": "classifier"}  # fmt: skip
AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
TENSORFLOW = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # what the two above were trained with: [-1, 1]


def native_size(name: str) -> int:
    """Pixels a side of the images that torchvision's weights were trained on."""
    return 299 if name == "inception_v3" else 224


def head_of(name: str) -> str | None:
    """The child that comes after the pooled features; None for a family that is not known here."""
    return next((head for family, head in HEADS.items() if name.startswith(family)), None)


def random_network(name: str, aux: bool = False) -> nn.Module:
    """The network with random weights, the same ones every time. ValueError for a name that torchvision lacks.

    aux: with the classifiers on the way, which training from scratch uses and most weight files hold.
    """
    from torchvision import models

    options = {"init_weights": False, "aux_logits": aux, "transform_input": False} if name in AUXILIARY else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.get_model(name, weights=None, **options)


def without_auxiliary(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors but for those of the classifiers on the way."""
    ends = tuple(f"{part}." for part in AUXILIARY.get(name, ()))
    return {key: value for key, value in state.items() if not ends or not key.startswith(ends)}


def feature_width(network: nn.Module, name: str) -> int:
    """Features that the last layers read."""
    head = head_of(name)
    assert head is not None
    last_layers = getattr(network, head)
    return next(layer for layer in last_layers.modules() if isinstance(layer, nn.Linear)).in_features


def normalisation(name: str, weights: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of RGB in [0, 1] that the weights were trained with."""
    if name in AUXILIARY:
        return TENSORFLOW
    known = official(name, weights) if weights else None
    told = known.transforms.keywords if known else {}
    return told.get("mean", IMAGENET[0]), told.get("std", IMAGENET[1])


def resized(images_bchw: Tensor, size: int) -> Tensor:
    """Images of `size` pixels a side; gradients reach the pixels."""
    if images_bchw.shape[-2:] == (size, size):
        return images_bchw
    return F.interpolate(images_bchw, (size, size), mode="bilinear", antialias=True)
