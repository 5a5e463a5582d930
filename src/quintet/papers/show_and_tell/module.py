"""Show and Tell as a LightningModule: the loss, the optimizers of the two training stages, the optional memory.

Legend: I images, B captions, T words read, N real words of the batch, F features, H hidden width, V words.
"""

from collections.abc import Mapping, Sequence
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
from quintet.papers.rare_events.memory.config import MemoryConfig, memory_config_or_none
from quintet.papers.rare_events.memory.memory import MemoryAnswer
from quintet.papers.rare_events.memory.token_memory import RENAMED_TENSORS, RecallConfig, TokenMemory
from quintet.papers.show_and_tell.captioner import Captioner
from quintet.papers.show_and_tell.decoding import CaptionStepDecoder, DecodingConfig, logits_with_memory
from quintet.papers.show_and_tell.network import Decoder, DecoderConfig, FeatureNormalizer
from quintet.papers.show_and_tell.scheduled_sampling import ScheduledSampling, sampled_outputs

FIT_IMAGES = 2000  # training images, spread over the split, from which the feature normalizer is fitted


class ShowAndTellModule(Captioner):
    """Vinyals et al. 2015. Training minimizes the mean of `example_losses`.

    An example's loss is the paper's -log p(caption | image), summed over the caption's words and its end (equation 2),
    divided by the mean caption length of the training split. The mean over the split is then the mean over words that
    im2txt minimizes and for which its learning rate of 2 was chosen, while the loss of a caption does not depend on the
    other captions of its batch.

    finetune: the optimizer of stage 2, in which the encoder is trained too (`callbacks.two_stage` sets when); null =
    that of stage 1. encoder_lr: factor on the encoder's learning rate in stage 2. memory: null, or the rare-events
    memory, which is queried at every word. data_info: `vocabulary`, and `counts`, how often each id occurs in the
    training captions (eos once in each). start: a checkpoint of a run with the same network and vocabulary from which
    the weights are initialized, for example of a run of stage 1 for one of stage 2.
    """

    ensemble = "quintet.papers.show_and_tell.ensemble.CaptionEnsemble"
    renamed_tensors = (
        (r"^network\.standardise\.measured$", "network.feature_norm.fitted"),
        (r"^network\.standardise\.", "network.feature_norm."),
        *RENAMED_TENSORS,
    )

    def __init__(
        self,
        network: DecoderConfig | Mapping[str, Any],
        encoder: EncoderConfig | Mapping[str, Any],
        optimizer: OptimizerConfig | Mapping[str, Any],
        data_info: Mapping[str, Any],
        decoding: DecodingConfig | Mapping[str, Any] | None = None,
        finetune: OptimizerConfig | Mapping[str, Any] | None = None,
        encoder_lr: float = 1.0,
        scheduled_sampling: ScheduledSampling | Mapping[str, Any] | None = None,
        memory: MemoryConfig | Mapping[str, Any] | None = None,
        recall: RecallConfig | Mapping[str, Any] | None = None,
        media_count: int = 12,
        start: str | None = None,
    ) -> None:
        decoding_config = from_mapping(DecodingConfig, decoding or {}, "model.decoding")
        vocabulary: Any = to_builtin(data_info["vocabulary"])
        counts: Any = to_builtin(data_info["counts"])
        super().__init__(vocabulary, decoding_config, media_count)
        config = from_mapping(DecoderConfig, network, "model.network")
        encoder_config = from_mapping(EncoderConfig, encoder, "model.encoder")
        stage_1 = from_mapping(OptimizerConfig, optimizer, "model.optimizer")
        stage_2 = stage_1 if finetune is None else from_mapping(OptimizerConfig, finetune, "model.finetune")
        self.optimizer_configs = {"optimizer": stage_1, "finetune": stage_2}
        self.sampling = from_mapping(ScheduledSampling, scheduled_sampling or {}, "model.scheduled_sampling")
        self.recall_config = from_mapping(RecallConfig, recall or {}, "model.recall")
        memory_config = memory_config_or_none(memory)
        self._check(encoder_lr)
        self.data_info = {"vocabulary": vocabulary, "counts": counts}
        # Only built-in types, and no paths of files: the checkpoint contains all weights.
        saved: dict[str, Any] = {
            "network": replace(config, word_vectors=None),
            "encoder": replace(encoder_config, weights=None),
            "decoding": decoding_config,
            "scheduled_sampling": self.sampling,
            "recall": self.recall_config,
            "memory": memory_config,
            "data_info": self.data_info,
            "encoder_lr": encoder_lr,
            "media_count": media_count,
            **self.optimizer_configs,
        }
        self.save_hyperparameters(to_builtin(saved))
        self.starts_from, self.encoder_lr = encoder_config.weights, encoder_lr
        self.mean_length = mean_length(counts)
        self.encoder = Encoder(encoder_config)
        self.network = Decoder(config, self.encoder.width, vocabulary)
        self.token_memory: TokenMemory | None = None
        if memory_config is not None:
            self.token_memory = TokenMemory(memory_config, self.recall_config, config.hidden, config.hidden, counts)
        if start is not None:
            self._start_from(start)

    def _start_from(self, path: str) -> None:
        checkpoint = self.start_from(path)
        if checkpoint["hyper_parameters"]["data_info"]["vocabulary"] != self.vocabulary:
            raise UserError(
                f"model.start={path} has another vocabulary: train both runs on the same data with the same"
                " data.min_count"
            )

    def _check(self, encoder_lr: float) -> None:
        if not encoder_lr > 0:
            raise UserError(f"model.encoder_lr={encoder_lr} must be above 0")
        for key, config in self.optimizer_configs.items():
            if config.schedule == "poly" and config.total_steps is None:
                raise UserError(
                    f"model.{key}.schedule=poly needs model.{key}.total_steps: the stages are scheduled separately"
                )

    # the loss

    def features(self, source: CaptionBatch | Tensor) -> Tensor:
        """Encoder features (I, F) of a batch, of images (I, 3, H, W), or features (I, F) unchanged."""
        if isinstance(source, CaptionBatch):
            found = source.images if source.features is None else source.features
            assert found is not None, "a caption batch has images or features"
            if found.dim() == 2 and bool(self.encoder.trained):
                raise UserError(
                    "the batch has features of the encoder before it was fine-tuned: set data.features=null"
                )
        else:
            found = source
        if found.dim() != 2:
            return self.encoder(found)
        if found.shape[1] != self.network.features:
            raise UserError(
                f"the features have width {found.shape[1]}, those of {self.encoder.config.name} have width"
                f" {self.network.features}: set data.features to the encoder of the run, or to null"
            )
        return found

    def outputs(self, batch: CaptionBatch, teacher_forcing_prob: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """LSTM outputs (N, H), the word to predict from each (N,) and its caption (N,), without padding."""
        features_if, read_bt = self.features(batch), batch.words[:, :-1]
        if teacher_forcing_prob < 1:
            hidden_bth = sampled_outputs(self.network, features_if, read_bt, batch.image_row, teacher_forcing_prob)
        else:
            hidden_bth = self.network(features_if, read_bt, batch.image_row)
        real_bt = batch.real
        return hidden_bth[real_bt], batch.words[:, 1:][real_bt], real_bt.nonzero()[:, 0]

    def nll(self, batch: CaptionBatch) -> Tensor:
        hidden_nh, word_n, row_n = self.outputs(batch)
        logits_nv = logits_with_memory(self.network, hidden_nh, self.token_memory)
        return sum_by_row(F.cross_entropy(logits_nv, word_n, reduction="none"), row_n, len(batch.words))

    def example_losses(self, batch: CaptionBatch) -> Tensor:
        """Training loss (B,) of every caption: (-log p + weighted memory loss) / mean caption length."""
        return self._losses(batch)[0]

    def _losses(
        self, batch: CaptionBatch, teacher_forcing_prob: float = 1.0
    ) -> tuple[Tensor, tuple[Tensor, Tensor, MemoryAnswer] | None]:
        """Losses (B,); and with a memory, its queries, the true words and its answers, to be written to it."""
        hidden_nh, word_n, row_n = self.outputs(batch, teacher_forcing_prob)
        if self.token_memory is None:
            loss_n, to_write = F.cross_entropy(self.network.logits(hidden_nh).float(), word_n, reduction="none"), None
        else:
            query_nd, answer = self.token_memory.read(hidden_nh)
            mixed_nh = self.token_memory.combine(hidden_nh, answer, self.network.output.weight)
            loss_n = F.cross_entropy(self.network.logits(mixed_nh).float(), word_n, reduction="none")
            memory_loss_n = self.token_memory.losses(query_nd, word_n, answer)
            loss_n = loss_n + self.recall_config.loss_weight * memory_loss_n
            to_write = query_nd, word_n, answer
        return sum_by_row(loss_n, row_n, len(batch.words)) / self.mean_length, to_write

    def step_decoder(self, source: CaptionBatch | Tensor, lookups: int) -> CaptionStepDecoder:
        return CaptionStepDecoder(self.network, self.features(source).float(), lookups, self.token_memory)

    # training

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        teacher_forcing_prob = self.sampling.teacher_forcing_prob(self.trainer.global_step)
        loss_b, to_write = self._losses(batch, teacher_forcing_prob)
        loss = batch_mean(loss_b)
        self.log("train/loss", over_ranks(loss), prog_bar=True, batch_size=len(batch.words))
        if self.sampling.schedule != "none":
            self.log("train/teacher_forcing_prob", teacher_forcing_prob, batch_size=len(batch.words))
        if self.token_memory is not None and to_write is not None:
            self.token_memory.write(*to_write)
        return loss

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """The optimizer of the stage that the weights come from; influence functions use its weight decay."""
        return self.optimizer_configs["finetune" if bool(self.encoder.trained) else "optimizer"]

    @property
    def joint(self) -> bool:
        """Whether this is stage 2, in which the encoder is trained too."""
        return not self.encoder.frozen

    def start_joint_training(self) -> None:
        """Change from stage 1 to stage 2: unfreeze the encoder. The optimizer must be rebuilt afterwards."""
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
    def fit_feature_norm(self, datamodule: Any) -> None:
        """Fit the feature normalizer on training images, once in a run; every rank uses the same images."""
        normalizer, scale = self.network.feature_norm, self.network.config.feature_scale
        if not isinstance(normalizer, FeatureNormalizer) or scale is None or bool(normalizer.fitted):
            return
        chosen = datamodule.some_images("train", FIT_IMAGES)
        parts, was_training = [], self.encoder.training
        self.encoder.eval()
        for start in range(0, len(chosen), 50):
            batch = datamodule.image_batch("train", chosen[start : start + 50])
            source = batch.images if batch.features is None else batch.features
            parts.append(self.features(source.to(self.device)).float())
        self.encoder.train(was_training)
        normalizer.fit(torch.cat(parts), scale)

    def on_fit_start(self) -> None:
        trainer: Any = self.trainer
        self.fit_feature_norm(trainer.datamodule)
        config = self.encoder.config
        rank_zero_info(
            f"Show and Tell: {config.name} from {self.starts_from or 'random weights'} at {config.size} pixels,"
            f" {self.network.config.lstm} LSTM, vocabulary of {len(self.vocabulary)} words, mean caption length"
            f" {self.mean_length:.2f}"
        )

    def configure_optimizers(self) -> Any:
        config = self.optimizer_configs["finetune" if self.joint else "optimizer"]
        encoder = [p for p in self.encoder.parameters() if p.requires_grad]
        encoder_ids = {id(p) for p in self.encoder.parameters()}
        groups: list[dict] = [{"params": [p for p in self.parameters() if id(p) not in encoder_ids]}]
        if encoder:
            groups.append({"params": encoder, "lr": config.lr * self.encoder_lr})
        return build_optimizer(self, config, groups)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        if bool(checkpoint["state_dict"]["encoder.trained"]):
            self.start_joint_training()  # now, so that the optimizer is built for stage 2 before its state is loaded


def mean_length(counts: Sequence[int]) -> float:
    """The mean number of words of a training caption, its end included."""
    return sum(counts[EOS:]) / max(1, counts[EOS])


def sum_by_row(values_n: Tensor, row_n: Tensor, rows: int) -> Tensor:
    """The sum of each row's values (rows,)."""
    return values_n.new_zeros(rows).index_add(0, row_n, values_n)
