"""Composing configurations outside `hydra.main`: saved runs, overrides on top, and readable refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from quintet.common.errors import UserError
from quintet.harness.config import resolvers  # noqa: F401  conf/ uses them
from quintet.harness.config.config import CONF, Origin, check_target, suggest, targets
from quintet.harness.config.moved import move_experiments
from quintet.harness.config.signature import class_attribute, signature_of
from quintet.harness.config.trust import check_name, guard_composition, plain_config, read_saved, refuse_links

guard_composition()
EVAL_KEYS = ["run", "ckpt", "protocol", "publish", "subset", "trainer", "solver", "debug"]  # eval.py's own
OPTUNA_SWEEPER = "hydra-optuna-sweeper==1.3.0"  # it asks for Optuna 2, and works with 5


def compose_config(root: str, overrides: list[str]) -> DictConfig:
    """conf/<root>.yaml with overrides, as Hydra composes it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose(root, overrides=[move_experiments(o) for o in add_torch_optimizers(overrides)])


def compose_checked(root: str, overrides: list[str]) -> DictConfig:
    """As `compose_config`, adding keys that a constructor takes though its yaml leaves them out."""
    while True:
        try:
            return compose_config(root, overrides)
        except Exception as error:
            match = re.search(r"Could not override '([^']+)'", str(error))
            if match is None:
                raise
            overrides = add_if_legal(match.group(1), overrides, root)


def add_if_legal(key: str, argv: list[str], root: str = "train") -> list[str]:
    """`key=value` -> `++key=value` when the constructor around `key` takes it; else UserError with near names."""
    bad = [a for a in argv if a.split("=")[0] == key]
    others = [_unswept(a) for a in argv if "=" in a and a not in bad and not a.startswith("-")]
    cfg = compose_checked(root, others)
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if parent and node is None and _set_null_part(cfg, parent, leaf, key):
        return [f"++{a}" if a in bad else a for a in argv]
    while parent and node is None:  # report the first part of the path that does not exist
        parent, _, leaf = parent.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
    legal = [str(k) for k in node if not str(k).startswith("_")] if isinstance(node, DictConfig) else []
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    signature = signature_of(target) if target else None
    if signature is not None:
        if f"{parent}.{leaf}" == key and leaf in signature.parameters:
            return [f"++{a}" if a in bad else a for a in argv]
        legal = sorted(set(legal) | set(signature.parameters))
    elif parent:
        described = _nested_fields(cfg, parent)
        if leaf in described and f"{parent}.{leaf}" == key:
            return [f"++{a}" if a in bad else a for a in argv]
        legal = sorted(set(legal) | set(described))
    if not parent:
        legal = sorted(set(legal) | set(groups()))
    shown = f"{parent}.{leaf}" if parent else leaf
    raise UserError(f"unknown key '{shown}' on the command line: {suggest(leaf, legal)}")


def add_torch_optimizers(argv: list[str]) -> list[str]:
    """`key=value` -> `++key=value` for an optimizer or schedule `_target_=torch.optim...` and the keys beside it."""
    parents = [a.lstrip("+").partition("._target_=torch.optim.")[0] for a in argv if "._target_=torch.optim." in a]
    added = [a.rpartition("=")[0].rpartition(".")[0] in parents and a[0] not in "+~" for a in argv]
    return [f"++{a}" if add else a for a, add in zip(argv, added, strict=True)]


def _set_null_part(cfg: DictConfig, parent: str, leaf: str, key: str) -> bool:
    """Whether `leaf` may be set in `parent`, which is null; UserError that shows how to set it whole otherwise."""
    outer, _, name = parent.rpartition(".")
    node = OmegaConf.select(cfg, outer) if outer else None
    if not isinstance(node, DictConfig) or name not in node:
        return False
    described = signature_of(nested) if (nested := nested_class(cfg, parent)) else None
    if described and leaf in described.parameters and not described.required - {leaf}:
        return True
    if described and leaf not in described.parameters:
        raise UserError(f"unknown key '{key}' on the command line: {suggest(leaf, sorted(described.parameters))}")
    raise UserError(f"'{parent}' is null here, so '{key}' cannot be set alone: set it whole{_example(parent)}")


def nested_class(cfg: DictConfig, path: str) -> str | None:
    """Dotted name of the dataclass that describes the plain nested node at `path`, such as model.network."""
    outer, _, name = path.rpartition(".")
    node = OmegaConf.select(cfg, outer) if outer else None
    if not isinstance(node, DictConfig):
        return None
    holder = node.get("_target_") or nested_class(cfg, outer)
    signature = signature_of(holder) if holder else None
    return signature.nested.get(name) if signature else None


def _example(path: str) -> str:
    """`, for example model.memory={...} (conf/...)` from the first file that sets `path` to a mapping."""
    group, *parts = path.split(".")
    for file in sorted(CONF.rglob("*.yaml")):
        node = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        for part in parts if file.parent.name == group else [group, *parts]:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and node:
            text = json.dumps(node).replace('"', "")
            return f", for example '{path}={text}' ({file.relative_to(CONF.parent)})"
    return f", {path}={{...}}"


def _unswept(override: str) -> str:
    """The first value of a sweep, `seed=1,2` -> `seed=1`; other overrides as they are."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override() or not parsed.is_discrete_sweep():
        return override
    return f"{parsed.get_key_element()}={next(iter(parsed.sweep_string_iterator()))}"


def _nested_fields(cfg: DictConfig, path: str) -> dict[str, str]:
    """Fields of the dataclass that describes a plain nested node such as model.network."""
    inner = nested_class(cfg, path)
    described = signature_of(inner) if inner else None
    return described.parameters if described else {}


def groups() -> list[str]:
    """Names of the config groups."""
    return sorted(p.name for p in CONF.iterdir() if p.is_dir())


def explain(error: BaseException) -> str:
    """Hydra's and OmegaConf's complaints as one line with the nearest legal names."""
    text = str(error)
    missing = re.search(r"Could not find '(experiment|hydra/\w+|[^'/]+)/([^']+)'", text)
    if missing:
        group, choice = missing.groups()
        if (group, choice) == ("hydra/sweeper", "optuna"):
            return f"this search needs Optuna: pip install optuna==5.0.0 && pip install --no-deps {OPTUNA_SWEEPER}"
        options = [str(p.relative_to(CONF / group).with_suffix("")) for p in (CONF / group).rglob("*.yaml")]
        return f"unknown {group}={choice}: {suggest(choice, options)}"
    group = re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text)
    if group:
        key = group.group(1).lstrip("/")
        return f"unknown key '{key}': {suggest(key, [*groups(), 'name', 'seed', 'compile', 'resume', 'run_id'])}"
    return re.sub(r"\s+", " ", text.split("\nSee https")[0]).strip()


def saved_config(run: Path) -> DictConfig:
    """The configuration that a run directory holds."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"'{run}' is no run directory: it has no config.yaml (runs lie under logs/<name>/<run_id>)")
    refuse_links(run)
    return read_saved(path)


def config_of(run: str | None, ckpt: Any) -> DictConfig:
    """Configuration of a run directory, or the copy that every checkpoint carries; of several, the first one's."""
    if ckpt and not isinstance(ckpt, str):
        ckpt = ckpt[0]
    if run or (ckpt and Path(ckpt).is_dir()):
        return saved_config(Path(run or ckpt))
    if not ckpt:
        raise UserError("say what to evaluate: run=logs/<name>/<run_id> or ckpt=<file>.ckpt")
    from quintet.common.checkpoints import load_checkpoint

    stored = load_checkpoint(Path(ckpt)).get("quintet_config")
    if stored is None:
        raise UserError(f"'{ckpt}' was not written by this repository: it holds no 'quintet_config'")
    refuse_links(Path(ckpt).parent, within="eval")  # where results are written
    return plain_config(stored, f"'{ckpt}'")


def apply_overrides(cfg: DictConfig, overrides: list[str], root: str) -> None:
    """Set `key=value` and `group=option` on a saved configuration; unknown keys stop with the nearest names."""
    for parsed in OverridesParser.create().parse_overrides(add_torch_optimizers(overrides)):
        key = parsed.key_or_group
        if key in groups():
            assert parsed.input_line is not None, "the parser keeps the text of an override"
            node = compose_config("train", [parsed.input_line])
            with open_dict(cfg):
                cfg[key] = OmegaConf.to_container(node[key], resolve=True)
            continue
        _set(cfg, key, parsed.value(), parsed.is_add() or parsed.is_force_add(), root)


def _set(cfg: DictConfig, key: str, value: Any, added: bool, root: str) -> None:
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not isinstance(node, DictConfig):
        raise UserError(f"unknown key '{key}' on the command line: the saved run has no '{parent}'")
    legal = [str(k) for k in node]
    target = node.get("_target_")
    signature = signature_of(target) if target else None
    described = signature.parameters if signature else _nested_fields(cfg, parent)
    if leaf not in legal and leaf not in described and not added:
        if not parent:
            legal += EVAL_KEYS if root == "eval" else []
        raise UserError(f"unknown key '{key}' on the command line: {suggest(leaf, sorted({*legal, *described}))}")
    old = node.get(leaf)
    with open_dict(node):
        node[leaf] = value
    if key == "data.root" and isinstance(old, str):
        _move_root(node, old, value)


def _move_root(node: DictConfig, old: str, new: str) -> None:
    """A saved configuration is resolved: paths below the old data root follow the new one."""
    for key, value in list(node.items()):
        if isinstance(value, DictConfig):
            _move_root(value, old, new)
        elif isinstance(value, str) and (value == old or value.startswith(old.rstrip("/") + "/")):
            node[key] = new + value[len(old) :]


def check_protocol(request: DictConfig, cfg: DictConfig) -> None:
    """A paper's protocol is for models of that paper's kind of batch; UserError names the protocols that fit the run.

    The influence protocols decide themselves which models they can explain. A class may declare a `batch_type`.
    """
    wanted = _batches_of_protocol(request.protocol._target_)
    given = class_attribute(cfg.model._target_, "batch_type")
    if wanted is None or given is None or given in wanted:
        return
    fitting = []
    for path in sorted((CONF / "protocol").glob("*.yaml")):
        target = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("_target_")
        if target and (fits := _batches_of_protocol(target)) is not None and given in fits:
            fitting.append(path.stem)
    name, model = request.protocol._target_.rpartition(".")[2], cfg.model._target_.rpartition(".")[2]
    raise UserError(f"protocol {name} is not for {model}: choose protocol={' | '.join(['test', *fitting])}")


def _batches_of_protocol(target: str) -> set[str | None] | None:
    """Batch types of the models that a protocol is for; None for every model."""
    if declared := class_attribute(target, "batch_type"):
        return {declared}
    paper = re.match(r"quintet\.papers\.(\w+)\.protocols\.", target)
    if paper is None or paper.group(1) == "influence":
        return None
    models = (yaml.safe_load(p.read_text(encoding="utf-8")) or {} for p in (CONF / "model").glob("*.yaml"))
    own = [m["_target_"] for m in models if str(m.get("_target_")).startswith(f"quintet.papers.{paper.group(1)}.")]
    return {class_attribute(model, "batch_type") for model in own}


def check_request(request: DictConfig, origin: Origin) -> None:
    """The `_target_` nodes of an eval request against their signatures; one device only."""
    if request.publish is not None:
        check_name("publish", request.publish)
    for path, node in targets(OmegaConf.to_container(request, resolve=False)):
        check_target(path, node, origin)
    if str(request.trainer.get("devices")) not in ("1", "auto") or int(request.trainer.get("num_nodes") or 1) > 1:
        raise UserError("eval.py runs on one device, so that no padded duplicate is counted: leave trainer.devices=1")


def eval_help() -> str:
    """Text of `python eval.py --help`."""
    protocols = ", ".join(sorted(p.stem for p in (CONF / "protocol").glob("*.yaml")))
    return (
        "Evaluate a run on one device, or do something with it.\n\n"
        "  python eval.py run=logs/<name>/<run_id> [protocol=NAME] [protocol.key=value] [key=value ...]\n"
        "  python eval.py ckpt=<file>.ckpt ...\n"
        "  python eval.py ckpt=[<run or file>,<another>,...] ...    (an ensemble, of captioners)\n\n"
        f"protocols: {protocols}\n"
        "publish=NAME writes docs/results/NAME.json; debug=true shows tracebacks;\n"
        "every other key=value goes on top of the run's own configuration (data.root=..., data.batch_size=...)."
    )
