"""The classifiers of Koh & Liang 2017 as a LightningModule: a loss that includes its L2 term, fitted to its minimum.

Legend: B examples, n training examples, C classes, F features.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from quintet.common.checkpoints import check_data_info, to_builtin
from quintet.common.distributed import over_ranks
from quintet.common.errors import UserError
from quintet.common.module import PaperModule
from quintet.common.optim import build_optimizer, from_mapping
from quintet.data.batches import ExampleBatch
from quintet.papers.influence.classifiers.losses import loss_of, signs
from quintet.papers.influence.classifiers.network import AllCnn, ClassifierConfig
from quintet.papers.influence.classifiers.rbf import RbfMachine
from quintet.papers.influence.classifiers.settings import build_network, check_labels, check_settings
from quintet.papers.influence.fit.lbfgs import ExactHinge, FitConfig, build_lbfgs
from quintet.papers.influence.risk.linear_risk import LinearParts

log = logging.getLogger(__name__)
REMOVED = {"preconditioner": "none", "project_top": False}


class ClassifierModule(PaperModule):
    """Minimizes mean loss + l2/2 |weights|^2, biases included when decay_bias.

    loss: `cross_entropy` of C logits, or with two classes and one score `logistic` or `smooth_hinge`, whose t is
    `smoothness` (0: the hinge) and may be set to another value afterwards, as section 4.3 does. dtype: of parameters
    and arithmetic, whatever trainer.precision is. start: checkpoint of the same network to continue from.
    """

    batch_type = ExampleBatch
    network: Any  # Linear, AllCnn or RbfMachine: each has `features` and the last layer `top`
    optimizer_config: FitConfig

    def __init__(
        self,
        network: ClassifierConfig | Mapping[str, Any],
        optimizer: FitConfig | Mapping[str, Any],
        data_info: dict[str, Any],
        loss: str = "cross_entropy",
        l2: float = 0.01,
        decay_bias: bool = False,
        smoothness: float = 0.0,
        dtype: str = "float64",
        start: str | None = None,
    ) -> None:
        super().__init__()
        config = cast(ClassifierConfig, from_mapping(ClassifierConfig, network, "model.network"))
        settings = without_removed_settings(optimizer)
        self.optimizer_config = cast(FitConfig, from_mapping(FitConfig, settings, "model.optimizer"))
        check_settings(config, self.optimizer_config, loss, l2, smoothness, dtype)
        known = ["input_shape", "num_classes", "classes"] + (["num_train"] if config.kind == "rbf" else [])
        data_info = {name: to_builtin(data_info[name]) for name in known if name in data_info}
        network = cast(dict, to_builtin(config))
        optimizer = cast(dict, to_builtin(self.optimizer_config))
        self.save_hyperparameters(ignore=["start"])  # the values above: a checkpoint needs no other file
        self.data_info, self.loss, self.l2 = data_info, loss, l2
        self.decay_bias, self.smoothness = decay_bias, smoothness
        self.network = build_network(config, data_info, loss, getattr(torch, dtype))
        self.means: Any = nn.ModuleDict({stage: MeanMetric().set_dtype(torch.float64) for stage in ("val", "test")})
        classes = max(2, data_info["num_classes"])
        self.correct: Any = nn.ModuleDict(
            {stage: MulticlassAccuracy(num_classes=classes, average="micro") for stage in ("val", "test")}
        )
        self._cast_inputs: tuple[Tensor | None, Tensor | None] = (None, None)
        if start is not None:
            self.start_from(start)

    # what influence functions use

    def forward(self, batch: ExampleBatch) -> Tensor:
        """Logits (B, C), or the score (B,) of a binary classifier."""
        return self._squeeze(self.network(batch.inputs.to(self.network.top.weight.dtype)))

    def _squeeze(self, outputs: Tensor) -> Tensor:
        return outputs if self.loss == "cross_entropy" else outputs.squeeze(-1)

    def losses(self, outputs: Tensor, labels_b: Tensor) -> Tensor:
        """Loss (B,) of what `forward` gave, without the L2 term."""
        return loss_of(self.loss, self.smoothness)(outputs, labels_b)

    def example_losses(self, batch: ExampleBatch) -> Tensor:
        """Loss (B,) of every example, without the L2 term."""
        return self.losses(self(batch), batch.labels)

    def regularisation(self) -> Tensor:
        """The L2 term of the risk, l2/2 |theta|^2, a scalar."""
        decayed = [p for name, p in self.network.named_parameters() if self.decay_bias or not name.endswith("bias")]
        return 0.5 * self.l2 * sum(p.square().sum() for p in decayed)

    def linear_parts(self, batch: ExampleBatch) -> LinearParts:
        """What the outputs are linear in: the features that the last layer sees."""
        top = self.network.top
        return LinearParts(
            design=self.network.features(batch.inputs.to(top.weight.dtype)),
            weight="network.top.weight",
            bias=None if top.bias is None else "network.top.bias",
            losses=lambda outputs_bc: self.losses(self._squeeze(outputs_bc), batch.labels),
        )

    def predict(self, batch: ExampleBatch) -> Tensor:
        """The more likely class (B,)."""
        return self.classes_of(self(batch))

    def classes_of(self, outputs: Tensor) -> Tensor:
        """The more likely class (B,) by what `forward` gave."""
        return outputs.argmax(1) if self.loss == "cross_entropy" else (outputs > 0).long()

    def predict_proba(self, batch: ExampleBatch) -> Tensor:
        """Probabilities of the classes (B, C). Errors: UserError for a hinge, which gives none."""
        if self.loss == "smooth_hinge":
            raise UserError("model.loss=smooth_hinge gives no probabilities of classes: use logistic or cross_entropy")
        outputs = self(batch)
        return outputs.softmax(1) if self.loss == "cross_entropy" else _two_probabilities(outputs)

    def sample_labels(self, batch: ExampleBatch, generator: torch.Generator) -> ExampleBatch:
        """The batch with labels drawn from the model's own prediction; a hinge has none to draw from and keeps them."""
        if self.loss == "smooth_hinge":
            return batch
        with torch.no_grad():
            return batch._replace(labels=torch.multinomial(self.predict_proba(batch), 1, generator=generator)[:, 0])

    # fitting

    def setup(self, stage: str) -> None:
        """Before any run: the data must be what the network was sized for; a kernel takes the training inputs in."""
        datamodule = self._datamodule()
        if datamodule is None:
            return
        check_data_info(self.data_info, datamodule.data_info)
        if stage == "fit":
            self._check_devices()
            inputs, labels = datamodule.arrays("train")
            check_labels(labels, self.data_info["num_classes"])
            if isinstance(self.network, RbfMachine):
                self.network.fill(inputs)

    def _datamodule(self) -> Any:
        data = getattr(self._trainer, "datamodule", None)
        return data if hasattr(data, "arrays") else None

    def _check_devices(self) -> None:
        if self.optimizer_config.full_batch and self.trainer.world_size > 1:
            raise UserError(
                f"model.optimizer.name={self.optimizer_config.name} runs on one device: set trainer.devices=1, or use"
                " model.optimizer.name=adam"
            )

    def on_train_start(self) -> None:
        self._cast_inputs = (None, None)  # of another fit, which an error ended
        if self.optimizer_config.full_batch and self.trainer.num_training_batches != 1:
            raise UserError(
                f"model.optimizer.name={self.optimizer_config.name} takes the training split in one batch, and there"
                f" are {self.trainer.num_training_batches}: set data.batch_size=null"
            )

    def training_step(self, batch: ExampleBatch, batch_idx: int) -> Tensor:
        mean = self.losses(self.train_outputs(self._cast(batch)), batch.labels).mean()
        penalty = self.regularisation()
        if not bool(torch.isfinite(mean + penalty)):
            raise UserError(
                f"the training loss is {mean.item():g} (L2 term {penalty.item():g}) at step {self.global_step}: look"
                " for inf or nan in the data, or lower model.optimizer.lr"
            )
        loss = mean + penalty
        self.log("train/loss", over_ranks(loss), prog_bar=True, batch_size=len(batch.labels))
        return loss

    def _cast(self, batch: ExampleBatch) -> ExampleBatch:
        """In the model's precision: once for the full batch, not in each of L-BFGS's evaluations."""
        if not self.optimizer_config.full_batch:
            return batch
        given, cast_inputs = self._cast_inputs
        if cast_inputs is None or given is not batch.inputs:
            cast_inputs = batch.inputs.to(self.network.top.weight.dtype)
            self._cast_inputs = (batch.inputs, cast_inputs)
        return batch._replace(inputs=cast_inputs)

    def train_outputs(self, batch: ExampleBatch) -> Tensor:
        """`forward` for a batch of the training split; a kernel machine knows its features of those already."""
        if not isinstance(self.network, RbfMachine):
            return self(batch)
        if not hasattr(self, "_train_features"):
            self._train_features = self.network.train_features()
        return self._squeeze(self.network.top(self._train_features[batch.index]))

    def configure_optimizers(self) -> Any:
        config = self.optimizer_config
        if config.name == "lbfgs":
            return build_lbfgs(self, config, self._problem if self._newton_can_finish() else None)
        if config.name == "exact_hinge":
            bias_l2 = self.l2 if self.decay_bias else 0.0
            return ExactHinge(self.network.top, self._problem, self.l2, bias_l2, self.smoothness)
        return build_optimizer(self, config)

    def _newton_can_finish(self) -> bool:
        linear = not isinstance(self.network, AllCnn) and self.network.top.weight.dtype == torch.float64
        return linear and self.loss == "logistic" and self.l2 > 0 and self._datamodule() is not None

    def _problem(self) -> tuple[Tensor, Tensor]:
        """Features (n, F) and signs (n,) of the training split."""
        top, data = self.network.top, self._datamodule()
        if data is None:
            raise UserError("model.optimizer.name=exact_hinge needs a data module with arrays()")
        inputs, labels = data.arrays("train")
        rbf = isinstance(self.network, RbfMachine)
        features_nf = self.network.train_features() if rbf else inputs.flatten(1).to(top.weight)
        return features_nf, signs(labels, features_nf.dtype).to(features_nf.device)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """After a full-batch step: the gradient where it ended, and whether that is the minimum."""
        before = [p.detach().clone() for p in self.parameters()] if self.optimizer_config.full_batch else []
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if not before:
            return
        if self.optimizer_config.name == "lbfgs":
            optimizer_closure()  # its last evaluation may have been at a point of the line search that was not taken
            self.log("train/gradient_norm", _norm([p.grad for p in self.parameters() if p.grad is not None]))
        steepest = max(float(p.grad.abs().max()) for p in self.parameters() if p.grad is not None)
        done = steepest <= self.optimizer_config.tolerance_grad or self.optimizer_config.name == "exact_hinge"
        still = all(torch.equal(p, old) for p, old in zip(self.parameters(), before, strict=True))
        self.trainer.should_stop |= still or done

    def on_train_end(self) -> None:
        """Loss, accuracy and gradient of the whole training split at the end, into the metrics; a warning if far."""
        if self._datamodule() is None or cast(Any, self.trainer).fast_dev_run:
            return
        from quintet.papers.influence.classifiers.report import training_report

        self._cast_inputs = (None, None)
        values, steepest = training_report(self, self._datamodule())
        for optimizer in self.trainer.optimizers:
            if isinstance(optimizer, ExactHinge) and optimizer.gap is not None:
                values["train/duality_gap"] = optimizer.gap
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=self.trainer.global_step)
        log.info("  ".join(f"{name} {value:.6g}" for name, value in values.items()))
        self._warn_if_far(values, steepest)

    def _warn_if_far(self, values: dict[str, float], steepest: float) -> None:
        config = self.optimizer_config
        if config.name == "lbfgs" and steepest > config.tolerance_grad:
            log.warning(
                "not at the minimum: gradient norm %.2g, largest entry %.2g, model.optimizer.tolerance_grad=%.2g."
                " Influence functions assume a minimum: raise trainer.max_epochs or model.optimizer.max_iter",
                *(values["train/gradient_norm"], steepest, config.tolerance_grad),
            )
        elif values.get("train/duality_gap", 0.0) > 1e-8:
            log.warning("the SVM's loss may be %.2g above its minimum (relative)", values["train/duality_gap"])

    # evaluation

    def validation_step(self, batch: ExampleBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: ExampleBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: ExampleBatch, stage: str) -> None:
        self.means[stage].update(self.example_losses(batch))
        self.correct[stage].update(self.predict(batch), batch.labels)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        for name, metric in (("loss", self.means[stage]), ("accuracy", self.correct[stage])):
            self.log(f"{stage}/{name}", metric.compute(), prog_bar=True, sync_dist=False)
            metric.reset()

    def make_media(self, datamodule: Any, out_dir: Path) -> list[Path]:
        """The weights of a linear classifier of images, as pictures."""
        from quintet.papers.influence.classifiers.report import weight_pictures

        return weight_pictures(self, Path(out_dir))


def without_removed_settings(optimizer: FitConfig | Mapping[str, Any]) -> FitConfig | Mapping[str, Any]:
    """Runs of earlier versions have settings of the optimizer that are gone; at their defaults they meant nothing."""
    if isinstance(optimizer, FitConfig):
        return optimizer
    return {name: value for name, value in optimizer.items() if REMOVED.get(name, ...) != value}


def _two_probabilities(scores_b: Tensor) -> Tensor:
    return torch.stack([torch.sigmoid(-scores_b), torch.sigmoid(scores_b)], 1)


def _norm(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.norm() for part in parts]).norm()
