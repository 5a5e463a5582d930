"""The single place that calls `hydra.utils.instantiate`: allow-listed targets, nested configs as plain containers."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from quintet.harness.config.config import OPTIMIZER, Origin, check_target, targets
from quintet.harness.config.signature import signature_of


def build(node: Any, **extra: Any) -> Any:
    """Build a `_target_` node after checking every target in it; nested configs arrive as plain dicts and lists."""
    from hydra.utils import instantiate

    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    for path, inner in targets(plain, "config"):
        check_target(path, inner, Origin())
    return instantiate(_name_torch_optimizers(plain), **extra, _convert_="all")


def _name_torch_optimizers(node: Any) -> Any:
    """`{_target_: torch.optim.X, key: value}` as an OptimizerConfig: the module builds it once it has parameters."""
    if isinstance(node, list):
        return [_name_torch_optimizers(value) for value in node]
    if not isinstance(node, dict):
        return node
    target = str(node.get("_target_", ""))
    node = {key: _name_torch_optimizers(value) for key, value in node.items()}
    if not target.startswith("torch.optim."):
        return node
    del node["_target_"]
    if target.startswith("torch.optim.lr_scheduler."):
        return {"name": target, **node}
    own, named = signature_of(target), signature_of(OPTIMIZER)
    assert own and named, "check_target found both"
    kept = {key: value for key, value in node.items() if key in named.parameters}
    return kept | {"name": target, "options": {key: value for key, value in node.items() if key in own.parameters}}


def build_all(nodes: Any) -> list[Any]:
    """Build each non-null entry of a mapping of `_target_` nodes, in order."""
    plain: Any = OmegaConf.to_container(nodes, resolve=True) if OmegaConf.is_config(nodes) else nodes
    return [build(node) for node in plain.values() if node]
