"""MNIST's layout with small images, of which each pixel is known."""

import gzip

import numpy as np

NAMES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "t10k": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip
SIDE = 4


def images(part, count):
    """(count, 4, 4) uint8, different for every image and part."""
    return np.random.default_rng([len(part), count]).integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)


def labels(count):
    """0, 3, 6, 9, 2, 5, 8, 1, 4, 7, 0, ..."""
    return (np.arange(count) * 3 % 10).astype(np.uint8)


def idx(magic, array):
    return np.array([magic, *array.shape], ">u4").tobytes() + array.tobytes()


def write_idx(root, train=30, test=12, packed=True, dot=False):
    """The four files of an official set; `dot` spells them train-images.idx3-ubyte."""
    root.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        for name, data in zip(NAMES[part], (idx(2051, images(part, count)), idx(2049, labels(count))), strict=True):
            name = name.replace("-idx", ".idx") if dot else name
            (root / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return root
