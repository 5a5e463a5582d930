"""Captions of any pictures, for a person's eyes."""

import logging
from pathlib import Path

import numpy as np
import torch

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.data.pictures import find_pictures, read_upright
from quintet.papers.show_and_tell.media import contact_sheet
from quintet.papers.show_and_tell.protocols.captioning import need_captioner, spread

log = logging.getLogger(__name__)


class Caption:
    """Captions of a picture, a folder or a list of them; without `inputs` of up to `count` images of `split`.

    Pictures of any kind and size, turned upright, shown to the encoder as the run's data are. captions: of each
    picture, best first; beam_size: at least as many, null = `model.decoding.beam_size`. method: beam | greedy | sample.
    Writes caption/captions.csv (picture, rank, caption, log probability) and captions.png, `sheet` pictures with their
    best caption; those of a split with one of their own below. What cannot be read is left out, and named in the end
    by a UserError.
    """

    def __init__(self, inputs: str | list[str] | None = None, split: str = "test", count: int | None = 20,
                 captions: int = 1, beam_size: int | None = None, method: str = "beam", temperature: float = 1.0,
                 sheet: int = 20, batch_size: int = 32, seed: int = 0) -> None:  # fmt: skip
        for key, value in (("captions", captions), ("sheet", sheet), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"protocol.{key}={value}: give 1 or more")
        self.inputs, self.split, self.count = [inputs] if isinstance(inputs, str) else inputs, split, count
        self.settings = {"captions": captions, "method": method, "temperature": temperature}
        self.beam_size, self.sheet, self.batch_size, self.seed = beam_size, sheet, batch_size, seed

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_captioner(module, "caption")
        out_dir, failed = Path(run_dir) / "caption", []
        shown = self._of_split(datamodule) if self.inputs is None else self._of_files(datamodule, failed)
        generator = torch.Generator(module.device).manual_seed(self.seed)
        rows, cells, waiting = [], [], []

        def finish() -> None:
            images = torch.stack([view for _, view, _, _ in waiting]).to(module.device)
            said = module.generate(images, self.beam_size, generator=generator, **self.settings)
            for (name, _, picture, below), captions in zip(waiting, said, strict=True):
                rows.extend((name, n, one.text, one.log_probability) for n, one in enumerate(captions, 1))
                if len(cells) < self.sheet:
                    cells.append((picture / 255, captions[0].text if captions else "", below))
                log.info("%s: %s", name, captions[0].text if captions else "(nothing)")
            waiting.clear()

        for one in shown:
            waiting.append(one)
            if len(waiting) == self.batch_size:
                finish()
        if waiting:
            finish()
        if rows:
            write_csv(out_dir / "captions.csv", ("picture", "rank", "caption", "log_probability"), rows)
            contact_sheet(cells, out_dir / "captions.png")
        if failed:
            told = "; ".join(failed[:5]) + (f"; and {len(failed) - 5} more" if len(failed) > 5 else "")
            raise UserError(f"{len(failed)} pictures were left out, the others are in {out_dir}: {told}")
        return {"caption/pictures": float(len({row[0] for row in rows})), "caption/captions": float(len(rows))}

    def _of_split(self, datamodule):
        """Name, view, picture and a caption of its own of each image."""
        names = datamodule.image_ids(self.split)
        for image in spread(len(names), None if self.count is None else min(self.count, len(names))):
            (view,) = datamodule.images(self.split, [image])
            own = datamodule.references(self.split, [image])[0][0]
            yield names[image], view, datamodule.picture(self.split, image), own

    def _of_files(self, datamodule, failed: list[str]):
        for name, path in find_pictures(self.inputs).items():
            try:
                picture = read_upright(path)
            except UserError as error:
                log.warning("%s", error)
                failed.append(str(error).partition(";")[0])
                continue
            view = datamodule.views.evaluated(torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1))
            yield name, view, picture, ""
