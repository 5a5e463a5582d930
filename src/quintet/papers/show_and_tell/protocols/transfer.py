"""Evaluation on a data set that the run was not trained on (Vinyals et al. 2015, section 4.3.3)."""

from pathlib import Path

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.metrics.captions.metrics import NAMES, scores
from quintet.papers.show_and_tell.protocols.captioning import (
    best_text,
    encoded_once,
    image_batches,
    need_captioner,
    words_of,
)


class Transfer:
    """Caption metrics on the images of `data` (a choice of conf/data), preprocessed as those of training.

    The run keeps its own vocabulary: `unknown_words` is the fraction of the other data set's words that it does not
    contain. root: folder of the data set, null = that of conf/data. beam_size: null = `model.decoding.beam_size`.
    count: only so many images, evenly spread over the split. For the run's own data use protocol=caption_metrics.
    Writes transfer/captions.csv.
    """

    def __init__(self, data: str | None = None, root: str | None = None, split: str = "test",
                 beam_size: int | None = None, count: int | None = None, batch_size: int = 64) -> None:  # fmt: skip
        self.data, self.root, self.split = data, root, split
        self.beam_size, self.count, self.batch_size = beam_size, count, batch_size

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_captioner(module, "transfer")
        other = self._other(datamodule)
        other.use_vocabulary(module.vocabulary)
        images: list[int] = []
        texts: list[str] = []
        for batch in image_batches(other, self.split, module.device, self.batch_size, self.count):
            images += batch.image_index.tolist()
            texts += map(best_text, module.generate(encoded_once(module, batch), self.beam_size))
        references = other.references(self.split, images)
        names = other.image_ids(self.split)
        write_csv(Path(run_dir) / "transfer" / "captions.csv", ("image", "caption", "reference"),
                  [(names[i], text, of[0]) for i, text, of in zip(images, texts, references, strict=True)])  # fmt: skip
        known = set(module.vocabulary)
        words = [word for of in references for text in words_of(of) for word in text.split()]
        values = scores(texts, references)
        return {f"transfer/{name}": values[name] for name in NAMES} | {
            "transfer/images": float(len(images)),
            "transfer/unknown_words": sum(word not in known for word in words) / len(words),
        }

    def _other(self, datamodule):
        """The other data set, with image size and preprocessing of this one."""
        from quintet.data.captions.datamodule import CaptionDataModule
        from quintet.harness.config.build import build
        from quintet.harness.config.compose import compose_config

        if self.data is None:
            raise UserError(
                "protocol.data is null: name the data set to caption, protocol.data=pascal_sentences protocol.root=..."
            )
        chosen = ["model=show_and_tell", f"data={self.data}", f"paths.cache_dir={datamodule.cache_dir}"]
        cfg = compose_config("train", chosen + ([] if self.root is None else [f"data.root={self.root}"]))
        if cfg.data._target_ != f"{CaptionDataModule.__module__}.{CaptionDataModule.__name__}":
            raise UserError(f"protocol.data={self.data} has no captions: choose a captioning data set of conf/data")
        views = datamodule.views
        return CaptionDataModule(
            build(cfg.data.source), str(datamodule.cache_dir), root=cfg.data.root, resize_size=views.resize_size,
            crop_size=views.crop_size, keep_aspect=views.keep_aspect, eval_batch_size=self.batch_size,
            num_workers=datamodule.num_workers,
        )  # fmt: skip
