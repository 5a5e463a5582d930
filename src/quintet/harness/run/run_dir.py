"""The run directory: configuration, environment, console log, metrics, checkpoints, media."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from quintet.harness.config.secrets import refuse_known_secrets
from quintet.harness.machine import hardware, versions
from quintet.harness.results import commit

LAYOUT = ("checkpoints", "media")


def open_run(cfg: DictConfig, is_main: bool) -> Path:
    """Create the run directory and write config.yaml and environment.json (rank 0); start the console log."""
    refuse_known_secrets(cfg)
    run_dir = Path(cfg.run_dir)
    for name in LAYOUT:
        (run_dir / name).mkdir(parents=True, exist_ok=True)
    if is_main:
        replace(run_dir / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        facts = {"command": command()} | commit() | {"hardware": hardware(), "versions": versions()}
        replace(run_dir / "environment.json", json.dumps(facts, indent=2) + "\n")
        start_console_log(run_dir / "console.log")
    return run_dir


def replace(path: Path, text: str) -> None:
    """Write `text` aside and rename it: a resumed run that is killed here still has the file of its last start."""
    aside = path.with_name(f"{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def command() -> str:
    """The command line as it was typed, also inside a job, which submitit starts with one of its own."""
    if HydraConfig.initialized():
        return " ".join(["train.py", *HydraConfig.get().overrides.task])
    return " ".join(sys.argv)


# Messages that Lightning repeats at every checkpoint, or warnings about what is intended here.
NOISE = (
    "`weights_only` was not set",
    "LeafSpec",
    "litlogger",
    "does not have many workers",
    "is not resumable",
    "sync_dist=True",
    "exists and is not empty",
    "was configured so",
    "module(s) in eval mode",
    "The `srun` command is available",
)


def is_news(record: logging.LogRecord) -> bool:
    """False for the lines in NOISE."""
    return not any(words in record.getMessage() for words in NOISE)


def start_console_log(path: Path) -> None:
    """Log lines and warnings go to the screen and to `path`, added to; progress bars only to the screen."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    form = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    for handler in (logging.StreamHandler(sys.stdout), logging.FileHandler(path, encoding="utf-8")):
        handler.setFormatter(form)
        handler.addFilter(is_news)
        root.addHandler(handler)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):  # they print themselves; once is enough
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.captureWarnings(True)
    for name in ("numba", "matplotlib", "datasets", "fsspec", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def stop_console_log() -> None:
    """Close the handlers, so that a second job in this process starts its own log."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler) or type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
            handler.close()


def print_summary(run_dir: Path, metrics: dict[str, float]) -> None:
    """The closing lines of train.py: where checkpoint, metrics, sound and pictures lie."""
    shown = {k: v for k, v in metrics.items() if k.startswith(("val/", "train/loss"))}
    print("\n" + "  ".join(f"{k} {v:.4f}" for k, v in list(shown.items())[:6]))
    media = sorted((run_dir / "media").rglob("*.*"))
    found = {
        "checkpoints": sorted((run_dir / "checkpoints").glob("*.ckpt")),
        "metrics": [run_dir / "metrics.csv"],
        "sound": [p for p in media if p.suffix == ".wav"],
        "pictures": [p for p in media if p.suffix == ".png"],
        "configuration": [run_dir / "config.yaml"],
    }
    print(f"\nThe run is in {_short(run_dir)}")
    for what, files in found.items():
        for file in files:
            if file.exists():
                print(f"  {what:14s} {_short(file)}")
    print(f"\nNext: python eval.py run={_short(run_dir)}")


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
