"""Explains answers of the memory: test images beside the stored images that the memory found for them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.papers.rare_events.protocols.few_shot import plan_episodes, unit_keys

RIGHT, WRONG = "tab:green", "tab:red"


class Neighbour(NamedTuple):
    """A slot that was found, and the last example written to it."""

    image: np.ndarray  # (S, S) ink of the last example written
    name: str  # of its class
    examples: int  # number of examples merged into the key
    age: int  # steps since the last of them was written was written
    similarity: float


class Query(NamedTuple):
    """A query image and its neighbours, nearest first."""

    image: np.ndarray
    name: str
    neighbours: list[Neighbour]


class InspectMemory:
    """Writes an episode of `ways` test classes, `showings` images each, to an empty memory and shows its answers.

    Writes inspect_memory/neighbours.png and neighbours.csv under `run_dir`: the last `count` images as queries, each
    with its `neighbours` nearest slots: stored image, class, age and cosine. A key may have been merged from several
    examples, of which the picture shows the last. The trained memory is not changed.
    """

    def __init__(self, ways: int = 20, showings: int = 4, count: int = 8, neighbours: int = 6, seed: int = 0) -> None:
        self.ways, self.showings, self.count, self.neighbours, self.seed = ways, showings, count, neighbours, seed
        for key, least in (("ways", 2), ("showings", 2), ("count", 1), ("neighbours", 1)):
            if getattr(self, key) < least:
                raise UserError(f"protocol.{key}={getattr(self, key)} must be at least {least}")
        if count > ways * (showings - 1):
            raise UserError(
                f"protocol.count={count} must be at most ways x (showings - 1) = {ways * (showings - 1)}, since a class"
                " cannot be found before its second image"
            )

    @torch.no_grad()
    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        images_cdss, names = datamodule.images("test"), datamodule.classes("test")
        if self.ways > len(names) or self.showings > images_cdss.shape[1]:
            raise UserError(
                f"protocol.ways={self.ways}, protocol.showings={self.showings}: the test split has only {len(names)}"
                f" classes with {images_cdss.shape[1]} drawings each"
            )
        queries = self._queries(module, images_cdss, names)
        out_dir = Path(run_dir) / "inspect_memory"
        rows = [
            (number, query.name, rank, found.name, found.examples, found.age, found.similarity)
            for number, query in enumerate(queries, 1)
            for rank, found in enumerate(query.neighbours, 1)
        ]
        header = ("query", "query_class", "rank", "stored_class", "examples", "age", "similarity")
        write_csv(out_dir / "neighbours.csv", header, rows)
        draw(out_dir / "neighbours.png", queries, self.neighbours)
        right = [bool(query.neighbours) and query.neighbours[0].name == query.name for query in queries]
        nearest = [query.neighbours[0].similarity for query in queries if query.neighbours]
        return {
            "inspect_memory/shown": float(len(queries)),
            "inspect_memory/right_of_shown": float(np.mean(right)),
            "inspect_memory/mean_similarity": float(np.mean(nearest)),
        }

    def _queries(self, module, images_cdss: np.ndarray, names: list[str]) -> list[Query]:
        length = self.ways * self.showings
        plan = plan_episodes(1, len(images_cdss), images_cdss.shape[1], self.ways, length, self.seed)
        shown_tss = images_cdss[plan.classes[0], plan.drawers[0]]
        keys_td = unit_keys(module, shown_tss[None])[0]
        memory = module.blank_memory(self.ways)
        last_image: dict[int, np.ndarray] = {}
        last_name: dict[int, str] = {}
        examples: dict[int, int] = {}
        queries: list[Query] = []
        for t, (label, c) in enumerate(zip(plan.labels[0].tolist(), plan.classes[0].tolist(), strict=True)):
            answer = memory.read(keys_td[t : t + 1])
            if t >= length - self.count:
                pairs = zip(answer.slots[0].tolist(), answer.similarity[0].tolist(), strict=True)
                ages = memory.ages.tolist()
                found = [
                    Neighbour(last_image[slot], last_name[slot], examples[slot], ages[slot], similarity)
                    for slot, similarity in list(pairs)[: self.neighbours]
                    if slot in last_image
                ]
                queries.append(Query(shown_tss[t], names[c], found))
            old = memory.values.clone()
            memory.write(keys_td[t : t + 1], torch.tensor([label], device=keys_td.device))
            slot = int(memory.ages.argmin())  # the one that was just written: all others are older
            examples[slot] = examples.get(slot, 0) + 1 if int(old[slot]) == label else 1
            last_image[slot], last_name[slot] = shown_tss[t], names[c]
        return queries


def draw(path: Path, queries: list[Query], columns: int) -> Path:
    """Draw a row for each query: its image, then its neighbours; green where the class is right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.7 * (columns + 1), 2.0 * len(queries)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(queries), columns + 1, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, query in zip(axes, queries, strict=True):
        _show(row[0], query.image, f"query\n{short(query.name)}", "black")
        for axis, found in zip(row[1:], query.neighbours, strict=False):
            merged = f" ({found.examples} merged)" if found.examples > 1 else ""
            text = f"{short(found.name)}{merged}\nage {found.age}, cos {found.similarity:.3f}"
            _show(axis, found.image, text, RIGHT if found.name == query.name else WRONG)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _show(axis, image: np.ndarray, title: str, color: str) -> None:
    axis.set_axis_on()
    axis.imshow(255 - image, cmap="gray", vmin=0, vmax=255)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=7, color=color)
    for spine in axis.spines.values():
        spine.set(color=color, linewidth=2)


def short(name: str) -> str:
    """ "Greek/character03" -> "Greek 03", with long alphabets cut."""
    alphabet, _, character = name.partition("/")
    return f"{alphabet[:14]} {character.removeprefix('character')}"
