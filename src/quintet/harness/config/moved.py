"""Names that earlier versions used, so that their runs, checkpoints, commands and files still work.

A class that moved is found by its old `_target_`, an experiment by its old name on the command line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from quintet.harness.paths import CONF

SOURCE = Path(__file__).parents[2]
MODULES = {  # the longest name that fits counts
    "quintet.app.metrics_csv": "quintet.harness.resume.metrics_csv",
    "quintet.app.slurm": "quintet.harness.slurm.submit",
    "quintet.app.strategies": "quintet.harness.run.strategies",
    "quintet.callbacks": "quintet.harness.callbacks",
    "quintet.callbacks.checkpoint": "quintet.harness.resume.checkpoint",
    "quintet.models": "quintet.papers",
    "quintet.models.deeplab.crf": "quintet.papers.deeplab.crf.config",
    "quintet.models.influence.module": "quintet.papers.influence.classifiers.module",
    "quintet.protocols.test": "quintet.harness.run.test",
}
EXPERIMENTS = {"captioning_sample": "show_and_tell/sample"}
PAPERS = {"flickr8k": "show_and_tell/flickr8k"} | {
    paper: paper for paper in ("wavenet", "deeplab", "influence", "rare_events", "show_and_tell")
}


def moved_target(target: str) -> str:
    """The present name of a class: `quintet.models.wavenet.module.WaveNetModule` -> `quintet.papers.wavenet...`."""
    for old in sorted(MODULES, key=len, reverse=True):
        if target.startswith(f"{old}."):
            return MODULES[old] + target.removeprefix(old)
    protocol = re.fullmatch(r"quintet\.protocols\.(\w+)\.(\w+)", target)
    if protocol is not None:
        for path in SOURCE.glob(f"papers/*/protocols/{protocol[1]}.py"):
            return f"quintet.papers.{path.parts[-3]}.protocols.{protocol[1]}.{protocol[2]}"
    return target


def move_targets(node: Any) -> Any:
    """A copy of a configuration of dicts, lists and values with every `_target_` under its present name."""
    if isinstance(node, dict):
        return {
            key: moved_target(value) if key == "_target_" and isinstance(value, str) else move_targets(value)
            for key, value in node.items()
        }
    return [move_targets(value) for value in node] if isinstance(node, list) else node


def moved_experiment(name: str) -> str:
    """The present name of an experiment: `wavenet_sample` -> `wavenet/sample`; others unchanged."""
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    for old, new in PAPERS.items():
        if name.startswith(f"{old}_"):
            rest = name.removeprefix(f"{old}_")
            moved = f"{new}_{rest}" if "/" in new else f"{new}/{rest}"
            if (CONF / "experiment" / f"{moved}.yaml").is_file():
                return moved
    return name


def move_experiments(argument: str) -> str:
    """A command-line argument with present names of experiments: `experiment=a,b` -> `experiment=p/a,p/b`."""
    key, equals, value = argument.partition("=")
    if key.lstrip("+") != "experiment" or not equals or "(" in value:
        return argument
    return f"{key}={','.join(moved_experiment(name) for name in value.split(','))}"
