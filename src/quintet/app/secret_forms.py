"""What looks like a key or a password is refused: a configuration is written to the run directory and checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from quintet.errors import UserError

NAME = re.compile(r"(^|_)(api_?key|(access|auth|hub|hf)_?token|token|password|passwd|secret|credentials?)$", re.I)
VALUE = re.compile(r"wandb_v\d+_\w{20,}|\bhf_[A-Za-z0-9]{20,}|://[^/\s:@]+:[^/\s@]+@")  # W&B, the Hub, an address
WANDB_KEY = re.compile(r"(local-)?[0-9a-f]{40}")  # also the form of a commit, which data may be pinned to
COMMITS = ("revision", "commit")


def refuse_on_command_line(arguments: list[str]) -> None:
    """UserError for a `key=value` that looks like a secret; called before Hydra writes the overrides down."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        _refuse(key.lstrip("+~-"), value.strip("'\""), "on the command line")


def refuse_in_configuration(plain: dict[str, Any]) -> None:
    """The same for every text in a composed configuration, which files contribute to."""
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
