"""WaveNet as a LightningModule: the loss, the held-out metrics, the optimizer and the audio samples of a run.

Shapes: B batch, L window = context + C, C predicted samples, Q mu-law classes, P phones, F frames of 160 samples.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from quintet.common.checkpoints import check_data_info, to_builtin
from quintet.common.distributed import over_ranks
from quintet.common.errors import UserError
from quintet.common.module import PaperModule
from quintet.common.optim import OptimizerConfig, build_optimizer, from_mapping
from quintet.data.batches import AudioBatch
from quintet.metrics.audio import NATS_PER_BIT, MeanNLL
from quintet.papers.wavenet.network import WaveNet, WaveNetConfig, describe_receptive_field

CONDITIONS = ("speaker", "tags", "local")


class WaveNetModule(PaperModule):
    """WaveNet (van den Oord et al. 2016), trained on the mean negative log-likelihood of the next sample.

    data_info: what the network is sized by: number of classes, speakers, tags, local channels, hop length and phones.
    conditions: which of the data's conditions to use. frame_loss_weight: weight of the phone loss (section 3.4).
    media_seconds, media_count: length and number of the audio samples made at the end of training.
    """

    batch_type = AudioBatch

    def __init__(
        self,
        network: WaveNetConfig | Mapping[str, Any],
        optimizer: OptimizerConfig | Mapping[str, Any],
        data_info: dict[str, Any],
        conditions: Sequence[str] = CONDITIONS,
        frame_loss_weight: float = 1.0,
        media_seconds: float = 1.0,
        media_count: int = 2,
    ) -> None:
        super().__init__()
        config = from_mapping(WaveNetConfig, network, "model.network")
        self.optimizer_config = from_mapping(OptimizerConfig, optimizer, "model.optimizer")
        # Built-in types only, so that the checkpoint loads with weights_only and without Hydra.
        network, optimizer = to_builtin(config), to_builtin(self.optimizer_config)
        data_info, conditions = to_builtin(data_info), to_builtin(conditions)
        self.save_hyperparameters()
        self.data_info, self.conditions = data_info, conditions
        self.network = build_network(config, data_info, conditions)
        self.recognizes = config.recognition is not None
        self.val_nll = MeanNLL(len(data_info["speakers"]))
        self.test_nll = MeanNLL(len(data_info["speakers"]))
        if self.recognizes:
            self.val_frames, self.test_frames = _frame_accuracy(data_info), _frame_accuracy(data_info)
            self.val_joint, self.test_joint = MeanMetric(), MeanMetric()

    @property
    def receptive_field(self) -> int:
        """Number of past samples that one prediction depends on, context stack included."""
        return self.network.receptive_field

    def setup(self, stage: str) -> None:
        """Check that the data is what the network was sized for, with the speakers in the same order."""
        given = getattr(getattr(self.trainer, "datamodule", None), "data_info", None)
        if given is not None:
            check_data_info(self.data_info, given)

    def on_fit_start(self) -> None:
        rank_zero_info(f"WaveNet {describe_receptive_field(self.network, self.data_info['sample_rate'])}")

    def condition(self, batch: AudioBatch) -> dict[str, Tensor | None]:
        """The network's conditioning arguments from a batch; UserError if the batch does not fit the network."""
        check_batch(batch, self.data_info, self.conditions)
        given = {"speaker": batch.speaker, "tags": batch.tags, "local": batch.local}
        kept = {name: given[name] if name in self.conditions else None for name in given}
        return {"speaker_b": kept["speaker"], "tags_bn": kept["tags"], "local_bft": kept["local"]}

    def forward(self, batch: AudioBatch) -> tuple[Tensor, Tensor | None]:
        """Logits (B, Q, C) of the last C samples, and of their phone frames (B, P, C / 160) or None."""
        chunk = batch.mask.shape[1]
        condition = self.condition(batch)
        if self.recognizes:
            # The whole window, so that frames align with their labels; the last logit has no target.
            logits, phone_logits = self.network.forward_with_phones(batch.audio, **condition, last=chunk + 1)
            return logits[..., :-1], phone_logits
        return self.network(batch.audio[:, :-1], **condition, last=chunk), None

    def nll(self, batch: AudioBatch, logits_bqc: Tensor) -> Tensor:
        """Negative log-likelihood (B,) in nats (equation 1), summed over real targets with a full receptive field."""
        targets_bc = batch.audio[:, -batch.mask.shape[1] :]
        nll_bc = F.cross_entropy(logits_bqc.float(), targets_bc, reduction="none")
        return (nll_bc * batch.mask).sum(1)

    def _losses(self, batch: AudioBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss (B,), summed NLL (B,) and phone logits of one batch."""
        logits, phone_logits = self(batch)
        nll_b = self.nll(batch, logits)
        loss_b = nll_b / batch.mask.sum(1).clamp(min=1)
        if phone_logits is not None:
            assert batch.phones is not None, "a network with a recognition head is built only for data with phones"
            loss_b = loss_b + self.hparams["frame_loss_weight"] * _frame_losses(phone_logits, batch.phones)
        return loss_b, nll_b, phone_logits

    def example_losses(self, batch: AudioBatch) -> Tensor:
        """NLL per real target (B,) in nats; with recognition plus the weighted frame loss (section 3.4)."""
        return self._losses(batch)[0]

    def training_step(self, batch: AudioBatch, batch_idx: int) -> Tensor:
        loss = self.example_losses(batch).mean()
        self.log("train/loss", over_ranks(loss), prog_bar=True, batch_size=len(batch.audio))
        return loss

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: AudioBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: AudioBatch, stage: str) -> None:
        loss_b, nll_b, phone_logits = self._losses(batch)
        getattr(self, f"{stage}_nll").update(nll_b, batch.mask.sum(1), batch.speaker)
        if phone_logits is not None:
            getattr(self, f"{stage}_frames").update(phone_logits.float(), batch.phones)
            getattr(self, f"{stage}_joint").update(loss_b, batch.mask.sum(1))

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        """Log nats and bits per sample, overall and per speaker, the frame accuracy, and the joint loss."""
        metric = getattr(self, f"{stage}_nll")
        nll, nll_s = metric.compute()
        metric.reset()
        self._log(f"{stage}/nats", nll)
        self._log(f"{stage}/bits", nll / NATS_PER_BIT, prog_bar=True)
        for name, speaker_nll in zip(self.data_info["speakers"], nll_s.reshape(-1), strict=False):
            if not speaker_nll.isnan():
                self._log(f"{stage}/bits_{name}", speaker_nll / NATS_PER_BIT)
        if self.recognizes:
            frames = getattr(self, f"{stage}_frames")
            self._log(f"{stage}/frame_accuracy", frames.compute(), prog_bar=True)
            joint = getattr(self, f"{stage}_joint")
            self._log(f"{stage}/loss", joint.compute())
            frames.reset()
            joint.reset()
        else:
            self._log(f"{stage}/loss", nll)

    def _log(self, name: str, value: Tensor, prog_bar: bool = False) -> None:
        # Already equal on every rank: torchmetrics has summed the states of all ranks.
        self.log(name, value.float(), prog_bar=prog_bar, sync_dist=False)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self, self.optimizer_config)

    def make_media(self, datamodule, out_dir: Path) -> list[Path]:
        """Write generated and held-out utterances as .wav files and plots to `out_dir`; returns their paths."""
        from quintet.papers.wavenet.media import make_media

        return make_media(self, datamodule, Path(out_dir), self.hparams["media_seconds"], self.hparams["media_count"])


def build_network(config: WaveNetConfig, data_info: dict[str, Any], conditions: Sequence[str]) -> WaveNet:
    """The network sized by `data_info`, with those of `conditions` that the data provides."""
    unknown = [name for name in conditions if name not in CONDITIONS]
    if unknown:
        raise UserError(f"model.conditions has the unknown entry {unknown[0]!r}: use any of {', '.join(CONDITIONS)}")
    if config.recognition is not None and not data_info["phones"]:
        raise UserError(
            "model.network.recognition needs phone labels, but the data has none: use data=timit or data=ljspeech"
        )
    local = data_info["local_channels"] if "local" in conditions else 0
    return WaveNet(
        config,
        num_classes=data_info["num_classes"],
        num_speakers=len(data_info["speakers"]) if "speaker" in conditions else 0,
        num_tags=len(data_info["tags"]) if "tags" in conditions else 0,
        local_channels=local,
        hop_length=data_info["hop_length"] if local else 0,
        num_phones=len(data_info["phones"]) if config.recognition is not None else 0,
    )


def check_batch(batch: AudioBatch, data_info: dict[str, Any], conditions: Sequence[str]) -> None:
    """UserError naming the first field of the batch that does not fit the network, and what was expected."""
    speakers, tags, channels = len(data_info["speakers"]), len(data_info["tags"]), data_info["local_channels"]
    if "speaker" in conditions and speakers and not _speakers_fit(batch.speaker, speakers):
        found = "none" if batch.speaker is None else int(batch.speaker.max())
        raise UserError(
            f"batch.speaker is {found}, the model has speakers 0..{speakers - 1}: {', '.join(data_info['speakers'])}"
        )
    if "tags" in conditions and tags and (batch.tags is None or batch.tags.shape[1] != tags):
        found = 0 if batch.tags is None else batch.tags.shape[1]
        raise UserError(f"batch.tags has {found} tags, but the model has {tags}: use the data it was trained on")
    if "local" in conditions and channels and (batch.local is None or batch.local.shape[1] != channels):
        found = 0 if batch.local is None else batch.local.shape[1]
        raise UserError(f"batch.local has {found} channels, but the model has {channels}: check data.features")


def _speakers_fit(speaker_b: Tensor | None, speakers: int) -> bool:
    if speaker_b is None:
        return False
    # Reading values from a GPU would synchronize every step; there `check_data_info` must suffice.
    return speaker_b.is_cuda or 0 <= int(speaker_b.min()) <= int(speaker_b.max()) < speakers


def _frame_losses(phone_logits_bpf: Tensor, phones_bf: Tensor) -> Tensor:
    """Mean frame cross-entropy (B,) in nats over labeled frames; 0 for an example without any."""
    nll_bf = F.cross_entropy(phone_logits_bpf.float(), phones_bf, ignore_index=-100, reduction="none")
    return nll_bf.sum(1) / (phones_bf != -100).sum(1).clamp(min=1)


def _frame_accuracy(data_info: dict) -> MulticlassAccuracy:
    return MulticlassAccuracy(num_classes=len(data_info["phones"]), average="micro", ignore_index=-100)
