"""Pooled mean IoU against scikit-learn's confusion matrix and jaccard_score, and across two processes' shares."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from iou_pictures import pictures
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from torchmetrics.classification import MulticlassJaccardIndex

from quintet.metrics.segmentation import MeanIoU

SCRIPT = Path(__file__).with_name("iou_ranks.py")


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


@pytest.mark.slow
def test_two_processes_report_what_one_would(tmp_path):
    """Through torch.distributed: pooled over both, whatever part of the images each has seen."""
    path = os.pathsep.join(filter(None, [str(SCRIPT.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    started = [
        subprocess.Popen([sys.executable, SCRIPT, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-2000:]
    whole = measured(pictures(7), chosen=["1", "4"])
    for rank in range(2):
        for found in torch.load(tmp_path / f"rank{rank}.pt", weights_only=True):
            assert found == whole


@pytest.mark.filterwarnings("ignore:.*y_pred contains classes not in y_true")
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3), st.sets(st.integers(0, 3), max_size=3), st.data())
def test_as_scikit_learns_confusion_matrix(seeds, absent, data):
    """Any classes absent from labels, from predictions or from both; any share of 255."""
    present, ignored = sorted({0, 1, 2, 3} - absent), data.draw(st.sampled_from([0, 0.3, 0.95]))
    metric, everything = MeanIoU(4), []
    for seed in seeds:
        random = np.random.default_rng(seed)
        labels = random.choice(present, (5, 6))
        labels[random.random((5, 6)) < ignored] = 255
        predicted = random.integers(0, 4, (5, 6)) if seed % 2 else random.choice(present, (5, 6))
        metric.update(torch.from_numpy(predicted)[None], torch.from_numpy(labels)[None])
        everything.append((torch.from_numpy(predicted), torch.from_numpy(labels)))
    predicted, labels = flat(everything)
    values = metric.compute()
    if not len(labels):
        assert values["miou"].isnan() and values["accuracy"].isnan()
        return
    counts = confusion_matrix(labels, predicted, labels=range(4))
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    expected = {c: counts[c, c] / union[c] for c in range(4) if union[c]}
    assert {name for name in values if name.startswith("iou_")} == {f"iou_{c}" for c in expected}
    assert [float(values[f"iou_{c}"]) for c in expected] == pytest.approx(list(expected.values()), abs=1e-12)
    assert float(values["miou"]) == pytest.approx(np.mean(list(expected.values())), abs=1e-12)
    assert float(values["accuracy"]) == pytest.approx(counts.trace() / counts.sum(), abs=1e-12)


def test_chosen_classes_are_averaged_where_they_are_present():
    made = pictures()
    values, whole = measured(made, chosen=["1", "4", "5"]), measured(made)
    assert float(values["miou_chosen"]) == pytest.approx(float(whole["iou_1"] + whole["iou_5"]) / 2, abs=1e-12)
    assert measured(made, chosen=["4"])["miou_chosen"].isnan()


def test_nothing_seen_is_not_a_number():
    assert measured([(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), 255))])["miou"].isnan()
