"""DeepLab v2 as a LightningModule: the loss on coarse labels, the pooled mean IoU, four groups of learning rates.

Legend: B images, C classes, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from quintet.common.checkpoints import to_builtin
from quintet.common.distributed import over_ranks
from quintet.common.errors import UserError
from quintet.common.module import PaperModule
from quintet.common.optim import OptimizerConfig, build_optimizer, from_mapping
from quintet.data.batches import SegmentationBatch
from quintet.metrics.segmentation import MeanIoU
from quintet.papers.deeplab.backbone import BackboneConfig
from quintet.papers.deeplab.config import DeepLabConfig
from quintet.papers.deeplab.groups import decayed_names, l2_term, parameter_groups
from quintet.papers.deeplab.multi_scale import IGNORE, fuse, resize, summed_losses
from quintet.papers.deeplab.network import DeepLab

STAGES = ("val", "test")


class DeepLabModule(PaperModule):
    """Chen et al. 2017. Minimizes the mean of `example_losses` + weight_decay / 2 |weights|^2, biases left out.

    An example's loss is the mean over its labelled positions of the score map, with several scales the sum of the
    fused scores' and each scale's. With one image at a time and accumulated gradients, as the paper trains ResNet-101,
    that is the authors' loss; their VGG-16, ten images at a time, averages over the positions of all ten together.
    new_layers_lr: how many times faster than the backbone the layers without pretrained weights learn. mean_over: names
    of classes whose mean IoU is reported as `miou_chosen` beside that of all, for data with few examples of the others.
    """

    batch_type = SegmentationBatch
    renamed_tensors = ((r"^network\.head\.branches\.(\d+)\.fc8\.", r"network.head.branches.\1.classifier."),)

    network: DeepLab
    iou: nn.ModuleDict
    losses: nn.ModuleDict

    @classmethod
    def renamed(cls, state: dict[str, Any]) -> dict[str, Any]:
        """`state` with every tensor under its present name; a single branch was once called `branches.0`."""
        state = super().renamed(state)
        if any(name.startswith("network.head.branches.1.") for name in state):
            return state
        return {name.replace("network.head.branches.0.", "network.head."): tensor for name, tensor in state.items()}

    def __init__(
        self,
        network: DeepLabConfig | Mapping[str, Any],
        backbone: BackboneConfig | Mapping[str, Any],
        optimizer: OptimizerConfig | Mapping[str, Any],
        data_info: Mapping[str, Any],
        weight_decay: float = 5e-4,
        new_layers_lr: float = 10.0,
        mean_over: Sequence[str] | None = None,
        media_count: int = 4,
    ) -> None:
        super().__init__()
        config = cast(DeepLabConfig, from_mapping(DeepLabConfig, network, "model.network"))
        backbone_config = cast(BackboneConfig, from_mapping(BackboneConfig, backbone, "model.backbone"))
        self.optimizer_config = cast(OptimizerConfig, from_mapping(OptimizerConfig, optimizer, "model.optimizer"))
        self._check(weight_decay, new_layers_lr, data_info["classes"], mean_over or [])
        data_info = {"num_classes": int(data_info["num_classes"]), "classes": to_builtin(data_info["classes"])}
        network, optimizer = cast(Mapping, to_builtin(config)), cast(Mapping, to_builtin(self.optimizer_config))
        mean_over = cast(Sequence[str] | None, to_builtin(mean_over))
        # without weights: a checkpoint needs no other file
        backbone = cast(Mapping, to_builtin(replace(backbone_config, weights=None)))
        self.save_hyperparameters()
        self.data_info, self.weight_decay, self.starts_from = data_info, weight_decay, backbone_config.weights
        self.network = DeepLab(backbone_config, config, data_info["num_classes"])
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.decayed = decayed_names(self.network)
        measured = {"num_classes": data_info["num_classes"], "classes": data_info["classes"], "chosen": mean_over}
        self.iou = nn.ModuleDict({stage: MeanIoU(**measured) for stage in STAGES})
        self.losses = nn.ModuleDict({stage: MeanMetric() for stage in STAGES})

    def _check(self, weight_decay: float, new_layers_lr: float, known: Sequence[str], chosen: Sequence[str]) -> None:
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise UserError(f"model.mean_over has {unknown[0]!r}: the data's classes are {', '.join(known)}")
        if self.optimizer_config.weight_decay:
            raise UserError("model.optimizer.weight_decay is 0 here: model.weight_decay is part of the loss, set that")
        if weight_decay < 0:
            raise UserError(f"model.weight_decay={weight_decay}: give 0 or more")
        if not new_layers_lr > 0:
            raise UserError(f"model.new_layers_lr={new_layers_lr}: give more than 0")

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Scores (B, C, h, w) at the output stride."""
        return self.network(images_bchw)

    # used by protocols and influence functions

    def scores(self, images_bchw: Tensor) -> Tensor:
        """Scores (B, C, H, W) in float32 at the images' own resolution, whatever their size."""
        return self.network.full_resolution(images_bchw).float()

    def predict(self, batch: SegmentationBatch) -> Tensor:
        """The most likely class (B, H, W) of every pixel, padding included."""
        return self.scores(batch.images).argmax(1)

    def example_losses(self, batch: SegmentationBatch) -> Tensor:
        """Loss (B,) of every example, without the L2 term."""
        images, labels = self.pad_to_stride(batch)
        return summed_losses(self.network.pyramid(images), labels)

    def pad_to_stride(self, batch: SegmentationBatch) -> tuple[Tensor, Tensor]:
        """Images and labels padded so that scores are on pixels; padded pixels are labeled 255."""
        images, (height, width) = self.network.pad_to_stride(batch.images), batch.labels.shape[-2:]
        down, right = images.shape[-2] - height, images.shape[-1] - width
        return images, F.pad(batch.labels, (0, right, 0, down), value=IGNORE)

    def regularisation(self) -> Tensor:
        """The L2 term of the loss over the trained weights."""
        return l2_term(self.network, self.decayed, self.weight_decay)

    # training and evaluation

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> Tensor:
        loss = self.example_losses(batch).mean()
        self.log("train/loss", over_ranks(loss), prog_bar=True, batch_size=len(batch.images))
        return loss + self.regularisation()

    def validation_step(self, batch: SegmentationBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: SegmentationBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: SegmentationBatch, stage: str) -> None:
        """Update the metrics at full resolution; padded pixels have label 255 and are ignored."""
        images, labels = self.pad_to_stride(batch)
        scores = self.network.pyramid(images)
        loss, iou = self._metrics(stage)
        loss.update(summed_losses(scores, labels))
        iou.update(resize(fuse(scores), labels.shape[-2:]).argmax(1), labels)

    def _metrics(self, stage: str) -> tuple[MeanMetric, MeanIoU]:
        return cast(MeanMetric, self.losses[stage]), cast(MeanIoU, self.iou[stage])

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        """Log loss, mean IoU, accuracy and the IoU of each class present; torchmetrics reduces them over ranks."""
        loss, iou = self._metrics(stage)
        values = {"loss": loss.compute()} | iou.compute()
        for name, value in values.items():
            self.log(f"{stage}/{name}", value.float(), prog_bar=name == "miou", sync_dist=False)
        loss.reset()
        iou.reset()

    def setup(self, stage: str) -> None:
        """Log once if training crops have to be padded so that scores are on pixels."""
        crop = getattr(getattr(self._trainer, "datamodule", None), "crop_size", None)
        if stage == "fit" and isinstance(crop, int) and self.network.padding_of(crop):
            padded, step = crop + self.network.padding_of(crop), self.network.size_step
            rank_zero_info(f"data.crop_size={crop} is padded to {padded} at every step: {step}k + 1 needs no padding")

    def on_fit_start(self) -> None:
        backbone, head = self.network.backbone.config, self.network.config
        rank_zero_info(
            f"DeepLab: {backbone.name} from {self.starts_from or 'random weights'}, output stride"
            f" {backbone.output_stride}, head {head.head}, scales {list(head.scales)}"
        )

    def configure_optimizers(self) -> Any:
        config = self.optimizer_config
        if config.schedule == "poly" and config.total_steps is None:
            config = replace(config, total_steps=self._total_steps())
        groups = parameter_groups(self.network, config.lr, self.hparams["new_layers_lr"])
        return build_optimizer(self, config, groups)

    def _total_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):
            raise UserError("schedule=poly needs an end: set trainer.max_steps, trainer.max_epochs or total_steps")
        return int(steps)

    def make_media(self, datamodule: Any, out_dir: Path) -> list[Path]:
        """Held-out images with their truth and their prediction laid over them, as one picture."""
        from quintet.papers.deeplab.media import make_media

        return make_media(self, datamodule, Path(out_dir), self.hparams["media_count"])
