"""Mean intersection over union from one pooled confusion matrix, as the PASCAL VOC benchmark counts it."""

from collections.abc import Sequence

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


class MeanIoU(MulticlassConfusionMatrix):
    """IoU = TP / (TP + FP + FN) of each class over all pixels ever seen, and their mean.

    Pixels labelled `ignore_index` count nowhere; a class that is neither labelled nor predicted anywhere has no IoU and
    is left out of the mean. Exact with several processes: their confusion matrices are added. torchmetrics'
    MulticlassJaccardIndex has the same mean; this one tells the classes and the accuracy from the same matrix.
    chosen: names of classes that `miou_chosen` is the mean of, all of them counted as confused with any other class.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = 255, classes: Sequence[str] | None = None,
                 chosen: Sequence[str] | None = None) -> None:  # fmt: skip
        super().__init__(num_classes=num_classes, ignore_index=ignore_index, validate_args=False)
        self.classes = [str(index) for index in range(num_classes)] if classes is None else list(classes)
        self.chosen = [self.classes.index(name) for name in chosen or []]

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]  # a dictionary is logged value by value
        """`miou`, pixel `accuracy`, and `iou_<class>` of the classes present; nan where nothing was seen."""
        counts_cc = self.confmat
        iou_c = iou_of(counts_cc)
        seen_c = ~iou_c.isnan()
        values = {"miou": iou_c[seen_c].mean(), "accuracy": counts_cc.diag().sum() / counts_cc.sum().double()}
        if self.chosen:
            values["miou_chosen"] = iou_c[self.chosen].nanmean()
        named = {f"iou_{name}": iou_c[c] for c, name in enumerate(self.classes) if bool(seen_c[c])}
        return values | named


def iou_of(counts_cc: Tensor) -> Tensor:
    """IoU (C,) in float64 of a confusion matrix (true class, predicted class); nan for a class that is absent."""
    hits_c = counts_cc.diag().double()
    return hits_c / (counts_cc.sum(0) + counts_cc.sum(1) - counts_cc.diag()).double()
