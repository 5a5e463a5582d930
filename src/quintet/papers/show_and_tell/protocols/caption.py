"""Captions of any pictures, in a table and on a contact sheet."""

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.data.pictures import find_pictures, read_upright
from quintet.papers.show_and_tell.media import contact_sheet
from quintet.papers.show_and_tell.protocols.captioning import best_text, need_captioner, spread

log = logging.getLogger(__name__)


class Picture(NamedTuple):
    """A picture to be captioned."""

    name: str
    view: torch.Tensor  # (3, H, W) as the encoder sees it
    pixels: np.ndarray  # (H, W, 3) uint8
    below: str  # text below it on the contact sheet


class Caption:
    """Captions of a picture, of the pictures in a folder or list, or without `inputs` of `count` images of `split`.

    Pictures may have any format and size. They are rotated upright and preprocessed as the run's data. captions: number
    for each picture, best first. beam_size: at least as many, null = `model.decoding.beam_size`. method: beam | greedy
    | sample. Writes caption/captions.csv (picture, rank, caption, log probability) and captions.png: the first `sheet`
    pictures with their best caption, and below it a reference for images of a split.
    Errors: a UserError at the end names the pictures that could not be read; the others are captioned.
    """

    def __init__(self, inputs: str | list[str] | None = None, split: str = "test", count: int | None = 20,
                 captions: int = 1, beam_size: int | None = None, method: str = "beam", temperature: float = 1.0,
                 sheet: int = 20, batch_size: int = 32, seed: int = 0) -> None:  # fmt: skip
        for key, value in (("captions", captions), ("sheet", sheet), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"protocol.{key}={value} must be at least 1")
        self.inputs, self.split, self.count = [inputs] if isinstance(inputs, str) else inputs, split, count
        self.settings = {"captions": captions, "method": method, "temperature": temperature}
        self.beam_size, self.sheet, self.batch_size, self.seed = beam_size, sheet, batch_size, seed

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_captioner(module, "caption")
        out_dir = Path(run_dir) / "caption"
        failed: list[str] = []
        pictures = self._of_split(datamodule) if self.inputs is None else self._of_files(datamodule, failed)
        generator = torch.Generator(module.device).manual_seed(self.seed)
        rows: list[tuple] = []
        cells: list[tuple] = []
        for batch in _batches(pictures, self.batch_size):
            images = torch.stack([view for _, view, _, _ in batch]).to(module.device)
            generated = module.generate(images, self.beam_size, generator=generator, **self.settings)
            for (name, _, picture, below), captions in zip(batch, generated, strict=True):
                rows.extend((name, n, one.text, one.log_probability) for n, one in enumerate(captions, 1))
                if len(cells) < self.sheet:
                    cells.append((picture / 255, best_text(captions), below))
                log.info("%s: %s", name, best_text(captions) or "(no caption)")
        if rows:
            write_csv(out_dir / "captions.csv", ("picture", "rank", "caption", "log_probability"), rows)
            contact_sheet(cells, out_dir / "captions.png")
        if failed:
            reasons = "; ".join(failed[:5]) + (f"; and {len(failed) - 5} more" if len(failed) > 5 else "")
            raise UserError(f"{len(failed)} pictures could not be read, the others are in {out_dir}: {reasons}")
        return {"caption/pictures": float(len({row[0] for row in rows})), "caption/captions": float(len(rows))}

    def _of_split(self, datamodule) -> Iterator[Picture]:
        """The images of the split, with one of their own captions each."""
        names = datamodule.image_ids(self.split)
        for image in spread(len(names), None if self.count is None else min(self.count, len(names))):
            (view,) = datamodule.images(self.split, [image])
            own = datamodule.references(self.split, [image])[0][0]
            yield Picture(names[image], view, datamodule.picture(self.split, image), own)

    def _of_files(self, datamodule, failed: list[str]) -> Iterator[Picture]:
        """The pictures of `inputs`; the reasons why others could not be read are appended to `failed`."""
        assert self.inputs is not None
        for name, path in find_pictures(self.inputs).items():
            try:
                picture = read_upright(path)
            except UserError as error:
                log.warning("%s", error)
                failed.append(str(error).partition(";")[0])
                continue
            view = datamodule.views.evaluated(torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1))
            yield Picture(name, view, picture, "")


def _batches(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    """Lists of at most `size` pictures, which are read only when they are needed."""
    pictures = iter(pictures)
    while batch := list(islice(pictures, size)):
        yield batch
