"""Pooled mean IoU before and after the CRF, against scikit-learn and pydensecrf."""

import csv

import numpy as np
import pytest
import torch
from shapes import evaluated, loaded
from sklearn.metrics import accuracy_score, jaccard_score

from quintet.common.errors import UserError
from quintet.papers.deeplab.crf.crf import CrfConfig, infer
from quintet.papers.deeplab.protocols.multiscale import Multiscale
from quintet.papers.deeplab.protocols.segmentation import Mapped

NAMES = ["background", "circle", "square", "triangle"]


def by_hand(run, refine=None):
    """(truth, prediction) of all scored pixels of the test split, image by image through the network."""
    module, data = loaded(run)
    truth, predicted = [], []
    for index in range(data.num_examples("test")):
        image, labels, _ = data.raw("test", index)
        batch = data.example_batch("test", [index])
        with torch.inference_mode():
            found = module.scores(batch.images)[0, :, : labels.shape[0], : labels.shape[1]].softmax(0).numpy()
        found = found if refine is None else refine(found, image)
        truth.append(labels[labels != 255])
        predicted.append(found.argmax(0)[labels != 255])
    return np.concatenate(truth), np.concatenate(predicted)


def test_numbers_are_those_of_all_pixels_pooled(monkeypatch, shapes_run):
    crf = CrfConfig(w1=5, sa=20, sb=8, iterations=3)
    found = evaluated(monkeypatch, shapes_run, "multiscale", "protocol.crf.w1=5", "protocol.crf.sa=20",
                      "protocol.crf.sb=8", "protocol.crf.iterations=3")  # fmt: skip
    for end, refine in (("", None), ("_crf", lambda p, image: infer(p, image, crf))):
        truth, predicted = by_hand(shapes_run, refine)
        wanted = jaccard_score(truth, predicted, average=None, labels=range(4))
        for name, value in zip(NAMES, wanted, strict=True):
            assert found[f"iou_{name}{end}"] == pytest.approx(value, abs=2e-3 if end else 1e-6)
        assert found[f"miou{end}"] == pytest.approx(wanted.mean(), abs=2e-3 if end else 1e-6)
        assert found[f"miou_chosen{end}"] == pytest.approx(wanted[1:3].mean(), abs=2e-3 if end else 1e-6)
        assert found[f"accuracy{end}"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-3)
    assert 0.2 < found["miou"] != found["miou_crf"] and found["images"] == 4
    with (shapes_run / "eval" / "multiscale" / "classes.csv").open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert float(rows["circle"]["iou_crf"]) == pytest.approx(found["iou_circle_crf"], rel=1e-5)


def test_without_scales_it_is_the_test_loop(monkeypatch, shapes_run):
    loop = evaluated(monkeypatch, shapes_run, "test")
    found = evaluated(monkeypatch, shapes_run, "multiscale", "protocol.crf=null")
    assert found["miou"] == pytest.approx(loop["miou"], abs=1e-6)
    assert not any(name.endswith("_crf") for name in found)
    more = evaluated(monkeypatch, shapes_run, "multiscale", "protocol.crf=null", "protocol.flip=true",
                     "protocol.scales=[0.75,1]")  # fmt: skip
    assert more["accuracy"] != found["accuracy"]


def test_the_network_runs_in_the_precision_that_is_asked_for(monkeypatch, shapes_run):
    found = evaluated(monkeypatch, shapes_run, "multiscale", "protocol.crf=null")
    half = evaluated(monkeypatch, shapes_run, "multiscale", "protocol.crf=null", "trainer.precision=bf16-mixed")
    assert half["accuracy"] != found["accuracy"] and half["accuracy"] == pytest.approx(found["accuracy"], abs=0.01)


def test_a_crf_that_reads_ahead_keeps_images_and_marginals_together():
    class Ahead:
        def refine_many(self, pairs):
            yield from [2 * probabilities for probabilities, _ in list(pairs)]

    protocol = Multiscale()
    protocol.crf = Ahead()
    maps = [Mapped(str(n), np.zeros((1, 1, 3), np.uint8), None, torch.tensor(float(n))) for n in range(5)]
    found = list(protocol.refined(iter(maps)))
    assert [(one.name, float(marginal)) for one, marginal in found] == [(str(n), 2.0 * n) for n in range(5)]


def test_some_of_the_images(monkeypatch, shapes_run, tmp_path):
    _, data = loaded(shapes_run)
    names = data.names("test")
    (tmp_path / "images.txt").write_text(f"{names[0]}\n{names[3]}\n")
    protocol = Multiscale(exclude=str(tmp_path / "images.txt"))
    assert protocol.chosen(data) == [1, 2]
    assert Multiscale(count=2, seed=1).chosen(data) == Multiscale(count=2, seed=1).chosen(data)
    assert len({tuple(Multiscale(count=2, seed=seed).chosen(data)) for seed in range(9)}) > 1
    arguments = ["protocol.crf=null", f"protocol.exclude={tmp_path}/images.txt"]
    assert evaluated(monkeypatch, shapes_run, "multiscale", *arguments)["images"] == 2
    (tmp_path / "images.txt").write_text("2007_000033")
    with pytest.raises(UserError, match="names 2007_000033, which test does not have"):
        protocol.chosen(data)
    (tmp_path / "images.txt").write_text("\n".join(names))
    with pytest.raises(UserError, match="leaves no image"):
        protocol.chosen(data)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("protocol.count=5", "test has 4 images"),
        ("protocol.count=0", "protocol.count=0"),
        ("protocol.scales=[]", "protocol.scales=[]"),
        ("protocol.scales=[0,1]", "give factors above 0"),
        ("protocol.average=both", "choose probabilities or scores"),
        ("protocol.exclude=/nowhere", "no such file"),
        ("protocol.crf.sa=0", "crf.sa=0"),
        ("protocol.split=dev", "unknown split 'dev'"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, shapes_run, capsys, argument, message):
    with pytest.raises(SystemExit):
        evaluated(monkeypatch, shapes_run, "multiscale", argument)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]


def test_runs_of_another_task_are_refused(trained, tones, tmp_path):
    with pytest.raises(UserError, match=r"protocol=multiscale is for runs of model=deeplab, not of WaveNetModule"):
        Multiscale()(trained, tones, tmp_path)
