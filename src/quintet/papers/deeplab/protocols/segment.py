"""Any picture, or a folder of them, through the network and the CRF: overlays, and PNGs of class numbers."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.data.pictures import find_pictures, read_upright
from quintet.data.segmentation.labels import index_picture
from quintet.papers.deeplab.media import TRUTH, draw, overlay
from quintet.papers.deeplab.protocols.segmentation import Mapped, SegmentationProtocol, need_segmentation, precision_of

log = logging.getLogger(__name__)
FOLDERS = ("panels", "overlays", "labels")
LEAST = 0.001  # smallest share of an image for which a class is listed in the table


class Segment(SegmentationProtocol):
    """Pictures of any kind and size, turned upright; without `inputs` `count` images of `split`, with their truth.

    inputs: a picture, a folder (also what is in its folders), or a list of them. max_side: larger pictures are shrunk
    for network and CRF; what is written has the size of the file. For the other settings see SegmentationProtocol.
    Writes under <run_dir>/segment for each picture panels/<name>.png (side by side, before and after the CRF),
    overlays/<name>.png, labels/<name>.png (the class numbers, VOC's colors as palette), and classes.csv. What cannot
    be read is left out, and named in the end by a UserError.
    """

    def __init__(self, inputs: str | list[str] | None = None, max_side: int | None = 1025, count: int | None = 8,
                 **options) -> None:  # fmt: skip
        super().__init__(count=count, **options)
        if max_side is not None and max_side < 1:
            raise UserError(f"protocol.max_side={max_side}: give pixels, 1 or more, or null")
        self.inputs, self.max_side = [inputs] if isinstance(inputs, str) else inputs, max_side

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_segmentation(module, datamodule, "segment")
        out_dir, classes = Path(run_dir) / "segment", module.data_info["classes"]
        failed: list[Any] = []
        if self.inputs is None:
            maps = self.maps(module, datamodule, self.chosen(datamodule))
        else:
            maps = self._of_files(module, datamodule, find_pictures(self.inputs), failed)
        for folder in FOLDERS:
            (out_dir / folder).mkdir(parents=True, exist_ok=True)
        rows, changed = [], []
        for one, marginal_chw in self.refined(maps):
            found = [p.argmax(0).byte().cpu().numpy() for p in (one.probability_chw, marginal_chw) if p is not None]
            self._write(out_dir, one, found, classes)
            rows += shares(one.name, found, classes)
            changed.append((found[0] != found[-1]).mean())
        write_csv(out_dir / "classes.csv", ("image", "class", "share", "share_before_crf"), rows)
        if failed:
            told = "; ".join(failed[:5]) + (f"; and {len(failed) - 5} more" if len(failed) > 5 else "")
            raise UserError(f"{len(failed)} of {len(failed) + len(changed)} pictures were left out, the others are in"
                            f" {out_dir}: {told}")  # fmt: skip
        return {"segment/images": float(len(changed)), "segment/pixels_changed_by_crf": float(np.mean(changed))}

    def _of_files(self, module: Any, datamodule: Any, files: dict[str, Path], failed: list[str]) -> Iterator[Mapped]:
        inference, precision = self.inference(datamodule), precision_of(datamodule)
        for name, path in files.items():
            try:
                whole_hwc = read_upright(path)
            except UserError as error:
                log.warning("%s", error)
                failed.append(str(error).partition(";")[0])
                continue
            image_hwc = shrunk(whole_hwc, self.max_side)
            probability_chw = inference.probabilities(module, image_hwc, precision)
            yield Mapped(name, image_hwc, None, probability_chw, whole_hwc)

    def _write(self, out_dir: Path, one: Mapped, found: Sequence[NDArray], classes: Sequence[str]) -> None:
        from PIL import Image

        image_hwc = one.image_hwc if one.whole_hwc is None else one.whole_hwc
        height, width = image_hwc.shape[:2]
        labels = index_picture(found[-1]).resize((width, height), Image.Resampling.NEAREST)
        labels.save(out_dir / "labels" / f"{one.name}.png")
        laid_hwc = overlay(image_hwc / 255, np.asarray(labels))
        Image.fromarray((255 * laid_hwc).round().astype(np.uint8)).save(out_dir / "overlays" / f"{one.name}.png")
        truth = [] if one.labels_hw is None else [one.labels_hw]
        titles = [TRUTH] * len(truth) + ["network", "after the CRF"][: len(found)]
        draw([(one.image_hwc / 255, *truth, *found)], titles, classes, out_dir / "panels" / f"{one.name}.png")


def shrunk(image_hwc: NDArray[np.uint8], most: int | None) -> NDArray[np.uint8]:
    """The picture with its longer side brought down to `most` pixels."""
    from PIL import Image

    longer = max(image_hwc.shape[:2])
    if most is None or longer <= most:
        return image_hwc
    height, width = (max(1, round(side * most / longer)) for side in image_hwc.shape[:2])
    return np.array(Image.fromarray(image_hwc).resize((width, height), Image.Resampling.BILINEAR))


def shares(name: str, found: Sequence[NDArray], classes: Sequence[str]) -> list[tuple]:
    """Rows (image, class, share of the pixels, share before the CRF), the largest first."""
    counted = [np.bincount(labels_hw.ravel(), minlength=len(classes)) / labels_hw.size for labels_hw in found]
    before, after = counted[0].tolist(), counted[-1].tolist()
    kept = [c for c in range(len(classes)) if max(before[c], after[c]) >= LEAST]
    return [(name, classes[c], after[c], before[c]) for c in sorted(kept, key=lambda c: -after[c])]
