"""Accuracy on the synthetic task by the training count of a symbol (arXiv 1703.03129, section 4.2)."""

from pathlib import Path

import numpy as np
import torch

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.data.special_ids import UNKNOWN
from quintet.papers.rare_events.protocols.rare_words import bins_of

FOLDER = "rare_symbols"


class RareSymbols:
    """Accuracy on the symbols of the odd test sequences (1st, 3rd, ...), by the training count of the input symbol.

    As in one_shot_translation by the same network with different memories: `no_memory` (not read), `memory` (as after
    training), `shown` (after the even test sequences were written). A network trained without memory has only
    `no_memory`. Outputs are fed back; the targets are not used. `new` are symbols that are not in training, but in an
    even test sequence, so that with `shown` the memory has seen them once or a few times. `sequence_accuracy` is the
    fraction of sequences that are completely right.
    """

    def __init__(self, bins: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 64), batch_size: int = 100,
                 max_lines: int | None = None) -> None:  # fmt: skip
        if batch_size < 1:
            raise UserError(f"protocol.batch_size={batch_size} must be at least 1")
        self.bins, self.batch_size, self.max_lines = bins_of(bins), batch_size, max_lines

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        if not hasattr(module, "predict"):
            raise UserError("protocol=rare_symbols needs a Neural GPU: give a run of model=neural_gpu")
        lines = range(len(datamodule.sets["test"]))[: self.max_lines]
        shown, asked = list(lines[1::2]), list(lines[0::2])
        module.eval()
        with module.without_memory():
            answers = {"no_memory": self._answers(module, datamodule, asked)}
        if module.memory is not None:
            answers["memory"] = self._answers(module, datamodule, asked)
            with module.memory.snapshot():
                for batch in self._batches(module, datamodule, shown):
                    module.show(batch)
                answers["shown"] = self._answers(module, datamodule, asked)
        sources = datamodule.sets["test"].source
        new = np.unique(np.concatenate([sources[row] for row in shown])) if shown else np.zeros(0, np.int64)
        return self._report(answers, np.array(datamodule.counts["source"]), new, Path(run_dir) / FOLDER)

    def _batches(self, module, datamodule, rows: list[int]):
        for start in range(0, len(rows), self.batch_size):
            batch = datamodule.batch("test", rows[start : start + self.batch_size])
            yield module.transfer_batch_to_device(batch, module.device, 0)

    @torch.no_grad()
    def _answers(self, module, datamodule, rows: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For every symbol but eos: its input id, whether the output is right, and the number of its sequence."""
        parts, first = [], 0
        for batch in self._batches(module, datamodule, rows):
            wanted_bs, given_bs = batch.target[:, 1:], module.predict(batch)
            real_bs = (batch.source > UNKNOWN) & (wanted_bs > UNKNOWN)
            sequence_n = real_bs.nonzero()[:, 0] + first
            parts.append(torch.stack([batch.source[real_bs], (given_bs == wanted_bs)[real_bs].long(), sequence_n]))
            first += len(batch.source)
        symbol_n, right_n, sequence_n = torch.cat(parts, 1).cpu().numpy()
        return symbol_n, right_n, sequence_n

    def _report(self, answers: dict[str, tuple], counts: np.ndarray, shown: np.ndarray, folder: Path) -> dict:
        metrics: dict[str, float] = {}
        table: list[tuple] = []
        for name, (symbol_n, right_n, sequence_n) in answers.items():
            wrong_s = np.bincount(sequence_n, weights=1 - right_n)
            metrics["rare_symbols/sequences"] = float(len(wrong_s))
            metrics[f"rare_symbols/accuracy_{name}"] = float(right_n.mean())
            metrics[f"rare_symbols/sequence_accuracy_{name}"] = float((wrong_s == 0).mean())
            seen_n = counts[symbol_n]
            groups = {b.name: (seen_n >= b.low) & ((b.high is None) | (seen_n <= (b.high or 0))) for b in self.bins}
            groups["new"] = (seen_n == 0) & np.isin(symbol_n, shown)
            for group, inside in groups.items():
                total, right = int(inside.sum()), int(right_n[inside].sum())
                table.append((name, group, right, total, right / total if total else float("nan")))
                if total:
                    metrics[f"rare_symbols/accuracy_{group}_{name}"] = right / total
                    metrics[f"rare_symbols/symbols_{group}"] = float(total)
        write_csv(folder / "accuracy.csv", ("answers", "training_count", "right", "asked", "accuracy"), table)
        return metrics
