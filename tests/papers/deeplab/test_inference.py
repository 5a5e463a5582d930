"""Probabilities of whole images: tiles, scales and mirror images against the same by hand."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from quintet.common.errors import UserError
from quintet.papers.deeplab.inference import Inference, tile_starts
from quintet.papers.deeplab.module import DeepLabModule


class Pixelwise:
    """Scores of each pixel from its own colour: no tile can change them."""

    device = torch.device("cpu")

    def scores(self, images_bchw):
        weights = torch.tensor([[3.0, -1, 0], [0, 2, -2], [-1, 0, 4], [1, 1, 1]])
        return torch.einsum("kc,bchw->bkhw", weights, images_bchw)


class Sided(Pixelwise):
    """Scores that know left from right."""

    def scores(self, images_bchw):
        ramp = torch.linspace(0, 3, images_bchw.shape[-1])
        return super().scores(images_bchw) + torch.stack([ramp, -ramp, 0 * ramp, ramp**2])[None, :, None]


def picture(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255


@given(st.integers(1, 40), st.integers(1, 40), st.integers(3, 17), st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_tiles_change_nothing_where_the_network_sees_one_pixel(height, width, tile, overlap):
    image = picture(height, width)
    whole = Pixelwise().scores(tensor(image)).softmax(1)[0]
    tiled = Inference(tile_size=tile, tile_overlap=min(overlap, tile - 1)).probabilities(Pixelwise(), image)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-6)


@given(st.integers(1, 3000), st.integers(1, 600), st.integers(0, 599))
@settings(max_examples=200, deadline=None)
def test_tiles_cover_a_side_and_share_pixels(side, tile, overlap):
    overlap = min(overlap, tile - 1)
    starts = tile_starts(side, tile, overlap)
    assert starts[0] == 0 and (starts[-1] + tile == side or (starts == [0] and side <= tile))
    apart = np.diff(starts)
    assert (apart > 0).all() and (apart <= tile - overlap + 1).all()  # rounding may take one pixel
    assert len(starts) == 1 or (len(starts) - 1) * (tile - overlap) < side - overlap


def test_overlapping_tiles_are_averaged():
    image, tile = picture(9, 13), 9
    wanted = torch.zeros(4, 9, 17)
    for left in (0, 8):  # the canvas is 9 x 17
        part = F.pad(tensor(image), (0, 4))[..., left : left + tile]
        wanted[..., left : left + tile] += Sided().scores(part)[0].softmax(0)
    wanted[..., 8] /= 2
    found = Inference(tile_size=tile, tile_overlap=1).probabilities(Sided(), image)
    torch.testing.assert_close(found, wanted[..., :13])


@pytest.mark.parametrize("average", ["probabilities", "scores"])
def test_scales_and_mirror_images_are_averaged(average):
    image = picture(17, 25)
    kept = (lambda s: s.softmax(1)) if average == "probabilities" else (lambda s: s)
    total = 0
    for size in ((9, 13), (17, 25), (25, 37)):  # 8k + 1 at .5, 1, 1.5
        scaled = F.interpolate(tensor(image), size, mode="bilinear", align_corners=True)
        for view in (scaled, scaled.flip(-1)):
            values = kept(Sided().scores(view))
            values = values if view is scaled else values.flip(-1)
            total = total + F.interpolate(values, (17, 25), mode="bilinear", align_corners=True)
    wanted = total / 6 if average == "probabilities" else (total / 6).softmax(1)
    found = Inference(scales=(0.5, 1, 1.5), flip=True, average=average).probabilities(Sided(), image)
    torch.testing.assert_close(found, wanted[0])
    torch.testing.assert_close(found.sum(0), torch.ones(17, 25))


def test_the_canvas_is_that_of_the_test_loop_and_cut_off():
    seen = []

    class Watching(Pixelwise):
        def scores(self, images_bchw):
            seen.append(images_bchw)
            return super().scores(images_bchw)

    image = picture(20, 30)
    colour = (0.5, 0.25, 0.125)
    for canvas, size in ((None, (25, 33)), (33, (33, 33)), (25, (25, 33))):
        found = Inference(canvas=canvas, pad_colour=colour).probabilities(Watching(), image)
        assert found.shape == (4, 20, 30) and tuple(seen[-1].shape[-2:]) == size
        torch.testing.assert_close(seen[-1][..., :20, :30], tensor(image))
        assert (seen[-1][0, :, 20:] == torch.tensor(colour)[:, None, None]).all()


def test_the_network_runs_in_the_context_that_is_given():
    inside = []

    @contextmanager
    def context():
        inside.append(True)
        yield
        inside.pop()

    class Asking(Pixelwise):
        def scores(self, images_bchw):
            assert inside
            return super().scores(images_bchw)

    Inference(flip=True).probabilities(Asking(), picture(), context)
    assert not inside


def test_one_pixel_wide_images_have_probabilities():
    torch.manual_seed(0)
    module = DeepLabModule({"head": "aspp_s"}, {"name": "resnet18", "weights": None, "frozen_bn": False}, {"lr": 1.0},
                           {"num_classes": 3, "classes": ["a", "b", "c"]}).eval()  # fmt: skip
    for height, width in ((1, 1), (1, 40), (40, 1)):
        found = Inference(scales=(0.5, 1), flip=True, canvas=33).probabilities(module, picture(height, width))
        assert found.shape == (3, height, width) and found.isfinite().all()


def test_mistakes():
    with pytest.raises(UserError, match=r"protocol\.scales"):
        Inference(scales=(1, -1))
    with pytest.raises(UserError, match=r"protocol\.average='mean'"):
        Inference(average="mean")
