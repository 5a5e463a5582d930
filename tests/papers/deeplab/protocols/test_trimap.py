"""Scores in bands around borders, against a dilation written out and scikit-learn."""

import csv
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shapes import evaluated, loaded
from sklearn.metrics import accuracy_score, jaccard_score

from quintet.common.errors import UserError
from quintet.papers.deeplab.protocols.trimap import Trimap, border_distance, counts_by_distance, run_names

MAPS = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, 255]))


def dilated(border_hw, width):
    """The border and all pixels in a square of side 2 width + 1 around one of its pixels."""
    band_hw = np.zeros_like(border_hw)
    for row, column in np.argwhere(border_hw):
        band_hw[max(0, row - width) : row + width + 1, max(0, column - width) : column + width + 1] = True
    return band_hw


@given(MAPS, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_distances_are_those_of_a_dilation_with_squares(labels, largest):
    distance = border_distance(labels, largest)
    assert distance.max() <= largest + 1
    for width in range(largest + 1):
        np.testing.assert_array_equal(distance <= width, dilated(labels == 255, width))


@given(MAPS, st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_counts_add_up_to_those_of_each_band(labels, largest, seed):
    predicted = np.random.default_rng(seed).integers(0, 3, labels.shape)
    counts = counts_by_distance(border_distance(labels, largest), labels, predicted, 3, largest).cumsum(0)
    assert not counts[0].any()
    for width in range(1, largest + 1):
        kept = dilated(labels == 255, width) & (labels != 255)
        wanted = np.zeros((3, 3), int)
        np.add.at(wanted, (labels[kept], predicted[kept]), 1)
        np.testing.assert_array_equal(counts[width], wanted)


def rows_of(run):
    with (run / "eval" / "trimap" / "trimap.csv").open() as file:
        return list(csv.DictReader(file))


def pooled(run, width):
    """(truth, prediction) in the band of all test images."""
    module, data = loaded(run)
    truth, predicted = [], []
    for index in range(data.num_examples("test")):
        _, labels, _ = data.raw("test", index)
        with torch.inference_mode():
            found = module.predict(data.example_batch("test", [index]))[0].numpy()
        kept = dilated(labels == 255, width) & (labels != 255)
        truth.append(labels[kept])
        predicted.append(found[: labels.shape[0], : labels.shape[1]][kept])
    return np.concatenate(truth), np.concatenate(predicted)


def test_curves_are_those_of_a_dilation_by_hand(monkeypatch, shapes_run):
    found = evaluated(monkeypatch, shapes_run, "trimap", "protocol.crf.iterations=2")
    rows = rows_of(shapes_run)
    assert [(row["crf"], int(row["width"])) for row in rows] == [(c, w) for c in ("before", "after")
                                                                 for w in range(1, 41)]  # fmt: skip
    for width in (1, 5, 40):
        truth, predicted = pooled(shapes_run, width)
        scores = jaccard_score(truth, predicted, average=None, labels=range(4))
        row = rows[width - 1]
        assert float(row["miou"]) == pytest.approx(scores[1:3].mean(), rel=1e-5)  # mean_over: circle and square
        assert float(row["accuracy"]) == pytest.approx(accuracy_score(truth, predicted), rel=1e-5)
        assert int(row["pixels"]) == len(truth)
        assert found[f"miou_w{width}"] == pytest.approx(scores[1:3].mean(), rel=1e-5)
        assert found[f"accuracy_w{width}_crf"] == pytest.approx(float(rows[39 + width]["accuracy"]), rel=1e-5)
    assert rows[0]["accuracy"] != rows[40]["accuracy"] and found["images"] == 4
    assert (shapes_run / "eval" / "trimap" / "trimap.png").stat().st_size > 20_000


def test_other_runs_stand_in_the_same_table(monkeypatch, shapes_run, tmp_path):
    other = tmp_path / "blind" / "x"
    shutil.copytree(shapes_run, other)
    state = torch.load(other / "checkpoints" / "last.ckpt", weights_only=True)
    state["state_dict"]["network.head.classifier.weight"].zero_()
    state["state_dict"]["network.head.classifier.bias"].copy_(torch.tensor([0.0, 9, 0, 0]))
    torch.save(state, other / "checkpoints" / "last.ckpt")
    arguments = ["protocol.crf=null", "protocol.largest=3"]
    found = evaluated(monkeypatch, shapes_run, "trimap", *arguments, f"protocol.others=[{other}]")
    rows = rows_of(shapes_run)
    assert [row["run"] for row in rows] == ["shapes"] * 3 + ["blind"] * 3
    for row in rows[3:]:  # it calls everything a circle
        truth, _ = pooled(shapes_run, int(row["width"]))
        assert float(row["accuracy"]) == pytest.approx((truth == 1).mean(), rel=1e-5)
    assert found["blind miou_w1"] == pytest.approx(float(rows[3]["miou"]), rel=1e-5)
    alone = evaluated(monkeypatch, shapes_run, "trimap", *arguments)
    assert {k: v for k, v in found.items() if "blind" not in k} == alone


def test_names_tell_runs_apart():
    assert run_names(["logs/a/1", "logs/b/1"]) == ["a", "b"]
    assert run_names(["logs/a/1", "logs/a/2", "logs/b/1"]) == ["a/1", "a/2", "b"]
    with pytest.raises(UserError, match="a/1 is there twice"):
        run_names(["logs/a/1", "logs/b/1", "logs/a/1"])


def test_masks_without_borders_are_refused(shapes_run, tmp_path, monkeypatch):
    module, data = loaded(shapes_run)
    real = data.raw

    def without(split, index):
        image, labels, name = real(split, index)
        return image, np.where(labels == 255, 0, labels).astype(np.uint8), name

    monkeypatch.setattr(data, "raw", without)
    with pytest.raises(UserError, match="no pixel of test is labeled 255"):
        Trimap()(module, data, tmp_path / "eval")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("protocol.largest=0", "protocol.largest=0: give 1 or more"),
        ("protocol.others=[/nowhere]", "'/nowhere' is no run directory"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, shapes_run, capsys, argument, message):
    with pytest.raises(SystemExit):
        evaluated(monkeypatch, shapes_run, "trimap", argument, "protocol.crf=null")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
