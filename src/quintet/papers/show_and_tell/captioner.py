"""What a single captioning model and an ensemble have in common: generation, and metrics on held-out data.

Legend: I images, B captions, F features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from quintet.common.beam_search import StepDecoder
from quintet.common.checkpoints import to_builtin
from quintet.common.module import PaperModule
from quintet.common.optim import from_mapping
from quintet.data.batches import CaptionBatch
from quintet.metrics.captions import CaptionMetrics
from quintet.papers.show_and_tell.decoding import Caption, DecodingConfig, decode, to_captions

STAGES = ("val", "test")


class Captioner(PaperModule):
    """Subclasses implement `nll` of captions, and `step_decoder`, which beam search calls for new captions."""

    batch_type = CaptionBatch
    losses: Any  # stage -> MeanMetric
    scores: Any  # stage -> CaptionMetrics

    def __init__(self, vocabulary: Sequence[str], decoding: DecodingConfig, media_count: int) -> None:
        super().__init__()
        decoding.check_vocabulary(len(vocabulary))
        self.vocabulary, self.decoding, self.media_count = list(vocabulary), decoding, media_count
        self.losses = nn.ModuleDict({stage: MeanMetric() for stage in STAGES})
        self.scores = nn.ModuleDict({stage: CaptionMetrics() for stage in STAGES})

    def nll(self, batch: CaptionBatch) -> Tensor:
        """Equation 2: -log p(caption | image) in nats, (B,), summed over the caption's words and its end."""
        raise NotImplementedError

    def step_decoder(self, source: CaptionBatch | Tensor, lookups: int) -> StepDecoder:
        """The decoder of captions of these images, for about `lookups` words in all."""
        raise NotImplementedError

    def prepare_datamodule(self, datamodule: Any) -> None:
        """Make it serve images instead of cached features, where the encoder has changed since they were cached."""
        raise NotImplementedError

    @torch.no_grad()
    def generate(self, source: CaptionBatch | Tensor, beam_size: int | None = None, *,
                 generator: torch.Generator | None = None, **settings: Any) -> list[list[Caption]]:  # fmt: skip
        """Captions of each image, best first. source: a batch, images (I, 3, H, W), or encoder features (I, F).

        beam_size and `settings` replace those of `model.decoding`. Call it in eval mode.
        """
        overrides = settings if beam_size is None else settings | {"beam_size": beam_size}
        values: Any = to_builtin(self.decoding)
        config = from_mapping(DecodingConfig, values | overrides, "model.decoding")
        config.check_vocabulary(len(self.vocabulary))
        count = len(source.image_index if isinstance(source, CaptionBatch) else source)
        # an estimate: captions are about half as long as the longest that is allowed
        decoder = self.step_decoder(source, lookups=count * config.width * config.max_length // 2)
        return to_captions(decode(decoder, count, config, self.device, generator), self.vocabulary)

    def validation_step(self, batch: CaptionBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: CaptionBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: CaptionBatch, stage: str) -> None:
        """Update the loss with every caption, and the metrics with one generated caption for each image."""
        words_b = batch.lengths - 1
        self.losses[stage].update(self.nll(batch) / words_b, words_b)
        generated = [captions[0].text for captions in self.generate(batch)]
        trainer: Any = self.trainer
        references = trainer.datamodule.references(stage, batch.image_index.tolist())
        self.scores[stage].update(generated, references, batch.image_index)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        """Log the negative log-likelihood of a word in nats, the perplexity and the caption metrics."""
        loss = self.losses[stage].compute()
        values = {"loss": loss, "perplexity": loss.exp()} | self.scores[stage].compute()
        for name, value in values.items():
            # no sync_dist: the metrics have gathered all ranks' examples
            self.log(f"{stage}/{name}", value.float(), prog_bar=name in ("loss", "bleu4", "cider"), sync_dist=False)
        self.losses[stage].reset()
        self.scores[stage].reset()

    def make_media(self, datamodule: Any, out_dir: Path) -> list[Path]:
        """Write one picture of held-out images with their generated captions."""
        from quintet.papers.show_and_tell.media import make_media

        return make_media(self, datamodule, Path(out_dir), self.media_count)
