"""The paper's tanh network and its derivatives by the compiled kernels of conv_kernels.py, for float32 and float64.

In float64 a fifth of the time that torch takes for a gradient or a Hessian-vector product, in float32 less is gained.
Images go through in blocks of LANES; a last block is filled up with copies that count nothing.
Legend: n images, L = LANES, C outputs, T pixels of the last maps, p parameters, K vectors; "turn": a derivative along a
vector, which for the gradient is the Hessian times that vector (Pearlmutter 1994).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from quintet.papers.influence.classifiers.network import AllCnn
from quintet.papers.influence.cnn import conv_kernels as kernels
from quintet.papers.influence.cnn.conv_kernels import LANES


class Layer(NamedTuple):
    """A 3 x 3 convolution."""

    weight_shape: tuple[int, ...]
    stride: int
    high: int  # of the maps that come out
    wide: int


class Block(NamedTuple):
    """LANES images."""

    padded: NDArray  # the first layer's
    labels: NDArray  # (L,)
    start: int
    count: int  # of images that are no filling


class Parts(NamedTuple):
    """A vector of p numbers, taken apart."""

    weights: list[NDArray]
    biases: list[NDArray]
    last: NDArray  # (C, O) the 1 x 1 convolution
    last_bias: NDArray
    top: NDArray  # (C, C)
    top_bias: NDArray


class CompiledCnn:
    """For one network and image size; not for several threads at a time, as it keeps its maps.

    Parameter vectors (p,) are in the order of `network.parameters()`.
    """

    def __init__(self, network: AllCnn, image_shape: tuple[int, ...], dtype: np.dtype | type) -> None:
        self.dtype, self.shapes = np.dtype(dtype), [tuple(p.shape) for p in network.parameters()]
        self.num_params = sum(int(np.prod(shape)) for shape in self.shapes)
        self.image_shape, high, wide, self.layers = tuple(image_shape), *image_shape[1:], []
        for layer in list(network.convolutions)[:-2:2]:
            stride = layer.stride[0]
            high, wide = (high - 1) // stride + 1, (wide - 1) // stride + 1
            self.layers.append(Layer(tuple(layer.weight.shape), stride, high, wide))
        self.classes = self.shapes[-1][0]
        self.acts, self.after, self.acts_turn, self.after_turn = ([None] * len(self.layers) for _ in range(4))
        for k, after in enumerate(self._padded_shapes()[1:]):
            self.acts[k], self.after[k], self.acts_turn[k], self.after_turn[k] = (self._zeros(after) for _ in range(4))
        self.maps = [self._zeros((one.weight_shape[0], one.high, one.wide * LANES)) for one in self.layers]
        wide = [(one.weight_shape[0], one.high, (one.wide + 4) * LANES) for one in self.layers]
        self.slopes, self.slopes_turn = ([self._zeros(shape) for shape in wide] for _ in range(2))

    @staticmethod
    def applies(network: nn.Module) -> bool:
        """Whether the kernels can do it: 3 x 3, strides 1 and 2, even numbers of channels, on a CPU."""
        if not isinstance(network, AllCnn) or network.top.weight.device.type != "cpu":
            return False
        layers = list(network.convolutions)[:-2:2]
        return all(one.kernel_size == (3, 3) and max(one.stride) < 3 and one.out_channels % 2 == 0 for one in layers)

    def _zeros(self, shape: tuple[int, ...]) -> NDArray:
        return np.zeros(shape, self.dtype)

    def _padded_shapes(self) -> list[tuple[int, ...]]:
        """Of what goes into each layer, and of what the last one's tanh gives, without a border."""
        found, (channels, high, wide) = [], self.image_shape
        for layer in self.layers:
            found.append((channels, high + 2, layer.stride, (wide + 1 + layer.stride) // layer.stride * LANES))
            channels, high, wide = layer.weight_shape[0], layer.high, layer.wide
        return [*found, (channels, high, 1, wide * LANES)]

    def pack(self, images_nchw: Tensor | NDArray, labels_n: Tensor | NDArray) -> list[Block]:
        """Images as the methods here want them; worth keeping."""
        images, labels = np.asarray(images_nchw), np.asarray(labels_n)
        _, high, stride, long = self._padded_shapes()[0]
        columns, found = long // LANES, []
        for start in range(0, len(images), LANES):
            rows = np.minimum(np.arange(start, start + LANES), len(images) - 1)
            padded = self._zeros((self.image_shape[0], high, columns * stride, LANES))
            padded[:, 1 : high - 1, 1 : self.image_shape[2] + 1] = images[rows].transpose(1, 2, 3, 0)
            dealt = padded.reshape(self.image_shape[0], high, columns, stride, LANES).swapaxes(2, 3)
            block = np.ascontiguousarray(dealt).reshape(self.image_shape[0], high, stride, long)
            found.append(Block(block, labels[rows], start, min(LANES, len(images) - start)))
        return found

    def parts(self, vector_p: NDArray) -> Parts:
        """Of parameters, or of a direction."""
        sizes = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        cut = np.split(np.ascontiguousarray(vector_p, self.dtype), sizes)
        cut = [part.reshape(shape) for part, shape in zip(cut, self.shapes, strict=True)]
        *convolutions, last, last_bias, top, top_bias = cut
        return Parts(convolutions[::2], convolutions[1::2], last.reshape(self.classes, -1), last_bias, top, top_bias)

    # one block

    def _forward(self, at: Parts, block: Block) -> None:
        """Maps, the last layers' values and the losses (L,), all kept."""
        given = block.padded
        for k in range(len(self.layers)):
            self.maps[k].fill(0)
            kernels.convolve(given, at.weights[k], self.maps[k])
            kernels.activate(self.maps[k], at.biases[k], self.acts[k])
            given = self.acts[k]
        self.flat = given.reshape(len(given), -1)  # (O, T * L)
        last = at.last @ self.flat + at.last_bias[:, None]
        kernels.tanh_(last.reshape(-1), self.dtype.type(1))
        self.last = last  # (C, T * L)
        self.pixels = last.shape[1] // LANES
        self.features = self._mean(last)  # (C, L)
        outputs = at.top @ self.features + at.top_bias[:, None]
        outputs -= outputs.max(0)
        chances = np.exp(outputs)
        total = chances.sum(0)
        self.chances = chances / total
        self.losses = np.log(total) - outputs[block.labels, np.arange(LANES)]

    def _mean(self, values: NDArray) -> NDArray:
        return values.reshape(len(values), -1, LANES).sum(1) / self.dtype.type(self.pixels)

    def _spread(self, values_cl: NDArray) -> NDArray:
        return np.tile(values_cl / self.dtype.type(self.pixels), (1, self.pixels))

    def _pull(self, block: Block, weight_l: NDArray) -> NDArray:
        """Slopes of the weighted losses in the outputs, (C, L)."""
        pull = self.chances.copy()
        pull[block.labels, np.arange(LANES)] -= 1
        return pull * weight_l

    def _backward(self, at: Parts, block: Block, pull_cl: NDArray, found: Parts | None) -> None:
        """Slopes of everything, kept; into `found` those of the parameters, summed over the block."""
        self.pull = pull_cl
        self.pull_features = self._spread(at.top.T @ pull_cl)
        self.pull_last = self.pull_features * (1 - self.last * self.last)
        self.after[-1][:] = (at.last.T @ self.pull_last).reshape(self.after[-1].shape)
        if found:
            self._add_top(found, pull_cl, self.features, self.pull_last, self.flat)
        for k in reversed(range(len(self.layers))):
            given = self.acts[k - 1] if k else block.padded
            kernels.slopes_before(self.after[k], self.acts[k], self.slopes[k])
            if found:
                self._add_layer(found, k, given, self.slopes[k])
            if k:
                self.after[k - 1].fill(0)
                kernels.convolve_back(self.slopes[k], at.weights[k], self.after[k - 1])

    @staticmethod
    def _add_top(found: Parts, pull: NDArray, features: NDArray, pull_last: NDArray, flat: NDArray) -> None:
        found.top[:] += pull @ features.T
        found.top_bias[:] += pull.sum(1)
        found.last[:] += pull_last @ flat.T
        found.last_bias[:] += pull_last.sum(1)

    @staticmethod
    def _add_layer(found: Parts, k: int, given: NDArray, slope: NDArray) -> None:
        kernels.weight_slopes(given, slope, found.weights[k])
        found.biases[k][:] += slope.sum((1, 2))

    def _turn(self, at: Parts, along: Parts, block: Block, weight_l: NDArray, found: Parts) -> None:
        """After `_backward`: how the parameters' slopes turn along a vector, added to `found`."""
        given_turn = None
        for k in range(len(self.layers)):
            given = self.acts[k - 1] if k else block.padded
            self.maps[k].fill(0)
            kernels.convolve(given, along.weights[k], self.maps[k])
            if k:
                kernels.convolve(given_turn, at.weights[k], self.maps[k])
            kernels.turn_activations(self.maps[k], along.biases[k], self.acts[k], self.acts_turn[k])
            given_turn = self.acts_turn[k]
        flat_turn, bent = given_turn.reshape(len(given_turn), -1), 1 - self.last * self.last
        last_turn = (along.last @ self.flat + at.last @ flat_turn + along.last_bias[:, None]) * bent
        features_turn = self._mean(last_turn)
        outputs_turn = along.top @ self.features + at.top @ features_turn + along.top_bias[:, None]
        pull_turn = weight_l * self.chances * (outputs_turn - (self.chances * outputs_turn).sum(0))
        spread_turn = self._spread(at.top.T @ pull_turn + along.top.T @ self.pull)
        pull_last_turn = spread_turn * bent - 2 * self.pull_features * self.last * last_turn
        self.after_turn[-1][:] = (at.last.T @ pull_last_turn + along.last.T @ self.pull_last).reshape(
            self.after_turn[-1].shape
        )
        self._add_top(found, pull_turn, self.features, pull_last_turn, self.flat)
        found.top[:] += self.pull @ features_turn.T
        found.last[:] += self.pull_last @ flat_turn.T
        for k in reversed(range(len(self.layers))):
            kernels.turn_slopes(self.after[k], self.after_turn[k], self.acts[k], self.acts_turn[k], self.slopes_turn[k])
            self._add_layer(found, k, self.acts[k - 1] if k else block.padded, self.slopes_turn[k])
            if k:
                kernels.weight_slopes(self.acts_turn[k - 1], self.slopes[k], found.weights[k])
                self.after_turn[k - 1].fill(0)
                kernels.convolve_back(self.slopes_turn[k], at.weights[k], self.after_turn[k - 1])
                kernels.convolve_back(self.slopes[k], along.weights[k], self.after_turn[k - 1])

    # all images

    def _weights(self, block: Block, weight_n: NDArray | None) -> NDArray:
        """(L,), nought for the filling."""
        found = self._zeros((LANES,))
        found[: block.count] = 1 if weight_n is None else weight_n[block.start : block.start + block.count]
        return found

    def features_of(self, theta_p: NDArray, blocks: list[Block]) -> NDArray:
        """What the top layer sees, (n, C)."""
        at, found = self.parts(theta_p), []
        for block in blocks:
            self._forward(at, block)
            found.append(self.features.T[: block.count])
        return np.concatenate(found)

    def gradient(self, theta_p: NDArray, blocks: list[Block], weight_n: NDArray | None = None) -> tuple[float, NDArray]:
        """Sum of the losses and its gradient (p,) in float64. weight_n: how much each image counts, 1 by default."""
        at, value, total_p = self.parts(theta_p), 0.0, np.zeros(self.num_params)
        for block in blocks:
            found_p, weight_l = self._zeros((self.num_params,)), self._weights(block, weight_n)
            self._forward(at, block)
            self._backward(at, block, self._pull(block, weight_l), self.parts(found_p))
            value += float((self.losses * weight_l).sum(dtype=np.float64))
            total_p += found_p
        return value, total_p

    def hvp(self, theta_p: NDArray, blocks: list[Block], vectors_kp: NDArray) -> NDArray:
        """Hessian of the sum of the losses times each vector, (K, p) in float64."""
        at, along, total_kp = self.parts(theta_p), [self.parts(v) for v in vectors_kp], np.zeros(vectors_kp.shape)
        for block in blocks:
            weight_l = self._weights(block, None)
            self._forward(at, block)
            self._backward(at, block, self._pull(block, weight_l), None)
            for k, vector in enumerate(along):
                found_p = self._zeros((self.num_params,))
                self._turn(at, vector, block, weight_l, self.parts(found_p))
                total_kp[k] += found_p
        return total_kp

    def example_gradients(self, theta_p: NDArray, blocks: list[Block]) -> Iterator[NDArray]:
        """Each block's gradients (images, p)."""
        at = self.parts(theta_p)
        for block in blocks:
            self._forward(at, block)
            yield self._each(at, block, self._pull(block, self._zeros((LANES,)) + 1))

    def curvature_rows(self, theta_p: NDArray, blocks: list[Block]) -> Iterator[NDArray]:
        """Each block's (images * C, p), whose products G = rows^T rows sum to the Gauss-Newton matrix of the losses."""
        at = self.parts(theta_p)
        for block in blocks:
            self._forward(at, block)
            for label in range(self.classes):
                pull = self.chances.copy()
                pull[label] -= 1
                yield self._each(at, block, pull * np.sqrt(self.chances[label]))

    def _each(self, at: Parts, block: Block, pull_cl: NDArray) -> NDArray:
        """(images, p): the parameters' slopes of every image for slopes in its outputs."""
        self._backward(at, block, pull_cl, None)
        found = []
        for k, layer in enumerate(self.layers):
            each = self._zeros((*layer.weight_shape, LANES))
            kernels.weight_slopes_each(self.acts[k - 1] if k else block.padded, self.slopes[k], each)
            found += [each, self.slopes[k].reshape(layer.weight_shape[0], -1, LANES).sum(1)]
        pull_last, flat = (
            part.reshape(len(part), -1, LANES).transpose(2, 0, 1) for part in (self.pull_last, self.flat)
        )
        found += [(pull_last @ flat.transpose(0, 2, 1)).transpose(1, 2, 0), pull_last.sum(2).T]
        found += [pull_cl[:, None] * self.features[None], pull_cl]
        return np.concatenate([part.reshape(-1, LANES) for part in found]).T[: block.count]
