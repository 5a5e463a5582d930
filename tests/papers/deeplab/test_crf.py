"""The CRF's interface: kinds and order of results, the process pool, and what is refused."""

import os

import numpy as np
import pytest
import torch
from crf_scenes import scene

from quintet.common.errors import UserError
from quintet.papers.deeplab.crf import crf as module
from quintet.papers.deeplab.crf.crf import Crf, CrfConfig, infer

FAST = {"iterations": 2, "sa": 10, "sb": 20}
BACKENDS = pytest.mark.parametrize("backend", ["auto", "torch", "compiled", "pydensecrf"])


def die(*_):
    os._exit(1)  # as the kernel's out-of-memory killer does


@BACKENDS
def test_results_are_of_the_kind_that_came(backend):
    probabilities, image = scene(8, 9, 3)
    crf = Crf(CrfConfig(backend=backend, **FAST))
    array = crf.refine(probabilities, image)
    tensor = crf.refine(torch.from_numpy(probabilities), torch.from_numpy(image))
    half = crf.refine(torch.from_numpy(probabilities).half(), image)
    assert isinstance(array, np.ndarray) and array.flags.c_contiguous and isinstance(tensor, torch.Tensor)
    assert array.dtype == np.float32 and tensor.dtype == half.dtype == torch.float32
    np.testing.assert_array_equal(array, tensor.numpy())
    np.testing.assert_allclose(half.numpy(), array, atol=0.01)
    np.testing.assert_allclose(array, infer(probabilities, image, crf.config), atol=1e-4)


@BACKENDS
def test_several_weights_give_what_each_gives_alone(backend):
    probabilities, image = scene(12, 9, 3)
    weights, crf = [0.0, 2.0, 5.5], Crf(CrfConfig(backend=backend, **FAST))
    found = list(crf.refine_with(torch.from_numpy(probabilities), image, weights))
    for w1, marginals in zip(weights, found, strict=True):
        alone = Crf(CrfConfig(backend=backend, w1=w1, **FAST)).refine(probabilities, image)
        np.testing.assert_array_equal(marginals.numpy(), alone)
    assert abs(found[0] - found[2]).max() > 0.05
    assert torch.is_grad_enabled()


@BACKENDS
def test_arrays_in_any_memory_order_are_understood(backend):
    probabilities, image = scene(8, 9, 3)
    crf = Crf(CrfConfig(backend=backend, **FAST))
    turned = np.asfortranarray(probabilities), np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    np.testing.assert_array_equal(crf.refine(*turned), crf.refine(probabilities, image))


def test_the_pool_keeps_the_order_and_reads_ahead_no_further_than_it_needs():
    scenes, read = [scene(6 + n, 9, 3, seed=n) for n in range(9)], []

    def reading():
        for n, one in enumerate(scenes):
            read.append(n)
            yield one

    results = Crf(CrfConfig(backend="pydensecrf", workers=2, **FAST)).refine_many(reading())
    found = [next(results)]
    assert len(read) == 5  # two on each process, and the one that took the first one's place
    found += results
    assert len(found) == len(scenes)
    for (probabilities, image), marginals in zip(scenes, found, strict=True):
        np.testing.assert_array_equal(marginals, infer(probabilities, image, CrfConfig(**FAST)))


def test_a_dead_process_ends_in_one_line(monkeypatch):
    monkeypatch.setattr(module, "infer", die)
    with pytest.raises(UserError, match=r"a worker process of the CRF died .*: lower crf.workers"):
        list(Crf(CrfConfig(backend="pydensecrf", workers=1, **FAST)).refine_many([scene(5, 6, 3)]))


@BACKENDS
def test_what_is_wrong_with_the_third_map_is_said_after_two_results(backend):
    probabilities, image = scene(5, 6, 3)
    bad = probabilities.copy()
    bad[0, 0, 0] = np.nan
    results = Crf(CrfConfig(backend=backend, workers=0, batch_size=1, **FAST)).refine_many(
        [(probabilities, image)] * 2 + [(bad, image)]
    )
    next(results), next(results)
    with pytest.raises(UserError, match="map 2 contains NaN"):
        next(results)


@BACKENDS
@pytest.mark.parametrize("as_kind", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, i: (p * np.nan, i), "contains NaN"),
        (lambda p, i: (p * 0, i), r"do not sum to 1 \(off by 1\)"),
        (lambda p, i: (np.where(p == p.max(), np.inf, p), i), "do not sum to 1"),
        (lambda p, i: (np.log(p), i), r"negative numbers .*: give softmax\(scores\)"),
        (lambda p, i: (p * 1.01, i), "do not sum to 1"),
        (lambda p, i: (p[:, :4], i), "is 4 x 6, the image 5 x 6: upsample the scores"),
        (lambda p, i: (p.transpose(0, 2, 1), i), "is 6 x 5, the image 5 x 6"),
        (lambda p, i: (p[0], i), r"shape \(5, 6\): give probabilities \(classes, height, width\)"),
        (lambda p, i: (p[:1], i), "2 classes or more"),
        (lambda p, i: (p[:, :0], i[:0]), r"shape \(3, 0, 6\)"),
        (lambda p, i: ((p > 0.5).astype(np.int64), i), "type .*int64: give probabilities as floating-point"),
        (lambda p, i: (p, i[..., 0]), r"the image is .*uint8 \(5, 6\): give the raw image, uint8"),
        (lambda p, i: (p, i.transpose(2, 0, 1)), r"the image is .*uint8 \(3, 5, 6\)"),
        (lambda p, i: (p, i / np.float32(255)), r"the image is .*float32 \(5, 6, 3\): give the raw image"),
    ],
)
def test_bad_maps_and_images_are_refused_in_one_line(backend, as_kind, change, message):
    probabilities, image = change(*scene(5, 6, 3))
    with pytest.raises(UserError, match=message) as caught:
        Crf(CrfConfig(backend=backend, **FAST)).refine(as_kind(probabilities), as_kind(image))
    assert "\n" not in str(caught.value)


def test_settings_may_come_from_a_config_node():
    assert Crf({"w1": 5, "backend": "torch"}).config == CrfConfig(w1=5, backend="torch") and Crf().config == CrfConfig()
    with pytest.raises(UserError, match=r"crf.config has no key 'w3': legal keys are w1, sa, sb, w2"):
        Crf({"w3": 1})


@BACKENDS
def test_zeros_are_probabilities(backend):
    _, image = scene(5, 6, 3)
    certain = np.zeros((3, 5, 6), np.float32)
    certain[1] = 1
    marginals = Crf(CrfConfig(backend=backend, **FAST)).refine(certain, image)
    assert np.isfinite(marginals).all() and (marginals.argmax(0) == 1).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"backend": "caffe"}, "crf.backend='caffe' is unknown: use one of auto, torch, compiled, pydensecrf"),
        ({"iterations": -1}, "crf.iterations=-1: use an integer of at least 0"),
        ({"iterations": 2.5}, "crf.iterations=2.5: use an integer"),
        ({"workers": -2}, "crf.workers=-2: use an integer of at least 0"),
        ({"batch_size": 0}, "crf.batch_size=0: use an integer of at least 1"),
        ({"w1": -1.0}, "crf.w1=-1.0: must be at least 0"),
        ({"w2": float("nan")}, "crf.w2=nan"),
        ({"sb": 0.0}, "crf.sb=0.0: must be above 0"),
        ({"sg": float("inf")}, "crf.sg=inf"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        CrfConfig(**setting)
