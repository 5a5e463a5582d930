"""Show and Tell as a LightningModule: the loss, the two stages' optimisers, the optional memory.

Legend: I images, B captions, T words read, N real words of the batch, F features, H hidden width, V words.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F

from quintet.backbones.encoder import Encoder, EncoderConfig
from quintet.common.checkpoints import to_builtin
from quintet.common.distributed import batch_mean, over_ranks
from quintet.common.errors import UserError
from quintet.common.optim import OptimizerConfig, build_optimizer, from_mapping
from quintet.data.batches import CaptionBatch
from quintet.data.special_ids import EOS
from quintet.papers.rare_events.memory.memory import MemoryConfig
from quintet.papers.rare_events.memory.token_memory import RecallConfig, TokenMemory
from quintet.papers.show_and_tell.captioner import Captioner
from quintet.papers.show_and_tell.decoding import DecoderSpeaker, DecodingConfig, remembered
from quintet.papers.show_and_tell.network import Decoder, NetworkConfig, Standardise
from quintet.papers.show_and_tell.scheduled_sampling import ScheduledSampling, sampled_outputs

MEASURED = 2000  # training images, spread over the split, that features are standardised by


class ShowAndTellModule(Captioner):
    """Vinyals et al. 2015. Minimises the mean of `example_losses`.

    An example's loss is the paper's, -log p of the caption's words and its end, summed (equation 2), in units of the
    training split's mean caption length. So its mean over the split is the mean over words that im2txt minimises and
    that its learning rate of 2 is for, while a caption's loss does not depend on the batch around it.

    finetune: the optimiser of stage 2, in which the encoder learns too (`callbacks.two_stage` says when), null = the
    same settings once more. encoder_lr: how many times as fast as the rest it learns there. memory: null, or the
    rare-events memory asked at every word. data_info: the data module's vocabulary and how often each id stands in the
    training captions, eos once in each. start: a checkpoint of another run of the same network and words to begin with,
    as stage 2 may with one of stage 1.
    """

    ensemble = "quintet.papers.show_and_tell.ensemble.CaptionEnsemble"

    def __init__(
        self,
        network: NetworkConfig,
        encoder: EncoderConfig,
        optimizer: OptimizerConfig,
        data_info: dict,
        decoding: DecodingConfig | None = None,
        finetune: OptimizerConfig | None = None,
        encoder_lr: float = 1.0,
        scheduled_sampling: ScheduledSampling | None = None,
        memory: MemoryConfig | None = None,
        recall: RecallConfig | None = None,
        media_count: int = 12,
        start: str | None = None,
    ) -> None:
        data_info = {"vocabulary": to_builtin(data_info["vocabulary"]), "counts": to_builtin(data_info["counts"])}
        config = from_mapping(NetworkConfig, network, "model.network")
        encoder_config = from_mapping(EncoderConfig, encoder, "model.encoder")
        decoding = from_mapping(DecodingConfig, decoding or {}, "model.decoding")
        super().__init__(data_info["vocabulary"], decoding, media_count)
        optimizer = from_mapping(OptimizerConfig, optimizer, "model.optimizer")
        finetune = optimizer if finetune is None else from_mapping(OptimizerConfig, finetune, "model.finetune")
        self.optimizer_configs = {"optimizer": optimizer, "finetune": finetune}
        self.sampling = from_mapping(ScheduledSampling, scheduled_sampling or {}, "model.scheduled_sampling")
        self.recall_config = from_mapping(RecallConfig, recall or {}, "model.recall")
        wanted = None if memory is None else from_mapping(MemoryConfig, memory, "model.memory")
        wanted = None if wanted is None or wanted.search == "none" else wanted
        self._check(encoder_lr)
        # Plain values only, and no other file is needed: the checkpoint holds all weights.
        kept = {"network": replace(config, word_vectors=None), "encoder": replace(encoder_config, weights=None)}
        kept |= {"decoding": decoding, "scheduled_sampling": self.sampling, "recall": self.recall_config}
        kept |= {"memory": wanted, "data_info": data_info, "encoder_lr": encoder_lr, "media_count": media_count}
        self.save_hyperparameters(to_builtin(kept | self.optimizer_configs))
        self.data_info, self.starts_from = data_info, encoder_config.weights
        self.mean_length = mean_length(data_info["counts"])
        self.encoder = Encoder(encoder_config)
        self.network = Decoder(config, self.encoder.width, data_info["vocabulary"])
        self.tokens = None
        if wanted is not None:
            sizes = config.hidden, config.hidden
            self.tokens = TokenMemory(wanted, self.recall_config, *sizes, data_info["counts"])
        if start is not None:
            self._start_from(start)

    def _start_from(self, path: str) -> None:
        checkpoint = self.start_from(path)
        if checkpoint["hyper_parameters"]["data_info"]["vocabulary"] != self.vocabulary:
            raise UserError(f"model.start={path} knows other words: train both on the same data and data.min_count")

    def _check(self, encoder_lr: float) -> None:
        if not encoder_lr > 0:
            raise UserError(f"model.encoder_lr={encoder_lr}: give more than 0")
        for key, config in self.optimizer_configs.items():
            if config.schedule == "poly" and config.total_steps is None:
                raise UserError(
                    f"model.{key}.schedule=poly needs model.{key}.total_steps here: each stage ends for itself"
                )

    # forward

    def features(self, source: CaptionBatch | Tensor) -> Tensor:
        """Encoder features (I, F) of a batch, of images (I, 3, H, W), or as they are given (I, F)."""
        if isinstance(source, CaptionBatch):
            source = source.images if source.features is None else source.features
            assert source is not None, "a caption batch has images or features"
            if source.dim() == 2 and bool(self.encoder.trained):
                raise UserError(
                    "the batch has features of the encoder before it was fine-tuned: set data.features=null"
                )
        if source.dim() == 2 and source.shape[1] != self.network.features:
            raise UserError(
                f"features have {source.shape[1]} numbers, {self.encoder.config.name} gives {self.network.features}:"
                " set data.features to the encoder of the run, or to null"
            )
        return source if source.dim() == 2 else self.encoder(source)

    def outputs(self, batch: CaptionBatch, truth: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """LSTM outputs (N, H), the word to say after each (N,), and whose caption it is (N,); padding is left out."""
        features_if, read_bt = self.features(batch), batch.words[:, :-1]
        if truth < 1:
            top_bth = sampled_outputs(self.network, features_if, read_bt, batch.image_row, truth)
        else:
            top_bth = self.network(features_if, read_bt, batch.image_row)
        real_bt = batch.real
        return top_bth[real_bt], batch.words[:, 1:][real_bt], real_bt.nonzero()[:, 0]

    def nats(self, batch: CaptionBatch) -> Tensor:
        top_nh, word_n, row_n = self.outputs(batch)
        logits_nv = remembered(self.network, top_nh, self.tokens)
        return summed(F.cross_entropy(logits_nv, word_n, reduction="none"), row_n, len(batch.words))

    def example_losses(self, batch: CaptionBatch) -> Tensor:
        """Training loss (B,) of every caption: nats, and the memory's loss, over the mean caption length."""
        return self._losses(batch)[0]

    def _losses(self, batch: CaptionBatch, truth: float = 1.0) -> tuple[Tensor, tuple | None]:
        """Losses (B,), and what the memory is to be told afterwards."""
        top_nh, word_n, row_n = self.outputs(batch, truth)
        told = None
        if self.tokens is not None:
            query_nd, answer = self.tokens.read(top_nh)
            memory_loss_n = self.tokens.losses(query_nd, word_n, answer)
            top_nh, told = self.tokens.combine(top_nh, answer, self.network.output.weight), (query_nd, word_n, answer)
        loss_n = F.cross_entropy(self.network.logits(top_nh).float(), word_n, reduction="none")
        if told is not None:
            loss_n = loss_n + self.recall_config.loss_weight * memory_loss_n
        return summed(loss_n, row_n, len(batch.words)) / self.mean_length, told

    def speaker(self, source: CaptionBatch | Tensor, lookups: int) -> DecoderSpeaker:
        return DecoderSpeaker(self.network, self.features(source).float(), lookups, self.tokens)

    # training

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        truth = self.sampling.truth(self.trainer.global_step)
        loss_b, told = self._losses(batch, truth)
        loss = batch_mean(loss_b)
        self.log("train/loss", over_ranks(loss), prog_bar=True, batch_size=len(batch.words))
        if self.sampling.schedule != "none":
            self.log("train/truth", truth, batch_size=len(batch.words))
        if told is not None:
            self.tokens.write(*told)
        return loss

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """That of the stage the weights come from: influence functions count its weight decay."""
        return self.optimizer_configs["finetune" if bool(self.encoder.trained) else "optimizer"]

    @property
    def joint(self) -> bool:
        """Stage 2: the encoder learns too."""
        return not self.encoder.frozen

    def start_joint_training(self) -> None:
        """From stage 1 to stage 2; the optimiser is then to be built anew."""
        self.encoder.thaw()
        self.encoder.train(self.training)

    def prepare_datamodule(self, datamodule: Any) -> None:
        if bool(self.encoder.trained):
            datamodule.serve("images")

    def setup(self, stage: str) -> None:
        datamodule = getattr(self._trainer, "datamodule", None)
        if stage != "fit" and datamodule is not None:
            self.prepare_datamodule(datamodule)

    @torch.no_grad()
    def measure_features(self, datamodule: Any) -> None:
        """Mean and deviation of the encoder's features over training images, once; every rank sees the same ones."""
        standardise = self.network.standardise
        if not isinstance(standardise, Standardise) or bool(standardise.measured):
            return
        chosen = datamodule.some_images("train", MEASURED)
        parts, training = [], self.encoder.training
        self.encoder.eval()
        for start in range(0, len(chosen), 50):
            batch = datamodule.image_batch("train", chosen[start : start + 50])
            source = batch.images if batch.features is None else batch.features
            parts.append(self.features(source.to(self.device)).float())
        self.encoder.train(training)
        standardise.measure(torch.cat(parts), self.network.config.feature_scale)

    def on_fit_start(self) -> None:
        self.measure_features(self.trainer.datamodule)
        config = self.encoder.config
        rank_zero_info(
            f"Show and Tell: {config.name} from {self.starts_from or 'random weights'} at {config.size} pixels,"
            f" {self.network.config.lstm} LSTM, {len(self.vocabulary)} words, {self.mean_length:.2f} a caption"
        )

    def configure_optimizers(self) -> dict:
        config = self.optimizer_configs["finetune" if self.joint else "optimizer"]
        encoder = [p for p in self.encoder.parameters() if p.requires_grad]
        inside = {id(p) for p in self.encoder.parameters()}
        groups = [{"params": [p for p in self.parameters() if id(p) not in inside]}]
        if encoder:
            groups.append({"params": encoder, "lr": config.lr * self.hparams["encoder_lr"]})
        return build_optimizer(self, config, groups)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        if bool(checkpoint["state_dict"]["encoder.trained"]):
            self.start_joint_training()  # before the optimiser is built and its state comes back


def mean_length(counts: Sequence[int]) -> float:
    """Words of the mean training caption, its end counted."""
    return sum(counts[EOS:]) / max(1, counts[EOS])


def summed(values_n: Tensor, row_n: Tensor, rows: int) -> Tensor:
    """Sum (rows,) of the values of each row."""
    return values_n.new_zeros(rows).index_add(0, row_n, values_n)
