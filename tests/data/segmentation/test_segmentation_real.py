"""The same code on real photographs in VOC's archive layout; skipped where they are not there."""

import numpy as np
import pytest
import torch
from commands import REPOSITORY

from quintet.data.segmentation.datamodule import IMAGENET_MEAN, SegmentationDataModule
from quintet.data.segmentation.voc import VOC

ARCHIVE = REPOSITORY.parent / "shared" / "data" / "voc2012_subset" / "VOCtrainval_subset.tar"


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    if not ARCHIVE.is_file():
        pytest.skip(f"no real photographs: {ARCHIVE} is not there")
    source = VOC(str(ARCHIVE), train="trainaug", masks="SegmentationClassAug")
    module = SegmentationDataModule(source, str(tmp_path_factory.mktemp("voc")), scales=[0.5, 0.75, 1, 1.25, 1.5])
    module.setup()
    return module


def test_700_training_and_245_validation_images(voc):
    assert [voc.num_examples(split) for split in ("train", "val", "test")] == [700, 245, 245]
    seen = np.zeros(256, int)
    for index in range(245):
        image, labels, _ = voc.raw("val", index)
        assert image.shape[:2] == labels.shape and max(labels.shape) <= 500
        seen += np.bincount(labels.reshape(-1), minlength=256)
    assert seen[21:255].sum() == 0 and seen[1] == 0  # no aeroplane in the subset
    assert 0.6 < seen[0] / seen[:21].sum() < 0.85
    common = {voc.data_info["classes"][c] for c in seen[1:21].argsort()[-6:] + 1}
    assert common == {"dog", "cat", "person", "horse", "sheep", "cow"}


def test_training_windows_of_real_photographs(voc):
    batch = next(iter(voc.train_dataloader()))
    assert batch.images.shape == (10, 3, 321, 321) and 0 <= batch.images.min() < 0.1 < 0.9 < batch.images.max() <= 1
    assert (batch.sizes <= 321).all() and (batch.sizes < 321).any()
    mean = torch.tensor(IMAGENET_MEAN)[:, None]
    for images, labels, (height, width) in zip(batch.images, batch.labels, batch.sizes.tolist(), strict=True):
        outside = torch.ones(321, 321, dtype=torch.bool)
        outside[:height, :width] = False
        assert (labels[outside] == 255).all() and torch.equal(images[:, outside], mean.expand(3, int(outside.sum())))
        assert (labels[:height, :width] != 255).any()


def test_evaluated_whole_and_padded_to_513(voc):
    batch = next(iter(voc.test_dataloader()))
    image, labels, _ = voc.raw("test", 0)
    height, width = labels.shape
    assert batch.images.shape == (1, 3, 513, 513) and batch.sizes.tolist() == [[height, width]]
    assert np.array_equal(batch.labels[0, :height, :width], labels)
    assert np.array_equal((batch.images[0, :, :height, :width] * 255).round().byte().permute(1, 2, 0), image)
