"""Few-shot classification with a life-long memory as a LightningModule.

Legend: B episodes, T images of each, S pixels, d embedding width.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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
from quintet.data.batches import EpisodeBatch
from quintet.papers.rare_events.memory.config import MemoryConfig, memory_config_or_none
from quintet.papers.rare_events.memory.memory import RENAMED_TENSORS, Memory
from quintet.papers.rare_events.network import ConvNet, ConvNetConfig

UPDATES = ("image", "episode")
SHOTS = (1, 2, 5)  # k: reported is the accuracy on the image of a class that follows k others of it


class RareEventsModule(PaperModule):
    """Kaiser et al. 2017, section 4.1: a convolutional network whose embedding queries a memory of labels.

    updates: `image` takes an optimizer step after each of the T images of B parallel episodes, as the authors' code
    does; `episode` one step after all T, which is faster and takes fewer steps. Without memory (`memory=null` or
    `memory.search=none`) the network is trained as a classifier of the training classes, and evaluated by nearest
    neighbour on its embedding: the baseline. lifelong: the memory is not cleared between training batches, and its
    values are the classes of the training split instead of the labels of one episode.
    """

    batch_type = EpisodeBatch
    automatic_optimization = False
    renamed_tensors = RENAMED_TENSORS
    correct: Any  # stage -> k -> MeanMetric
    losses: Any  # stage -> MeanMetric

    def __init__(
        self,
        network: ConvNetConfig | Mapping[str, Any],
        optimizer: OptimizerConfig | Mapping[str, Any],
        data_info: Mapping[str, Any],
        memory: MemoryConfig | Mapping[str, Any] | None = None,
        updates: str = "image",
        gradient_clip: float | None = 5.0,
        lifelong: bool = False,
    ) -> None:
        super().__init__()
        if updates not in UPDATES:
            raise UserError(f"model.updates={updates!r} is unknown: use {' or '.join(UPDATES)}")
        config = from_mapping(ConvNetConfig, network, "model.network")
        self.optimizer_config = from_mapping(OptimizerConfig, optimizer, "model.optimizer")
        memory_config = memory_config_or_none(memory)
        if memory_config is not None and memory_config.width != config.width:
            raise UserError(f"model.memory.width={memory_config.width} must be model.network.width={config.width}")
        # only what determines the network's size, so that a run can be evaluated on other episodes
        self.data_info = {
            "image_size": int(data_info["image_size"]),
            "num_classes_train": int(data_info["num_classes_train"]),
        }
        saved = {
            "network": config,
            "optimizer": self.optimizer_config,
            "data_info": self.data_info,
            "memory": memory_config,
            "updates": updates,
            "gradient_clip": gradient_clip,
            "lifelong": lifelong,
        }
        self.save_hyperparameters(to_builtin(saved))
        self.updates, self.gradient_clip, self.lifelong = updates, gradient_clip, lifelong
        self.network = ConvNet(config, self.data_info["image_size"])
        self.memory: Memory | None = None
        self.classifier: nn.Linear | None = None
        if memory_config is None:
            self.classifier = nn.Linear(config.width, self.data_info["num_classes_train"])
            self.blank_config = MemoryConfig(width=config.width, projection=False, hint=False)
        else:
            values = max(memory_config.slots, self.data_info["num_classes_train"])
            self.memory = Memory(memory_config, num_values=values)
            self.blank_config = replace(memory_config, projection=False)  # blank_memory sets the trained projection
        self.correct = nn.ModuleDict({s: nn.ModuleDict({str(k): MeanMetric() for k in SHOTS}) for s in ("val", "test")})
        self.losses = nn.ModuleDict({stage: MeanMetric() for stage in ("val", "test")})

    def embed(self, images_bchw: Tensor) -> Tensor:
        """Embeddings (B, d) in float32, before the memory's projection."""
        return self.network(images_bchw).float()

    def forward(self, images_bchw: Tensor) -> Tensor:
        """The memory's answer (B,) to each image, -1 while it is empty."""
        if self.memory is None:
            raise UserError("this model has no memory to query: choose model.memory.search=exact, lsh or faiss")
        return self.memory(self.embed(images_bchw))[0].value

    def training_step(self, batch: EpisodeBatch, batch_idx: int) -> Tensor:
        if self.memory is not None and not self.lifelong:
            self.memory.clear()
        values_bt = batch.classes if self.lifelong else own_values(batch.labels, self.global_rank)
        if self.updates == "episode":
            return self._step(self._losses(batch.images, values_bt, batch.classes).mean())
        means = []
        for t in range(values_bt.shape[1]):
            now = slice(t, t + 1)
            losses_b1 = self._losses(batch.images[:, now], values_bt[:, now], batch.classes[:, now])
            means.append(self._step(losses_b1.mean()))
        return torch.stack(means).mean()

    def _losses(self, images_btchw: Tensor, values_bt: Tensor, classes_bt: Tensor) -> Tensor:
        """The training losses (B, T): the memory's margin losses, or without memory cross-entropy."""
        if self.memory is not None:
            x_btd = self.embed(images_btchw.flatten(0, 1)).unflatten(0, values_bt.shape)
            return _stream(self.memory, x_btd, values_bt)
        assert self.classifier is not None
        logits = self.classifier(self.embed(images_btchw.flatten(0, 1)))
        return F.cross_entropy(logits, classes_bt.flatten(), reduction="none").reshape(classes_bt.shape)

    def _step(self, loss: Tensor) -> Tensor:
        """One optimizer step. Lightning's automatic optimization would take one for each batch."""
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.gradient_clip:
            nn.utils.clip_grad_norm_(self.parameters(), self.gradient_clip)
        optimizer.step()
        scheduler.step()
        return loss.detach()

    def on_train_batch_end(self, outputs: Any, batch: EpisodeBatch, batch_idx: int) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self.log("train/loss", over_ranks(loss), prog_bar=True, batch_size=len(batch.labels))

    def example_losses(self, batch: EpisodeBatch) -> Tensor:
        """Mean loss (B,) of each episode alone with an empty memory; the trained memory is neither read nor written."""
        if self.memory is None:
            return self._losses(batch.images, batch.labels, batch.classes).mean(1)
        x_btd = self.embed(batch.images.flatten(0, 1)).unflatten(0, batch.labels.shape)
        losses = []
        for x_1td, label_1t in zip(x_btd.split(1), batch.labels.split(1), strict=True):
            # a new memory for each, since in a cleared one the age noise would depend on the episodes before
            memory = self.blank_memory(int(label_1t.max()) + 1).train(self.training)
            losses.append(_stream(memory, x_1td, label_1t).mean())
        return torch.stack(losses)

    def validation_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: EpisodeBatch, stage: str) -> None:
        """Evaluate every episode alone with an empty memory, as the authors' code does."""
        predicted_bt = self.predict_episodes(batch)
        for k in SHOTS:
            right_n = (predicted_bt == batch.labels)[batch.showing == k]  # may be empty, which changes nothing
            self.correct[stage][str(k)].update(right_n.float())
        if self.memory is not None:
            self.losses[stage].update(self.example_losses(batch))

    @torch.no_grad()
    def predict_episodes(self, batch: EpisodeBatch) -> Tensor:
        """Labels (B, T), each predicted before the image's own label is written; -1 for the first of an episode."""
        rows, length = batch.labels.shape
        x_btd = self.embed(batch.images.flatten(0, 1)).unflatten(0, batch.labels.shape)
        memory = self.blank_memory(int(batch.labels.max()) + 1)
        predicted = torch.empty_like(batch.labels)
        for b in range(rows):
            memory.clear()
            for t in range(length):
                predicted[b, t] = memory(x_btd[b, t : t + 1], batch.labels[b, t : t + 1])[0].value[0]
        return predicted

    def blank_memory(self, num_values: int) -> Memory:
        """A new empty memory in evaluation mode, with this model's settings and the trained projection."""
        memory = Memory(self.blank_config, num_values).to(self.device).eval()
        memory.shared = False
        if self.memory is not None and self.memory.projection is not None:
            memory.projection = self.memory.projection
        return memory

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        """Log k-shot accuracies, their mean as `accuracy`, and the loss."""
        # every rank computes all of them, since computing is collective; nan where no rank has such images
        found = {f"accuracy_{k}_shot": metric.compute() for k, metric in self.correct[stage].items()}
        values = {name: value for name, value in found.items() if not value.isnan()}
        values["accuracy"] = torch.stack(list(values.values())).mean()
        if self.losses[stage].update_called:
            values["loss"] = self.losses[stage].compute()
        for name, value in values.items():
            # no sync_dist: torchmetrics has added the ranks' sums
            self.log(f"{stage}/{name}", value, prog_bar=name == "accuracy_1_shot", sync_dist=False)
        for metric in (*self.correct[stage].values(), self.losses[stage]):
            metric.reset()

    def on_fit_start(self) -> None:
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise UserError(
                "trainer.precision=16-mixed needs loss scaling, which this model's own optimizer steps do not have: use"
                " bf16-mixed"
            )
        parts = "no memory" if self.memory is None else f"{self.memory.config.slots} slots, {self.memory.config.search}"
        rank_zero_info(
            f"Rare events: embedding width {self.network.config.width}, {parts},"
            f" an optimizer step for each {self.updates}"
        )

    def configure_optimizers(self) -> Any:
        return build_optimizer(self, self.optimizer_config)


def _stream(memory: Memory, x_btd: Tensor, values_bt: Tensor) -> Tensor:
    """Margin losses (B, T) of B episodes that share a memory, which is read and written one image at a time."""
    losses = []
    for x_bd, value_b in zip(x_btd.unbind(1), values_bt.unbind(1), strict=True):
        loss_b = memory(x_bd, value_b)[1]
        losses.append(loss_b)
    return torch.stack(losses, 1)


def own_values(labels_bt: Tensor, rank: int = 0) -> Tensor:
    """Labels made different for all episodes, which share one memory, by adding b times their range to episode b's.

    The episodes of all ranks share the memory; all ranks must have batches of the same size.
    """
    rows = torch.arange(len(labels_bt), device=labels_bt.device) + rank * len(labels_bt)
    return labels_bt + rows[:, None] * (labels_bt.max() + 1)
