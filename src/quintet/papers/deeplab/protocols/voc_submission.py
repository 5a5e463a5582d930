"""The archive that PASCAL VOC's server scores: an index PNG for each image, under the devkit's names."""

import hashlib
import logging
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.segmentation.labels import index_picture
from quintet.data.segmentation.voc import CLASSES
from quintet.papers.deeplab.protocols.segmentation import SegmentationProtocol, mean_iou, need_segmentation

log = logging.getLogger(__name__)
COMPETITIONS = ("comp5", "comp6")


class VocSubmission(SegmentationProtocol):
    """comp6_test_cls.tar.gz with results/VOC2012/Segmentation/comp6_test_cls/<image>.png, read back and compared.

    competition: comp5, where nothing but VOC's own training data was used (not ImageNet either), or comp6. The list's
    name, `test`, is that of data.source: data.source.test=test for the server's images. Where the labels are known, as
    of val, mean IoU is that of the archive. For the other settings see SegmentationProtocol.
    """

    def __init__(self, competition: str = "comp6", **options) -> None:
        super().__init__(**options)
        if competition not in COMPETITIONS:
            raise UserError(f"protocol.competition={competition}: choose {' or '.join(COMPETITIONS)}")
        self.competition = competition

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_segmentation(module, datamodule, "voc_submission")
        indices, total = self.chosen(datamodule), datamodule.num_examples(self.split)
        if len(indices) < total:
            log.warning("voc_submission: %d of %d images; the server wants all", len(indices), total)
        if list(module.data_info["classes"]) != CLASSES:
            log.warning("voc_submission: the server wants VOC's 21 classes, this run has others")
        out_dir, folder = Path(run_dir) / "voc_submission", self.folder(datamodule)
        shutil.rmtree(out_dir / "results", ignore_errors=True)
        (out_dir / folder).mkdir(parents=True)
        written, truth = {}, {}
        for one, marginal_chw in self.refined(self.maps(module, datamodule, indices)):
            found_chw = one.probability_chw if marginal_chw is None else marginal_chw
            labels_hw = found_chw.argmax(0).byte().cpu().numpy()
            index_picture(labels_hw).save(out_dir / folder / f"{one.name}.png")
            written[f"{folder}/{one.name}.png"], truth[one.name] = key_of(labels_hw), one.labels_hw
        archive = out_dir / f"{folder.name}.tar.gz"
        with tarfile.open(archive, "w:gz") as bundle:
            bundle.add(out_dir / "results", "results")
        return self._checked(archive, written, truth, module)

    def folder(self, datamodule: Any) -> Path:
        """Of the PNGs in the archive, as VOCinit.m has it."""
        listed = getattr(datamodule.source, self.split, self.split)
        return Path(
            "results", f"VOC{datamodule.source.year or 2012}", "Segmentation", f"{self.competition}_{listed}_cls"
        )

    def _checked(self, archive: Path, written: dict[str, str], truth: dict[str, NDArray | None],
                 module: Any) -> dict[str, float]:  # fmt: skip
        metric, found = mean_iou(module).cpu(), {}
        for name, labels_hw in read_archive(archive):
            found[name] = key_of(labels_hw)
            labelled_hw = truth[Path(name).stem]
            if labelled_hw is not None:
                metric.update(torch.from_numpy(labels_hw).long()[None], torch.from_numpy(labelled_hw).long()[None])
        if found != written:
            raise UserError(f"{archive} does not hold what was predicted: is the disk full? Run it again")
        known = all(labelled_hw is not None for labelled_hw in truth.values())
        scores = {f"voc_submission/{k}": float(v) for k, v in metric.compute().items()} if known else {}
        return scores | {"voc_submission/images": float(len(found)), "voc_submission/megabytes": megabytes(archive)}


def read_archive(archive: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Name and class numbers (H, W) of each PNG, as the server's own program reads them: its palette's indices."""
    from PIL import Image

    with tarfile.open(archive) as bundle:
        for member in bundle:
            if member.isfile():
                with Image.open(cast(IO[bytes], bundle.extractfile(member))) as picture:
                    if picture.mode != "P" or picture.format != "PNG":
                        raise UserError(f"{archive}: {member.name} is not a PNG with a palette")
                    yield member.name, np.array(picture)


def key_of(labels_hw: NDArray[np.uint8]) -> str:
    """To compare pictures without keeping them."""
    return hashlib.sha256(f"{labels_hw.shape} ".encode() + labels_hw.tobytes()).hexdigest()


def megabytes(path: Path) -> float:
    return path.stat().st_size / 1e6
