"""Few-shot classification with a life-long memory as a LightningModule: streams of images, remembered as they go by.

Legend: B episodes, T images of each, S pixels, d embedding width.
"""

from dataclasses import replace

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
from quintet.papers.rare_events.memory.memory import Memory, MemoryConfig
from quintet.papers.rare_events.network import ConvNet, ConvNetConfig

UPDATES = ("image", "episode")
SHOTS = (1, 2, 5)  # reported: accuracy on the showing that follows k others


class RareEventsModule(PaperModule):
    """Kaiser et al. 2017, section 4.1: a convolutional network whose embedding queries a memory of labels.

    updates: `image` takes an optimiser step after each of the T images of B parallel episodes, as the authors do;
    `episode` one step after all T, which is faster and takes fewer steps. Without memory (`memory=null` or
    `memory.search=none`) the same network learns to tell the training classes apart, and what it was shown is
    remembered by its embedding alone: the baseline of a network without memory. lifelong: the memory is not cleared
    between training batches and holds classes of the training split instead of the labels of one episode.
    """

    batch_type = EpisodeBatch
    automatic_optimization = False

    def __init__(
        self,
        network: ConvNetConfig,
        optimizer: OptimizerConfig,
        data_info: dict,
        memory: MemoryConfig | None = None,
        updates: str = "image",
        gradient_clip: float | None = 5.0,
        lifelong: bool = False,
    ) -> None:
        super().__init__()
        if updates not in UPDATES:
            raise UserError(f"model.updates={updates!r} is unknown: use {' or '.join(UPDATES)}")
        config = from_mapping(ConvNetConfig, network, "model.network")
        self.optimizer_config = from_mapping(OptimizerConfig, optimizer, "model.optimizer")
        remembering = None if memory is None else from_mapping(MemoryConfig, memory, "model.memory")
        # only what sizes the network: other episodes may be evaluated than were trained on
        data_info = {
            "image_size": int(data_info["image_size"]),
            "num_classes_train": int(data_info["num_classes_train"]),
        }
        network, optimizer, memory = to_builtin(config), to_builtin(self.optimizer_config), to_builtin(remembering)
        self.save_hyperparameters()
        self.data_info, self.updates, self.gradient_clip, self.lifelong = data_info, updates, gradient_clip, lifelong
        self.network = ConvNet(config, data_info["image_size"])
        self.memory, self.classifier = None, None
        if remembering is None or remembering.search == "none":
            self.classifier = nn.Linear(config.width, data_info["num_classes_train"])
            blank = MemoryConfig(width=config.width, projection=False, hint=False)
        elif remembering.width != config.width:
            raise UserError(f"model.memory.width={remembering.width} must be model.network.width={config.width}")
        else:
            self.memory = Memory(remembering, num_values=max(remembering.slots, data_info["num_classes_train"]))
            blank = replace(remembering, projection=False)  # it gets the trained one's
        self.blank_config = blank
        self.correct = nn.ModuleDict({s: nn.ModuleDict({str(k): MeanMetric() for k in SHOTS}) for s in ("val", "test")})
        self.losses = nn.ModuleDict({stage: MeanMetric() for stage in ("val", "test")})

    def embed(self, images_bchw: Tensor) -> Tensor:
        """Embeddings (B, d) in float32, before the memory's projection."""
        return self.network(images_bchw).float()

    def forward(self, images_bchw: Tensor) -> Tensor:
        """The value (B,) that the memory answers for each image, -1 while it is empty."""
        if self.memory is None:
            raise UserError("this model has no memory to ask: choose model.memory.search=exact, lsh or faiss")
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
        """What training minimises, (B, T): the memory's margin losses, or cross-entropy of the training classes."""
        if self.memory is not None:
            return self._stream(images_btchw, values_bt)
        logits = self.classifier(self.embed(images_btchw.flatten(0, 1)))
        return F.cross_entropy(logits, classes_bt.flatten(), reduction="none").reshape(classes_bt.shape)

    def _step(self, loss: Tensor) -> Tensor:
        """One optimiser step; Lightning's own would be one a batch."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.gradient_clip:
            nn.utils.clip_grad_norm_(self.parameters(), self.gradient_clip)
        optimizer.step()
        scheduler.step()
        return loss.detach()

    def on_train_batch_end(self, outputs: Tensor, batch: EpisodeBatch, batch_idx: int) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self.log("train/loss", over_ranks(loss), prog_bar=True, batch_size=len(batch.labels))

    def _stream(self, images_btchw: Tensor, values_bt: Tensor) -> Tensor:
        """Margin losses (B, T) of B episodes that share the memory as it is, read and written image by image."""
        rows, length = values_bt.shape
        x_btd = self.embed(images_btchw.flatten(0, 1)).unflatten(0, (rows, length))
        return torch.stack([self.memory(x_btd[:, t], values_bt[:, t])[1] for t in range(length)], 1)

    def example_losses(self, batch: EpisodeBatch) -> Tensor:
        """Mean loss (B,) of each episode, streamed alone into an empty memory; the trained memory is not touched."""
        if self.memory is None:
            return self._losses(batch.images, batch.labels, batch.classes).mean(1)
        rows, length = batch.labels.shape
        x_btd = self.embed(batch.images.flatten(0, 1)).unflatten(0, (rows, length))
        losses = []
        for x_td, label_t in zip(x_btd, batch.labels, strict=True):
            # a new one: a cleared memory would go on with its random numbers where the last episode stopped
            memory = self.blank_memory(int(label_t.max()) + 1).train(self.training)
            losses.append(torch.stack([memory(x_td[t : t + 1], label_t[t : t + 1])[1] for t in range(length)]).mean())
        return torch.stack(losses)

    def validation_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: EpisodeBatch, stage: str) -> None:
        """Every episode alone with an empty memory, as the authors test: batch 1, cleared at its start."""
        predicted_bt = self.predict_episodes(batch)
        for k in SHOTS:
            right_n = (predicted_bt == batch.labels)[batch.showing == k]  # of none: no change
            self.correct[stage][str(k)].update(right_n.float())
        if self.memory is not None:
            self.losses[stage].update(self.example_losses(batch))

    @torch.no_grad()
    def predict_episodes(self, batch: EpisodeBatch) -> Tensor:
        """Labels (B, T) answered before each image's own label is told; -1 for the first image of an episode."""
        rows, length = batch.labels.shape
        x_btd = self.embed(batch.images.flatten(0, 1)).unflatten(0, (rows, length))
        memory = self.blank_memory(int(batch.labels.max()) + 1)
        predicted = torch.empty_like(batch.labels)
        for b in range(rows):
            memory.clear()
            for t in range(length):
                predicted[b, t] = memory(x_btd[b, t : t + 1], batch.labels[b, t : t + 1])[0].value[0]
        return predicted

    def blank_memory(self, num_values: int) -> Memory:
        """An empty memory in evaluation mode with this model's own projection and settings, beside the trained one."""
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
        # every rank asks for all of them, since each has its own share of the episodes; nan: shown to none
        found = {f"accuracy_{k}_shot": metric.compute() for k, metric in self.correct[stage].items()}
        values = {name: value for name, value in found.items() if not value.isnan()}
        values["accuracy"] = torch.stack(list(values.values())).mean()
        if self.losses[stage].update_called:
            values["loss"] = self.losses[stage].compute()
        for name, value in values.items():
            # already the same on every rank: torchmetrics has added the ranks' sums
            self.log(f"{stage}/{name}", value, prog_bar=name == "accuracy_1_shot", sync_dist=False)
        for metric in (*self.correct[stage].values(), self.losses[stage]):
            metric.reset()

    def on_fit_start(self) -> None:
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise UserError("trainer.precision=16-mixed scales losses, this model steps by itself: use bf16-mixed")
        parts = "no memory" if self.memory is None else f"{self.memory.config.slots} slots, {self.memory.config.search}"
        rank_zero_info(f"Rare events: embedding {self.network.config.width}, {parts}, a step each {self.updates}")

    def configure_optimizers(self) -> dict:
        return build_optimizer(self, self.optimizer_config)


def own_values(labels_bt: Tensor, rank: int = 0) -> Tensor:
    """Episode b's labels moved up by b times their range: parallel episodes share a memory and never a value.

    Ranks share it too, each with episodes of its own; all must have batches of one size.
    """
    rows = torch.arange(len(labels_bt), device=labels_bt.device) + rank * len(labels_bt)
    return labels_bt + rows[:, None] * (labels_bt.max() + 1)
