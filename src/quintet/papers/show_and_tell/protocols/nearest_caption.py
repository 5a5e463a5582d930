"""A baseline without a language model: captions of the most similar training images (Devlin et al. 2015)."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.metrics.captions.metrics import NAMES, scores
from quintet.metrics.captions.tokenizer import tokenize
from quintet.papers.show_and_tell.protocols.captioning import image_batches, need_captioner

LONGEST = 4  # length of the longest n-grams


class NearestCaption:
    """Each image gets a caption of the training images whose encoder features have the highest cosine with its own.

    first: the first caption of the nearest image. consensus: among all captions of the `neighbours` nearest images, the
    one with the highest mean similarity to the `agreeing` captions that are most similar to it, by the cosine of tf-idf
    weighted n-grams as in CIDEr. Of the run only the encoder is used. count: only so many images, evenly spread over
    the split. Writes nearest_caption/captions.csv.
    """

    def __init__(self, split: str = "test", neighbours: int = 90, agreeing: int = 125, count: int | None = None,
                 batch_size: int = 64) -> None:  # fmt: skip
        for key, value in (("neighbours", neighbours), ("agreeing", agreeing), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"protocol.{key}={value} must be at least 1")
        self.split, self.neighbours, self.agreeing = split, neighbours, agreeing
        self.count, self.batch_size = count, batch_size

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        need_captioner(module, "nearest_caption")
        if not hasattr(module, "features"):
            raise UserError(
                "protocol=nearest_caption compares the features of one encoder: give a single run, not an ensemble"
            )
        train_if, train = self._features(module, datamodule, "train", None)
        wanted_if, images = self._features(module, datamodule, self.split, self.count)
        captions = datamodule.references("train", train)
        nearest_in = (wanted_if @ train_if.T).topk(min(self.neighbours, len(train)), dim=1).indices.tolist()
        texts = [text for of_image in captions for text in of_image]
        first_of = np.cumsum([0, *map(len, captions)])
        vectors = weighted_ngrams(texts)
        chosen: dict[str, list[str]] = {"first": [], "consensus": []}
        for near_n in nearest_in:
            pool = np.concatenate([np.arange(first_of[image], first_of[image + 1]) for image in near_n])
            chosen["first"].append(captions[near_n[0]][0])
            chosen["consensus"].append(texts[pool[most_agreed(vectors[pool], self.agreeing)]])
        references = datamodule.references(self.split, images)
        names = datamodule.image_ids(self.split)
        write_csv(Path(run_dir) / "nearest_caption" / "captions.csv", ("image", *chosen),
                  zip([names[image] for image in images], *chosen.values(), strict=True))  # fmt: skip
        found = {kind: scores(hypotheses, references) for kind, hypotheses in chosen.items()}
        return {f"nearest_caption/{name}_{kind}": found[kind][name] for kind in found for name in NAMES}

    def _features(self, module, datamodule, split: str, count: int | None) -> tuple[torch.Tensor, list[int]]:
        """Unit features (I, F) and the images' rows."""
        features: list[torch.Tensor] = []
        images: list[int] = []
        for batch in image_batches(datamodule, split, module.device, self.batch_size, count):
            with torch.no_grad():
                features.append(torch.nn.functional.normalize(module.features(batch).float(), dim=1).cpu())
            images += batch.image_index.tolist()
        return torch.cat(features), images


def weighted_ngrams(texts: list[str]):
    """A sparse row for each text; the product of two rows is their mean cosine over n = 1 to 4."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = [tokenize(text) for text in texts]
    parts = []
    for n in range(1, LONGEST + 1):
        weigh = TfidfVectorizer(analyzer=lambda of, n=n: [" ".join(of[i : i + n]) for i in range(len(of) - n + 1)])
        if any(len(of) >= n for of in words):
            parts.append(weigh.fit_transform(words))
    return (hstack(parts) / np.sqrt(LONGEST)).tocsr()


def most_agreed(vectors, agreeing: int) -> int:
    """The row with the highest mean similarity to the `agreeing` other rows that are most similar to it."""
    similar: NDArray = (vectors @ vectors.T).toarray()
    np.fill_diagonal(similar, -1.0)
    kept = np.sort(similar, axis=1)[:, ::-1][:, : max(1, min(agreeing, len(similar) - 1))]
    return int(kept.mean(1).argmax())
