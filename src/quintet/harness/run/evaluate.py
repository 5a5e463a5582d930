"""What eval.py does: load a run on one device, run a protocol, write a JSON and print a table.

A protocol whose `picture` names a plot under the run directory has it published beside the JSON.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, cast

import lightning
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from quintet.common.checkpoints import check_data_info, load_checkpoint
from quintet.common.errors import UserError
from quintet.harness.config.build import build
from quintet.harness.config.moved import moved_target
from quintet.harness.results import RESULTS_DIR, write_result
from quintet.harness.run.processes import process_group, rank, trainer_settings, world_size
from quintet.harness.run.run_dir import start_console_log, stop_console_log


def evaluate(cfg: DictConfig, request: DictConfig, command: str) -> dict[str, float]:
    """Run `request.protocol` on the checkpoint; returns its metrics by name."""
    checkpoints = find_checkpoints(request)
    run_dir = Path(request.run) if request.run else checkpoints[0].parent
    folder = run_dir / "eval" / protocol_name(request.protocol)
    folder.mkdir(parents=True, exist_ok=True)
    if rank():  # torchrun's other processes only help
        return _evaluate(cfg, request, checkpoints, run_dir, folder, command)
    start_console_log(folder / "console.log")
    try:
        return _evaluate(cfg, request, checkpoints, run_dir, folder, command)
    finally:
        stop_console_log()


def _evaluate(cfg: DictConfig, request: DictConfig, checkpoints: list[Path], run_dir: Path, folder: Path,
              command: str) -> dict[str, float]:  # fmt: skip
    start = time.perf_counter()
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = build(cfg.data)
    datamodule.prepare_data()
    datamodule.setup("test")
    module = load_together(cfg, checkpoints)
    check_data_info(module.hparams.get("data_info") or {}, datamodule.data_info)
    if hasattr(module, "prepare_datamodule"):
        module.prepare_datamodule(datamodule)
    made = {"logger": False, "default_root_dir": str(run_dir), "enable_checkpointing": False}
    trainer = build(request.trainer, **made, **trainer_settings())
    trainer.strategy.connect(module)
    datamodule.trainer = trainer
    module.to(trainer.strategy.root_device).eval()
    protocol = build(request.protocol)
    metrics = run_protocol(protocol, request.protocol, trainer, module, datamodule, folder)
    seconds = time.perf_counter() - start
    if rank():
        return metrics
    report(cfg, request, metrics, folder, command, seconds)
    if request.publish and getattr(protocol, "picture", None):
        shutil.copyfile(folder.parent / protocol.picture, RESULTS_DIR / f"{request.publish}.png")
    return metrics


def run_protocol(protocol: Any, node: DictConfig, trainer: Any, module: Any, datamodule: Any,
                 folder: Path) -> dict[str, float]:  # fmt: skip
    """Lightning's test loop for `protocol=test`, else the protocol object on the ready module."""
    if protocol_name(node) == "test" and world_size() == 1:
        results = trainer.test(module, datamodule=datamodule, verbose=False)
        return {k: float(v) for result in results for k, v in result.items()}
    with process_group(protocol, protocol_name(node)):
        return protocol(module, datamodule, folder.parent)  # it makes its own folder there


def protocol_name(node: DictConfig) -> str:
    """`quintet.papers.wavenet.protocols.generate.Generate` -> `generate`."""
    return node._target_.split(".")[-2]


def find_checkpoint(request: DictConfig) -> Path:
    """`ckpt=`, else the run's best, else its last checkpoint."""
    return find_checkpoints(request)[0]


def find_checkpoints(request: DictConfig) -> list[Path]:
    """As `find_checkpoint`; several for `ckpt=[a,b,c]`, files or run directories."""
    named = [request.ckpt] if isinstance(request.ckpt, str) else list(request.ckpt or [])
    if not named:
        return [_of_run(Path(request.run))]
    return [_of_run(Path(path)) if Path(path).is_dir() else Path(path) for path in named]


def _of_run(run: Path) -> Path:
    folder = run / "checkpoints"
    for name in ("best.ckpt", "last.ckpt", "last.ckpt.previous"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"run '{run}' has no checkpoint in {folder}: train it first, or say ckpt=FILE")


def load_together(cfg: DictConfig, paths: list[Path]) -> Any:
    """The module of one checkpoint, or an ensemble of several where the model can be one."""
    modules = [load_module(cfg, path) for path in paths]
    if len(modules) == 1:
        return modules[0]
    if modules[0].ensemble is None:
        raise UserError(f"ckpt has {len(paths)} checkpoints: {type(modules[0]).__name__} makes no ensembles, give one")
    return get_class(modules[0].ensemble)(modules)


def load_module(cfg: DictConfig, path: Path) -> Any:
    """The model class of the configuration with the checkpoint's weights; refuses another model's checkpoint."""
    stored = ((load_checkpoint(path).get("quintet_config") or {}).get("model") or {}).get("_target_")
    wanted = cfg.model._target_
    if stored is not None and moved_target(stored) != wanted:
        raise UserError(f"checkpoint '{path}' holds {stored.rpartition('.')[2]}, not {wanted.rpartition('.')[2]}")
    try:
        return cast(Any, get_class(wanted)).load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint '{path}' does not fit {wanted.rpartition('.')[2]}: {reason}") from error


def report(
    cfg: DictConfig, request: DictConfig, metrics: dict[str, float], folder: Path, command: str, seconds: float
) -> None:
    """Write result.json, publish it when asked, print the table."""
    paper = cast(dict[str, Any], OmegaConf.to_container(cfg.paper)) or {}
    members = len(find_checkpoints(request))
    together = f", ensemble of {members}" if members > 1 else ""
    rows: list[dict[str, Any]] = [
        {"metric": k, "value": v, "unit": unit_of(k), "paper": paper.get(k)} for k, v in metrics.items()
    ]
    paths = [folder / "result.json"]
    if request.publish:
        paths.append(RESULTS_DIR / f"{request.publish}.json")
    for path in paths:
        write_result(
            path,
            title=f"{cfg.name}{together}, {protocol_name(request.protocol)}",
            rows=rows,
            protocol=protocol_name(request.protocol),
            data=Path(str(cfg.data.get("root") or cfg.data._target_)).name,
            subset=bool(request.subset),
            seconds=seconds,
            command=command,
            extra={"training": training_summary(cfg, request)},
        )
    table = Table(title=f"{cfg.name}{together} · {protocol_name(request.protocol)}", title_justify="left")
    for column in ("metric", "ours", "paper", "unit"):
        table.add_column(column)
    for row in rows:
        known = "" if row["paper"] is None else f"{row['paper']:g}"
        table.add_row(row["metric"], f"{row['value']:.5g}", known, row["unit"])
    Console().print(table)
    print(f"written: {', '.join(str(p) for p in paths)}")


def training_summary(cfg: DictConfig, request: DictConfig) -> dict[str, Any]:
    """Steps and trainer limits of the run behind a number, for the results page."""
    state = load_checkpoint(find_checkpoint(request))
    limits = {k: cfg.trainer.get(k) for k in ("max_steps", "max_epochs", "max_time", "precision")}
    return {"steps": int(state["global_step"]), "epoch": int(state["epoch"])} | {k: v for k, v in limits.items() if v}


def unit_of(metric: str) -> str:
    """Unit by naming convention."""
    name = metric.rpartition("/")[2]
    units = {"bits": "bits/sample", "nats": "nats/sample", "loss": "nats", "seconds": "s", "samples_per_s": "samples/s"}
    if name.endswith("_db"):
        return "dB"
    return next((unit for key, unit in units.items() if name.startswith(key)), "")
