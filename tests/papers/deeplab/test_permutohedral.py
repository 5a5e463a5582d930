"""The lattice against its definition in double precision and against the exact Gaussian filter, both back-ends."""

import numpy as np
import pytest
import torch
from crf_scenes import dense_filter, lattice_filter, scene

from quintet.common.errors import UserError
from quintet.papers.deeplab.crf.compiled import CompiledLattice, threads
from quintet.papers.deeplab.crf.mean_field import appearance, positions
from quintet.papers.deeplab.crf.permutohedral import build, join, slice_scale


def tensors(feature_nd, x_nc):
    return build(torch.from_numpy(feature_nd)).filter(torch.from_numpy(x_nc)).numpy()


def compiled(bands):
    def run_filter(feature_nd, x_nc):
        padded_nw = np.zeros((len(x_nc), 8), np.float32)
        padded_nw[:, : x_nc.shape[1]] = x_nc
        with threads(bands) as run:
            return CompiledLattice(feature_nd, bands, run).filter(padded_nw, run)[:, : x_nc.shape[1]]

    return run_filter


BACKENDS = pytest.mark.parametrize(
    "lattice", [tensors, compiled(1), compiled(2), compiled(5)], ids=["tensors", "1 band", "2 bands", "5 bands"]
)


@BACKENDS
@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_the_lattice_does_what_its_definition_says(lattice, dimensions):
    random = np.random.default_rng(dimensions)
    feature_nd = (random.normal(size=(60, dimensions)) * 1.5).astype(np.float32)
    x_nc = random.random((60, 3)).astype(np.float32)
    wanted_nc = lattice_filter(feature_nd, x_nc) * slice_scale(dimensions)
    np.testing.assert_allclose(lattice(feature_nd, x_nc), wanted_nc, rtol=2e-5, atol=1e-6)


@BACKENDS
def test_normalised_it_is_near_the_exact_gaussian_filter(lattice):
    """By the mean error, which is the approximation's own; a filter a quarter too wide or too narrow is further off."""
    _, image = scene(16, 18, 4)
    features = positions(16, 18, 3.0).numpy(), appearance(torch.from_numpy(image), 6.0, 40.0).numpy()
    x_nc = np.random.default_rng(1).random((16 * 18, 2)).astype(np.float32) ** 4
    for feature_nd in features:
        found_nc = lattice(feature_nd, x_nc) / lattice(feature_nd, np.ones_like(x_nc))
        near, wide, narrow = (abs(found_nc - dense_filter(s * feature_nd, x_nc)).mean() for s in (1, 0.75, 1.25))
        assert near < 0.003 and min(wide, narrow) > 0.0045


def test_joined_lattices_do_not_see_each_other():
    random = np.random.default_rng(0)
    features = [torch.from_numpy(random.normal(size=(n, 2)).astype(np.float32)) for n in (7, 30, 12)]
    values = [torch.from_numpy(random.random((len(f), 4)).astype(np.float32)) for f in features]
    alone = torch.cat([build(f).filter(x) for f, x in zip(features, values, strict=True)])
    torch.testing.assert_close(join([build(f) for f in features]).filter(torch.cat(values)), alone)


def test_the_tensor_lattice_has_a_gradient():
    feature_nd = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    x_nc = torch.rand(9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(build(feature_nd).filter, [x_nc])


@BACKENDS
def test_points_too_far_out_for_a_key_are_refused(lattice):
    with pytest.raises(UserError, match=r"too small for an image of this size: raise crf.sa, crf.sb or crf.sg"):
        lattice(np.full((6, 5), 2e4, np.float32), np.ones((6, 2), np.float32))
