"""The two resolvers of conf/: the run id and the repository's root. Importing this registers them."""

from __future__ import annotations

import os
import time

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from quintet.app.config import REPOSITORY


def _run_id() -> str:
    """One id for all ranks of a run: QUINTET_RUN_ID, else the SLURM job, else the time (design decision 5)."""
    slurm = os.environ.get("SLURM_JOB_ID")
    base = os.environ.setdefault("QUINTET_RUN_ID", f"slurm-{slurm}" if slurm else time.strftime("%Y-%m-%d_%H-%M-%S"))
    if HydraConfig.initialized() and HydraConfig.get().mode is not None and HydraConfig.get().mode.name == "MULTIRUN":
        return f"{base}-{OmegaConf.select(HydraConfig.get(), 'job.num', throw_on_missing=False) or 0}"
    return base


OmegaConf.register_new_resolver("quintet_run_id", _run_id, replace=True)
OmegaConf.register_new_resolver("quintet_root", lambda: str(REPOSITORY), replace=True)
