"""The frozen encoder's output for every image: computed once, a memory-mapped array a split."""

import logging
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from quintet.backbones.encoder import Encoder, EncoderConfig
from quintet.data.captions.table import CaptionTable
from quintet.data.captions.views import Views
from quintet.data.examples.store import ArrayInputs
from quintet.data.store import build_once, digest

log = logging.getLogger(__name__)
FORMAT = 1  # raise when the computed features change
BATCH = 32
REPORT = 1000  # images between two lines of the log


class Pictures(Dataset):
    """The images of a split as they are evaluated."""

    def __init__(self, table: CaptionTable, views: Views) -> None:
        self.table, self.views = table, views

    def __len__(self) -> int:
        return self.table.num_images

    def __getitem__(self, image: int) -> torch.Tensor:
        return self.views.evaluated(self.table.picture(image))


def cached_features(config: EncoderConfig, table: CaptionTable, views: Views, cache_dir: Path,
                    num_workers: int = 0) -> ArrayInputs:  # fmt: skip
    """(I, F) float32 of a split, computed at the first use; other processes wait meanwhile.

    Keyed by the encoder's weights, the view and the content of every image file: neither where the files lie nor what
    their captions say matters.
    """
    key = digest(FORMAT, config.cache_key(), views.key(), table.hashes())
    target = cache_dir / "features" / f"{config.name}-{key}"
    folder = build_once(target, lambda path: _write(path, config, table, views, num_workers))
    return ArrayInputs(folder / "features.npy")


@torch.inference_mode()
def _write(folder: Path, config: EncoderConfig, table: CaptionTable, views: Views, num_workers: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, count, done = Encoder(config).to(device), table.num_images, 0
    log.info("computing %s features of %d %s images on %s, once", config.name, count, table.split, device)
    out = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (count, encoder.width))
    own = torch.Generator()  # making an iterator draws a number, which must not come from the training's random state
    for images_ichw in DataLoader(Pictures(table, views), BATCH, num_workers=num_workers, generator=own):
        features = encoder(images_ichw.to(device)).cpu().numpy()
        out[done : done + len(features)] = features
        if (done + len(features)) // REPORT > done // REPORT:
            log.info("%d of %d", done + len(features), count)
        done += len(features)
