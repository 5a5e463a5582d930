"""Mean IoU at full resolution: test-time scales and mirror images, before and after the CRF (Chen et al. 2017, 4.1)."""

from pathlib import Path

from quintet.common.tables import write_csv
from quintet.papers.deeplab.protocols.segmentation import SegmentationProtocol, mean_iou, need_labels, need_segmentation


class Multiscale(SegmentationProtocol):
    """mean IoU, pixel accuracy and the IoU of each class, each from one confusion matrix of all images.

    Numbers after the CRF end in `_crf`. What was padded is cut off; the CRF sees the picture of the file.
    Writes multiscale/classes.csv under `run_dir`. For the other settings see SegmentationProtocol.
    """

    def __init__(self, **options) -> None:
        super().__init__(**options)

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_segmentation(module, datamodule, "multiscale")
        indices = self.chosen(datamodule)
        measured = {end: mean_iou(module) for end in ("", "_crf")[: 1 + (self.crf is not None)]}
        for one, marginal_chw in self.refined(self.maps(module, datamodule, indices)):
            labels_bhw = need_labels(one, self.split)
            measured[""].update(one.probability_chw.argmax(0)[None], labels_bhw)
            if marginal_chw is not None:
                measured["_crf"].update(marginal_chw.argmax(0)[None], labels_bhw)
        values = {end: {k: float(v) for k, v in metric.compute().items()} for end, metric in measured.items()}
        self._write(Path(run_dir) / "multiscale" / "classes.csv", module.data_info["classes"], values)
        names = list(dict.fromkeys(name for found in values.values() for name in found))
        named = {f"multiscale/{n}{end}": v[n] for n in names for end, v in values.items() if n in v}
        return named | {"multiscale/images": float(len(indices))}

    @staticmethod
    def _write(path: Path, classes: list[str], values: dict[str, dict[str, float]]) -> None:
        header = ["class", *(f"iou{end}" for end in values)]
        rows = [[name, *(found.get(f"iou_{name}", float("nan")) for found in values.values())] for name in classes]
        write_csv(path, header, rows)
