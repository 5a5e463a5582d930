"""One-shot translation (arXiv 1703.03129, section 4.3): half the test set is written, the other half translated."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.papers.rare_events.protocols.rare_words import bins_of, word_recall

FOLDER = "one_shot_translation"


class OneShotTranslation:
    """Even lines of the test file (2nd, 4th, ...) are written to the memory, odd lines are translated.

    The odd lines are translated by the same network with different memories: `no_memory` (not read), `memory` (as after
    training), `shown` (after the even lines with their references were written, without training). With `larger_slots`
    also `larger`: a memory of so many slots with the trained content, to which all tokens of the training split that
    occur there at most `larger_max_count` times are written; and `larger_shown`: then the even lines too.
    BLEU is sacrebleu's (13a, cased); recall is that of reference words (13a tokens), by their count in the training
    targets. A network trained without memory has only `no_memory`. The trained memory is restored afterwards.
    """

    def __init__(self, beam_size: int = 4, alpha: float = 0.6, batch_size: int = 32,
                 bins: tuple[int, ...] = (0, 1, 2, 5, 10, 100), max_lines: int | None = None,
                 larger_slots: int | None = None, larger_max_count: int = 100) -> None:  # fmt: skip
        if batch_size < 1 or beam_size < 1:
            raise UserError(
                f"protocol.batch_size={batch_size}, protocol.beam_size={beam_size}: both must be at least 1"
            )
        self.beam_size, self.alpha, self.batch_size = beam_size, alpha, batch_size
        self.bins, self.max_lines = bins_of(bins), max_lines
        self.larger_slots, self.larger_max_count = larger_slots, larger_max_count

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        if not hasattr(module, "translate"):
            raise UserError("protocol=one_shot_translation needs a translator: give a run of model=translator")
        lines = range(len(datamodule.sets["test"]))[: self.max_lines]
        shown, asked = list(lines[1::2]), list(lines[0::2])
        if not shown:
            raise UserError(f"protocol=one_shot_translation needs at least two test lines, there are {len(lines)}")
        module.eval()
        texts = {}
        with module.without_memory():
            texts["no_memory"] = self._translate(module, datamodule, asked)
        if module.memory is not None:
            texts["memory"] = self._translate(module, datamodule, asked)
            with module.memory.snapshot():
                self._show(module, datamodule, "test", shown)
                texts["shown"] = self._translate(module, datamodule, asked)
        if module.memory is not None and self.larger_slots is not None:
            with module.token_memory.enlarged(self.larger_slots):
                rows = range(len(datamodule.sets["train"]))
                self._show(module, datamodule, "train", rows, self.larger_max_count)
                texts["larger"] = self._translate(module, datamodule, asked)
                self._show(module, datamodule, "test", shown)
                texts["larger_shown"] = self._translate(module, datamodule, asked)
        return self._report(texts, datamodule, asked, Path(run_dir) / FOLDER)

    def _batches(self, module, datamodule, rows: Sequence[int], split: str = "test"):
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            yield part, module.transfer_batch_to_device(datamodule.batch(split, part), module.device, 0)

    def _show(self, module, datamodule, split: str, rows: Sequence[int], max_count: int | None = None) -> None:
        for _, batch in self._batches(module, datamodule, rows, split):
            module.show(batch, max_count)

    def _translate(self, module, datamodule, rows: list[int]) -> list[str]:
        """Translations in the order of `rows`; sentences of similar length are translated together."""
        sources = datamodule.sets["test"].source
        by_length = sorted(rows, key=lambda row: (len(sources[row]), row))
        found: dict[int, str] = {}
        for part, batch in self._batches(module, datamodule, by_length):
            ids = module.translate(batch, self.beam_size, self.alpha)
            found.update(zip(part, map(datamodule.decode, ids), strict=True))
        return [found[row] for row in rows]

    def _report(self, texts: dict[str, list[str]], datamodule, asked: list[int], folder: Path) -> dict[str, float]:
        from sacrebleu import corpus_bleu
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

        tokenize = Tokenizer13a()
        lines = {side: datamodule.texts("test", side) for side in ("source", "target")}
        references = [lines["target"][row] for row in asked]
        counts = Counter(word for text in datamodule.texts("train", "target") for word in tokenize(text).split())
        words = [tokenize(text).split() for text in references]
        metrics = {"one_shot/lines": float(len(asked))}
        table: list[tuple] = []
        for name, found in texts.items():
            metrics[f"one_shot/bleu_{name}"] = corpus_bleu(found, [references]).score
            recall = word_recall(words, (tokenize(text).split() for text in found), counts, self.bins)
            for where, (right, wanted) in recall.items():
                table.append((name, where.name, right, wanted, right / wanted if wanted else float("nan")))
                if wanted:
                    metrics[f"one_shot/recall_{where.name}_{name}"] = right / wanted
                    metrics[f"one_shot/words_{where.name}"] = float(wanted)
        write_csv(folder / "recall.csv", ("translation", "training_count", "found", "wanted", "recall"), table)
        rows = zip(asked, (lines["source"][row] for row in asked), references, *texts.values(), strict=True)
        write_csv(folder / "translations.csv", ("row", "source", "reference", *texts), rows)
        return metrics
