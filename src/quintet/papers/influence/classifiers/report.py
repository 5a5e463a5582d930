"""Report on a fitted classifier: training loss and gradient, and linear weights as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from quintet.papers.influence.risk.examples import Examples

CHUNK = 2000  # examples at a time


def training_report(module: Any, datamodule: Any) -> tuple[dict[str, float], float]:
    """Metrics of the training split, and the largest entry of the gradient.

    train/loss includes the L2 term, train/example_loss does not; train/gradient_norm is that of train/loss, left out
    for the hinge itself, which has no gradient where it matters.
    """
    parameters, train = list(module.parameters()), Examples(datamodule, "train")
    total, top = len(train), module.network.top.weight
    with torch.enable_grad():
        penalty = module.regularisation()
        slopes = list(torch.autograd.grad(penalty, parameters, allow_unused=True, materialize_grads=True))
        loss = correct = 0.0
        for _, batch in train.batches(CHUNK, top.dtype, top.device, keep=False):
            outputs = module.train_outputs(batch)
            summed = module.losses(outputs, batch.labels).sum()
            for slope, part in zip(slopes, torch.autograd.grad(summed, parameters), strict=True):
                slope += part / total
            loss += float(summed.detach())
            correct += int((module.classes_of(outputs) == batch.labels).sum())
    values = {
        "train/loss": loss / total + float(penalty.detach()),
        "train/example_loss": loss / total,
        "train/accuracy": correct / total,
    }
    if module.loss != "smooth_hinge" or module.smoothness:
        values["train/gradient_norm"] = float(torch.cat([s.flatten() for s in slopes]).norm())
    return values, max(float(s.abs().max()) for s in slopes)


def weight_pictures(module: Any, out_dir: Path) -> list[Path]:
    """weights.png: what each class (or the score) of a linear classifier adds up, red for and blue against."""
    shape, weight_of = module.data_info["input_shape"], module.network.top.weight
    if len(shape) != 3 or weight_of.shape[1] != torch.Size(shape).numel():
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pictures = weight_of.detach().cpu().view(-1, *shape).sum(1).numpy()
    names = module.data_info.get("classes") or list(range(len(pictures)))
    names = names if len(names) == len(pictures) else [f"{names[1]} rather than {names[0]}"]
    figure, axes = pyplot.subplots(1, len(pictures), figsize=(1.4 * len(pictures) + 0.6, 1.8), squeeze=False)
    limit = float(abs(pictures).max()) or 1.0
    for axis, picture, name in zip(axes[0], pictures, names, strict=True):
        axis.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(str(name), fontsize=8)
        axis.set_axis_off()
    path = out_dir / "weights.png"
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)
    return [path]
