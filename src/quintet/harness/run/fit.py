"""One training run: from a checked configuration to a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from quintet.common.errors import UserError
from quintet.harness.callbacks.wandb_run import WandbRun
from quintet.harness.config.build import build, build_all
from quintet.harness.config.resolvers import sweep_run
from quintet.harness.resume.checkpoint import AtomicCheckpointIO, LastCheckpoint, newest_checkpoint
from quintet.harness.resume.epoch_end import EpochEnd
from quintet.harness.resume.metrics_csv import join_metrics, set_aside_metrics
from quintet.harness.resume.provenance import Provenance
from quintet.harness.resume.random_state import RandomState
from quintet.harness.run.run_dir import open_run, print_summary, stop_console_log
from quintet.harness.run.strategies import refuse_unshardable, strategy_of
from quintet.harness.slurm.requeue import SaveAndRequeue
from quintet.harness.slurm.signals import EXIT_CODE, SIGNALS, is_restarted


def fit(cfg: DictConfig) -> dict[str, float]:
    """Train what `cfg` describes and return the last logged metrics. Errors: UserError for the user's mistakes."""
    is_main = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # Lightning sets it on the function
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    run_dir = open_run(cfg, is_main)
    checkpoint = _checkpoint_to_resume(cfg, run_dir)
    try:
        datamodule, module = build_pair(cfg)
        if checkpoint is not None and is_main:
            set_aside_metrics(run_dir)
        trainer = build_trainer(cfg, run_dir)
        refuse_multirun_on_many_devices(trainer)
        refuse_unshardable(trainer, module)
        if cfg.compile:
            compile_children(module)
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if v.numel() == 1}
        if trainer.is_global_zero:
            join_metrics(run_dir)
            print_summary(run_dir, metrics)
        return metrics
    except SIGTERMException as error:
        if sweep_run() is not None:  # stopped by its sweep: no failure
            raise
        raise SystemExit(EXIT_CODE) from error
    finally:
        close_loggers()
        stop_console_log()


def build_pair(cfg: DictConfig) -> tuple[Any, Any]:
    """Data first: its `data_info` (classes, speakers, vocabulary ...) size the model."""
    datamodule = build(cfg.data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    module = build(cfg.model, data_info=datamodule.data_info)
    return datamodule, module


def build_trainer(cfg: DictConfig, run_dir: Path) -> lightning.Trainer:
    """The trainer with our own callbacks before the configured ones, and the atomic checkpoint writer."""
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    bar = bool(cfg.trainer.get("enable_progress_bar", True) and cfg.callbacks.get("progress"))
    chosen = {name: node for name, node in plain["callbacks"].items() if bar or name != "progress"}
    configured = sorted(build_all(chosen), key=lambda c: isinstance(c, LastCheckpoint))  # it keeps the others' state
    callbacks = [RandomState(), EpochEnd(), Provenance(plain), *configured]
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SIGNALS.taken:
        has_saver = bool(configured) and isinstance(configured[-1], LastCheckpoint)
        saver = configured[-1] if has_saver else LastCheckpoint(str(run_dir / "checkpoints"))
        callbacks.append(SaveAndRequeue(SIGNALS, saver))
        plugins.append(SLURMEnvironment(auto_requeue=False))
    loggers = build_all(cfg.logger)
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.show(plain)
    return build(
        plain["trainer"] | {"enable_progress_bar": bar, "strategy": "auto"},
        strategy=strategy_of(plain["trainer"].get("strategy", "auto")),
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=str(run_dir),
        use_distributed_sampler=False,  # the datamodules split their own, resumable order over the ranks
        plugins=plugins,
    )


def _checkpoint_to_resume(cfg: DictConfig, run_dir: Path) -> Path | None:
    """The newest complete checkpoint for `resume=`, for a job or a sweep's run that was put back in the queue."""
    again = is_restarted() or cfg.run_id == sweep_run()
    if not cfg.resume and not again:
        return None
    found = newest_checkpoint(run_dir / "checkpoints")
    if found is None and cfg.resume:
        raise UserError(f"nothing to resume in '{cfg.resume}': no complete checkpoint in {run_dir / 'checkpoints'}")
    return found


def refuse_multirun_on_many_devices(trainer: lightning.Trainer) -> None:
    """`devices=auto` is only known now: the same guard as `check_multirun` (decision 6)."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized() or HydraConfig.get().mode is None or trainer.world_size == 1:
        return
    hydra = HydraConfig.get()
    assert hydra.mode is not None
    launcher = str(hydra.runtime.choices.get("hydra/launcher"))
    forked = type(trainer.strategy.launcher).__name__ == "_MultiProcessingLauncher"
    if hydra.mode.name == "MULTIRUN" and "submitit" not in launcher and not forked:
        raise UserError("--multirun found several devices: add trainer.devices=1, or use launcher=slurm")


def compile_children(module: torch.nn.Module) -> None:
    """torch.compile each child in place: parameter names, and so checkpoints, stay free of `_orig_mod.`."""
    for child in module.children():
        child.compile()


def close_loggers() -> None:
    """End the W&B run, also after a crash (decision 7), without importing wandb for the others.

    A trial that its sweep stops early, by SIGTERM through the agent, has not failed.
    """
    import sys

    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        error = sys.exc_info()[1]
        stopped = sweep_run() is not None and isinstance(error, SIGTERMException)
        sys.modules["wandb"].finish(exit_code=0 if error is None or stopped else 1)
