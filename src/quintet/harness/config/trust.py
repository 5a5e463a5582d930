"""What a configuration from a stranger may say: classes that may be built, names, plain values, nothing that runs code.

Targets are names of classes, found in source text: `quintet.harness.slurm.submit.subprocess.run`, or a class that
another package only lends to a module here, names nothing. Hydra has doors of its own (callbacks, launchers, log
handlers, environment variables), which open before train.py gets to see the configuration: `guard_composition` looks at
them first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import wraps
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

from quintet.common.errors import UserError
from quintet.harness.config.moved import move_targets
from quintet.harness.config.signature import class_module
from quintet.harness.paths import CONF

ALLOWED = (  # (what may be written, where its definition must be)
    (re.compile(r"quintet\.(?:papers|data|harness\.callbacks)(?:\.\w+)*\.[A-Za-z]\w*"), "quintet."),
    (re.compile(r"quintet\.harness\.(?:run|resume)\.(?:test|strategies|metrics_csv|checkpoint)\.[A-Z]\w*"), "quintet."),
    (re.compile(r"lightning\.pytorch\.Trainer"), "lightning."),
    (re.compile(r"torch\.optim\.(?:lr_scheduler\.)?[A-Z]\w*"), "torch."),
    (re.compile(r"lightning\.pytorch\.(?:callbacks|profilers|strategies)\.(?!Lambda)[A-Z]\w*"), "lightning."),
    (re.compile(r"lightning\.pytorch\.loggers\.(?:CSV|TensorBoard|Wandb)Logger"), "lightning."),
)
HYDRA_ALLOWED = re.compile(
    r"hydra\._internal\.core_plugins\.\w+\.Basic(?:Launcher|Sweeper)|hydra_plugins(?:\.\w+)+\.[A-Z]\w*(?:Launcher|Sweeper)"
    r"|optuna\.samplers\.[A-Z]\w*|quintet\.harness\.slurm\.submit\.BeforeSubmission"
)
# what **kwargs of a class may be; `settings` of wandb.init could send the user's key to another server
KEYWORDS = {
    "lightning.pytorch.loggers.WandbLogger": (
        "entity", "notes", "tags", "config", "config_exclude_keys", "config_include_keys", "allow_val_change", "group",
        "job_type", "mode", "force", "reinit", "resume", "resume_from", "fork_from", "save_code", "tensorboard",
        "sync_tensorboard", "monitor_gym",
    ),
}  # fmt: skip
SHELL_KEYS = ("setup", "srun_args", "additional_parameters", "python")  # of a launcher: they end in a shell script
LOG_CLASSES = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "colorlog.ColoredFormatter")
NAME = re.compile(r"[^\W_][\w.+@,=-]*")
MAX_VALUES = 100_000  # yaml's aliases can make a few lines into billions of values


def is_allowed(target: Any) -> bool:
    """Whether a `_target_` may be built: a class, defined where it claims to be. True also for what does not exist."""
    if isinstance(target, str) and target.partition(".")[0] in trusted_packages():
        return class_module(target) != ""
    for pattern, home in ALLOWED:
        if isinstance(target, str) and pattern.fullmatch(target):
            found = class_module(target)
            return found is None or found.startswith(home)
    return False


def trusted_packages() -> set[str]:
    """Packages that the user trusts: QUINTET_TRUST=one,two, and those with an entry point in `quintet.plugins`."""
    named = {name.strip() for name in os.environ.get("QUINTET_TRUST", "").split(",")} - {""}
    return named | {entry.value.partition(":")[0].partition(".")[0] for entry in entry_points(group="quintet.plugins")}


def check_name(key: str, value: Any, folders: bool = False) -> None:
    """`name`, `run_id`, `publish` become files and folders: no way out of where they belong. UserError otherwise."""
    parts = str(value).split("/") if folders else [str(value)]
    if not all(NAME.fullmatch(part) for part in parts):
        raise UserError(f"{key}={value!r}: use letters, digits and . _ - + @ , = only, a letter or digit first")


def read_saved(path: Path) -> DictConfig:
    """A run's config.yaml. Errors: UserError for no YAML, YAML that makes objects, and what `plain_config` refuses."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=get_yaml_loader())  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{path} is no plain YAML ({reason}): a run's config.yaml holds plain values only") from error
    return plain_config(content, str(path))


def plain_config(content: Any, where: str) -> DictConfig:
    """A saved configuration as it may be trusted: a mapping of plain values, all resolved. Errors: UserError."""
    if not isinstance(content, dict):
        raise UserError(f"{where} is no configuration: it is no mapping of keys to values")
    for count, (key, value) in enumerate(_values(content)):
        if count > MAX_VALUES:
            raise UserError(f"{where} has more than {MAX_VALUES} values: it is no run's configuration")
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{where}: '{key}' is not resolved ({value[:80]!r}), a saved configuration always is")
        if value is not None and not isinstance(value, str | int | float | bool):
            raise UserError(f"{where}: '{key}' is no plain value, but {type(value).__name__}")
    return OmegaConf.create(move_targets(content))


def _values(node: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > 50:
        raise UserError(f"a configuration nested 50 levels deep is no run's: '{path[:80]}'")
    if isinstance(node, dict):
        for key, value in node.items():
            if key is None:
                raise UserError(f"a configuration's key is empty, beside or below '{path[:80]}': give it a name")
            yield path, key
            yield from _values(value, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _values(value, f"{path}.{index}", depth + 1)
        yield path, None
    else:
        yield path, node


def refuse_links(run: Path, within: str = "*") -> None:
    """A run directory whose files (those that match `within`) lie elsewhere would have them overwritten: UserError."""
    home = run.resolve()
    for path in (inner for top in run.glob(within) for inner in (top, *top.rglob("*"))):
        if path.is_relative_to(run / "wandb"):  # W&B links its own logs, which nothing here opens
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise UserError(f"{path} is a link out of the run directory: refused; put what it points to in its place")


def keep_home(cfg: DictConfig, run: Path) -> None:
    """Output paths of a saved configuration follow the run directory to where it is now.

    Errors: UserError for one that lies outside of it, which the command line may set again.
    """
    old, home = str(cfg.get("run_dir")), run.resolve()
    for group in ("callbacks", "logger", "trainer"):
        for node, key, value, path in _strings(cfg.get(group), group):
            if value == old or value.startswith(old.rstrip("/") + "/"):
                value = node[key] = str(home) + value[len(old.rstrip("/")) :]
            outside = Path(value).is_absolute() or "://" in value or ".." in Path(value).parts
            inside = Path(value).is_absolute() and Path(value).resolve().is_relative_to(home)
            if outside and not inside:
                raise UserError(f"{run}/config.yaml: {path}={value} is outside of the run directory: refused")


def _strings(node: Any, path: str) -> Iterator[tuple[Any, Any, str, str]]:
    if isinstance(node, DictConfig):
        for key, value in list(cast(dict[str, Any], node).items()):
            if isinstance(value, str):
                yield node, key, value, f"{path}.{key}"
            else:
                yield from _strings(value, f"{path}.{key}")


def guard_composition() -> None:
    """From now on every configuration that Hydra composes passes `check_hydra` before Hydra acts on it."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl  # no public hook comes this early

    original = ConfigLoaderImpl.load_configuration
    if hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def load_configuration(self, config_name, overrides, *args, **kwargs):
        try:
            cfg = original(self, config_name, overrides, *args, **kwargs)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, RecursionError) as error:
            # Hydra's own checks of overrides end so: `model=null`
            raise UserError(f"{' '.join(map(str, overrides))[:200]}: {' '.join(str(error).split())[:200]}") from error
        check_hydra(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False)), overrides)
        return cfg

    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]  # there is no hook


def check_hydra(cfg: dict[str, Any], overrides: list[str]) -> None:
    """The `hydra` part of a composed configuration, and the names that folders are made of. Errors: UserError."""
    for key, folders in (("name", True), ("run_id", False)):
        if key in cfg and "${" not in str(cfg[key]) and cfg[key] != "???":
            check_name(key, cfg[key], folders)
    node = cfg.get("hydra") or {}
    for path, value in _values(node, "hydra"):
        if path.endswith("._target_") and not HYDRA_ALLOWED.fullmatch(str(value)):
            raise UserError(f"'{path}: {value}' is not allowed: Hydra builds launchers and sweepers only")
    for group in ("job_logging", "hydra_logging"):
        _check_logging(node.get(group), f"hydra.{group}")
    typed = [override.lstrip("+~").split("=")[0] for override in overrides]
    if (node.get("job") or {}).get("env_set") and not any(key.startswith("hydra.job.env_set") for key in typed):
        raise UserError("'hydra.job.env_set' in a configuration file: refused; set the variable in your shell")
    launcher = node.get("launcher") or {}
    for key, value in launcher.items():
        if key in SHELL_KEYS and value and f"hydra.launcher.{key}" not in typed and not _of_launcher(cfg, key, value):
            raise UserError(f"'hydra.launcher.{key}' would run in a shell: put it into conf/launcher, or type it")
        if isinstance(value, str) and "\n" in value:
            raise UserError(f"'hydra.launcher.{key}' has a line break, which would end in a shell script")


def _of_launcher(cfg: dict[str, Any], key: str, value: Any) -> bool:
    """Whether the user's own launcher file in conf/launcher says so."""
    choice = (cfg["hydra"].get("runtime") or {}).get("choices", {}).get("launcher")
    path = CONF / "launcher" / f"{choice}.yaml"
    said: Any = yaml.safe_load(path.read_text(encoding="utf-8")) if choice and path.is_file() else None
    return bool(said) and ((said.get("hydra") or {}).get("launcher") or {}).get(key) == value


def _check_logging(node: Any, where: str) -> None:
    """logging.config builds what `()` and `class` name and imports what `ext://` names."""
    for path, value in _values(node, where):
        key = path.rpartition(".")[2]
        if key in ("()", "class", "factory") and value not in (None, *LOG_CLASSES):
            raise UserError(f"'{path}: {value}' is not allowed: log to {', '.join(LOG_CLASSES[:2])}")
        if (
            isinstance(value, str)
            and value.startswith("ext://")
            and value not in ("ext://sys.stdout", "ext://sys.stderr")
        ):
            raise UserError(f"'{path}: {value}' is not allowed in a log's configuration")
