"""Two-stage training in one run (Vinyals et al. 2015, section 4.3.1): first without the encoder, then jointly."""

from __future__ import annotations

import logging
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from quintet.common.errors import UserError

log = logging.getLogger(__name__)


class TwoStage(Callback):
    """Stage 1 for `epochs` epochs: the encoder frozen, in eval mode and out of the optimiser; features may be cached.

    Then stage 2 to the run's end: `module.start_joint_training()`, an optimiser of its own from
    `configure_optimizers()`, and images in place of cached features. The change is made when stage 1's last epoch ends,
    before its checkpoint is written: a checkpoint belongs to one stage or the other, and resumes exactly.
    epochs=0 trains jointly from the start, null never. A run whose stage 1 has already ended, with epochs=null or more,
    continues with stage 2: train.py resume=<run> callbacks.two_stage.epochs=<its epochs> trainer.max_epochs=<more>.
    """

    def __init__(self, epochs: int | None = None) -> None:
        if epochs is not None and epochs < 0:
            raise UserError(f"callbacks.two_stage.epochs={epochs}: give 0 or more, or null for stage 1 alone")
        self.epochs = epochs

    def setup(self, trainer: Trainer, module: Any, stage: str) -> None:
        """Jointly from the start, before there is an optimiser."""
        if not hasattr(module, "start_joint_training"):
            raise UserError(f"callbacks.two_stage is for models with an encoder, not {type(module).__name__}")
        if stage == "fit" and self.epochs == 0:
            module.start_joint_training()

    def on_load_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Stage 2 of a run that was not to have one: before its optimiser is built, whose old state is not loaded."""
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
        datamodule = trainer.datamodule  # type: ignore[attr-defined]  # set by a connector of Lightning's
        an_epoch = checkpoint.get(type(datamodule).__name__, {}).get("batches_per_epoch", 0)
        if self.epochs is None or module.joint or not an_epoch or batches // an_epoch < self.epochs:
            return
        if batches % an_epoch:
            raise UserError(
                f"callbacks.two_stage.epochs={self.epochs}: the run stands in the middle of epoch"
                f" {batches // an_epoch}; give {batches // an_epoch + 1} or more"
            )
        module.start_joint_training()
        checkpoint["optimizer_states"], checkpoint["lr_schedulers"] = [], []

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        """Also in a run that is resumed in stage 2: before its first batch is drawn."""
        if module.joint:
            module.prepare_datamodule(trainer.datamodule)  # type: ignore[attr-defined]  # set by a connector of Lightning's

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        """From stage 1 to stage 2."""
        batches = trainer.fit_loop.epoch_loop.batch_progress
        # batches done, not Lightning's epoch number: after resuming, that one runs ahead
        done = cast(Any, batches.total).processed // max(1, int(trainer.num_training_batches))
        if module.joint or self.epochs is None or not batches.is_last_batch or done < self.epochs:
            return
        module.start_joint_training()
        _rebuild(trainer, module)
        module.prepare_datamodule(trainer.datamodule)  # type: ignore[attr-defined]  # set by a connector of Lightning's
        log.info("stage 2 from step %d: the encoder learns too", trainer.global_step)


def _rebuild(trainer: Trainer, module: LightningModule) -> None:
    """Rebuild the optimizer for the parameters trained now, and DDP's reducer, which knows only the old ones."""
    strategy: Any = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = module
        strategy.configure_ddp()
    strategy.setup_optimizers(trainer)
