"""Weights & Biases: Lightning's logger with the run's own configuration and errors of one line."""

from __future__ import annotations

import multiprocessing
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from quintet.common.errors import UserError
from quintet.harness.config.resolvers import sweep_run

SHOWN = ("name", "seed", "monitor", "model", "data", "trainer")  # of the configuration, what W&B can filter runs by


class WandbRun(WandbLogger):
    """A W&B run whose id is the run directory's, so that `resume=` and a requeued job continue it.

    mode: online | offline | disabled; None: the value of WANDB_MODE, else online. W&B's other settings are environment
    variables. Raises UserError when W&B has no key or does not answer.
    """

    def __init__(
        self, project: str, name: str, id: str, save_dir: str, mode: str | None = None, resume: str = "allow",
        entity: str | None = None, group: str | None = None, job_type: str | None = None, notes: str | None = None,
        tags: list | None = None, log_model: bool = False,
    ) -> None:  # fmt: skip
        described: dict[str, Any] = {
            "entity": entity,
            "group": group,
            "job_type": job_type,
            "notes": notes,
            "tags": tags,
        }
        super().__init__(
            name=name, save_dir=save_dir, id=id, project=project, log_model=log_model, mode=mode, resume=resume,
            **described,
        )  # fmt: skip
        self._wandb_init.pop("anonymous")  # Lightning's default for it makes W&B warn
        if sweep_run():  # these are the sweep's, and W&B warns of others
            self._wandb_init |= {"project": None, "id": None, "entity": None}

    @property
    def experiment(self) -> Any:
        """The W&B run, begun at the first call; something that does nothing on other ranks than the first."""
        import wandb

        try:
            return super().experiment
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"W&B did not start the run: {reason} (`wandb login`, or logger.wandb.mode=offline and "
                "`wandb sync` later, or logger=csv)"
            ) from error

    def finalize(self, status: str) -> None:
        """End the run here in a process that ddp_fork has made: it goes without coming back to `fit`, which would."""
        super().finalize(status)
        if multiprocessing.parent_process() is not None and self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)

    def log_hyperparams(self, params: Any) -> None:
        """Nothing: the module's arguments are in the configuration, and data_info may be a whole vocabulary."""

    def show(self, config: dict[str, Any]) -> None:
        """The resolved configuration, for W&B to show; what a sweep has set itself stays as it is."""
        self._wandb_init["config"] = {key: config[key] for key in SHOWN}
