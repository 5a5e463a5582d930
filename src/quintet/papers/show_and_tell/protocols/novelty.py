"""The fraction of generated captions that occur in training (Vinyals et al. 2015, section 4.3.4, table 3)."""

from pathlib import Path

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.metrics.captions.tokenizer import tokenize
from quintet.papers.show_and_tell.protocols.captioning import encoded_once, image_batches, need_captioner, words_of


class Novelty:
    """The fraction of the best captions, and of the n best, that occur word for word among the training captions.

    In the paper 80% of the best captions do, and about half of the 15 best. Words are compared without case and
    punctuation. captions: n. count: only so many images, evenly spread over the split.
    Writes novelty/captions.csv: image, rank, caption, log probability, number of occurrences in training.
    """

    def __init__(self, split: str = "test", beam_size: int = 20, captions: int = 15, count: int | None = None,
                 batch_size: int = 64) -> None:  # fmt: skip
        if not 1 <= captions <= beam_size:
            raise UserError(f"protocol.captions={captions} must be from 1 to protocol.beam_size={beam_size}")
        self.split, self.beam_size, self.captions = split, beam_size, captions
        self.count, self.batch_size = count, batch_size

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_captioner(module, "novelty")
        training: dict[str, int] = {}
        for text in words_of(datamodule.captions("train")):
            training[text] = training.get(text, 0) + 1
        names = datamodule.image_ids(self.split)
        rows: list[tuple] = []
        for batch in image_batches(datamodule, self.split, module.device, self.batch_size, self.count):
            source = encoded_once(module, batch)
            generated = module.generate(source, self.beam_size, method="beam", captions=self.captions)
            for image, captions in zip(batch.image_index.tolist(), generated, strict=True):
                for rank, one in enumerate(captions, 1):
                    rows.append((names[image], rank, one.text, one.log_probability, training.get(one.text, 0)))
        write_csv(Path(run_dir) / "novelty" / "captions.csv",
                  ("image", "rank", "caption", "log_probability", "in_training"), rows)  # fmt: skip
        best = [row for row in rows if row[1] == 1]
        words = {word for row in best for word in row[2].split()}
        every_image = range(datamodule.num_images(self.split))
        human = [text for texts in datamodule.references(self.split, every_image) for text in texts]
        return {
            "novelty/best_in_training": _fraction_in_training(best),
            f"novelty/best_{self.captions}_in_training": _fraction_in_training(rows),
            "novelty/human_in_training": sum(text in training for text in words_of(human)) / len(human),
            "novelty/different_best": len({row[2] for row in best}) / len(best),
            "novelty/words_used": float(len(words)),
            "novelty/words_known": float(len(module.vocabulary)),
            "novelty/human_words": float(len({word for text in human for word in tokenize(text)})),
        }


def _fraction_in_training(rows: list[tuple]) -> float:
    """The fraction of these captions that occur in training."""
    return sum(row[4] > 0 for row in rows) / len(rows)
