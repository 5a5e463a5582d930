"""The picture of `explain`: a query, and beside it the training examples that helped and harmed it most."""

import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.data.preview import Preview

COLORS = {"helpful": "#1b7837", "harmful": "#b2182b", "query": "black"}
TINTS = {"helpful": "#f1f8f2", "harmful": "#fbf1f2", "query": "#f5f5f5"}
CELL, TITLE, LINE = 2.3, 0.6, 0.155  # inches: width of a card, height of its title, of a line of text
LETTERS = 36  # of a line of text in a card
TEXT_LINES, CAPTION_LINES, TABLE_LINES = 14, 6, 12


class Card(NamedTuple):
    """One example in the picture."""

    preview: Preview
    heading: str  # its influence, or the query's loss
    parts: list[tuple[float, float]] | None = None  # of sounds put together: (seconds, influence) of each


def draw_panel(path: Path, query: Card, cards: dict[str, list[Card]], scores_u: NDArray, what: str, notes: str) -> Path:
    """The query over a histogram of all scores on the left, a row of helpful and one of harmful examples beside it.

    scores_u: influence of all `what` (examples or groups); notes: a line at the foot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = max(1, *(len(row) for row in cards.values()))
    height = max(_height(card.preview) for card in [query, *(c for row in cards.values() for c in row)])
    figure = Figure(
        figsize=(CELL * (columns + 1.5), 2 * (height + TITLE) + 0.5),
        layout=ConstrainedLayoutEngine(wspace=0.03, hspace=0.05),
    )
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, columns + 2, width_ratios=[1.2, 0.25, *[1.0] * columns])
    _draw_card(figure, grid[0, 0], query, query.preview, "query")
    _histogram(figure.add_subplot(grid[1, 0]), scores_u, what, {kind: len(row) for kind, row in cards.items()})
    for row, (kind, found) in enumerate(cards.items()):
        _row_label(figure.add_subplot(grid[row, 1]), kind)
        for column in range(columns):
            if column < len(found):
                _draw_card(figure, grid[row, 2 + column], found[column], query.preview, kind)
            else:
                figure.add_subplot(grid[row, 2 + column]).set_axis_off()
    figure.supxlabel("\n".join(textwrap.wrap(notes, 34 * (columns + 2))), fontsize=7, color="0.35")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _height(preview: Preview) -> float:
    """Height in inches of one example."""
    if preview.audio is not None:
        return 2.0
    if preview.image is not None:
        high, wide = preview.image.shape[:2]
        return CELL * min(1.3, high / wide) + 0.13 * len(_wrapped(preview.text or "", CAPTION_LINES))
    lines = min(len(preview.table), TABLE_LINES) + 1 if preview.table else len(_text_lines(preview.text or ""))
    return max(1.2, LINE * lines + 0.2)


def _row_label(axis, kind: str) -> None:
    axis.set_axis_off()
    axis.text(0.5, 0.5, f"most {kind}", rotation=90, ha="right", va="center", fontsize=10, color=COLORS[kind],
              weight="bold", transform=axis.transAxes)  # fmt: skip
    axis.text(0.6, 0.5, "change of the query's loss\nwithout the example:", rotation=90, ha="left", va="center",
              fontsize=7, color=COLORS[kind], transform=axis.transAxes, linespacing=1.3)  # fmt: skip


def _draw_card(figure, place, card: Card, query: Preview, kind: str) -> None:
    """Sound, picture, table or text, with influence, title and label over it."""
    preview = card.preview
    if preview.audio is not None:
        top, below = place.subgridspec(2, 1, height_ratios=(1, 1.5), hspace=0.02).subplots()
        _show_sound(top, below, card, kind)
        axes = [top, below]
    else:
        axes = [top := figure.add_subplot(place, facecolor=TINTS[kind])]
        top.set(xticks=[], yticks=[])
        if preview.image is not None:
            _show_image(top, preview)
        elif preview.table is not None:
            _show_table(top, preview.table, query.table or {}, kind)
        else:
            _show_text(top, preview.text or "")
    for spine in (spine for axis in axes for spine in axis.spines.values()):
        spine.set(color=COLORS[kind], linewidth=1.2)
    lines = [f"query, {card.heading}" if kind == "query" else card.heading, _short(preview.title, 32)]
    if preview.label not in (None, preview.title):
        same = kind != "query" and preview.label == query.label
        lines.append(f"{_short(preview.label, 26)}{' (as the query)' if same else ''}")
    top.set_title("\n".join(lines), fontsize=8, color=COLORS[kind], parse_math=False, linespacing=1.25)


def _show_image(axis, preview: Preview) -> None:
    axis.imshow(preview.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if preview.text:
        axis.set_xlabel("\n".join(_wrapped(preview.text, CAPTION_LINES)), fontsize=6.5, parse_math=False)


def _show_sound(wave, spectrum, card: Card, kind: str) -> None:
    """Waveform over spectrogram; windows of a group are shaded by their own influence."""
    from quintet.papers.wavenet.media import log_spectrogram

    audio, rate = card.preview.audio, card.preview.sample_rate
    assert audio is not None and rate is not None
    seconds = len(audio) / rate
    wave.plot(np.arange(len(audio)) / rate, audio, linewidth=0.4, color="0.15")
    limit = max(0.02, 1.05 * float(np.abs(audio).max(initial=0.0)))
    wave.set(xlim=(0, seconds), ylim=(-limit, limit), xticks=[], yticks=[])
    spectrum.imshow(log_spectrogram(audio), origin="lower", aspect="auto", cmap="magma", vmin=-100, vmax=-10,
                    extent=(0, seconds, 0, rate / 2000))  # fmt: skip
    spectrum.tick_params(labelsize=6, length=2, pad=1)
    spectrum.set_xlabel(_short(card.preview.text, 40) if card.preview.text else "s", fontsize=6.5, labelpad=1)
    if kind == "query":
        spectrum.set_ylabel("kHz", fontsize=6.5, labelpad=1)
    else:
        spectrum.set_yticks([])
    start, strongest = 0.0, max((abs(score) for _, score in card.parts or []), default=0.0) or 1.0
    for length, score in card.parts or []:
        color = COLORS["helpful" if score > 0 else "harmful"]
        wave.axvspan(start, start + length, color=color, alpha=0.5 * abs(score) / strongest, linewidth=0)
        start += length


def _show_text(axis, text: str) -> None:
    axis.text(0.04, 0.95, "\n".join(_text_lines(text)), va="top", fontsize=7.5, linespacing=1.35, parse_math=False,
              transform=axis.transAxes)  # fmt: skip


def _text_lines(text: str) -> list[str]:
    """A pair "source -> target" as two paragraphs."""
    parts = text.split(" -> ")
    lines = [line for part in parts for line in ("", *_wrapped(part, TEXT_LINES // len(parts)))]
    return lines[1:]


def _show_table(axis, table: dict[str, str], query: dict[str, str], kind: str) -> None:
    """Columns that the query shares first and bold, then the example's own."""
    shared = [name for name in table if kind != "query" and query.get(name) == table[name]]
    names = [*shared, *(name for name in table if name not in shared)]
    shown = names[:TABLE_LINES]
    axis.set(xlim=(-0.03, 1.03), ylim=(-max(len(shown), 1.0 / LINE - 1) - 1, 0.3))
    for line, name in enumerate(shown):
        same = name in shared
        style: dict[str, Any] = {
            "color": "black" if same or kind == "query" else "0.4",
            "weight": "bold" if same else "normal",
        }
        style |= {"fontsize": 6.5, "va": "top", "parse_math": False}
        axis.text(0, -line, _short(name, 24), **style)
        axis.text(1, -line, _short(table[name], 12), ha="right", **style)
        axis.axhline(-line - 0.9, color="0.85", linewidth=0.5)
    said = f"{len(names)} columns" if kind == "query" else f"{len(shared)} of {len(names)} as in the query"
    more = f", {len(names) - len(shown)} not shown" if len(names) > len(shown) else ""
    axis.text(0, -len(shown) - 0.05, said + more, fontsize=6, va="top", style="italic", color="0.3")


def _histogram(axis, scores_u: NDArray, what: str, marked: dict[str, int]) -> None:
    """All scores, counts on a logarithmic axis; ticks mark those that are shown."""
    axis.hist(scores_u, bins=min(60, max(10, len(scores_u) // 8)), color="0.75", log=True)
    order = np.sort(scores_u)
    for kind, values in (("helpful", order[::-1]), ("harmful", order)):
        axis.plot(values[: marked[kind]], np.full(marked[kind], 0.04), "|", color=COLORS[kind], markersize=9,
                  markeredgewidth=1.5, transform=axis.get_xaxis_transform())  # fmt: skip
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_title(f"all {len(scores_u)} {what}", fontsize=8)
    axis.set_xlabel("change of the query's loss", fontsize=7)
    axis.set_ylim(bottom=0.7)
    axis.tick_params(labelsize=6)
    axis.tick_params(axis="y", which="minor", labelleft=False)
    axis.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    axis.xaxis.get_offset_text().set_fontsize(6)
    axis.spines[["top", "right"]].set_visible(False)


def _wrapped(text: str, lines: int) -> list[str]:
    return textwrap.wrap(text, LETTERS, max_lines=max(1, lines), placeholder=" ...")


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 3]}..."
