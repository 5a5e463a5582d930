"""Coloured shapes with five captions each, in COCO's layout: `data=captions_sample`, no download."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.captions.coco import COCO
from quintet.data.captions.source import SPLITS, Parts
from quintet.data.samples.shapes import ground, outline
from quintet.data.store import build_once, digest

VERSION = 1  # raise when other files are written
SHAPES = {"circle": 1, "square": 2, "triangle": 3}  # numbers of samples.shapes
COLOURS = {
    "red": (215, 35, 35), "green": (40, 165, 60), "blue": (45, 75, 215), "yellow": (235, 215, 45),
    "orange": (240, 135, 25), "purple": (140, 50, 165), "white": (245, 245, 245), "black": (20, 20, 20),
}  # fmt: skip
RADII = {"small": (10, 13), "large": (18, 21)}
# row and column of the middles, the first shape's first
PLACES = {"to the left of": ((48, 36), (48, 93)), "above": ((25, 64), (72, 64))}
PAIRS = (
    "{A} is {place} {b} .",
    "There are two shapes , {a} and {b} .",
    "{A} {place} {b} on a striped background .",
    "The {first} is {colour} and the {second} is {other} .",
    "A picture of {a} that is {place} {b} .",
)
SINGLES = (
    "{A} on a striped background .",
    "There is {a} in the middle .",
    "A picture of one {first} , which is {colour} .",
    "The {first} is {size} and {colour} .",
    "Nothing but {a} can be seen .",
)


class Shape(NamedTuple):
    size: str
    colour: str
    kind: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.kind}"


def draw_scene(random: np.random.Generator) -> tuple[list[Shape], str]:
    """One shape or two, never of one colour, and where the first of two is."""
    colours = random.permutation(list(COLOURS))[:2]
    shapes = [Shape(str(random.choice(list(RADII))), str(c), str(random.choice(list(SHAPES)))) for c in colours]
    return shapes[: 1 + int(random.random() < 0.7)], str(random.choice(list(PLACES)))


def render(shapes: Sequence[Shape], place: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """(H, W, 3); the shapes are moved a little from their places."""
    image_hwc = ground(random)
    middles = PLACES[place] if len(shapes) == 2 else ((48, 64),)
    for shape, place_yx in zip(shapes, middles, strict=True):
        middle = np.array(place_yx) + random.uniform(-4, 4, 2)
        radius = random.uniform(*RADII[shape.size])
        inside_hw, _ = outline(SHAPES[shape.kind], middle, radius, random.uniform(-0.2, 0.2))
        image_hwc[inside_hw] = COLOURS[shape.colour] + random.normal(0, 8, (int(inside_hw.sum()), 1))
    return image_hwc.clip(0, 255).astype(np.uint8)


def describe(shapes: Sequence[Shape], place: str) -> list[str]:
    """Five captions that are true of the scene."""
    first, second = shapes[0], shapes[-1]
    text = str(first)
    words = {"a": text, "A": text[0].upper() + text[1:], "b": second, "place": place, "first": first.kind,
             "second": second.kind, "colour": first.colour, "other": second.colour, "size": first.size}  # fmt: skip
    return [template.format(**words) for template in (PAIRS if len(shapes) == 2 else SINGLES)]


def write_captions_sample(folder: Path, num_train: int, num_val: int, num_test: int) -> None:
    """`annotations/captions_{train,val}2014.json`, `dataset_coco.json` and the folders; val2014 has val and test."""
    from PIL import Image

    splits = [split for split, count in zip(SPLITS, (num_train, num_val, num_test), strict=True) for _ in range(count)]
    listed: dict[str, list[dict[str, Any]]] = {"train2014": [], "val2014": []}
    for number, split in enumerate(splits, 1):
        random = np.random.default_rng((VERSION, number))
        shapes, place = draw_scene(random)
        part = "train2014" if split == "train" else "val2014"
        path = folder / part / f"COCO_{part}_{number:012d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(render(shapes, place, random)).save(path, quality=90)
        sentences = [{"raw": text} for text in describe(shapes, place)]
        entry = {"filepath": part, "filename": path.name, "cocoid": number, "split": split, "sentences": sentences}
        listed[part].append(entry)
    (folder / "dataset_coco.json").write_text(
        json.dumps({"dataset": "coco", "images": [*listed["train2014"], *listed["val2014"]]})
    )
    (folder / "annotations").mkdir()
    for part, entries in listed.items():
        images = [{"id": entry["cocoid"], "file_name": entry["filename"]} for entry in entries]
        content = {"images": images, "annotations": list(_annotations(entries))}
        (folder / "annotations" / f"captions_{part}.json").write_text(json.dumps(content))


def _annotations(entries: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        for k, sentence in enumerate(entry["sentences"]):
            yield {"image_id": entry["cocoid"], "id": 10 * entry["cocoid"] + k, "caption": sentence["raw"]}


@dataclass
class SampleCaptions(COCO):
    """Writes the files under `root` on first use, then reads them as COCO's."""

    num_train: int = 200
    num_val: int = 40
    num_test: int = 40

    name: ClassVar[str] = "the captions sample"

    def read(self, cache_dir: Path) -> Parts:
        for key in ("num_train", "num_val", "num_test"):
            if not 1 <= getattr(self, key) <= 100_000:
                raise UserError(f"data.source.{key}={getattr(self, key)}: give 1 to 100000")
        sizes = (self.num_train, self.num_val, self.num_test)
        key = digest(VERSION, *sizes)
        written = build_once(Path(self.root) / key, lambda folder: write_captions_sample(folder, *sizes))
        chosen = {k: getattr(self, k) for k in ("on_error", "division", "division_seed", "paper_test", "paper_val")}
        return COCO(str(written), **chosen).read(cache_dir)
