"""Keys and passwords stay out of configurations, logs and result files."""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from quintet.errors import UserError

SECRET_NAME = re.compile(r"KEYS?$|KEY_ID$|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
MIN_LENGTH = 12  # shorter values of variables that are called so are no keys, but `1` or `true`


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


def refuse_in_config(cfg: DictConfig) -> None:
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
