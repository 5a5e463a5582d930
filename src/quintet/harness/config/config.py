"""The two-layer configuration check, before anything heavy is imported (docs/architecture.md).

Layer one: the top level against `TopLevel`. Layer two: each `_target_` node may be built at all (trust.py), and
its keys are those that the class takes. Both answer with one line: the key, where it was set, and the nearest legal
names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from quintet.common.errors import UserError
from quintet.harness.config.secrets import refuse_what_looks_secret
from quintet.harness.config.signature import Signature, class_attribute, signature_of
from quintet.harness.config.trust import KEYWORDS, check_name, is_allowed
from quintet.harness.config.values import mismatch
from quintet.harness.paths import CONF

# limits of arguments whose annotations give none: Lightning's, and those that every DataModule has
DEVICES = Path("/dev")
OPTIMIZER = "quintet.common.optim.OptimizerConfig"
ADAM_AND_SGD = {"name", "lr", "betas", "eps", "weight_decay", "momentum", "fused", "options"}  # not of a schedule
LIMITS = {"num_workers": ">= 0", "batch_size": "> 0", "num_nodes": "> 0", "accumulate_grad_batches": "> 0"}


@dataclass
class TopLevel:
    """Keys that may stand at the top of a composed configuration, with their types."""

    name: str
    seed: int
    run_id: str
    run_dir: str
    resume: str | None
    compile: bool
    matmul_precision: str
    monitor: dict
    optimized_metric: str | None
    paper: dict
    paths: dict
    model: dict
    data: dict
    trainer: dict
    callbacks: dict
    logger: dict
    debug: dict


@dataclass(frozen=True)
class Origin:
    """The overrides and the chosen options, so that an error can name where a key was set."""

    overrides: tuple[str, ...] = ()
    choices: tuple[tuple[str, str], ...] = ()

    def of(self, key: str) -> str:
        """Where `key` was set: on the command line, or in a yaml file."""
        if any(o.split("=")[0].lstrip("+~") == key or o.split("=")[0].startswith(key + ".") for o in self.overrides):
            return "on the command line"
        for group, choice in reversed(self.choices):
            path = CONF / group / f"{choice}.yaml"
            if path.is_file() and _contains(path, group, key):
                return f"in conf/{group}/{choice}.yaml"
        return "in the configuration"


def _contains(path: Path, group: str, key: str) -> bool:
    text = path.read_text(encoding="utf-8")
    node: Any = yaml.safe_load(text)
    parts = key.split(".")
    if "@package _global_" not in text:
        if parts[0] != group:
            return False
        parts = parts[1:]
    for part in parts:
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def suggest(name: str, legal: list[str]) -> str:
    """`did you mean X?` with the nearest legal names, else all of them."""
    near = get_close_matches(name, legal, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"legal here: {', '.join(sorted(legal))}"


def check(cfg: DictConfig, origin: Origin) -> None:
    """Both layers and the pairing of model and data. Raises UserError; imports nothing heavy."""
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    legal = {f.name: f.type for f in fields(TopLevel)}
    for key in legal:
        if key not in plain:
            raise UserError(f"the configuration has no '{key}': every run's has {', '.join(legal)}")
    for key, value in plain.items():
        if key not in legal:
            raise UserError(f"unknown key '{key}' {origin.of(key)}: {suggest(key, list(legal))}")
        _check_type(key, value, 'Annotated[int, ">= 0"]' if key == "seed" else str(legal[key]), origin)
        if legal[key] == "dict" and not isinstance(value, dict | None):
            raise UserError(f"'{key}={value}' {origin.of(key)} must be a mapping of keys to values")
    for key in ("model", "data", "trainer"):
        if "_target_" not in (plain[key] or {}):
            raise UserError(f"'{key}' {origin.of(key)} has no _target_: choose a {key}=... option that has it")
    for key, folders in (("name", True), ("run_id", False)):
        if "${" not in plain[key]:
            check_name(key, plain[key], folders)
    refuse_what_looks_secret(plain)
    for path, node in targets(plain):
        check_target(path, node, origin)
    for group in ("callbacks", "logger"):
        for name, node in (plain[group] or {}).items():
            if node and not (isinstance(node, dict) and "_target_" in node):
                where = f"{group}.{name}"
                raise UserError(
                    f"'{where}' {origin.of(where)} has no _target_: choose a {group}=... option that has it"
                )
    check_devices(plain["trainer"], origin)
    check_pair(cfg)


def check_devices(trainer: dict, origin: Origin) -> None:
    """`trainer.devices`: a number of devices, -1 for all, "auto", or a list of their indices."""
    devices = trainer.get("devices")
    number = str(devices).lstrip("-").isdigit() and int(str(devices))
    listed = isinstance(devices, list) or (isinstance(devices, str) and ("," in devices or "${" in devices))
    if not (devices in (None, "auto", "-1") or listed or (number and number >= -1)):
        raise UserError(
            f"'trainer.devices={devices}' {origin.of('trainer.devices')} must be 1 or more, -1 for all devices,"
            " auto, or a list of indices"
        )


def check_accelerator(cfg: DictConfig) -> None:
    """Stop if a GPU is asked for on a machine without one; looks at device files, so that torch is not imported."""
    if cfg.trainer.get("accelerator") not in ("gpu", "cuda"):
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    files = any(any(DEVICES.glob(pattern)) for pattern in ("nvidia[0-9]*", "dxg", "kfd"))  # CUDA, WSL, ROCm
    if sys.platform == "linux" and (hidden or not files):
        raise UserError("trainer.accelerator=gpu: this machine has no visible GPU, use trainer=cpu or trainer=auto")


def targets(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """(dotted path, node) of every `_target_` node."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from targets(value, f"{path}.{index}")


def check_target(path: str, node: dict, origin: Origin) -> None:
    """The keys of one `_target_` node against the callable's signature, read from source."""
    target = node["_target_"]
    if not is_allowed(target):
        raise UserError(
            f"'{path}._target_: {target}' {origin.of(path)} is not allowed: only classes of quintet.papers,"
            " quintet.data, quintet.harness.callbacks, torch.optim and lightning.pytorch may be built; to trust a"
            " package of your own set QUINTET_TRUST=<package>"
        )
    signature = signature_of(target)
    if signature is None:
        raise UserError(f"'{path}._target_: {target}' {origin.of(path)} names nothing that exists")
    if target in KEYWORDS:
        signature = replace(signature, parameters=dict.fromkeys(KEYWORDS[target], "") | signature.parameters)
        signature = replace(signature, open_ended=False)
    if target.startswith("torch.optim.") and "lr_scheduler" not in target:
        _check_optimizer(path, node, signature, origin)
        return
    _check_keys(path, node, signature, origin)


def _check_optimizer(path: str, node: dict, signature: Signature, origin: Origin) -> None:
    """An optimizer of torch by `_target_`. Settings in the model's yaml that it does not take are left out; typed ones
    must be its own arguments or belong to the schedule."""
    named = signature_of(OPTIMIZER)
    assert named is not None
    schedule = named.parameters.keys() - ADAM_AND_SGD
    for key, value in node.items():
        where, typed = f"{path}.{key}", origin.of(f"{path}.{key}") == "on the command line"
        if key != "name" and (key in signature.parameters or key in named.parameters):
            _check_type(where, value, named.parameters.get(key) or signature.parameters[key], origin)
        if typed and key != "_target_" and key not in signature.parameters and key not in schedule:
            legal = [*signature.parameters, *schedule]
            raise UserError(f"unknown key '{where}' on the command line: {suggest(key, legal)}")


def _check_keys(path: str, node: dict, signature: Any, origin: Origin) -> None:
    for key, value in node.items():
        where = f"{path}.{key}"
        if key == "_target_":
            continue
        if str(key).startswith("_") and str(key).endswith("_"):  # Hydra's own, which would go round this check
            raise UserError(f"'{where}' {origin.of(where)} is not allowed: of Hydra's own keys only _target_ is")
        if key not in signature.parameters:
            if signature.open_ended:
                continue
            raise UserError(f"unknown key '{where}' {origin.of(where)}: {suggest(key, list(signature.parameters))}")
        annotation = signature.parameters[key]
        _check_type(where, value, annotation, origin)
        if key in LIMITS:
            _check_type(where, value, f'Annotated[Any, "{LIMITS[key]}"]', origin)
        if key in signature.nested and isinstance(value, dict) and "_target_" not in value:
            nested = signature_of(signature.nested[key])
            _check_keys(where, value, nested, origin)
            missing = sorted((nested.required if nested else frozenset()) - value.keys())
            if missing:
                raise UserError(f"'{where}' {origin.of(where)} needs {' and '.join(missing)} as well")


def _check_type(key: str, value: Any, annotation: str, origin: Origin) -> None:
    problem = mismatch(annotation, value)
    if problem:
        raise UserError(f"'{key}={'null' if value is None else value}' {origin.of(key)} {problem}")


def check_pair(cfg: DictConfig) -> None:
    """Model and data must speak the same batch type; else name the data configs that fit (design, Contracts)."""
    wanted = class_attribute(cfg.model._target_, "batch_type")
    given = class_attribute(cfg.data._target_, "batch_type")
    if wanted == given:
        return
    fitting = [p.stem for p in sorted((CONF / "data").glob("*.yaml")) if _batch_type(p) == wanted]
    model, data = cfg.model._target_.rpartition(".")[2], cfg.data._target_.rpartition(".")[2]
    raise UserError(
        f"model {model} expects {wanted}, but data {data} yields {given}:"
        f" choose data={' | '.join(fitting) or 'none fits'}"
    )


def _batch_type(path: Path) -> str | None:
    node = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    while "_target_" not in node and node.get("defaults"):  # a data config may be a small diff on another
        parents = [d for d in node["defaults"] if isinstance(d, str) and d != "_self_"]
        if not parents:
            return None
        node = yaml.safe_load((path.parent / f"{parents[0]}.yaml").read_text(encoding="utf-8"))
    return class_attribute(node["_target_"], "batch_type") if "_target_" in node else None


def check_multirun(cfg: DictConfig, mode: str, launcher: str) -> None:
    """Refuse script-launched DDP under --multirun in one process tree: ranks would mix jobs (decision 6)."""
    if mode != "MULTIRUN" or "submitit" in launcher:
        return
    strategy, devices = str(cfg.trainer.get("strategy", "auto")), cfg.trainer.get("devices", 1)
    many = int(cfg.trainer.get("num_nodes", 1)) > 1 or str(devices) not in ("1", "auto", "[0]")
    if many and strategy not in ("ddp_fork", "ddp_spawn"):
        raise UserError(
            "--multirun with several devices in one process tree mixes jobs between ranks: "
            "use launcher=slurm, trainer.devices=1, trainer.strategy=ddp_fork, or a W&B agent"
        )
