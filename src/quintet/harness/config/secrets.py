"""Keys and passwords stay out of configurations, logs and result files: those that look like one, and known ones.

A configuration is written to the run directory and into checkpoints, and W&B and the console log hear of it.
"""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from quintet.common.errors import UserError

NAME = re.compile(r"(^|_)(api_?key|(access|auth|hub|hf)_?token|token|password|passwd|secret|credentials?)$", re.I)
VALUE = re.compile(r"wandb_v\d+_\w{20,}|\bhf_[A-Za-z0-9]{20,}|://[^/\s:@]+:[^/\s@]+@")  # W&B, the Hub, an address
WANDB_KEY = re.compile(r"(local-)?[0-9a-f]{40}")  # also the form of a commit, which data may be pinned to
COMMITS = ("revision", "commit")
SECRET_NAME = re.compile(r"KEYS?$|KEY_ID$|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
MIN_LENGTH = 12  # shorter values of variables that are called so are no keys, but `1` or `true`


def refuse_on_command_line(arguments: list[str]) -> None:
    """UserError for a `key=value` that is or looks like a secret; called before Hydra writes the overrides down."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        _refuse(key.lstrip("+~-"), value.strip("'\""), "on the command line")
    refuse_secrets(arguments, "the command line")


def refuse_what_looks_secret(plain: dict[str, Any]) -> None:
    """UserError for what looks like a secret in a composed configuration, which files contribute to."""
    for key, value in _texts(plain, ""):
        _refuse(key, value, "in the configuration")


def _texts(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value, path)
    elif isinstance(node, str):
        yield path, node


def _refuse(key: str, value: str, where: str) -> None:
    """The value is not repeated: what a program prints is often kept, too."""
    leaf = key.rpartition(".")[2]
    named = NAME.search(leaf) and value not in ("", "null")
    if named or VALUE.search(value) or (WANDB_KEY.fullmatch(value) and leaf not in COMMITS):
        raise UserError(
            f"'{key}' {where} looks like a key or a password, which would be written to the run directory and into "
            "checkpoints: leave it out, and say `wandb login` or set WANDB_API_KEY (for the Hub: HF_TOKEN)"
        )


def secrets() -> dict[str, str]:
    """value -> where it stands: environment variables that are called like secrets, and passwords in ~/.netrc."""
    found = {value: name for name, value in os.environ.items() if SECRET_NAME.search(name)}
    path = Path("~/.netrc").expanduser()
    try:
        hosts = netrc.netrc(str(path)).hosts if path.is_file() else {}
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
        hosts = {}
    found |= {password: f"~/.netrc for {host}" for host, (_, _, password) in hosts.items() if password}
    return {v: name for v, name in found.items() if len(v) >= MIN_LENGTH and not v.startswith(("/", "~"))}


def refuse_secrets(texts: Iterable[Any], where: str) -> None:
    """UserError, which does not repeat the secret, when one of `secrets()` stands in a text: it would be saved."""
    known = secrets()
    for text in texts if known else ():
        for value, name in known.items():
            if value in str(text):
                raise UserError(f"{where} holds the value of {name}, which would be saved and logged: leave it out")


def refuse_known_secrets(cfg: DictConfig) -> None:
    """As `refuse_secrets`, for every value of a resolved configuration."""
    refuse_secrets([OmegaConf.to_yaml(cfg)], "the configuration")


def environment(name: str, *default: str | None) -> str | None:
    """`${oc.env:NAME}` for all variables but secrets, which a configuration would write into every run directory.

    Errors: UserError for a secret; KeyError when the variable is not set and there is no default.
    """
    if SECRET_NAME.search(name):
        raise UserError(f"${{oc.env:{name}}}: a configuration may not read a secret, it would be saved with the run")
    if name not in os.environ and not default:
        raise KeyError(f"environment variable '{name}' is not set")
    return os.environ.get(name, *default)
