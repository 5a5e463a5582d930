"""benchmarks/crf.py: every row is made, and the probabilities are a network's in kind."""

import bench_scripts
import numpy as np
import pytest

from quintet.errors import UserError

assert bench_scripts  # puts benchmarks/ on the path
import crf as bench  # noqa: E402

SETTING = bench.Setting(images=1, repeats=1, threads=2, size=(40, 48), iterations=2)


def test_every_row_is_made(monkeypatch):
    monkeypatch.setattr(bench, "peak", lambda name, *_: float(len(name)))  # a process for each: slow
    rows = {entry["metric"]: entry for entry in bench.run_all(SETTING)}
    names = list(bench.make_candidates(SETTING))
    assert len(names) >= 4 and len(rows) == 1 + (len(names) - 1) + (len(names) + 1) + len(names)
    for name in names:
        assert rows[f"time per image: {name}"]["value"] > 0
        assert rows[f"peak memory: {name}"]["value"] == len(name)
        if name != bench.PEER:
            assert rows[f"labels equal to pydensecrf's: {name}"]["value"] >= 99.8
            assert "times as fast as pydensecrf" in rows[f"time per image: {name}"]["note"]


def test_peak_memory_is_measured_in_a_process_of_its_own():
    pair = next(bench.synthetic(bench.Setting(images=1, size=(160, 200))))
    marginals = 21 * 160 * 200 * 4 / 2**20
    assert marginals < bench.peak(bench.PEER, SETTING, pair, None) < 100 * marginals


def test_probabilities_follow_the_mask_and_are_unsure():
    mask = np.zeros((40, 64), np.uint8)
    mask[:, 32:], mask[:2] = 7, 255
    made = bench.probabilities(mask, 0)
    assert made.shape == (21, 40, 64) and np.allclose(made.sum(0), 1, atol=1e-5)
    assert 0.8 < (made.argmax(0) == np.where(mask == 255, 0, mask)).mean() < 1 and made.max() < 0.999


def test_a_root_that_is_not_voc_is_refused(tmp_path):
    with pytest.raises(UserError, match="not VOC2012 with SegmentationClassAug"):
        list(bench.real(tmp_path, 1))
    (tmp_path / "file.tar").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"neither a folder nor a \.tar"):
        list(bench.real(tmp_path / "file.tar", 1))
