"""Phone recognition from raw audio (section 3.4): frame accuracy, majority class, phone error rate."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from quintet.errors import UserError
from quintet.models.wavenet.metrics import phone_error_rate
from quintet.protocols.tables import plot_matrix, write_csv

IGNORED = -100


class Phones:
    """Score the test split's 10 ms frames; table and confusion picture under `<run_dir>/phones`."""

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        if not module.recognises:
            raise UserError("protocol=phones needs a model with model.network.recognition: this one has none")
        names = module.facts["phones"]
        labels, predictions = self._frames(module, datamodule)
        majority = majority_class(datamodule)
        label_f, predicted_f = np.concatenate(labels), np.concatenate(predictions)
        self._write(Path(run_dir) / "phones", names, label_f, predicted_f)
        symbols = [[[names[i] for i in frames] for frames in side] for side in (labels, predictions)]
        return {
            "phones/frame_accuracy": float((label_f == predicted_f).mean()),
            "phones/majority_frame_accuracy": float((label_f == majority).mean()),
            "phones/phone_error_rate": phone_error_rate(*symbols),
            "phones/frames": float(len(label_f)),
        }

    @torch.no_grad()
    def _frames(self, module, datamodule) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Labels and predictions of every test utterance, its chunks joined in order, ignored frames left out."""
        labels: dict[int, list] = {}
        predictions: dict[int, list] = {}
        module.eval()
        for batch in datamodule.test_dataloader():
            batch = module.transfer_batch_to_device(batch, module.device, 0)
            best_bf = module(batch)[1].argmax(1).cpu().numpy()
            for u, label_f, best_f in zip(batch.utterance.tolist(), batch.phones.cpu().numpy(), best_bf, strict=True):
                labels.setdefault(u, []).extend(label_f[label_f != IGNORED])
                predictions.setdefault(u, []).extend(best_f[label_f != IGNORED])
        return [np.array(v, int) for v in labels.values()], [np.array(v, int) for v in predictions.values()]

    def _write(self, out_dir: Path, names: list[str], label_f: np.ndarray, predicted_f: np.ndarray) -> None:
        confusion = np.zeros((len(names), len(names)))
        np.add.at(confusion, (label_f, predicted_f), 1)
        totals = confusion.sum(1)
        share = confusion / np.maximum(totals[:, None], 1)
        write_csv(out_dir / "phones.csv", ("phone", "frames", "recall"), _rows(names, totals, share))
        axes = "what was said", "what was recognised"
        plot_matrix(out_dir / "confusion.png", share, names, "Frames of 10 ms, row by row", axes, "share of the row")


def majority_class(datamodule) -> int:
    """The most frequent phone of the TRAINING frames: what a constant recogniser would answer."""
    counts: Counter = Counter()
    for index in range(datamodule.num_utterances("train")):
        counts.update(np.asarray(datamodule.utterance("train", index)["phones"]).tolist())
    counts.pop(IGNORED, None)
    return counts.most_common(1)[0][0]


def _rows(names: list[str], totals: np.ndarray, share: np.ndarray) -> list[tuple]:
    return [(name, int(totals[i]), float(share[i, i])) for i, name in enumerate(names)]
