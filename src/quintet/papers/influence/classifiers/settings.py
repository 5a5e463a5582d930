"""Build a classifier's network, sized by the data, and check settings that do not go together."""

import logging

import torch
from torch import Tensor, nn

from quintet.common.errors import UserError
from quintet.papers.influence.classifiers.losses import LOSSES
from quintet.papers.influence.classifiers.network import AllCnn, ClassifierConfig, Linear
from quintet.papers.influence.classifiers.rbf import RbfMachine
from quintet.papers.influence.fit.lbfgs import FitConfig

log = logging.getLogger(__name__)
DTYPES = ("float64", "float32")


def build_network(config: ClassifierConfig, data_info: dict, loss: str, dtype: torch.dtype) -> nn.Module:
    """The network of `model.network.kind`, sized by the data. Errors: UserError for a binary loss of many classes."""
    classes, shape = data_info["num_classes"], tuple(data_info["input_shape"])
    if loss != "cross_entropy" and classes != 2:
        raise UserError(
            f"model.loss={loss} tells two classes apart, the data has {classes}: set data.classes=[first, second], or"
            " model.loss=cross_entropy"
        )
    outputs = classes if loss == "cross_entropy" else 1
    if config.kind == "all_cnn":
        return AllCnn(config, shape, outputs, dtype)
    if config.kind == "rbf":
        return RbfMachine(config, data_info["num_train"], torch.Size(shape).numel(), outputs, dtype)
    return Linear(torch.Size(shape).numel(), outputs, config.bias, dtype)


def check_settings(network: ClassifierConfig, optimizer: FitConfig, loss: str, l2: float, t: float, dtype: str) -> None:
    """UserError for values and combinations that are not allowed."""
    if loss not in LOSSES:
        raise UserError(f"model.loss={loss!r} is unknown: use one of {', '.join(LOSSES)}")
    if dtype not in DTYPES:
        raise UserError(f"model.dtype={dtype!r} is unknown: use one of {', '.join(DTYPES)}")
    if l2 < 0 or t < 0:
        raise UserError(f"model.l2={l2} and model.smoothness={t} must be 0 or more")
    if t and loss != "smooth_hinge":
        log.warning("model.smoothness=%g is ignored: it belongs to model.loss=smooth_hinge", t)
    if optimizer.name == "exact_hinge" and (loss != "smooth_hinge" or network.kind == "all_cnn" or l2 == 0):
        raise UserError(
            "model.optimizer.name=exact_hinge is for model.loss=smooth_hinge of a linear or rbf network with model.l2"
            " above 0: use model.optimizer.name=lbfgs"
        )
    if optimizer.name == "lbfgs" and loss == "smooth_hinge" and t == 0:
        raise UserError(
            "the hinge has no gradient at its corner: use model.optimizer.name=exact_hinge, or model.smoothness above 0"
        )


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Labels must be 0..C-1, and not all the same. Errors: UserError."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UserError(f"training labels go from {low} to {high}, the model has classes 0..{num_classes - 1}")
    if low == high:
        raise UserError(
            f"all training labels are class {low}: a classifier needs two or more, see data.classes and data.max_train"
        )
