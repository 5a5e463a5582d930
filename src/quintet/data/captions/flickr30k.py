"""Flickr30k (Young et al. 2014): 31,783 photographs with five captions each."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quintet.common.errors import UserError
from quintet.data.captions.division import drawn
from quintet.data.captions.flickr8k import read_tokens
from quintet.data.captions.karpathy import read_karpathy
from quintet.data.captions.source import CaptionSource, Parts, Picture

DIVISIONS = ("karpathy", "drawn")
IMAGES = ("flickr30k-images", "flickr30k_images")
HELD_OUT = 1000


@dataclass
class Flickr30k(CaptionSource):
    """results_20130124.token and flickr30k-images, or their archives (flickr30k.tar.gz, flickr30k-images.tar).

    division: karpathy: 29,000 / 1,014 / 1,000 of dataset_flickr30k.json. drawn: as many to validate and to test on as
    in the paper, 1,000 each, drawn by `division_seed` (its lists were not published), and the rest to train on.
    """

    division: str = "karpathy"
    division_seed: int = 0

    name: ClassVar[str] = "Flickr30k"
    put: ClassVar[str] = "flickr30k.tar.gz and flickr30k-images.tar"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.division not in DIVISIONS:
            raise UserError(f"data.source.division={self.division}: choose {' or '.join(DIVISIONS)}")

    def read(self, cache_dir: Path) -> Parts:
        place = self.place(cache_dir)
        images = place.need(IMAGES, ("flickr30k-images*", "flickr30k_images*"))
        if self.division == "karpathy":
            path = place.need(("dataset_flickr30k.json",), ("*caption_datasets*", "flickr30k.zip"))
            return read_karpathy(path, lambda entry: images / entry["filename"])
        captions = read_tokens(place.need(("results_20130124.token",), ("flickr30k.*",)))
        pictures = [Picture(name, images / name, texts) for name, texts in captions.items()]
        return drawn(pictures, HELD_OUT, HELD_OUT, self.division_seed, "data.source.division=drawn")
