"""How many generated captions are sentences of the training captions? (Vinyals et al. 2015, section 4.3.4, table 3.)"""

from pathlib import Path

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.metrics.captions.tokenizer import tokenize
from quintet.papers.show_and_tell.protocols.captioning import encoded_once, image_batches, need_captioner, words_of


class Novelty:
    """The share of best captions that stand word for word in training, and of the n best ones.

    The paper: 80 % of the best ones do, and about half of the 15 best ones do not. Compared are words, without case and
    punctuation. beam_size: of the search. captions: n. count: only so many images, spread over the split.
    Writes novelty/captions.csv: image, rank, caption, log probability, how often it is in training.
    """

    def __init__(self, split: str = "test", beam_size: int = 20, captions: int = 15, count: int | None = None,
                 batch_size: int = 64) -> None:  # fmt: skip
        if not 1 <= captions <= beam_size:
            raise UserError(f"protocol.captions={captions}: give 1 to protocol.beam_size={beam_size}")
        self.split, self.beam_size, self.captions = split, beam_size, captions
        self.count, self.batch_size = count, batch_size

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_captioner(module, "novelty")
        training: dict[str, int] = {}
        for text in words_of(datamodule.captions("train")):
            training[text] = training.get(text, 0) + 1
        names, rows = datamodule.image_ids(self.split), []
        for batch in image_batches(datamodule, self.split, module.device, self.batch_size, self.count):
            source = encoded_once(module, batch)
            said = module.generate(source, self.beam_size, method="beam", captions=self.captions)
            for image, captions in zip(batch.image_index.tolist(), said, strict=True):
                for rank, one in enumerate(captions, 1):
                    rows.append((names[image], rank, one.text, one.log_probability, training.get(one.text, 0)))
        write_csv(Path(run_dir) / "novelty" / "captions.csv",
                  ("image", "rank", "caption", "log_probability", "in_training"), rows)  # fmt: skip
        best = [row for row in rows if row[1] == 1]
        words = {word for row in best for word in row[2].split()}
        human = [text for texts in datamodule.references(self.split, _all(datamodule, self.split)) for text in texts]
        return {
            "novelty/best_in_training": _share(best),
            f"novelty/best_{self.captions}_in_training": _share(rows),
            "novelty/human_in_training": sum(text in training for text in words_of(human)) / len(human),
            "novelty/different_best": len({row[2] for row in best}) / len(best),
            "novelty/words_used": float(len(words)),
            "novelty/words_known": float(len(module.vocabulary)),
            "novelty/human_words": float(len({word for text in human for word in tokenize(text)})),
        }


def _share(rows: list[tuple]) -> float:
    """Of captions that are in training."""
    return sum(row[4] > 0 for row in rows) / len(rows)


def _all(datamodule, split: str) -> range:
    return range(datamodule.num_images(split))
