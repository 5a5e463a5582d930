"""Pooled mean IoU against scikit-learn's confusion matrix and jaccard_score, and across two processes' shares."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score
from torchmetrics.classification import MulticlassJaccardIndex

from quintet.metrics.segmentation import MeanIoU, iou_of


def pictures(count=5, classes=6, absent=(4,), seed=0):
    """Predictions and labels (H, W) of different sizes with 255 among the labels, without some classes."""
    generator = np.random.default_rng(seed)
    kept = [c for c in range(classes) if c not in absent]
    made = []
    for number in range(count):
        size = (20 + number, 30 - number)
        labels = generator.choice(kept, size, p=np.arange(1, len(kept) + 1) / sum(range(1, len(kept) + 1)))
        predicted = np.where(generator.random(size) < 0.6, labels, generator.choice(kept, size))
        labels[generator.random(size) < 0.1] = 255
        made.append((torch.from_numpy(predicted), torch.from_numpy(labels)))
    return made


def flat(made):
    predicted, labels = (np.concatenate([part[i].numpy().ravel() for part in made]) for i in (0, 1))
    return predicted[labels != 255], labels[labels != 255]


def measured(made, classes=6, **options):
    metric = MeanIoU(classes, **options)
    for predicted, labels in made:
        metric.update(predicted[None], labels[None])
    return metric.compute()


def test_as_scikit_learn_counts():
    made = pictures()
    predicted, labels = flat(made)
    values = measured(made)
    present = [0, 1, 2, 3, 5]
    assert values["accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    each = jaccard_score(labels, predicted, average=None, labels=present)
    assert [float(values[f"iou_{c}"]) for c in present] == pytest.approx(list(each), abs=1e-12)
    assert values["miou"] == pytest.approx(each.mean(), abs=1e-12) and "iou_4" not in values


def test_as_torchmetrics_own_index():
    made = pictures()
    index = MulticlassJaccardIndex(6, ignore_index=255)
    for predicted, labels in made:
        index.update(predicted, labels)
    assert float(index.compute()) == pytest.approx(float(measured(made)["miou"]), abs=1e-6)


def test_pooled_over_images_not_averaged_over_them():
    right = (torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 0, 0, 0]]))
    half = (torch.tensor([[1, 1]]), torch.tensor([[0, 1]]))
    assert measured([right, half], classes=2)["miou"] == pytest.approx((4 / 5 + 1 / 2) / 2)  # a mean of means: 0.625


def test_only_predicted_is_a_miss_and_absent_is_no_class():
    labels = torch.tensor([[0, 0, 1, 255]])
    metric = MeanIoU(4, classes=["a", "b", "c", "d"])
    metric.update(torch.tensor([[0, 2, 1, 3]]), labels)
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values == {"miou": 0.5, "accuracy": pytest.approx(2 / 3), "iou_a": 0.5, "iou_b": 1.0, "iou_c": 0.0}


def test_shares_of_two_processes_add_up():
    made = pictures(7)
    whole, shares = measured(made), [MeanIoU(6), MeanIoU(6)]
    for number, (predicted, labels) in enumerate(made):
        shares[number % 2].update(predicted, labels)
    summed = shares[0]._reductions["confmat"](torch.stack([share.confmat for share in shares]))
    assert torch.equal(iou_of(summed).nanmean(), whole["miou"])


def test_nothing_seen_is_not_a_number():
    assert measured([(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), 255))])["miou"].isnan()
