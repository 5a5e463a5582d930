"""Mean field against an exact dense one, against pydensecrf on synthetic and real images, and both of ours alike."""

import io
import tarfile
from dataclasses import fields

import numpy as np
import pytest
import torch
from commands import REPOSITORY
from crf_scenes import dense_filter, scene
from scipy.special import log_softmax, softmax

from quintet.papers.deeplab.crf import compiled as crf_compiled
from quintet.papers.deeplab.crf import mean_field
from quintet.papers.deeplab.crf.crf import CrfConfig, infer

VOC = REPOSITORY.parent / "shared/data/voc2012_subset/VOCtrainval_subset.tar"
SIZES = [(1, 17, 2), (13, 1, 3), (7, 13, 8), (24, 31, 21), (10, 11, 30)]


@pytest.fixture
def bands():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def tensor_ops(probabilities, image, config):
    return mean_field.mean_field([torch.from_numpy(probabilities)], [torch.from_numpy(image)], config)[0].numpy()


def compiled(probabilities, image, config):
    return crf_compiled.mean_field(torch.from_numpy(probabilities), torch.from_numpy(image), config).numpy()


BOTH = pytest.mark.parametrize("ours", [tensor_ops, compiled])


def exact(probabilities, image, config):
    """Algorithm 1 with every pair of pixels, O(N^2)."""
    classes, height, width = probabilities.shape
    log_p_nc = np.log(np.maximum(probabilities, 1e-5)).reshape(classes, -1).T.astype(np.float64)
    place_n2 = np.stack(np.mgrid[:height, :width][::-1], -1).reshape(-1, 2)
    near_n2 = place_n2 / config.sg
    far_n5 = np.concatenate([place_n2 / config.sa, image.reshape(-1, 3) / config.sb], 1)
    q_nc = softmax(log_p_nc, 1)
    for _ in range(config.iterations):
        messages_nc = config.w1 * dense_filter(far_n5, q_nc) + config.w2 * dense_filter(near_n2, q_nc)
        q_nc = softmax(log_p_nc + messages_nc, 1)
    return q_nc.T.reshape(classes, height, width)


@BOTH
def test_near_the_exact_dense_crf(ours):
    probabilities, image = scene(15, 18, 4)
    config = CrfConfig(sa=6, sb=20, iterations=5)
    found, wanted = ours(probabilities, image, config), exact(probabilities, image, config)
    changed = (wanted.argmax(0) != probabilities.argmax(0)).mean()
    assert (found.argmax(0) == wanted.argmax(0)).mean() >= 0.98 and changed > 0.1
    assert abs(found - wanted).mean() < 0.01
    for off in ({"w1": 2.0}, {"w2": 0.0}, {"iterations": 1}, {"sb": 5.0}):
        other = exact(probabilities, image, CrfConfig(**{"sa": 6, "sb": 20, "iterations": 5} | off))
        assert abs(found - other).mean() > 0.01, off


@pytest.mark.parametrize(("height", "width", "classes"), SIZES)
def test_compiled_loops_give_the_numbers_of_the_tensor_operations(height, width, classes, bands):
    probabilities, image = scene(height, width, classes)
    config = CrfConfig()
    wanted = tensor_ops(probabilities, image, config)
    for count in (1, 2, 3):
        bands(count)
        np.testing.assert_allclose(compiled(probabilities, image, config), wanted, atol=1e-5)


SETTINGS = {
    "w1": [0.0, 9.0],
    "sa": [4.0, 120.0],
    "sb": [2.0, 30.0],
    "w2": [0.0, 6.0],
    "sg": [1.0, 8.0],
    "iterations": [0, 1, 5],
    # these choose who computes the mean field and how many images at a time, not what is computed
    "backend": [],
    "workers": [],
    "batch_size": [],
}


def test_no_setting_of_the_crf_is_left_out():
    assert set(SETTINGS) == {field.name for field in fields(CrfConfig)}, "give the new setting values in SETTINGS"


@pytest.mark.parametrize("options", [{key: value} for key, values in SETTINGS.items() for value in values], ids=str)
def test_compiled_loops_follow_every_setting(options):
    probabilities, image = scene(13, 18, 4)
    config = CrfConfig(**options)
    wanted = tensor_ops(probabilities, image, config)
    np.testing.assert_allclose(compiled(probabilities, image, config), wanted, atol=1e-5)


@BOTH
@pytest.mark.parametrize(("height", "width", "classes"), SIZES)
def test_equal_to_pydensecrf(ours, height, width, classes):
    probabilities, image = scene(height, width, classes, seed=1)
    config = CrfConfig(sa=20, sb=8)
    found, wanted = ours(probabilities, image, config), infer(probabilities, image, config)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@BOTH
def test_equal_to_pydensecrf_on_a_real_photograph(ours):
    if not VOC.exists():
        pytest.skip("the VOC subset is not on this machine")
    probabilities, image = photograph()
    found, wanted = ours(probabilities, image, CrfConfig()), infer(probabilities, image, CrfConfig())
    assert (wanted.argmax(0) != probabilities.argmax(0)).mean() > 0.01
    assert (found.argmax(0) == wanted.argmax(0)).mean() >= 0.998
    assert abs(found - wanted).max() < 1e-4


def photograph():
    """A crop of a real image and its mask, blurred and noisy as a network's score map would be."""
    from PIL import Image

    with tarfile.open(VOC) as archive:
        picture, mask = (
            Image.open(io.BytesIO(archive.extractfile(f"VOCdevkit/VOC2012/{name}").read()))
            for name in ("JPEGImages/2007_000332.jpg", "SegmentationClassAug/2007_000332.png")
        )
        image = np.array(picture.convert("RGB"))[80:241, 150:313]
        labels_hw = np.array(mask)[80:241, 150:313]
    coarse_hw = np.where(labels_hw == 255, 0, labels_hw)[::8, ::8]
    scores = 4 * np.eye(21)[coarse_hw].transpose(2, 0, 1)
    scores += np.random.default_rng(0).normal(size=scores.shape)
    large = torch.from_numpy(log_softmax(scores, 0)).float()[None]
    large = torch.nn.functional.interpolate(large, labels_hw.shape, mode="bilinear", align_corners=True)
    return large.softmax(1)[0].numpy(), image.copy()


@BOTH
def test_without_iterations_or_weights_nothing_changes_but_the_clip(ours):
    probabilities, image = scene(9, 10, 3)
    probabilities[:, 0, 0] = [0, 1, 0]
    wanted = np.maximum(probabilities, 1e-5)
    wanted /= wanted.sum(0)
    for config in (CrfConfig(iterations=0), CrfConfig(w1=0, w2=0)):
        np.testing.assert_allclose(ours(probabilities, image, config), wanted, atol=1e-6)


def test_a_batch_of_different_sizes_gives_what_each_gives_alone():
    scenes = [scene(9, 12, 3, seed=1), scene(14, 5, 3, seed=2), scene(1, 1, 3, seed=3)]
    batch = [[torch.from_numpy(array) for array in arrays] for arrays in zip(*scenes, strict=True)]
    for found, one in zip(mean_field.mean_field(*batch, CrfConfig()), scenes, strict=True):
        np.testing.assert_allclose(found.numpy(), tensor_ops(*one, CrfConfig()), atol=1e-6)
