"""Is ASPP faster as one product and shifted sums than as four atrous convolutions? On this machine's CPU.

    python -m benchmarks.deeplab.aspp [--publish deeplab_aspp_speed]

Features of MobileNetV2's and ResNet's width, channels last, as large as at output stride 16 and 8; inference, and
forward with backward to features and weights. Both ways take turns in every repeat; medians.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.common import report, row
from quintet.papers.deeplab.config import DeepLabConfig
from quintet.papers.deeplab.cpu_kernels import FusedASPP
from quintet.papers.deeplab.heads import ASPP, build_head

CLASSES = 21
WAYS = {
    "one product": lambda aspp, features: FusedASPP(aspp)(features),
    "four convolutions": lambda aspp, features: aspp(features),
}


@dataclass(frozen=True)
class Case:
    """One shape of features."""

    channels: int
    batch: int
    side: int
    output_stride: int
    precision: str

    def __str__(self) -> str:
        return f"{self.channels} channels, {self.batch} x {self.side} x {self.side}, {self.precision}"


def cases() -> list[Case]:
    shapes = ((1, 33, 16), (1, 65, 8), (8, 17, 16), (4, 41, 8))  # 513 and 257 or 321 pixels
    wide = itertools.product(("fp32", "bf16"), (1280, 2048), shapes)
    return [Case(channels, *shape, precision) for precision, channels, shape in wide]


def measure(case: Case, repeats: int, device: str = "cpu") -> dict[str, dict[str, float]]:
    """Median milliseconds of each way at inference and in training, and how far their scores lie apart."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    head = build_head(DeepLabConfig("aspp_l"), case.channels, CLASSES, case.output_stride)
    head.to(device, dtype, memory_format=torch.channels_last)
    features = torch.randn(case.batch, case.channels, case.side, case.side).relu()
    features = features.to(device, dtype, memory_format=torch.channels_last).requires_grad_()

    def infer(way: Callable[[ASPP, Tensor], Tensor]) -> Tensor:
        with torch.inference_mode():
            return way(head, features)

    def train(way: Callable[[ASPP, Tensor], Tensor]) -> None:
        scores = way(head, features)
        torch.autograd.grad(scores, [features, *head.parameters()], torch.ones_like(scores))

    found = {task: medians(run, repeats) for task, run in (("inference", infer), ("training", train))}
    ours, theirs = (infer(way).float() for way in WAYS.values())
    return found | {"apart": float((ours - theirs).abs().max() / theirs.abs().max())}


def medians(run: Callable[[Callable], object], repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for repeat in range(2 + repeats):
        for name, way in WAYS.items():
            began = time.perf_counter()
            run(way)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat > 1:
                seconds[name].append(time.perf_counter() - began)
    return {name: 1000 * statistics.median(taken) for name, taken in seconds.items()}


def run_all(chosen: list[Case], repeats: int, device: str = "cpu") -> Iterator[dict]:
    ratios: dict[tuple[str, int], list[float]] = {}
    for case in chosen:
        found = measure(case, repeats, device)
        for task in ("inference", "training"):
            one, four = found[task].values()
            ratios.setdefault((task, case.channels), []).append(four / one)
            note = f"{one:.1f} ms, four convolutions {four:.1f} ms; scores apart {found['apart']:.0e} of the largest"
            yield row(f"{task}, {case}: one product", round(four / one, 2), "times as fast", note)
    for (task, channels), values in ratios.items():
        note = f"one product; geometric mean of {len(values)} cases, {min(values):.2f} to {max(values):.2f}"
        yield row(f"{task}, {channels} channels", round(statistics.geometric_mean(values), 2), "times as fast", note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--publish", default=None, metavar="NAME", help="write docs/results/NAME.json")
    args = parser.parse_args()
    began, rows = time.perf_counter(), []
    for made in run_all(cases(), args.repeats):
        print(f"  {made['metric']}: {made['value']}  {made['note']}", flush=True)
        rows.append(made)
    report(
        args.publish,
        rows,
        title="ASPP as one product and shifted sums, beside four atrous convolutions",
        protocol=f"ASPP-L to {CLASSES} classes, channels last; median of {args.repeats} repeats, both ways in turn,"
        f" {torch.get_num_threads()} threads; training: forward, and backward to features and weights",
        data="random features",
        subset=False,
        seconds=time.perf_counter() - began,
    )


if __name__ == "__main__":
    main()
