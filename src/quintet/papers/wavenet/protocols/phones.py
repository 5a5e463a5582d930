"""Phone recognition from raw audio (section 3.4): frame accuracy, majority class, phone error rate."""

from pathlib import Path

import numpy as np
import torch

from quintet.common.errors import UserError
from quintet.common.tables import plot_matrix, write_csv
from quintet.papers.wavenet.phones import phone_error_rate

IGNORED = -100


class Phones:
    """Score the 10 ms frames of the test split; writes a table and a confusion matrix to `<run_dir>/phones`.

    The phone error rate is measured on the most likely phone sequence under the frame posteriors and a frame bigram of
    the training labels (`viterbi`), so that a single misclassified frame does not count as an inserted phone.
    """

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        if not module.recognizes:
            raise UserError("protocol=phones needs a model with model.network.recognition, but this one has none")
        names = module.data_info["phones"]
        labels, log_posteriors = self._frames(module, datamodule)
        predictions = [log_fp.argmax(1) for log_fp in log_posteriors]
        counts_p, transitions_pp = training_counts(datamodule, len(names))
        majority = int(counts_p.argmax())
        label_f, predicted_f = np.concatenate(labels), np.concatenate(predictions)
        self._write(Path(run_dir) / "phones", names, label_f, predicted_f)
        decoded = [viterbi(log_fp, counts_p, transitions_pp) for log_fp in log_posteriors]
        reference, framewise, smooth = (
            [[names[i] for i in frames] for frames in side] for side in (labels, predictions, decoded)
        )
        return {
            "phones/frame_accuracy": float((label_f == predicted_f).mean()),
            "phones/majority_frame_accuracy": float((label_f == majority).mean()),
            "phones/phone_error_rate": phone_error_rate(reference, smooth),
            "phones/phone_error_rate_without_bigram": phone_error_rate(reference, framewise),
            "phones/frames": float(len(label_f)),
        }

    @torch.no_grad()
    def _frames(self, module, datamodule) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Labels (F,) and log posteriors (F, P) of every test utterance, chunks joined, ignored frames dropped."""
        labels: dict[int, list] = {}
        posteriors: dict[int, list] = {}
        module.eval()
        for batch in datamodule.test_dataloader():
            batch = module.transfer_batch_to_device(batch, module.device, 0)
            log_bfp = module(batch)[1].float().log_softmax(1).transpose(1, 2).cpu().numpy()
            for u, label_f, log_fp in zip(batch.utterance.tolist(), batch.phones.cpu().numpy(), log_bfp, strict=True):
                labels.setdefault(u, []).append(label_f[label_f != IGNORED])
                posteriors.setdefault(u, []).append(log_fp[label_f != IGNORED])
        return [np.concatenate(v) for v in labels.values()], [np.concatenate(v) for v in posteriors.values()]

    def _write(self, out_dir: Path, names: list[str], label_f: np.ndarray, predicted_f: np.ndarray) -> None:
        confusion = np.zeros((len(names), len(names)))
        np.add.at(confusion, (label_f, predicted_f), 1)
        totals = confusion.sum(1)
        share = confusion / np.maximum(totals[:, None], 1)
        write_csv(out_dir / "phones.csv", ("phone", "frames", "recall"), _rows(names, totals, share))
        axes = "true phone", "recognized phone"
        plot_matrix(out_dir / "confusion.png", share, names, "10 ms frames, rows normalized", axes, "fraction")


def training_counts(datamodule, num_phones: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of phones (P,) and of phone pairs in successive frames (P, P) in the training labels."""
    counts_p, transitions_pp = np.zeros(num_phones), np.zeros((num_phones, num_phones))
    for index in range(datamodule.num_utterances("train")):
        phones_f = np.asarray(datamodule.utterance("train", index)["phones"])
        phones_f = phones_f[phones_f != IGNORED]
        np.add.at(counts_p, phones_f, 1)
        np.add.at(transitions_pp, (phones_f[:-1], phones_f[1:]), 1)
    return counts_p, transitions_pp


def viterbi(log_posterior_fp: np.ndarray, counts_p: np.ndarray, transitions_pp: np.ndarray) -> np.ndarray:
    """Most likely phones (F,) of an utterance: posterior / prior as likelihood, add-one smoothed frame bigram."""
    prior_p = (counts_p + 1) / (counts_p + 1).sum()
    log_next_pp = np.log((transitions_pp + 1) / (transitions_pp + 1).sum(1, keepdims=True))
    likelihood_fp = log_posterior_fp - np.log(prior_p)
    score_p, back = np.log(prior_p) + likelihood_fp[0], []
    for frame_p in likelihood_fp[1:]:
        arriving_pp = score_p[:, None] + log_next_pp
        back.append(arriving_pp.argmax(0))
        score_p = arriving_pp.max(0) + frame_p
    path = [int(score_p.argmax())]
    for best_p in reversed(back):
        path.append(int(best_p[path[-1]]))
    return np.array(path[::-1])


def _rows(names: list[str], totals: np.ndarray, share: np.ndarray) -> list[tuple]:
    return [(name, int(totals[i]), float(share[i, i])) for i, name in enumerate(names)]
