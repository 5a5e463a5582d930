"""Small images with class probabilities, and slow, independent references for the CRF's tests."""

import math

import numpy as np


def scene(height: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (C, H, W) that are unsure and noisy, and a smooth image (H, W, 3) of coloured blobs."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centres = random.uniform(0, 1, (classes, 2)) * [height, width]
    apart_chw = np.hypot(y - centres[:, 0, None, None], x - centres[:, 1, None, None])
    colours = random.uniform(0, 255, (classes, 3))
    near_chw = np.exp(-apart_chw / 6)
    image = np.tensordot(near_chw / near_chw.sum(0), colours, (0, 0)) + random.normal(0, 2, (height, width, 3))
    scores_chw = -apart_chw / 8 + random.normal(0, 1, apart_chw.shape)
    weights_chw = np.exp(scores_chw - scores_chw.max(0))
    return (weights_chw / weights_chw.sum(0)).astype(np.float32), image.clip(0, 255).astype(np.uint8)


def dense_filter(feature_nd: np.ndarray, x_nc: np.ndarray) -> np.ndarray:
    """The exact Gaussian filter, normalised."""
    square_nn = ((feature_nd[:, None] - feature_nd[None]) ** 2).sum(-1)
    kernel_nn = np.exp(-square_nn / 2)
    return kernel_nn @ x_nc / kernel_nn.sum(1, keepdims=True)


def lattice_filter(feature_nd: np.ndarray, x_nc: np.ndarray) -> np.ndarray:
    """The lattice by its definition (Adams et al. 2010): vertices as tuples in a dictionary, in double precision."""
    depth = feature_nd.shape[1] + 1
    simplices = [_simplex(feature_d, depth) for feature_d in feature_nd]
    values = {}
    for corners, x_c in zip(simplices, x_nc, strict=True):
        for vertex, weight in corners.items():
            values[vertex] = values.get(vertex, 0) + weight * x_c
    for j in range(depth):
        step = np.array([depth - 1 if i == j else -1 for i in range(depth)])
        sides = {vertex: [tuple(vertex + step), tuple(vertex - step)] for vertex in values}
        values = {v: values[v] + 0.5 * sum(values.get(side, 0) for side in sides[v]) for v in values}
    return np.stack([sum(weight * values[v] for v, weight in corners.items()) for corners in simplices])


def _simplex(feature_d: np.ndarray, depth: int) -> dict[tuple, float]:
    """Corners and barycentric weights: sort the differences from the nearest remainder-0 point, then walk."""
    d = depth - 1
    scaled = [f * math.sqrt(2 / 3) * depth / math.sqrt((i + 1) * (i + 2)) for i, f in enumerate(feature_d)]
    point = np.array([sum(scaled[i:]) - (i * scaled[i - 1] if i else 0) for i in range(depth)])
    base = np.round(point / depth).astype(int) * depth
    while base.sum():  # bring it back to the plane by the coordinates that cost least
        apart = point - base
        i = apart.argmin() if base.sum() > 0 else apart.argmax()
        base[i] -= depth * np.sign(base.sum())
    order = np.argsort(base - point, kind="stable")  # largest difference first
    ordered = (point - base)[order] / depth
    corners, vertex = {}, base.copy()
    for k in range(depth):  # corner k: the k largest are moved up by d + 1, then all go down by k
        weight = 1 + ordered[d] - ordered[0] if k == 0 else ordered[k - 1] - ordered[k]
        corners[tuple(vertex - k)] = weight
        vertex[order[k]] += depth
    return corners
