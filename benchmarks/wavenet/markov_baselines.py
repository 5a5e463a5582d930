"""How predictable are mu-law classes without a network? Order-0, order-1 and order-2 Markov models, in bits per sample.

    python -m benchmarks.wavenet.markov_baselines experiment=wavenet/vctk_multispeaker data.root=... --subset \
        --from logs/NAME/RUN/eval/test/result.json --publish wavenet_vctk_baselines

Fitted on the training split and measured on the held-out utterances of the same configuration that train.py runs, on
the same targets as the network: every real sample once, with silence before an utterance. Each model is interpolated
with the next lower order down to the uniform distribution; the smoothing is the one that is best on the val split.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import build_data, compose_training, data_name, one_line_errors, parser, report
from quintet.common.errors import UserError

# (name, strength): Witten-Bell with its escape count multiplied, or absolute discounting
STRENGTHS = {"witten_bell": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0), "discount": (0.3, 0.5, 0.7, 0.9)}
SMOOTHINGS = [(name, strength) for name, strengths in STRENGTHS.items() for strength in strengths]
HALF = 0.5  # pseudo-count of each class at order 0 (Krichevsky-Trofimov)


class MarkovModel:
    """p(x_t | x_t-1 .. x_t-order) over `classes`, interpolated over all lower orders.

    Counts are dense, (classes^order, classes) int32: 64 MiB for order 2 and 256 classes.
    """

    def __init__(self, order: int, classes: int, silence: int | None = None):
        self.order, self.classes = order, classes
        self.silence = classes // 2 if silence is None else silence
        self.counts = [np.zeros((classes**k, classes), np.int32) for k in range(order + 1)]
        self.smoothing = [("witten_bell", 1.0)] * (order + 1)  # entry 0 is unused

    def fit(self, sequences: Iterable[NDArray]) -> "MarkovModel":
        """Count every sample of every sequence (classes, (n,)) once per order."""
        for sequence in sequences:
            for k in range(self.order + 1):
                np.add.at(self.counts[k].reshape(-1), self._contexts(sequence, k) * self.classes + sequence, 1)
        self.totals = [counts.sum(1, dtype=np.int64) for counts in self.counts]
        self.followers = [(counts > 0).sum(1) for counts in self.counts]
        return self

    def _contexts(self, sequence: NDArray, k: int) -> NDArray:
        """Index of the k samples before each sample; silence before the start, as the network sees it."""
        padded = np.concatenate([np.full(k, self.silence), sequence]).astype(np.int64)
        index = np.zeros(len(sequence), np.int64)
        for lag in range(k):
            index = index * self.classes + padded[lag : lag + len(sequence)]
        return index

    def tune(self, held_out: list[NDArray]) -> "MarkovModel":
        """Choose each order's smoothing, from the lowest, by the bits on `held_out`."""
        for k in range(1, self.order + 1):
            scores = {}
            for choice in SMOOTHINGS:
                self.smoothing[k] = choice
                scores[choice] = self.bits(held_out, k)
            self.smoothing[k] = min(scores, key=scores.get)
        return self

    def probabilities(self, sequence: NDArray, order: int | None = None) -> NDArray:
        """p of each sample given the ones before it, (n,) float64."""
        p = (self.counts[0][0, sequence] + HALF) / (self.totals[0][0] + HALF * self.classes)
        for k in range(1, (self.order if order is None else order) + 1):
            context = self._contexts(sequence, k)
            count, total = self.counts[k][context, sequence], self.totals[k][context]
            p = _interpolate(count, total, self.followers[k][context], p, self.smoothing[k])
        return p

    def bits(self, sequences: Iterable[NDArray], order: int | None = None) -> float:
        """Cross-entropy in bits per sample over all samples of all sequences."""
        total = count = 0
        for sequence in sequences:
            total -= np.log2(self.probabilities(sequence, order)).sum()
            count += len(sequence)
        return float(total / count)


def _interpolate(count: NDArray, total: NDArray, followers: NDArray, lower: NDArray, smoothing: tuple) -> NDArray:
    """Give the mass of the unseen to the lower order; a context that never occurred is the lower order alone."""
    name, strength = smoothing
    if name == "witten_bell":
        escape = strength * followers
        p = (count + escape * lower) / np.maximum(total + escape, 1e-300)
    else:
        p = (np.maximum(count - strength, 0) + strength * followers * lower) / np.maximum(total, 1)
    return np.where(total > 0, p, lower)


def entropy_bits(sequences: Iterable[NDArray], classes: int) -> float:
    """Entropy of the class histogram itself: no order-0 model can do better on these sequences."""
    histogram = sum(np.bincount(sequence, minlength=classes) for sequence in sequences)
    p = histogram[histogram > 0] / histogram.sum()
    return float(-(p * np.log2(p)).sum())


def class_sequences(datamodule, split: str) -> Callable[[], Iterable[NDArray]]:
    """A function that goes over the utterances of a split as classes, one at a time (the corpus may be large)."""
    from quintet.data.audio.mulaw import encode

    table = encode(np.arange(65536, dtype=np.uint16).view(np.int16) / 32768, datamodule.quantization)

    def sequences() -> Iterable[NDArray]:
        for index in range(datamodule.num_utterances(split)):
            yield table[np.asarray(datamodule.utterance(split, index)["pcm"]).view(np.uint16)]

    return sequences


def baselines(datamodule) -> list[dict]:
    """Result rows for val and test."""
    classes = datamodule.quantization
    if classes > 512:
        raise UserError(f"data.quantization={classes}: an order-2 model is counted densely, use at most 512 classes")
    train, val, test = (class_sequences(datamodule, split) for split in ("train", "val", "test"))
    model = MarkovModel(2, classes).fit(train())
    samples = int(model.totals[0][0])
    if datamodule.num_utterances("val"):
        model.tune(list(val()))
    rows = []
    for split, sequences in (("val", val), ("test", test)):
        if not datamodule.num_utterances(split):
            continue
        count = sum(len(sequence) for sequence in sequences())
        where = f"{datamodule.num_utterances(split)} utterances, {count} samples"
        rows.append(_row(split, "order-0 entropy", entropy_bits(sequences(), classes), f"of the split itself; {where}"))
        for order in range(3):
            note = "fitted on train" if not order else "fitted on train, {} {}".format(*model.smoothing[order])
            rows.append(_row(split, f"order-{order} Markov", model.bits(sequences(), order), note))
    rows.append({"metric": "training samples", "value": samples, "unit": "samples"})
    return rows


def _row(split: str, name: str, value: float, note: str) -> dict:
    return {"metric": f"{split}/bits {name}", "value": value, "unit": "bits/sample", "note": note}


def network_rows(path: Path) -> list[dict]:
    """The network's own bits from a result file of eval.py."""
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--from {path}: not a result file of eval.py ({error})") from error
    found = [row for row in rows if row["metric"] in ("val/bits", "test/bits")]
    if not found:
        raise UserError(f"--from {path}: has no test/bits or val/bits: run eval.py with protocol=test")
    return [_row(row["metric"].split("/")[0], "network", row["value"], "eval.py") for row in found]


def main() -> None:
    """Command line."""
    options = parser(__doc__.split("\n")[0], "wavenet_vctk_baselines")
    options.add_argument("--from", dest="sources", action="append", default=[], help="result.json of eval.py")
    options.add_argument("--neural", type=float, default=None, help="test bits of the network, where there is no file")
    args = options.parse_args()
    start = time.perf_counter()
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        cfg = compose_training(args.overrides, Path(folder))
        rows = [row for path in args.sources for row in network_rows(path)]
        if args.neural is not None:
            rows.append(_row("test", "network", args.neural, "given on the command line"))
        rows += baselines(build_data(cfg))
    report(
        args.publish,
        rows,
        title="Markov baselines of the mu-law classes, and the network",
        protocol="fitted on the training split, smoothing chosen on val, every held-out sample once",
        data=data_name(cfg),
        subset=args.subset,
        seconds=time.perf_counter() - start,
    )


if __name__ == "__main__":
    main()
