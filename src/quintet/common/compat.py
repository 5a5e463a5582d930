"""torchvision beside a CPU-only torch: define the operator schemas that its import needs.

The compiled part of the published torchvision wheel links against CUDA and does not load beside a CPU build of torch;
the import then fails with "operator torchvision::nms does not exist", and torchmetrics and Lightning with it.
"""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list = []  # a torch Library takes its definitions back when it is collected


class TorchvisionOps:
    """A meta-path finder that acts once, right before torchvision is imported; costs nothing until then."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Finds nothing itself: it prepares torch and lets the ordinary finders continue."""
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is not None and spec.origin is not None:
            define_missing_ops(Path(spec.origin).parent)


def define_missing_ops(package: Path) -> bool:
    """Define the schemas when the compiled extension is absent or does not load; returns whether it did."""
    import torch

    for extension in package.glob("_C*.so"):
        try:
            torch.ops.load_library(extension)
            return False
        except OSError:
            continue
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _libraries.append(library)
    return True


def install() -> None:
    """Put the finder in front, once."""
    if "torchvision" not in sys.modules and not any(isinstance(f, TorchvisionOps) for f in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionOps())
