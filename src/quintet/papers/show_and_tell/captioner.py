"""What a trained captioner and an ensemble of several have in common: generating, losses and metrics on held-out data.

Legend: I images, B captions, F features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from quintet.common.checkpoints import to_builtin
from quintet.common.module import PaperModule
from quintet.common.optim import from_mapping
from quintet.data.batches import CaptionBatch
from quintet.metrics.captions import CaptionMetrics
from quintet.papers.show_and_tell.beam_search import Speaker
from quintet.papers.show_and_tell.decoding import Caption, DecodingConfig, decode, in_words

STAGES = ("val", "test")


class Captioner(PaperModule):
    """A subclass says `nats` of captions, and gives the `speaker` that is searched for new ones."""

    batch_type = CaptionBatch

    def __init__(self, vocabulary: Sequence[str], decoding: DecodingConfig, media_count: int) -> None:
        super().__init__()
        decoding.check_vocabulary(len(vocabulary))
        self.vocabulary, self.decoding, self.media_count = list(vocabulary), decoding, media_count
        self.losses = nn.ModuleDict({stage: MeanMetric() for stage in STAGES})
        self.scores = nn.ModuleDict({stage: CaptionMetrics() for stage in STAGES})

    def nats(self, batch: CaptionBatch) -> Tensor:
        """Equation 2: -log p(caption | image) (B,), summed over its words and the end."""
        raise NotImplementedError

    def speaker(self, source: CaptionBatch | Tensor, lookups: int) -> Speaker:
        """What is searched for captions of these images."""
        raise NotImplementedError

    def prepare_datamodule(self, datamodule: Any) -> None:
        """Have it serve images where features that were cached before training are no longer the encoder's."""
        raise NotImplementedError

    # captions

    @torch.no_grad()
    def generate(self, source: CaptionBatch | Tensor, beam_size: int | None = None, *,
                 generator: torch.Generator | None = None, **settings: Any) -> list[list[Caption]]:  # fmt: skip
        """Captions of each image, best first. source: a batch, images (I, 3, H, W), or encoder features (I, F).

        beam_size and `settings` replace those of `model.decoding`. Call it in eval mode.
        """
        settings = settings if beam_size is None else settings | {"beam_size": beam_size}
        config = from_mapping(DecodingConfig, to_builtin(self.decoding) | settings, "model.decoding")
        config.check_vocabulary(len(self.vocabulary))
        count = len(source.image_index if isinstance(source, CaptionBatch) else source)
        # the words of one image are about as many as the beam is wide times half the longest caption
        speaker = self.speaker(source, lookups=count * config.width * config.max_length // 2)
        return in_words(decode(speaker, count, config, self.device, generator), self.vocabulary)

    # evaluation

    def validation_step(self, batch: CaptionBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: CaptionBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: CaptionBatch, stage: str) -> None:
        """The loss of every caption, and one generated for every image against all its own."""
        words_b = batch.lengths - 1
        self.losses[stage].update(self.nats(batch) / words_b, words_b)
        said = [captions[0].text for captions in self.generate(batch)]
        references = self.trainer.datamodule.references(stage, batch.image_index.tolist())
        self.scores[stage].update(said, references, batch.image_index)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        """Log nats a word, perplexity and the caption metrics: the same on every rank, they gather."""
        loss = self.losses[stage].compute()
        values = {"loss": loss, "perplexity": loss.exp()} | self.scores[stage].compute()
        for name, value in values.items():
            self.log(f"{stage}/{name}", value.float(), prog_bar=name in ("loss", "bleu4", "cider"), sync_dist=False)
        self.losses[stage].reset()
        self.scores[stage].reset()

    def make_media(self, datamodule: Any, out_dir: Path) -> list[Path]:
        """Held-out images with their generated captions, as one picture."""
        from quintet.papers.show_and_tell.media import make_media

        return make_media(self, datamodule, Path(out_dir), self.media_count)
