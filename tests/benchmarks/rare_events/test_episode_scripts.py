"""The loader's throughput and the pixel baseline run on the glyph sample as on Omniglot."""

import time

import numpy as np
import pytest

from benchmarks import common
from benchmarks.rare_events import episodes, pixel_baseline

pytestmark = pytest.mark.slow

SMALL = ["data=glyphs_sample", "data.source.characters=7", "data.source.drawers=6", "data.val_alphabets=0",
         "model=rare_events", "model.network.channels=[4,4]", "model.network.width=8"]  # fmt: skip


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    return common.compose_training([*SMALL, f"paths.cache_dir={folder}"], folder)


def test_pixel_baseline_has_every_cell_of_both_protocols(cfg, tmp_path):
    rows = pixel_baseline.baseline(common.build_data(cfg, "test"), tmp_path, episodes=10)
    values = {row["metric"]: row["value"] for row in rows}
    assert len(values) == 8 and all(0 < value <= 1 for value in values.values())
    assert [row.get("paper") for row in rows] == [0.417, 0.632, 0.267, 0.426] + [None] * 4
    assert values["few_shot_strict_pixels/5way_5shot"] > values["few_shot_strict_pixels/20way_1shot"]


def test_a_slow_loader_is_seen(cfg, monkeypatch):
    dataset = episodes.build_data(cfg).episodes("train")
    assert len(dataset) >= 3 * cfg.data.batch_size
    rows = {row["metric"]: row["value"] for row in episodes.measure(cfg, batches=2)}
    assert len(rows) == 9 and all(np.isfinite(value) and value > 0 for value in rows.values())
    name = "5-way, 30 images: "
    rate = rows[f"{name}loader"] / rows[f"{name}network"]
    assert rows[f"{name}share of loading"] == pytest.approx(1 / rate)
    get = type(dataset).__getitems__
    monkeypatch.setattr(type(dataset), "__getitems__", lambda self, i: time.sleep(0.2) or get(self, i))
    assert episodes.batch_seconds(episodes.build_data(cfg), 2) > 0.2
