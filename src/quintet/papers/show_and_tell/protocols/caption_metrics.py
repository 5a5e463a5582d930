"""BLEU, ROUGE-L, CIDEr and METEOR at several beam sizes (Vinyals et al. 2015, tables 1 and 2, section 4.3.2)."""

import time
from collections.abc import Sequence
from pathlib import Path

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.metrics.captions.metrics import NAMES, scores
from quintet.papers.show_and_tell.protocols.captioning import best_text, encoded_once, image_batches, need_captioner

PLOTTED = ("bleu1", "bleu4", "rouge_l", "cider", "meteor_exact_stem")
HEADER = ("beam", *NAMES, "words", "log_probability", "different_captions", "seconds")


class CaptionMetrics:
    """All metrics for every beam size; beam size 1 is greedy.

    beam_sizes: those of the sweep. report: the beam sizes whose metrics are returned; the table has all. count: only so
    many images, evenly spread over the split. Other decoding settings are those of the run's `model.decoding`.
    Writes caption_metrics/beams.csv, captions.csv (the text of each image at each beam) and beams.png.
    """

    picture = "caption_metrics/beams.png"

    def __init__(self, split: str = "test", beam_sizes: Sequence[int] = tuple(range(1, 21)),
                 report: Sequence[int] = (1, 3, 20), count: int | None = None,
                 batch_size: int = 64) -> None:  # fmt: skip
        self.split, self.count, self.batch_size = split, count, batch_size
        self.beam_sizes, self.report = sorted(set(beam_sizes)), [beam for beam in report if beam in set(beam_sizes)]
        for key, low in (("beam_sizes", min(self.beam_sizes, default=0)), ("batch_size", batch_size)):
            if low < 1:
                raise UserError(f"protocol.{key}={getattr(self, key)} must be at least 1")
        self.report = self.report or [self.beam_sizes[0], self.beam_sizes[-1]]

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_captioner(module, "caption_metrics")
        out_dir = Path(run_dir) / "caption_metrics"
        images, found = self._captions(module, datamodule)
        references = datamodule.references(self.split, images)
        rows = {}
        for beam, (texts, lengths, logs, seconds) in found.items():
            extra = (sum(lengths) / len(texts), sum(logs) / len(texts), len(set(texts)), seconds)
            rows[beam] = (beam, *scores(texts, references).values(), *extra)
        write_csv(out_dir / "beams.csv", HEADER, rows.values())
        names = datamodule.image_ids(self.split)
        table = [(names[image], *(found[beam][0][n] for beam in found)) for n, image in enumerate(images)]
        write_csv(out_dir / "captions.csv", ("image", *(f"beam_{beam}" for beam in found)), table)
        _plot([dict(zip(HEADER, row, strict=True)) for row in rows.values()], out_dir / "beams.png")
        return self._result(rows, len(images))

    def _captions(self, module, datamodule) -> tuple[list[int], dict[int, tuple]]:
        """The images; and for each beam size texts, lengths, log probabilities and seconds of search."""
        images: list[int] = []
        found: dict[int, tuple] = {beam: ([], [], [], 0.0) for beam in self.beam_sizes}
        for batch in image_batches(datamodule, self.split, module.device, self.batch_size, self.count):
            images += batch.image_index.tolist()
            source = encoded_once(module, batch)
            for beam, (texts, lengths, logs, seconds) in found.items():
                start = time.perf_counter()
                generated = module.generate(source, beam, method="beam", captions=1)
                texts += map(best_text, generated)
                lengths += [len(captions[0].words) if captions else 0 for captions in generated]
                logs += [captions[0].log_probability if captions else float("nan") for captions in generated]
                found[beam] = (texts, lengths, logs, seconds + time.perf_counter() - start)
        return images, found

    def _result(self, rows: dict[int, tuple], images: int) -> dict[str, float]:
        result = {"caption_metrics/images": float(images)}
        for beam in self.report:
            ending = "greedy" if beam == 1 else f"beam{beam}"
            result |= {f"caption_metrics/{name}_{ending}": rows[beam][1 + n] for n, name in enumerate(NAMES)}
        for name in ("bleu4", "cider"):
            best = max(rows.values(), key=lambda row: row[HEADER.index(name)])
            result[f"caption_metrics/best_beam_by_{name}"] = float(best[0])
        return result


def _plot(rows: Sequence[dict], path: Path) -> None:
    """One panel for each metric, over the beam size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(PLOTTED), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    beams = [row["beam"] for row in rows]
    for axis, name in zip(figure.subplots(1, len(PLOTTED)), PLOTTED, strict=True):
        axis.plot(beams, [100 * row[name] for row in rows], "o-", markersize=3, color="#2166ac")
        axis.set(title=f"{name} x 100", xlabel="beam")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
