"""Speaker swap: held-out loss conditioned on the right speaker and on every wrong one (section 3.1)."""

from pathlib import Path

import numpy as np
import torch

from quintet.common.errors import UserError
from quintet.common.tables import plot_matrix, write_csv
from quintet.metrics.audio import NATS_PER_BIT


class SpeakerSwap:
    """Score `max_batches` test batches under every speaker; writes table and heat map to `<run_dir>/speaker_swap`."""

    def __init__(self, max_batches: int | None = None) -> None:
        self.max_batches = max_batches

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        names = module.data_info["speakers"]
        if len(names) < 2 or "speaker" not in module.conditions:
            raise UserError("protocol=speaker_swap needs a model conditioned on at least two speakers")
        nll_us, samples_u, true_u = self._score(module, datamodule, len(names))
        bits_us = nll_us / samples_u[:, None] / NATS_PER_BIT
        out_dir = Path(run_dir) / "speaker_swap"
        matrix = _by_true_speaker(nll_us, samples_u, true_u, len(names))
        write_csv(out_dir / "bits_by_true_and_given_speaker.csv", ("true_speaker", *names), _rows(names, matrix))
        excess = matrix - np.diag(matrix)[:, None]
        title, axes = (
            "Held-out bits lost by conditioning on another speaker",
            ("true speaker", "given speaker"),
        )
        plot_matrix(out_dir / "swap.png", excess, names, title, axes, "bits/sample above the right speaker")
        return _summary(bits_us, samples_u, true_u)

    @torch.no_grad()
    def _score(self, module, datamodule, speakers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Summed NLL in nats (U, S) of each utterance under each speaker, its samples (U,) and true speaker (U,)."""
        nll: dict[int, np.ndarray] = {}
        samples: dict[int, int] = {}
        true: dict[int, int] = {}
        module.eval()
        for number, batch in enumerate(datamodule.test_dataloader()):
            if number == self.max_batches:
                break
            batch = module.transfer_batch_to_device(batch, module.device, 0)
            swapped = [batch._replace(speaker=torch.full_like(batch.speaker, s)) for s in range(speakers)]
            nll_bs = torch.stack([module.nll(b, module(b)[0]) for b in swapped], 1).double().cpu().numpy()
            for row, u in enumerate(batch.utterance.tolist()):
                nll[u] = nll.get(u, 0) + nll_bs[row]
                samples[u] = samples.get(u, 0) + int(batch.mask[row].sum())
                true[u] = int(batch.speaker[row])
        return np.stack(list(nll.values())), np.array(list(samples.values())), np.array(list(true.values()))


def _by_true_speaker(nll_us: np.ndarray, samples_u: np.ndarray, true_u: np.ndarray, speakers: int) -> np.ndarray:
    """Bits per sample (S true, S given); NaN for a speaker without a test utterance."""
    matrix = np.full((speakers, speakers), np.nan)
    for s in np.unique(true_u):
        of_s = true_u == s
        matrix[s] = nll_us[of_s].sum(0) / samples_u[of_s].sum() / NATS_PER_BIT
    return matrix


def _summary(bits_us: np.ndarray, samples_u: np.ndarray, true_u: np.ndarray) -> dict[str, float]:
    """Sample-weighted bits under right and wrong speakers, and how often the right speaker scores best."""
    everyone = np.arange(len(true_u))
    right_u = bits_us[everyone, true_u]
    wrong_us = bits_us.copy()
    wrong_us[everyone, true_u] = np.nan
    return {
        "swap/bits_right_speaker": float(np.average(right_u, weights=samples_u)),
        "swap/bits_wrong_speaker": float(np.average(np.nanmean(wrong_us, 1), weights=samples_u)),
        "swap/right_beats_mean_wrong": float((right_u < np.nanmean(wrong_us, 1)).mean()),
        "swap/right_beats_every_wrong": float((right_u < np.nanmin(wrong_us, 1)).mean()),
        "swap/utterances": float(len(true_u)),
    }


def _rows(names: list[str], matrix: np.ndarray) -> list[list]:
    return [[name, *(float(v) for v in row)] for name, row in zip(names, matrix, strict=True)]
