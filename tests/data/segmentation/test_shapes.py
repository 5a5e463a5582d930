"""The rendered sample: VOC's layout, the same on every machine, and labels that are where the shapes are."""

import numpy as np
import pytest

from quintet.common.errors import UserError
from quintet.data.samples.shapes import CLASSES, SampleShapes, outline, render
from quintet.data.segmentation.datamodule import SegmentationDataModule
from quintet.data.segmentation.voc import VOC


def test_it_is_read_as_vocs(tmp_path):
    source = SampleShapes(str(tmp_path / "shapes"), num_train=6, num_val=4)
    module = SegmentationDataModule(source, str(tmp_path / "cache"), batch_size=2, crop_size=97, eval_size=129)
    module.setup()
    assert [module.num_examples(split) for split in ("train", "val", "test")] == [6, 4, 4]
    assert module.data_info == {"num_classes": 4, "classes": CLASSES}
    image, labels, name = module.raw("test", 1)
    drawn, expected = render(7)
    assert name == "2012_000007" and np.array_equal(labels, expected) and labels.shape == (97, 129)
    assert np.abs(image.astype(int) - drawn).mean() < 12  # a JPEG of it
    written = next((tmp_path / "shapes").glob("*/VOCdevkit"))
    assert len(VOC(str(written)).splits(tmp_path / "cache")["train"]) == 6
    source = SampleShapes(str(tmp_path / "shapes"), num_train=8, num_val=1)
    assert len(source.splits(tmp_path / "cache")["train"]) == 8, "other sizes are other files"


def test_the_same_every_time_and_all_classes_with_borders():
    counts = np.zeros(256, int)
    for number in range(40):
        first, again = render(number), render(number)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        counts += np.bincount(first[1].reshape(-1), minlength=256)
    shares = counts / counts.sum()
    assert set(np.flatnonzero(counts)) == {0, 1, 2, 3, 255}
    assert shares[1:4].min() > 0.04 and 0.5 < shares[0] < 0.85 and 0.01 < shares[255] < 0.1
    assert not np.array_equal(render(0)[0], render(3)[0])


@pytest.mark.parametrize(("kind", "area"), [(1, np.pi), (2, 4 * 0.85**2), (3, 3 * np.sqrt(3) * 0.75**2)])
def test_areas_are_those_of_a_circle_a_square_and_a_triangle(kind, area):
    """pi r^2, 4 a^2 and 3 sqrt(3) a^2 with a the distance from the middle to a side."""
    for turn in (0.0, 0.3, -0.4):
        inside_hw, edge_hw = outline(kind, np.array([48.3, 64.4]), 20.0, turn)
        assert abs(inside_hw.sum() - area * 400) < 0.03 * area * 400
        assert (edge_hw & inside_hw).any() and (edge_hw & ~inside_hw).any()


def test_impossible_sizes(tmp_path):
    for key in ("num_train", "num_val"):
        with pytest.raises(UserError, match=rf"data\.source\.{key}=0: give 1 to 100000"):
            SampleShapes(str(tmp_path), **{key: 0}).splits(tmp_path)
