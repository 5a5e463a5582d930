"""Flickr8k (Hodosh et al. 2013): 6,000 / 1,000 / 1,000 photographs with five captions each."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quintet.common.errors import UserError
from quintet.data.captions.layout import read_lines
from quintet.data.captions.source import Caption, CaptionSource, Parts, Picture

LISTS = {"train": "trainImages", "val": "devImages", "test": "testImages"}
IMAGES = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images")  # the first is how the archive spells it


@dataclass
class Flickr8k(CaptionSource):
    """Flickr8k_Dataset.zip and Flickr8k_text.zip, or what is in them, in one folder; the official split."""

    name: ClassVar[str] = "Flickr8k"
    put: ClassVar[str] = "Flickr8k_Dataset.zip and Flickr8k_text.zip"

    def read(self, cache_dir: Path) -> Parts:
        place = self.place(cache_dir)
        captions = read_tokens(place.need(("Flickr8k.token.txt",), ("*text*",)))
        images = place.need(IMAGES, ("*Dataset*",))
        parts = Parts({})
        for split, kind in LISTS.items():
            listed = place.find((f"Flickr_8k.{kind}.txt",), ("*text*",))
            if listed is None:
                parts.missing[split] = f"there is no Flickr_8k.{kind}.txt beside Flickr8k.token.txt"
                continue
            names = [line.strip() for line in read_lines(listed) if line.strip()]
            parts.pictures[split] = [Picture(n, images / n, found(captions, n, listed)) for n in names]
        return parts


def read_tokens(path: Path) -> dict[str, list[Caption]]:
    """`image.jpg#k<TAB>caption` a line -> the captions of each image, in the order of k.

    Raises UserError naming file and line of one that is not so, or whose number k occurs twice for an image.
    """
    found: dict[str, dict[int, Caption]] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        key, tab, text = line.partition("\t")
        image, mark, k = key.rpartition("#")
        if not (tab and mark and image and k.strip().isdigit()):
            raise UserError(f"{path}, line {number}: not `image.jpg#0<TAB>caption` but {line[:60]!r}")
        captions = found.setdefault(image, {})
        if int(k) in captions:
            raise UserError(f"{path}, line {number}: caption {k} of {image} is there twice")
        captions[int(k)] = Caption(text.strip(), f"{path}, line {number}")
    return {image: [captions[k] for k in sorted(captions)] for image, captions in found.items()}


def found(captions: dict[str, list[Caption]], name: str, listed: Path | str) -> list[Caption]:
    """Raises UserError for an image on the list that has no captions."""
    if name not in captions:
        raise UserError(f"{listed} names {name}, which has no captions: is the list another data set's?")
    return captions[name]
