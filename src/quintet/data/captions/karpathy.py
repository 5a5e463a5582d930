"""The splits that most captioning papers report (Karpathy & Fei-Fei 2015): dataset_{coco,flickr8k,flickr30k}.json."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quintet.common.errors import UserError
from quintet.data.captions.layout import read_json
from quintet.data.captions.source import SPLITS, Caption, Parts, Picture

SPLIT_OF = {split: split for split in SPLITS} | {"restval": "train"}  # of COCO's val, trained on by most


def read_karpathy(path: Path, image_of: Callable[[Mapping[str, Any]], Path]) -> Parts:
    """image_of: an image's entry, with `filename` and for COCO `filepath`, to its file.

    Raises UserError naming the image of an entry that is incomplete or of a split that there is not.
    """
    parts = Parts({split: [] for split in SPLITS})
    for number, entry in enumerate(read_json(path, "images")["images"]):
        try:
            name = str(entry.get("cocoid", entry["filename"]))
            texts, split = [sentence["raw"] + "" for sentence in entry["sentences"]], str(entry["split"])  # texts only
            file = image_of(entry)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, image {number}: no {error}: is it Karpathy's dataset_*.json?") from error
        if split not in SPLIT_OF:
            raise UserError(f"{path}, image {name}: split {split!r} is none of {', '.join(SPLIT_OF)}")
        captions = [Caption(text, f"{path}, image {name}, sentence {k}") for k, text in enumerate(texts)]
        parts.pictures[SPLIT_OF[split]].append(Picture(name, file, captions))
    return parts
