"""MS COCO 2014 captions (Chen et al. 2015): 82,783 training and 40,504 validation images, five captions or more."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar

from quintet.common.errors import UserError
from quintet.data.captions.division import drawn
from quintet.data.captions.karpathy import read_karpathy
from quintet.data.captions.layout import Place, read_json
from quintet.data.captions.source import Caption, CaptionSource, Parts, Picture

DIVISIONS = ("karpathy", "official", "im2txt", "paper")
PAPER_TEST, PAPER_VAL = 4000, 1000
IM2TXT = (0.85, 0.90)  # of the validation images in the order of their file: training, validation, the rest test


@dataclass
class COCO(CaptionSource):
    """`annotations/captions_{train,val}2014.json` and the folders train2014 and val2014, or the zips of all three.

    division: karpathy: 113,287 / 5,000 / 5,000 of dataset_coco.json, which most papers report. official: val2014 is
    val, and the test captions are on the server only. im2txt: the authors' code, of val2014 the first 85% trained on,
    the last 4,051 images tested on. paper: `paper_test` images of val2014 drawn by `division_seed` (the paper's own 4k
    were never published), as many as `paper_val` others to validate on, train2014 to train on.
    """

    division: str = "karpathy"
    division_seed: int = 0
    paper_test: int = PAPER_TEST
    paper_val: int = PAPER_VAL

    name: ClassVar[str] = "COCO 2014"
    put: ClassVar[str] = "annotations_trainval2014.zip, train2014.zip and val2014.zip"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.division not in DIVISIONS:
            raise UserError(f"data.source.division={self.division}: choose {', '.join(DIVISIONS)}")

    def read(self, cache_dir: Path) -> Parts:
        place = self.place(cache_dir)
        if self.division == "karpathy":
            folders = {part: self._folder(place, part) for part in ("train2014", "val2014")}
            path = place.need(("dataset_coco.json",), ("*caption_datasets*",))
            return read_karpathy(path, lambda entry: folders[entry["filepath"]] / entry["filename"])
        train, val = (self._official(place, part) for part in ("train2014", "val2014"))
        if self.division == "official":
            return Parts({"train": train, "val": val}, {"test": "COCO's test captions are on its server only"})
        if self.division == "im2txt":
            first, second = (int(share * len(val)) for share in IM2TXT)
            return Parts({"train": [*train, *val[:first]], "val": val[first:second], "test": val[second:]})
        keys = "data.source.paper_val, data.source.paper_test"
        held_out = drawn(val, self.paper_val, self.paper_test, self.division_seed, keys).pictures
        return Parts(held_out | {"train": train})

    def _folder(self, place: Place, part: str) -> Path:
        """Where its images are, or would be."""
        return place.find((part,), (f"{part}*",)) or place.folder / part

    def _official(self, place: Place, part: str) -> list[Picture]:
        path = place.need((f"captions_{part}.json",), ("annotations*", "captions*"))
        return read_coco(path, self._folder(place, part))


def read_coco(path: Path, folder: Path) -> list[Picture]:
    """Images in the order of the file, captions in that of their ids.

    Raises UserError for an image id that occurs twice, and for a caption of an image that is not listed.
    """
    content = read_json(path, "images", "annotations")
    captions: dict[Any, list[tuple[Any, str]]] = {}
    files: dict[Any, str] = {}
    for image in content["images"]:
        if _get(image, "id", path) in files:
            raise UserError(f"{path}: image id {image['id']} is there twice: an image belongs to one split, once")
        files[image["id"]], captions[image["id"]] = _get(image, "file_name", path, str), []
    for annotation in content["annotations"]:
        image = _get(annotation, "image_id", path)
        if image not in captions:
            raise UserError(f"{path}: a caption is of image {image}, which `images` does not list")
        captions[image].append((_get(annotation, "id", path), _get(annotation, "caption", path, str)))
    return [
        Picture(
            str(image),
            folder / name,
            [Caption(t, f"{path}, annotation {k}") for k, t in sorted(captions[image], key=_by_id)],
        )
        for image, name in files.items()
    ]


def _by_id(pair: tuple[int | str, str]) -> tuple[bool, int | str, str]:
    """Numbers before texts, which cannot be compared."""
    return isinstance(pair[0], str), *pair


def _get(entry: Mapping[str, Any], key: str, path: Path, kind: type | UnionType = int | str) -> Any:
    if not isinstance(entry, Mapping) or key not in entry:
        raise UserError(f"{path}: an entry without {key!r}: {str(entry)[:80]}")
    if not isinstance(entry[key], kind):
        raise UserError(f"{path}: {key!r} is {str(entry[key])[:40]!r} in an entry: {str(entry)[:80]}")
    return entry[key]
