"""Resize, window, mirror and colours, against Pillow and by hand."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from quintet.data.captions.views import BRIGHTNESS, CONTRAST, HUE, SATURATION, Views, jittered

CALM = {"mirror": False, "colour_jitter": False}


def positions(height, width):
    """An image that says where a pixel was: row in red, column in green."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 7)]).to(torch.uint8)


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_evaluated_views_are_pillows(keep_aspect):
    rng = np.random.default_rng(0)
    for height, width in ((375, 500), (500, 333), (40, 50), (346, 346)):
        smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((width, height)))
        view = Views(346, 299, keep_aspect).evaluated(torch.from_numpy(smooth.copy()).permute(2, 0, 1))
        assert view.shape == (3, 299, 299) and view.dtype == torch.float32 and 0 <= view.min() <= view.max() <= 1
        short = min(height, width)
        size = (346 * width // short, 346 * height // short) if keep_aspect else (346, 346)
        resized = Image.fromarray(smooth).resize(size, Image.Resampling.BILINEAR)
        left, top = (round((side - 299) / 2) for side in resized.size)
        expected = np.asarray(resized.crop((left, top, left + 299, top + 299))).transpose(2, 0, 1) / 255
        assert np.abs(view.numpy() - expected).max() <= 1.01 / 255


def test_windows_lie_anywhere_and_half_of_them_are_mirrored():
    image, corners, mirrored = positions(20, 20), set(), 0
    for index in range(600):
        view = (Views(20, 17, colour_jitter=False).augmented(image, 0, index) * 255).round().int()
        rows, columns = view[0, :, 0].tolist(), view[1, 0].tolist()
        mirrored += columns[0] > columns[-1]
        columns = sorted(columns)
        assert rows == list(range(rows[0], rows[0] + 17)) and columns == list(range(columns[0], columns[0] + 17))
        corners.add((rows[0], columns[0]))
    assert corners == {(r, c) for r in range(4) for c in range(4)}
    assert 250 < mirrored < 350
    calm = [Views(20, 17, **CALM).augmented(image, 0, i)[1, 0] for i in range(50)]
    assert all(columns[0] < columns[-1] for columns in calm)


def test_a_function_of_seed_epoch_and_index():
    image = torch.randint(0, 256, (3, 30, 30), dtype=torch.uint8)
    views = [Views(30, 20, seed=s).augmented(image, e, i) for s in (0, 1) for e in (0, 1) for i in (0, 1)]
    assert not any(torch.equal(a, b) for k, a in enumerate(views) for b in views[:k])
    torch.manual_seed(5)
    assert torch.equal(Views(30, 20, seed=1).augmented(image, 1, 0), views[6])


class Chosen:
    """In place of a random generator: each range's lowest (0), highest (1) or middle value, and an order."""

    def __init__(self, places, order=0):
        self.places, self.order = iter(places), order

    def uniform(self, low, high):
        return low + next(self.places) * (high - low)

    def integers(self, high):
        assert high == 2
        return self.order


def one(colour):
    return torch.tensor(colour, dtype=torch.float32).view(3, 1, 1).expand(3, 4, 4).clone()


def test_each_colour_change_by_hand():
    """In the order that the numbers are drawn: brightness, hue, saturation, contrast."""
    colour = (0.6, 0.3, 0.2)
    same = [0.5, 0.5, 0.5, 0.5]
    assert torch.allclose(jittered(one(colour), Chosen(same)), one(colour), atol=2e-3)
    brighter = jittered(one(colour), Chosen([1, 0.5, 0.5, 0.5]))
    assert torch.allclose(brighter, one([c + 32 / 255 for c in colour]), atol=3e-3) and BRIGHTNESS == 32 / 255
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    turned = jittered(one(colour), Chosen([0.5, 1, 0.5, 0.5]))
    assert torch.allclose(turned, one(colorsys.hsv_to_rgb((hue + HUE) % 1, saturation, value)), atol=3e-3)
    grey = 0.2989 * 0.6 + 0.587 * 0.3 + 0.114 * 0.2
    washed = jittered(one(colour), Chosen([0.5, 0.5, 0, 0.5]))
    assert torch.allclose(washed, one([SATURATION[0] * c + (1 - SATURATION[0]) * grey for c in colour]), atol=3e-3)
    halves = one(colour)
    halves[:, :2] = 0.2
    flat = jittered(halves, Chosen([0.5, 0.5, 0.5, 0]))
    mean = (grey + 0.2) / 2
    assert torch.allclose(flat, CONTRAST[0] * halves + (1 - CONTRAST[0]) * mean, atol=3e-3)


def test_both_orders_and_never_outside_zero_to_one():
    image = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1))
    a, b = (jittered(image, Chosen([0, 1, 1, 1], order)) for order in (0, 1))
    assert not torch.allclose(a, b, atol=1e-4), "contrast first or last"
    for places in ([1] * 4, [0] * 4, [0, 0, 1, 1], [1, 1, 0, 1]):
        for order in (0, 1):
            made = jittered(image, Chosen(places, order))
            assert 0 <= made.min() <= made.max() <= 1
