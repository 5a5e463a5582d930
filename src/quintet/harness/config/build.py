"""The only door to `hydra.utils.instantiate`: allow-listed targets, plain containers (design decision 2)."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from quintet.harness.config.config import Origin, check_target, targets


def build(node: Any, **extra: Any) -> Any:
    """Build a `_target_` node after checking every target in it; nested configs arrive as plain dicts and lists."""
    from hydra.utils import instantiate

    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    for path, inner in targets(plain, "config"):
        check_target(path, inner, Origin())
    return instantiate(plain, **extra, _convert_="all")


def build_all(nodes: Any) -> list[Any]:
    """Build each non-null entry of a mapping of `_target_` nodes, in order."""
    plain = OmegaConf.to_container(nodes, resolve=True) if OmegaConf.is_config(nodes) else nodes
    return [build(node) for node in plain.values() if node]
