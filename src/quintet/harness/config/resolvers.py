"""The resolvers of conf/: the run id, the id that the jobs of a multirun share, the root, variables but no secrets."""

from __future__ import annotations

import os
import time
from typing import cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from quintet.harness.config.secrets import environment
from quintet.harness.paths import REPOSITORY

INTERACTIVE = ("bash", "sh", "zsh", "interactive")  # a shell that salloc or srun --pty opened: many runs, one job


def sweep_run() -> str | None:
    """The run that a W&B agent has started this process for; W&B accepts no other id then."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def base_id() -> str:
    """One id for all ranks of a run: a sweep's, QUINTET_RUN_ID, else the SLURM job, else the time (decision 5)."""
    sweep = sweep_run()
    if sweep:
        return sweep
    slurm = os.environ.get("SLURM_JOB_ID") if os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE else None
    return os.environ.setdefault("QUINTET_RUN_ID", f"slurm-{slurm}" if slurm else time.strftime("%Y-%m-%d_%H-%M-%S"))


def _run_id() -> str:
    """The base id, with the job's number behind it in a multirun; a sweep's trial is one run, however it is started."""
    sweep = sweep_run()
    if sweep:
        return sweep
    mode = HydraConfig.get().mode if HydraConfig.initialized() else None
    if mode is not None and mode.name == "MULTIRUN":
        hydra = cast(DictConfig, HydraConfig.get())
        return f"{base_id()}-{OmegaConf.select(hydra, 'job.num', throw_on_missing=False) or 0}"
    return base_id()


OmegaConf.register_new_resolver("quintet_run_id", _run_id, replace=True)
OmegaConf.register_new_resolver("quintet_base_id", base_id, replace=True)
OmegaConf.register_new_resolver("quintet_root", lambda: str(REPOSITORY), replace=True)
OmegaConf.register_new_resolver("oc.env", environment, replace=True)
