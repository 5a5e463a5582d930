"""benchmarks/deeplab/aspp.py: both ways are timed on the same scores, and the summary is of what was measured."""

import pytest

from benchmarks.deeplab import aspp as bench

pytestmark = pytest.mark.slow


def test_rows_and_their_summary():
    chosen = [bench.Case(8, 1, side, 16, precision) for side, precision in ((9, "fp32"), (5, "bf16"))]
    rows = list(bench.run_all(chosen, 2))
    assert [entry["value"] > 0 for entry in rows] == [True] * 6
    first, second = (entry["value"] for entry in rows[:4:2])
    assert rows[-2]["value"] == pytest.approx((first * second) ** 0.5, abs=0.02)
    assert bench.measure(chosen[0], 1)["apart"] < 1e-5


def test_the_shapes_are_those_of_whole_images_and_windows():
    found = {(case.side, case.output_stride) for case in bench.cases()}
    assert found == {(512 // 16 + 1, 16), (512 // 8 + 1, 8), (256 // 16 + 1, 16), (320 // 8 + 1, 8)}
    assert len(bench.cases()) == len(set(map(str, bench.cases()))) == 16
