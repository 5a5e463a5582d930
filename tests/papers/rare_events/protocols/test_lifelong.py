"""A memory that is never cleared: the stream, what it remembers, what a small one forgets."""

import csv

import numpy as np
import pytest
import torch
from memories import NoisyClasses, Plain, snapshot

from quintet.common.errors import UserError
from quintet.papers.rare_events.protocols import lifelong
from quintet.papers.rare_events.protocols.lifelong import Lifelong, by_age, make_stream, run_stream


def table(folder):
    with (folder / "lifelong" / "accuracy_by_age.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_no_drawing_twice_and_ages_are_true():
    stream = make_stream(30, 20, 2000, seed=1)
    pairs = list(zip(stream.classes.tolist(), stream.drawers.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) and set(stream.classes) == set(range(30))
    for position, (c, age) in enumerate(zip(stream.classes, stream.ages, strict=True)):
        before = np.flatnonzero(stream.classes[:position] == c)
        assert age == (position - before[-1] if len(before) else 0)
        assert stream.showings[position] == len(before)
    again = make_stream(30, 20, 2000, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(stream, again, strict=True))
    assert not np.array_equal(stream.classes, make_stream(30, 20, 2000, seed=2).classes)


def test_gaps_of_every_size_occur():
    ages = make_stream(659, 20, 10000, seed=0).ages
    shares = [((ages >= 10**d) & (ages < 10 ** (d + 1))).sum() for d in range(4)]
    assert min(shares) > 150, shares


def test_an_easy_stream_is_remembered_for_ever(tmp_path):
    module = Plain()
    before = snapshot(module)
    found = Lifelong(horizon=500)(module, NoisyClasses(noise=5.0), tmp_path)
    assert found["lifelong/accuracy"] == found["lifelong/still_stored"] == 1
    assert found["lifelong/new_classes"] == 12 and found["lifelong/chance"] < 0.2
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    rows = table(tmp_path)
    assert sum(row["images"] for row in rows) == found["lifelong/images"] - 12, "new classes are no question"
    assert (tmp_path / "lifelong" / "accuracy_by_age.png").stat().st_size > 5000


def test_a_small_memory_forgets_what_is_old(tmp_path):
    data = NoisyClasses(noise=5.0, classes=40, drawers=20)
    found = Lifelong(horizon=2000, slots=16)(Plain(age_noise=0.0), data, tmp_path)
    assert 0.2 < found["lifelong/accuracy"] <= found["lifelong/still_stored"] < 0.95
    rows = table(tmp_path)
    young = [row for row in rows if row["age_below"] <= 10]
    old = [row for row in rows if row["age_from"] >= 100]
    assert young and old and min(row["accuracy"] for row in young) == 1 and max(row["accuracy"] for row in old) < 0.5


def test_never_cleared_and_answered_before_it_is_told(monkeypatch):
    data, module = NoisyClasses(noise=5.0), Plain()
    keys = lifelong.unit_keys(module, data.array)
    stream = make_stream(12, 8, 500, seed=0)
    memory = module.blank_memory(12)
    monkeypatch.setattr(memory, "clear", lambda: pytest.fail("cleared"))
    record = run_stream(memory, keys, stream)
    assert int(memory.step) == len(stream.classes), "one write an image"
    assert not record.right[stream.ages == 0].any(), "a new class cannot be known before it is told"
    assert record.right[stream.ages > 0].all()


def test_table_is_what_a_count_says():
    ages = np.array([0, 1, 1, 2, 30, 31, 2500])
    record = lifelong.Record(np.array([0, 1, 0, 1, 1, 1, 0], bool), np.ones(7, bool), np.full(7, 0.1))
    zeros = np.zeros(7, int)
    rows = by_age(lifelong.Stream(zeros, zeros, ages, np.array([0, 1, 2, 3, 4, 5, 6])), record)
    found = {(row[0], row[1]): row[2:4] for row in rows}
    assert found == {(1, 2): (2, 0.5), (2, 5): (1, 1.0), (22, 46): (2, 1.0), (2154, 4642): (1, 0.0)}
    assert rows[0][4] == pytest.approx(1.96 * 0.5 / 2**0.5)


def test_same_history_takes_the_age_out():
    """Right by the number of showings and the quarter alone: the curve over ages is explained by them entirely."""
    stream = make_stream(200, 20, 4000, seed=3)
    quarter = np.arange(len(stream.ages)) * 4 // len(stream.ages)
    right = (np.minimum(stream.showings, 7) + quarter) % 3 > 0
    again = stream.ages > 0
    assert np.array_equal(lifelong.same_history(stream, right)[again], right[again].astype(float))
    forgetful = right & (stream.ages < 100)
    record = lifelong.Record(forgetful, forgetful, np.ones(len(right)))
    rows = by_age(stream, record)
    assert all(row[3] > row[8] for row in rows if row[1] <= 100), "younger is better than its history"
    assert all(row[3] == 0 < row[8] for row in rows if row[0] >= 100), "old is forgotten, which history cannot explain"
    here = (stream.ages >= 10) & (stream.ages < 22)
    assert next(row for row in rows if row[0] == 10)[7] == pytest.approx(stream.showings[here].mean())


def test_metrics_by_decade_agree_with_the_table(tmp_path):
    found = Lifelong(horizon=500)(Plain(), NoisyClasses(noise=150.0), tmp_path)
    rows = [row for row in table(tmp_path) if 10 <= row["age_from"] < 100]
    mean = sum(row["accuracy"] * row["images"] for row in rows) / sum(row["images"] for row in rows)
    assert found["lifelong/accuracy_age_10_to_99"] == pytest.approx(mean, abs=1e-4) and mean < 1


@pytest.mark.parametrize("overrides", [{"horizon": 5}, {"slots": 0}])
def test_impossible_requests(tmp_path, overrides):
    key, value = next(iter(overrides.items()))
    with pytest.raises(UserError, match=rf"protocol\.{key}={value}"):
        Lifelong(**overrides)(Plain(), NoisyClasses(), tmp_path)
