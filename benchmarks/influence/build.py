"""The influence benchmark's problems and their exact answers from MNIST's files, made once into a cache folder.

linear: 10-class logistic regression, lambda .01, no bias, p = 7,840, the first 5,000 training images held out, as in
Koh & Liang's figure 2; the first query is their test image 8. cnn: their tanh network on 5,500 of these images.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.influence.problem import Problem, cnn_layers, fit_linear, fit_network, linear_exact, network_exact
from quintet.data.examples.mnist import Mnist, read_pair
from quintet.data.examples.select import draw

HELD_OUT, CNN_IMAGES = 5000, 5500
QUERIES = [8, *range(8), *range(9, 100)]  # positions in the test set
Pair = tuple[Tensor, Tensor]  # images (n, 784) in [0, 1], labels (n,)


def read(root: Path) -> tuple[Pair, Pair]:
    """Training examples without those held out, and the queries."""
    files = Mnist(root=str(root)).files(root)
    train, test = (read_pair(*files[part]) for part in ("train", "t10k"))
    rows = (slice(HELD_OUT, None), QUERIES)
    pairs = [(images[r], labels[r]) for (images, labels), r in zip((train, test), rows, strict=True)]
    return tuple((torch.from_numpy(x).flatten(1).float() / 255, torch.from_numpy(y).long()) for x, y in pairs)


def linear(train: Pair, queries: Pair) -> Problem:
    weight_cd = fit_linear(train[0].double(), train[1], 10, l2=0.01)
    return Problem([["linear", 784, 10, False]], [weight_cd], 0.01, 0.0, *train, *queries)


def cnn(train: Pair, queries: Pair) -> Problem:
    rows = torch.from_numpy(draw(len(train[0]), CNN_IMAGES, 0)[1])
    x, y, x_test = train[0][rows].view(-1, 1, 28, 28), train[1][rows], queries[0].view(-1, 1, 28, 28)
    return Problem(cnn_layers(), fit_network(cnn_layers(), x, y, 0.001), 0.001, 0.01, x, y, x_test, queries[1])


MAKERS: dict[str, tuple[Callable[[Pair, Pair], Problem], Callable[[Problem], np.ndarray]]] = {
    "linear": (linear, linear_exact),
    "cnn": (cnn, network_exact),
}


def build(name: str, root: Path, cache: Path) -> tuple[Path, np.ndarray]:
    """(problem file, exact scores (q, n)) of one problem; what the cache has is not made again."""
    make, solve = MAKERS[name]
    problem, answer = cache / f"{name}.npz", cache / f"{name}_exact.npy"
    if not problem.is_file():
        _timed(f"{name}: fitted", lambda: make(*read(root)).save(problem))
    if not answer.is_file():
        _timed(f"{name}: solved exactly", lambda: np.save(answer, solve(Problem.load(problem, torch.float64))))
    return problem, np.load(answer)


def _timed(what: str, work: Callable[[], None]) -> None:
    began = time.perf_counter()
    work()
    print(f"{what} in {time.perf_counter() - began:.0f} s", flush=True)
