"""The CPU back-end: packs the weights for vector registers and calls the loops over time compiled by Numba.

One stream runs on two threads that share its work (`kernels.lead` and `follow`); several streams are divided over the
cores (`kernels.solo`). Compiled code is cached on disk.
"""

from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from quintet.papers.wavenet.generate.kernels import follow, lead, solo
from quintet.papers.wavenet.generate.plan import Plan
from quintet.papers.wavenet.generate.vector import LANES, TILES

Net = namedtuple(
    "Net",
    "front past now residual residual_bias skip_lead skip_follow skip_bias head_lead head_follow head_bias out_lead "
    "out_follow out_bias lengths bases dilations taps classes scale split head_split out_split",
)
Shared = namedtuple("Shared", "past z skip hidden logits")


class NumbaBackend:
    """float32 throughout; logits differ from the parallel forward by about 1e-6."""

    def __init__(self, plan: Plan, threads: int | None = None):
        self.net, self.classes_bt = _net(plan.network), plan.classes_bt.numpy()
        self.gate_channels = plan.network.config.gate_channels
        self.queue_blr = _queue(self.net, plan)
        self.threads = threads or torch.get_num_threads()

    def run(self, start, stop, bias_btkg: Tensor, uniforms_bn: Tensor, temperature: float, keep_logits: bool):
        """See `Backend.run`."""
        biases = self._bias(bias_btkg)
        streams, uniforms = len(self.classes_bt), np.ascontiguousarray(uniforms_bn.numpy())
        logits = np.zeros((streams, (stop - start) * keep_logits, self.net.classes), np.float32)
        call = (self.queue_blr, self.classes_bt, start, stop, biases, uniforms, temperature, logits)
        if streams == 1 and self.threads > 1:
            self._pair(*call)
        else:
            self._divide(*call)
        return torch.from_numpy(logits) if keep_logits else None

    def _divide(self, queue, classes, start, stop, biases, uniforms, temperature, logits) -> None:
        parts = np.array_split(np.arange(len(classes)), min(self.threads, len(classes)))
        with ThreadPoolExecutor(len(parts)) as pool:
            jobs = []
            for part in parts:
                own = slice(part[0], part[-1] + 1)
                one = (queue[own], classes[own], start, stop, biases[own], uniforms[own], temperature, logits[own])
                jobs.append(pool.submit(solo, self.net, *one))
            for job in jobs:
                job.result()

    def _pair(self, queue, classes, start, stop, biases, uniforms, temperature, logits) -> None:
        net, blocks = self.net, len(self.net.now)
        gates = net.past.shape[2] // queue.shape[2]
        shared = Shared(
            _aligned(blocks, 1, gates),
            _aligned(blocks, 1, gates // 2),
            *(_aligned(1, bias.size) for bias in (net.skip_bias, net.head_bias, net.out_bias)),
        )
        flags = np.zeros(64, np.int64)
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(follow, net, shared, flags, queue, start, stop, biases)
            lead(net, shared, flags, queue, classes, start, stop, biases, uniforms, temperature, logits)
            job.result()

    def _bias(self, bias_btkg: Tensor) -> np.ndarray:
        """Filter and gate halves padded to LANES each."""
        halves = bias_btkg.unflatten(-1, (2, self.gate_channels)).numpy()
        padded = _aligned(*halves.shape[:-1], _up(self.gate_channels))
        padded[..., : self.gate_channels] = halves
        return padded.reshape(*padded.shape[:-2], -1)


def _net(network) -> Net:
    """All weights, transposed to (in, out), padded and packed; each thread reads its own in the order of use."""
    config, stack = network.config, network.stack
    gate_columns = _gate_columns(config.gate_channels)
    width, z_width, skips = _up(config.residual_channels), _up(config.gate_channels), _up(config.skip_channels)
    heads, outs, blocks = _up(config.head_channels), _up(network.num_classes), len(stack.blocks)
    taps_kjig = np.zeros((blocks, config.kernel_size, width, 2 * z_width), np.float32)
    for k, block in enumerate(stack.blocks):
        w = block.filter_gate.weight.numpy().transpose(2, 1, 0)
        taps_kjig[k, :, : w.shape[1], gate_columns] = w.transpose(2, 0, 1)
    residual = [_padded(b.residual.weight[..., 0].t(), z_width, width) for b in stack.blocks[:-1]]
    residual_bias = [_padded(b.residual.bias[None], 1, width)[0] for b in stack.blocks[:-1]]
    skip_kzs = stack.skip.weight[..., 0].t().unflatten(0, (blocks, -1))
    skip = np.stack([_padded(w, z_width, skips) for w in skip_kzs])
    head, out = (network.head[i].weight[..., 0].t() for i in (1, 3))
    head, out = _padded(head, skips, heads), _padded(out, heads, outs)
    # The leading thread computes gates and residuals, the other one the delayed taps: the skips even out the load.
    split, head_split, out_split = _share(skips, 0.375), _share(heads, 0.5), _share(outs, 0.5)
    lengths = np.array([max(b.reach, 1) for b in stack.blocks])
    return Net(
        front=_padded(network.front.weight, network.num_classes, width),
        past=_pack(taps_kjig[:, :-1]),
        now=_pack(taps_kjig[:, -1]),
        residual=_pack(np.stack([*residual, np.zeros((z_width, width), np.float32)])),
        residual_bias=np.stack([*residual_bias, np.zeros(width, np.float32)]),
        skip_lead=_pack(skip[..., :split]),
        skip_follow=_pack(skip[..., split:]),
        skip_bias=_padded(stack.skip.bias[None], 1, skips)[0],
        head_lead=_pack(head[:, :head_split]),
        head_follow=_pack(head[:, head_split:]),
        head_bias=_padded(network.head[1].bias[None], 1, heads)[0],
        out_lead=_pack(out[:, :out_split]),
        out_follow=_pack(out[:, out_split:]),
        out_bias=_padded(network.head[3].bias[None], 1, outs)[0],
        lengths=lengths,
        bases=np.cumsum(lengths) - lengths,
        dilations=np.array(stack.dilations),
        taps=config.kernel_size - 1,
        classes=network.num_classes,
        scale=np.float32(stack.blocks[0].scale),
        split=split,
        head_split=head_split,
        out_split=out_split,
    )


def _queue(net: Net, plan: Plan) -> np.ndarray:
    """Ring buffers (B, sum of lengths, R): block k's input at time t is at row bases[k] + t % lengths[k]."""
    streams, _, time = plan.block_inputs[0].shape
    queue = _aligned(streams, int(net.lengths.sum()), net.front.shape[2])
    for x_brt, base, length in zip(plan.block_inputs, net.bases, net.lengths, strict=True):
        slots = base + np.arange(time - length, time) % length
        queue[:, slots, : x_brt.size(1)] = x_brt[..., -int(length) :].permute(0, 2, 1).numpy()
    return queue


def _up(width: int) -> int:
    return -(-width // LANES) * LANES


def _share(width: int, part: float) -> int:
    return int(width * part) // LANES * LANES


def _gate_columns(channels: int) -> np.ndarray:
    """Columns of the filter and gate channels among the padded ones."""
    return np.concatenate([np.arange(channels), _up(channels) + np.arange(channels)])


def _padded(weight: Tensor, rows: int, columns: int) -> np.ndarray:
    matrix = weight.numpy()
    out = _aligned(*matrix.shape[:-2], rows, columns)
    out[..., : matrix.shape[-2], : matrix.shape[-1]] = matrix
    return out


def _pack(matrix: np.ndarray) -> np.ndarray:
    """(..., in, out) -> (..., in * out): columns cut into the tiles that `multiply` walks, each tile read in order."""
    tiles, column, width = [], 0, matrix.shape[-1]
    for tile in (LANES * t for t in TILES):
        while width - column >= tile:
            flat = (*matrix.shape[:-2], matrix.shape[-2] * tile)
            tiles.append(matrix[..., column : column + tile].reshape(flat))
            column += tile
    packed = _aligned(*matrix.shape[:-2], matrix.shape[-2] * width)
    packed[...] = np.concatenate(tiles, axis=-1) if tiles else 0
    return packed


def _aligned(*shape: int) -> np.ndarray:
    """Zeros that start on a cache line."""
    size = int(np.prod(shape))
    flat = np.zeros(size + LANES, np.float32)
    start = -flat.ctypes.data % 64 // 4
    return flat[start : start + size].reshape(shape)
