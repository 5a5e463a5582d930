"""A run beside the one that eval.py was given, for protocols that compare two."""

from pathlib import Path
from typing import Any

from quintet.common.errors import UserError


def load_run(run: str | None, root: str | None, device: Any, key: str = "protocol.other_run") -> tuple[Any, Any]:
    """(module, data module) of a run directory, ready for use. root: where its data is now, null = as in its config.

    Raises UserError, which names `key`, for anything but a run directory.
    """
    # the app knows the protocols by their configuration only; no circle
    from omegaconf import OmegaConf

    from quintet.common.checkpoints import check_data_info
    from quintet.harness.config.build import build
    from quintet.harness.config.compose import apply_overrides, saved_config
    from quintet.harness.config.config import Origin, check
    from quintet.harness.run.evaluate import find_checkpoint, load_module

    if run is None:
        raise UserError(f"{key} is null: give the directory of the run to compare with, logs/<name>/<run_id>")
    cfg = saved_config(Path(run))
    apply_overrides(cfg, [] if root is None else [f"data.root={root}"], root="train")
    check(cfg, Origin())
    checkpoint = find_checkpoint(OmegaConf.create({"run": str(run), "ckpt": None}))
    datamodule = build(cfg.data)
    datamodule.prepare_data()
    datamodule.setup("test")
    module = load_module(cfg, checkpoint)
    check_data_info(module.hparams.get("data_info") or {}, datamodule.data_info)
    return module.to(device).eval(), datamodule
