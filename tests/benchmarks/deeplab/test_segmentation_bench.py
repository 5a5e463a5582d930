"""benchmarks/deeplab/segmentation.py: every network learns its own way, and rows compare with ours."""

import json
import subprocess
import sys

import pytest
import torch
from commands import REPOSITORY

from benchmarks.deeplab import segmentation as bench
from quintet.papers.deeplab.network import DeepLab

pytestmark = pytest.mark.slow

SETTING = bench.Setting(crop=33, steps=1, rounds=2)


@pytest.mark.parametrize("name", bench.NETWORKS)
def test_networks_have_the_stride_that_they_say(name):
    candidate = bench.make(name, "mobilenet_v2", SETTING)
    batch = bench.pictures(2, 33, "cpu")
    own = candidate.network.network if isinstance(candidate.network, bench.DeepLabModule) else candidate.network
    features = own.backbone.body(batch.images) if isinstance(own, DeepLab) else own.backbone(batch.images)["out"]
    assert features.shape == (2, 1280, *([2, 2] if name == "strided" else [3, 3]))
    assert candidate.classes(batch).shape == batch.labels.shape
    before = [p.detach().clone() for p in candidate.network.parameters()]
    candidate.loss(batch).backward()
    candidate.optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, candidate.network.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)


def test_torchvisions_resnet_has_its_own_holes():
    network = bench.torchvisions("resnet50", 16).network
    assert network.backbone.layer4[1].conv2.dilation == (2, 2) and network.backbone.layer3[1].conv2.dilation == (1, 1)


def with_clock(monkeypatch, ticks, run, *given):
    """`run` while time.perf_counter gives these ticks."""
    with monkeypatch.context() as patch:
        patch.setattr(bench.time, "perf_counter", lambda: next(ticks))
        return run(*given)


def test_the_child_measures_time_and_memory(monkeypatch, capsys):
    monkeypatch.setitem(bench.BATCHES, "mobilenet_v2", 2)
    options = ["--child", "ours", "mobilenet_v2", "bf16", "--crop", "33", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["segmentation.py", *options])
    # the clock of its runs: the first of each task takes 100 s, which must not count, the second 4 s and 16 s
    durations = {"inference": [100.0, 4.0], "training": [100.0, 16.0]}
    ticks = iter([tick for taken in durations.values() for seconds in taken for tick in (0.0, seconds)])
    timed = bench.timed
    monkeypatch.setattr(bench, "timed", lambda *given: with_clock(monkeypatch, ticks, timed, *given))
    bench.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["inference"] == 2 / 4 and found["training"] == 2 / 16  # two images a batch
    assert {"training MiB", "inference MiB"} <= found.keys()  # above 0 in a fresh process only


def test_peak_memory_grows_by_what_is_allocated():
    """In a process of its own, as the benchmark measures: an older peak would hide what is added."""
    words = "from benchmarks.deeplab import segmentation as b; import numpy as np; "
    words += "before = b.peak_mib('cpu', reset=True); block = np.ones(8 << 20); "
    command = [sys.executable, "-c", words + "print(b.peak_mib('cpu') - before)"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800)
    assert 50 < float(done.stdout.splitlines()[-1]) < 200, done.stderr


def test_rows_compare_each_network_with_ours():
    seen = []

    def run(task, setting):
        seen.append(task[0])
        rate = {"ours": 3.0, "torchvision": 2.0, "strided": 6.0}[task[0]] + len(seen) / 1000
        return {"training": rate, "inference": 2 * rate, "training MiB": 10.0, "inference MiB": 5.0}

    rows = {entry["metric"]: entry for entry in bench.run_all(["resnet50"], ["fp32"], SETTING, run)}
    assert seen == ["ours", "torchvision", "strided", "strided", "torchvision", "ours"]
    assert len(rows) == 6 and rows["resnet50, fp32, inference: strided"]["value"] == pytest.approx(12, abs=0.02)
    assert "ours is 1.50 times as fast" in rows["resnet50, fp32, training: torchvision"]["note"]
    assert "times" not in rows["resnet50, fp32, training: ours"]["note"]
