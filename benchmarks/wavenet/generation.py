"""How fast WaveNet generates: our back-ends, PyPI's wavenet_vocoder, and what the machine itself could do.

    python -m benchmarks.wavenet.generation [--peers FOLDER] [--publish wavenet_generation]

Every candidate runs in turn within each repeat, so that a busy moment hits all of them; medians are reported. The
machine's own limit is a plain matrix-vector product over weights of the network's total size on all threads at once.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import report
from quintet.papers.wavenet.generate import generate
from quintet.papers.wavenet.network import WaveNet, WaveNetConfig

SIZE = "30 layers in 3 stacks, kernel 2, residual 64, gate 64, skip and head 256, 256 classes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=16000, help="per stream, for the compiled back-end")
    parser.add_argument("--slow-samples", type=int, default=400, help="per stream, for the slow candidates")
    parser.add_argument("--peers", type=Path, default=None, help="folder with wavenet_vocoder (requirements-bench.txt)")
    parser.add_argument("--publish", default=None, metavar="NAME", help="write docs/results/NAME.json")
    args = parser.parse_args()
    began, load = time.perf_counter(), os.getloadavg()[0]  # what else the machine was doing
    torch.manual_seed(0)
    network = WaveNet(WaveNetConfig()).eval()
    candidates, notes = candidates_of(network, args)
    for run, _ in candidates.values():
        run(20)  # compile, fill caches
    seconds = {name: [] for name in candidates}
    limits = []
    for _ in range(args.repeats):
        limits.append(machine_limit(network))
        for name, (run, samples) in candidates.items():
            seconds[name].append((timed(run, samples), timed(run, 1)))
    rows = rows_of(network, candidates, seconds, limits, notes)
    report(
        args.publish,
        rows,
        title=f"WaveNet generation speed: {SIZE}",
        protocol=f"median of {args.repeats} repeats, candidates in turn, {torch.get_num_threads()} threads",
        data="none: free generation from an untrained network",
        subset=False,
        seconds=time.perf_counter() - began,
        extra={
            "seconds_per_run": {f"{b} batch {n}": t for (b, n), t in seconds.items()},
            "limit": limits,
            "load": load,
        },
    )


def candidates_of(network: WaveNet, args) -> tuple[dict, dict]:
    """{(name, batch): (run(samples), samples)} and notes on those that do not run."""
    found, notes = {}, {}
    for batch in (1, 8):
        for backend, samples in (("numba", args.samples), ("eager", args.slow_samples)):
            found[backend, batch] = (ours(network, backend, batch), samples)
        try:
            peer = wavenet_vocoder(args.peers, batch)
            peer(3)
            found["wavenet_vocoder", batch] = (peer, args.slow_samples)
        except Exception as error:  # whatever it is, the table says so
            notes["wavenet_vocoder", batch] = f"does not run here: {' '.join(str(error).split())[:120]}"
    return found, notes


def ours(network: WaveNet, backend: str, batch: int) -> Callable[[int], None]:
    return lambda samples: generate(network, samples, batch_size=batch, backend=backend)


def wavenet_vocoder(folder: Path | None, batch: int) -> Callable[[int], None]:
    """PyPI's wavenet_vocoder 0.1.1 at the same widths, weight norm removed as its own synthesis script does."""
    if folder is not None:
        sys.path.insert(0, str(folder))
    from wavenet_vocoder import WaveNet as Peer

    widths = {"residual_channels": 64, "gate_channels": 128, "skip_out_channels": 256}  # its gate counts both halves
    peer = Peer(out_channels=256, layers=30, stacks=3, kernel_size=2, dropout=0.0, **widths).eval()
    peer.make_generation_fast_()
    silence = torch.zeros(batch, 256, 1)
    silence[:, 128] = 1

    def run(samples: int) -> None:
        with torch.no_grad():
            # Its sampler draws for one stream only; for more it feeds the distribution itself back.
            peer.incremental_forward(test_inputs=silence, T=samples, quantize=batch == 1)

    return run


def multiply_adds(network: WaveNet) -> int:
    """Per sample: every weight once, but for the front table, whose rows are only looked up."""
    return sum(p.numel() for name, p in network.named_parameters() if p.dim() > 1 and not name.startswith("front"))


def machine_limit(network: WaveNet) -> float:
    """Multiply-adds per second of plain matrix-vector products over as many weights, on every thread at once."""
    from quintet.papers.wavenet.generate.compiled import _aligned, _pack
    from quintet.papers.wavenet.generate.kernels import product

    threads, width = torch.get_num_threads(), 128
    count = multiply_adds(network) // (threads * 64 * width)
    arrays = [
        (_aligned(1, width), _pack(np.random.default_rng(i).standard_normal((count, 64, width), np.float32)))
        for i in range(threads)
    ]
    sweep = _sweep(product)
    with ThreadPoolExecutor(threads) as pool:

        def once(repeats: int) -> float:
            began = time.perf_counter()
            list(pool.map(lambda a: sweep(a[0], a[1], _aligned(1, 64), repeats), arrays))
            return time.perf_counter() - began

        once(1)
        repeats = 4000
        return repeats * count * threads * 64 * width / once(repeats)


def _sweep(product):
    from numba import njit

    @njit(nogil=True)
    def sweep(out, weights, x, repeats):
        for _ in range(repeats):
            for k in range(weights.shape[0]):
                product(out, weights[k], x)

    return sweep


def timed(run: Callable[[int], None], samples: int) -> float:
    began = time.perf_counter()
    run(samples)
    return time.perf_counter() - began


def rows_of(network, candidates, seconds, limits, notes) -> list[dict]:
    limit, work = statistics.median(limits), multiply_adds(network)
    rows = []
    for (name, batch), (_, samples) in candidates.items():
        # A run of one sample is subtracted: priming and weight packing are paid once, not per sample.
        whole, start = (statistics.median(times) for times in zip(*seconds[name, batch], strict=True))
        speed = batch * (samples - 1) / (whole - start)
        note = f"all streams together; {100 * speed * work / limit:.0f}% of the plain products' speed"
        rows.append({"metric": f"{name}, batch {batch}", "value": round(speed), "unit": "samples/s", "note": note})
    for (name, batch), note in notes.items():
        rows.append({"metric": f"{name}, batch {batch}", "value": "-", "unit": "samples/s", "note": note})
    rows.append({"metric": "multiply-adds per sample", "value": work, "unit": "", "note": SIZE})
    note = f"{limit / work:.0f} samples/s if generation were nothing but these products for one stream"
    rows.append(
        {"metric": "plain matrix-vector products", "value": round(limit / 1e9, 1), "unit": "1e9/s", "note": note}
    )
    return rows


if __name__ == "__main__":
    main()
