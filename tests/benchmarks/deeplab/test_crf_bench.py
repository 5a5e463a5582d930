"""benchmarks/deeplab/crf.py: every row is made, and the probabilities are a network's in kind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from benchmarks.deeplab import crf as bench
from quintet.common.errors import UserError
from quintet.papers.deeplab.module import DeepLabModule

pytestmark = pytest.mark.slow

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
        list(bench.real(tmp_path, 1, None))
    (tmp_path / "file.tar").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"neither a folder nor a \.tar"):
        list(bench.real(tmp_path / "file.tar", 1, None))


def test_probabilities_of_a_trained_network(tmp_path):
    torch.manual_seed(0)
    classes = [str(c) for c in range(21)]
    config = {"head": "none"}, {"name": "resnet18", "output_stride": 16, "weights": None}, {"name": "sgd"}
    module = DeepLabModule(*config, {"num_classes": 21, "classes": classes}).eval()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for part in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClassAug"):
        (folder / part).mkdir(parents=True)
    (folder / "ImageSets/Segmentation/val.txt").write_text("x\n")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "JPEGImages" / "x.jpg", quality=95)
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(folder / "SegmentationClassAug" / "x.png")
    say = bench.said_by(bench.Setting(checkpoint=tmp_path / "best.ckpt"))
    [(made, read)] = bench.real(tmp_path, 1, say)
    with torch.no_grad():
        expected = module.scores(torch.from_numpy(read).permute(2, 0, 1)[None] / 255).softmax(1)[0]
    assert np.allclose(made, expected, atol=1e-6) and made.flags.c_contiguous and made.std() > 1e-4
    with pytest.raises(UserError, match=r"--checkpoint=no\.ckpt: no such file"):
        bench.said_by(bench.Setting(checkpoint=Path("no.ckpt")))
