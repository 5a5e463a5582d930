"""All caption metrics as one torchmetrics metric."""

import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from quintet.common.errors import UserError
from quintet.metrics.captions.bleu import CaptionBLEU
from quintet.metrics.captions.cider import cider_d
from quintet.metrics.captions.meteor import meteor_exact_stem
from quintet.metrics.captions.rouge import rouge_l
from quintet.metrics.captions.tokenizer import tokenize

NAMES = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider", "meteor_exact_stem")


class CaptionMetrics(Metric):
    """BLEU-1 to 4, ROUGE-L, CIDEr-D and METEOR's exact and stem stages, as fractions; papers report them times 100.

    The texts themselves are stored, because CIDEr's weights depend on all images of the set. With several processes
    they are gathered as bytes, and all compute the same scores. An image that two processes have seen counts once.
    """

    higher_is_better = True
    full_state_update = False
    texts: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("texts", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Remove all captions."""
        super().reset()
        self.texts.append(self._bytes(""))  # so that a process without images takes part in gathering

    def update(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], ids: Tensor | Sequence[int] | None = None
    ) -> None:
        """Add captions of images, the references of each, and the ids (data set rows) of the images.

        Without ids every caption counts. Errors: UserError for captions without references and the reverse.
        """
        numbers = [None] * len(hypotheses) if ids is None else [int(number) for number in ids]
        if not len(hypotheses) == len(references) == len(numbers):
            raise UserError(
                f"{len(hypotheses)} captions, references of {len(references)} images and {len(numbers)} image ids: "
                "give one caption, one list of references and one id for each image"
            )
        for number, hypothesis, of_image in zip(numbers, hypotheses, references, strict=True):
            if isinstance(of_image, str) or not any(text.strip() for text in of_image):
                image = "An image" if number is None else f"Image {number}"
                raise UserError(
                    f"{image} with the caption {hypothesis!r} has no reference caption: "
                    "metrics need a list of one or more for each image"
                )
        rows = zip(numbers, hypotheses, map(list, references), strict=True)
        self.texts.append(self._bytes("".join(json.dumps(row) + "\n" for row in rows)))

    def compute(self) -> dict[str, Tensor]:
        """All scores of NAMES as float64 scalars; nan without captions."""
        rows = self._rows()
        values = scores([hypothesis for _, hypothesis, _ in rows], [references for _, _, references in rows])
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in values.items()}

    def _bytes(self, text: str) -> Tensor:
        return torch.from_numpy(np.frombuffer(bytearray(text, "utf-8"), dtype=np.uint8)).to(self.device)

    def _rows(self) -> list[tuple[int | None, str, list[str]]]:
        """All images in order of their ids, each once."""
        state = self.texts if isinstance(self.texts, Tensor) else torch.cat(self.texts)
        rows = [json.loads(line) for line in state.cpu().numpy().tobytes().splitlines()]
        known: dict[int, list] = {}
        for row in rows:
            if row[0] is not None and known.setdefault(row[0], row) != row:
                raise UserError(
                    f"Image {row[0]} has two captions, {known[row[0]][1]!r} and {row[1]!r}, or two sets of references: "
                    "give each image one id of its own"
                )
        return [row for row in rows if row[0] is None] + [known[number] for number in sorted(known)]


def scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """All scores of NAMES, for one caption and any number of references of each image; nan without images."""
    if not hypotheses:
        return dict.fromkeys(NAMES, float("nan"))
    ours = [tokenize(text) for text in hypotheses]
    theirs = [[tokenize(text) for text in of_image] for of_image in references]
    bleu = CaptionBLEU(sync_on_compute=False)
    bleu.update(hypotheses, references)
    rouge = [rouge_l(words, of_image) for words, of_image in zip(ours, theirs, strict=True)]
    cider = cider_d(ours, theirs)
    of_set = sum(rouge) / len(rouge), sum(cider) / len(cider), meteor_exact_stem(ours, theirs)
    return dict(zip(NAMES, (*bleu.compute().tolist(), *of_set), strict=True))
