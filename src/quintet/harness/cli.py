"""Command lines: from argv to a checked configuration, and from an exception to one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from quintet.common.errors import UserError
from quintet.harness.config import compose
from quintet.harness.config.config import Origin, check, check_accelerator, check_multirun, suggest
from quintet.harness.config.moved import move_experiments
from quintet.harness.config.secrets import refuse_on_command_line
from quintet.harness.config.trust import keep_home
from quintet.harness.messages import one_line_errors
from quintet.harness.slurm import submit as slurm
from quintet.harness.slurm.signals import SIGNALS

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach `one_line_errors` instead of Hydra's own printer


def argument(name: str, argv: list[str]) -> str | None:
    """Value of `name=value` on the command line, the last one wins."""
    values = [a.partition("=")[2] for a in argv if a.partition("=")[0] == name]
    return values[-1].strip("'\"") if values and values[-1] not in ("null", "") else None


def train_main(hydra_train: Callable[[], None]) -> int:
    """Entry of train.py: a new run through Hydra, or `resume=DIR` with that run's own configuration."""
    # `debug` is a config group with an option called true; Hydra takes only strings for group choices.
    sys.argv = [re.sub(r"^debug=(true|false)$", r"debug='\1'", a, flags=re.IGNORECASE) for a in sys.argv]
    sys.argv = compose.add_torch_optimizers([move_experiments(a) for a in sys.argv])
    with one_line_errors(sys.argv):
        refuse_on_command_line(sys.argv[1:])
        run = argument("resume", sys.argv[1:])
        if run:
            resume_job(Path(run), [a for a in sys.argv[1:] if not a.startswith("resume=")])
        else:
            _with_legal_additions(hydra_train)
    return 0


def _with_legal_additions(hydra_train: Callable[[], None]) -> None:
    """Run Hydra; a key that the yaml leaves out but its constructor takes is added instead of refused."""
    while True:
        try:
            return hydra_train()
        except Exception as error:
            match = re.search(r"Could not override '([^']+)'", str(error))
            if match is None or type(error).__name__ != "ConfigCompositionException":
                raise
            changed = compose.add_if_legal(match.group(1), sys.argv)
            if changed == sys.argv:  # the key does not come from the command line
                raise
            sys.argv = changed


def train_job(cfg: DictConfig) -> float | None:
    """Check a composed configuration, then fit; called once a Hydra job."""
    SIGNALS.take()
    # here already: Hydra writes a line of its own for what passes through it, and submitit calls a crash completed
    with one_line_errors(list(HydraConfig.get().overrides.task), exit_on_bugs=SIGNALS.taken):
        return _train_job(cfg)


def _train_job(cfg: DictConfig) -> float | None:
    hydra = HydraConfig.get()
    origin = Origin(tuple(hydra.overrides.task), tuple((k, str(v)) for k, v in hydra.runtime.choices.items() if v))
    launcher = str(hydra.runtime.choices.get("hydra/launcher"))
    assert hydra.mode is not None, "Hydra sets it before it starts a job"
    slurm.check_mode(hydra.mode.name, launcher)
    if hydra.runtime.choices.get("search") and hydra.mode.name == "RUN":
        raise UserError(f"search={hydra.runtime.choices['search']} is many runs: add -m")
    check_multirun(cfg, hydra.mode.name, launcher)
    check_accelerator(cfg)
    check(cfg, origin)
    slurm.check_tasks(cfg)
    OmegaConf.resolve(cfg)
    check(cfg, origin)  # again: an interpolation may have brought in something else
    from quintet.harness.run.fit import fit  # heavy: torch and Lightning

    metrics = fit(cfg)
    if cfg.optimized_metric and cfg.optimized_metric not in metrics:
        raise UserError(
            f"optimized_metric='{cfg.optimized_metric}' was not logged: {suggest(cfg.optimized_metric, list(metrics))}"
        )
    return metrics.get(cfg.optimized_metric) if cfg.optimized_metric else None


def resume_job(run: Path, overrides: list[str]) -> None:
    """Continue the run in directory `run` with its own configuration, overrides on top."""
    SIGNALS.take()
    if argument("launcher", overrides):
        raise UserError(f"resume= takes no launcher=: in SLURM's queue say `sbatch scripts/slurm.sbatch resume={run}`")
    if argument("search", overrides):
        raise UserError("resume= takes no search=: it continues one run")
    cfg = compose.saved_config(run)
    keep_home(cfg, run)
    compose.apply_overrides(cfg, overrides, root="train")
    with open_dict(cfg):
        cfg.resume, cfg.run_dir = str(run), str(run.resolve())
    check_accelerator(cfg)
    check(cfg, Origin(tuple(overrides)))
    slurm.check_tasks(cfg)
    from quintet.harness.run.fit import fit

    fit(cfg)


def eval_main() -> int:
    """Entry of eval.py: `run=` or `ckpt=`, the run's own configuration, overrides on top, one device."""
    argv = [re.sub(r"^debug=(true|false)$", r"debug='\1'", a, flags=re.IGNORECASE) for a in sys.argv[1:]]
    if not argv or "--help" in argv or "-h" in argv:
        print(compose.eval_help())
        return 0
    with one_line_errors(argv):
        refuse_on_command_line(argv)
        mine = [a for a in argv if re.split(r"[.=]", a.lstrip("+~"))[0] in compose.EVAL_KEYS]
        request = compose.compose_checked("eval", mine)
        check_accelerator(request)
        cfg = compose.config_of(request.run, request.ckpt)
        compose.apply_overrides(cfg, [a for a in argv if a not in mine], root="eval")
        check(cfg, Origin(tuple(argv)))
        compose.check_request(request, Origin(tuple(argv)))
        compose.check_protocol(request, cfg)
        from quintet.harness.run.evaluate import evaluate

        evaluate(cfg, request, command=" ".join(["python eval.py", *argv]))
    return 0
