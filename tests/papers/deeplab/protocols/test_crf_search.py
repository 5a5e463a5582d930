"""The search for the CRF's setting: against pydensecrf setting by setting, and what a second call goes on from."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from shapes import evaluated, loaded
from sklearn.metrics import jaccard_score

from quintet.papers.deeplab.crf.crf import CrfConfig, infer
from quintet.papers.deeplab.protocols import crf_search
from quintet.papers.deeplab.protocols.crf_search import CrfSearch
from quintet.papers.deeplab.protocols.crf_table import OFF, Measured, Setting, Table

GRID = ["protocol.w1=[2,6]", "protocol.sa=[5,20]", "protocol.sb=[5,20]", "protocol.search=full", "protocol.count=3",
        "protocol.crf.iterations=3"]  # fmt: skip


def rows_of(run):
    with (run / "eval" / "crf_search" / "crf_search.csv").open() as file:
        return {tuple(float(row[key]) for key in ("w1", "sa", "sb")): row for row in csv.DictReader(file)}


def by_hand(run, setting):
    """mean IoU of circle and square after pydensecrf."""
    module, data = loaded(run)
    names = (run / "eval" / "crf_search" / "images.txt").read_text().split()
    truth, predicted = [], []
    for name in names:
        index = data.names("val").index(name)
        image, labels, _ = data.raw("val", index)
        with torch.inference_mode():
            scores = module.scores(data.example_batch("val", [index]).images)
        found = scores[0, :, : labels.shape[0], : labels.shape[1]].softmax(0).numpy()
        if setting != OFF:
            found = infer(found, image, CrfConfig(*setting, iterations=3))
        truth.append(labels[labels != 255])
        predicted.append(found.argmax(0)[labels != 255])
    scores = jaccard_score(np.concatenate(truth), np.concatenate(predicted), average=None, labels=range(4))
    return scores[1:3].mean(), len(names)


def test_the_table_is_that_of_the_reference(monkeypatch, shapes_run):
    found = evaluated(monkeypatch, shapes_run, "crf_search", *GRID)
    rows = rows_of(shapes_run)
    assert len(rows) == 9 and found["settings"] == 8 and found["images"] == 3
    for setting, row in rows.items():
        wanted, images = by_hand(shapes_run, setting)
        assert float(row["miou_chosen"]) == pytest.approx(wanted, abs=4e-3) and images == 3
    assert rows[OFF]["miou_chosen"] != rows[2, 5, 5]["miou_chosen"] != rows[6, 20, 20]["miou_chosen"]
    best = max((row for setting, row in rows.items() if setting != OFF), key=lambda row: float(row["miou_chosen"]))
    assert [found[f"best_{key}"] for key in ("w1", "sa", "sb")] == [float(best[key]) for key in ("w1", "sa", "sb")]
    assert found["miou_chosen_best"] == pytest.approx(float(best["miou_chosen"]), rel=1e-5)
    assert found["miou_chosen_off"] == pytest.approx(float(rows[OFF]["miou_chosen"]), rel=1e-5)
    folder = shapes_run / "eval" / "crf_search"
    assert (folder / "crf_search.png").stat().st_size > 10_000
    lines = (folder / "crf_search.md").read_text().splitlines()
    assert len(lines) == 11 and lines[2].startswith("| no CRF | ")
    wanted = f"| w1 {float(best['w1']):g}, sa {float(best['sa']):g}, sb {float(best['sb']):g} |"
    assert lines[3].startswith(wanted)


def test_a_second_call_goes_on_from_what_is_finished(monkeypatch, shapes_run):
    arguments = [*GRID, "protocol.seed=3"]
    measured, passes = [], []
    real, network = crf_search.Images.measure, CrfSearch.maps
    monkeypatch.setattr(crf_search.Images, "measure", lambda self, *one: measured.append(one[:2]) or real(self, *one))
    monkeypatch.setattr(CrfSearch, "maps", lambda self, *one: passes.append(1) or network(self, *one))
    found = evaluated(monkeypatch, shapes_run, "crf_search", *arguments, "protocol.max_minutes=1e-9")
    assert found["settings"] == 0 and found["complete"] == 0 and len(measured) == 1
    full = evaluated(monkeypatch, shapes_run, "crf_search", *arguments)
    assert len(measured) == 1 + 4 and "complete" not in full and full["settings"] == 8
    tables = (shapes_run / "eval" / "crf_search").glob("settings_*.csv")
    table = max(tables, key=lambda path: path.stat().st_mtime_ns)
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-2]) + lines[-2][:9])  # a kill within the last but one row
    again = evaluated(monkeypatch, shapes_run, "crf_search", *arguments)
    assert again == full and len(measured) == 6 and len(passes) == 1
    other = evaluated(monkeypatch, shapes_run, "crf_search", *arguments, "protocol.crf.w2=0")
    assert len(measured) == 11 and len(passes) == 1 and other["miou_off"] == full["miou_off"]


class Slope:
    """Images whose best setting is known."""

    best = Setting(6, 30, 5)

    def __init__(self):
        self.asked = []

    def measure(self, sa, sb, weights):
        settings = [Setting(w1, sa, sb) for w1 in weights]
        self.asked += settings
        return [Measured(one, -float(np.abs(np.subtract(one, self.best)).sum()), None, 0.0) for one in settings]


@pytest.mark.parametrize(
    ("peak", "most"), [((6, 30, 5), 40), ((3, 100, 3), 45), ((4, 60, 6), 50), ((4.4, 64, 4.4), 60)]
)
def test_coarse_to_fine_finds_a_single_peak_in_part_of_the_grid(tmp_path, peak, most):
    """The last peak lies below the best of the coarse settings, 5, 70 and 5."""
    search, images = CrfSearch(crf=CrfConfig()), Slope()
    images.best = Setting(*peak)
    best = tuple(min(values, key=lambda v: abs(v - p)) for values, p in zip(search.grid.values(), peak, strict=True))
    table = Table(tmp_path / "settings.csv", search.grid)
    assert search._search(table, images, None)
    assert table.best().setting == best and len(images.asked) == len(set(images.asked)) <= most
    assert len(list(search._stages(table))) == 1  # what the next call would try is all there


def test_full_tries_all(tmp_path):
    search, images = CrfSearch(crf=CrfConfig(), search="full"), Slope()
    table = Table(tmp_path / "settings.csv", search.grid)
    assert search._search(table, images, None) and len(images.asked) == 129
    assert table.best().setting == (6, 30, 5)
    smaller = Table(tmp_path / "settings.csv", search.grid | {"w1": [3.0, 4.0]})
    assert smaller.best().setting == (4, 30, 5) and len(smaller.ranked()) == 64


def test_other_protocols_leave_its_images_out(monkeypatch, shapes_run):
    evaluated(monkeypatch, shapes_run, "crf_search", *GRID)
    images = Path(shapes_run) / "eval" / "crf_search" / "images.txt"
    left = evaluated(monkeypatch, shapes_run, "multiscale", f"protocol.exclude={images}", "protocol.crf=null")
    assert left["images"] == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("protocol.w1=[3,2]", "protocol.w1=[3.0, 2.0]: give rising numbers"),
        ("protocol.sa=[]", "protocol.sa=[]"),
        ("protocol.sb=[0,3]", "above 0"),
        ("protocol.search=random", "choose coarse_to_fine or full"),
        ("protocol.crf=null", "the search needs its other settings"),
        ("protocol.max_minutes=0", "protocol.max_minutes=0"),
        ("protocol.count=100", "val has 4 images"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, shapes_run, capsys, argument, message):
    with pytest.raises(SystemExit):
        evaluated(monkeypatch, shapes_run, "crf_search", argument)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
