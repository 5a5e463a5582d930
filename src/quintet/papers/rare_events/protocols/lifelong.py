"""How long the memory remembers: a long stream of test classes into a memory that is never cleared."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.papers.rare_events.protocols.few_shot import unit_keys


class Stream(NamedTuple):
    """N images in the order in which they are shown; no drawing occurs twice."""

    classes: NDArray[np.int64]  # (N,)
    drawers: NDArray[np.int64]  # (N,)
    ages: NDArray[np.int64]  # (N,) images since the class was last shown; 0 at its first image
    showings: NDArray[np.int64]  # (N,) number of earlier images of the class


class Record(NamedTuple):
    """The result at every image, (N,) each."""

    right: NDArray[np.bool_]  # whether the memory's answer was the image's class
    stored: NDArray[np.bool_]  # whether a slot of that class was still in the memory
    chance: NDArray[np.float64]  # 1 / number of classes shown so far


class Lifelong:
    """Accuracy against the age of the stored example, on classes that were not in training.

    Every image is classified and then written with its class. Classes return after log-uniform gaps of up to `horizon`
    images, so that every decade of ages is well measured. The memory starts empty; the trained one is not changed.
    slots: another memory size, for example a small one that forgets.
    Accuracy would fall with age even if nothing were forgotten, since old examples are of classes with few images so
    far, and late in the stream among many other classes. Therefore `same_history` is the accuracy, at any age, of
    images with as many earlier images of their class and in the same quarter of the stream. Only a difference from it
    is due to age.
    Writes lifelong/accuracy_by_age.csv and .png under `run_dir`.
    """

    def __init__(self, horizon: int = 10000, slots: int | None = None, seed: int = 0) -> None:
        self.horizon, self.slots, self.seed = horizon, slots, seed
        if horizon < 10:
            raise UserError(f"protocol.horizon={horizon} must be at least 10 images")

    @torch.no_grad()
    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        images_cdss = datamodule.images("test")
        keys_cdx = unit_keys(module, images_cdss)
        memory = resized(module.blank_memory(len(keys_cdx)), self.slots)
        stream = make_stream(len(images_cdss), images_cdss.shape[1], self.horizon, self.seed)
        record = run_stream(memory, keys_cdx, stream)
        rows = by_age(stream, record)
        out_dir = Path(run_dir) / "lifelong"
        header = ("age_from", "age_below", "images", "accuracy", "ci95", "still_stored", "chance", "showings",
                  "same_history")  # fmt: skip
        write_csv(out_dir / "accuracy_by_age.csv", header, rows)
        plot(out_dir / "accuracy_by_age.png", rows, memory.config.slots)
        again = stream.ages > 0
        metrics = {
            "lifelong/accuracy": float(record.right[again].mean()),
            "lifelong/still_stored": float(record.stored[again].mean()),
            "lifelong/chance": float(record.chance[again].mean()),
            "lifelong/images": float(len(again)),
            "lifelong/new_classes": float((~again).sum()),
        }
        for decade in range(math.ceil(math.log10(stream.ages.max() + 1))):
            of_age = (stream.ages >= 10**decade) & (stream.ages < 10 ** (decade + 1))
            if of_age.any():
                metrics[f"lifelong/accuracy_age_{10**decade}_to_{10 ** (decade + 1) - 1}"] = float(
                    record.right[of_age].mean()
                )
        return metrics


def resized(memory, slots: int | None):
    """An empty memory with the settings of `memory`, but another number of slots."""
    if slots is None:
        return memory
    if slots < 1:
        raise UserError(f"protocol.slots={slots} must be at least 1, or null for the trained memory's size")
    config = replace(memory.config, slots=slots, neighbours=min(memory.config.neighbours, slots))
    return type(memory)(config, memory.num_values).to(memory.keys.device).eval()


def make_stream(num_classes: int, num_drawers: int, horizon: int, seed: int) -> Stream:
    """Each class starts at a random time below `horizon` and returns after log-uniform gaps until it ends."""
    random = np.random.default_rng([seed, 4])
    start_c1 = random.uniform(0, horizon, (num_classes, 1))
    gaps_cd = np.exp(random.uniform(0, math.log(horizon), (num_classes, num_drawers - 1)))
    times_cd = np.concatenate([start_c1, start_c1 + gaps_cd.cumsum(1)], 1)
    drawers_cd = random.random((num_classes, num_drawers)).argsort(1)
    classes, turns = np.nonzero(times_cd < horizon)
    order = times_cd[classes, turns].argsort(kind="stable")
    classes, turns = classes[order], turns[order]
    ages, showings = np.zeros(len(classes), np.int64), np.zeros(len(classes), np.int64)
    last: dict[int, int] = {}
    for position, c in enumerate(classes.tolist()):
        if c in last:
            ages[position], showings[position] = position - last[c], showings[last[c]] + 1
        last[c] = position
    return Stream(classes, drawers_cd[classes, turns], ages, showings)


def run_stream(memory, keys_cdx: torch.Tensor, stream: Stream) -> Record:
    """Read and then write one image at a time."""
    right, stored, chance = [], [], []
    shown: set[int] = set()
    for c, d in zip(stream.classes.tolist(), stream.drawers.tolist(), strict=True):
        query = keys_cdx[c, d][None]
        answer = memory.read(query)
        right.append(int(answer.value[0]) == c)
        stored.append(bool((memory.values == c).any()))
        shown.add(c)
        chance.append(1 / len(shown))
        memory.write(query, torch.tensor([c], device=query.device))
    return Record(np.array(right), np.array(stored), np.array(chance))


def same_history(stream: Stream, right: NDArray) -> NDArray[np.float64]:
    """Mean accuracy (N,) of images with as many showings (at most 7) in the same quarter of the stream."""
    again = stream.showings > 0
    cells = np.minimum(stream.showings, 7) * 4 + np.arange(len(right)) * 4 // len(right)
    counts, sums = np.bincount(cells[again], minlength=32), np.bincount(cells[again], right[again], minlength=32)
    return sums[cells] / np.maximum(counts[cells], 1)


def by_age(stream: Stream, record: Record) -> list[tuple]:
    """Rows of the table: three bins of ages in each decade, without empty ones and first images of a class (age 0)."""
    ages, expected = stream.ages, same_history(stream, record.right)
    edges = sorted({round(10 ** (third / 3)) for third in range(3 * math.ceil(math.log10(ages.max() + 1)) + 1)})
    rows = []
    for low, high in pairwise(edges):
        here = (ages >= low) & (ages < high)
        if here.any():
            mean = float(record.right[here].mean())
            interval = 1.96 * math.sqrt(mean * (1 - mean) / here.sum())
            of_bin = (record.stored, record.chance, stream.showings, expected)
            rows.append(
                (low, high, int(here.sum()), mean, interval, *(float(values[here].mean()) for values in of_bin))
            )
    return rows


def plot(path: Path, rows: list[tuple], slots: int) -> Path:
    """Plot accuracy, the accuracy of the same history, the fraction still stored, and chance, against age."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    low, high, _, mean, interval, stored, chance, _, expected = (
        np.array(column, float) for column in zip(*rows, strict=True)
    )
    middle = np.sqrt(low * np.maximum(high - 1, low))
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.errorbar(middle, mean, interval, marker="o", capsize=3, label="answered right")
    axis.plot(middle, expected, "-.", color="tab:orange", label="same history, any age")
    axis.plot(middle, stored, "--", color="gray", label="class still stored")
    axis.plot(middle, chance, ":", color="gray", label="chance")
    axis.set(xscale="log", ylim=(0, 1.02), xlabel="images since the class was last shown", ylabel="fraction of images",
             title=f"A memory of {slots} slots that is never cleared")  # fmt: skip
    axis.legend(loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
