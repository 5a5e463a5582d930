"""From an exception to the one line that a user sees."""

from __future__ import annotations

import re
import sys
import traceback
from contextlib import contextmanager

from omegaconf.errors import OmegaConfBaseException

from quintet.common.errors import UserError
from quintet.harness.config.compose import explain

# error texts of healthy ranks after another rank died
LOST_RANK = re.compile(r"gloo.*(closed|reset) by peer|NCCL.*remote process exited", re.DOTALL)

EXTRAS = {  # optional packages, and the extra of pyproject.toml that brings each
    "soundfile": "wavenet",
    "librosa": "wavenet",
    "soxr": "wavenet",
    "pydensecrf": "deeplab",
    "snowballstemmer": "captions",
    "faiss": "rare_events",
    "tokenizers": "rare_events",
    "sacrebleu": "rare_events",
    "scipy": "influence",
    "sklearn": "influence",
    "pandas": "influence",
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "optuna": "sweeps",
    "hydra_plugins": "slurm",
}


@contextmanager
def one_line_errors(argv: list[str], exit_on_bugs: bool = False):
    """Print a user's mistake as one line on stderr and exit with 1; `debug=true` keeps the traceback.

    exit_on_bugs: other exceptions end the process too, after their traceback, instead of being raised.
    """
    debug = any(a.replace("'", "").replace('"', "") in ("debug=true", "debug=True") for a in argv)
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        message = user_message(error)
        if debug or message is None:
            if not exit_on_bugs:
                raise
            traceback.print_exc()
            sys.exit(1)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)


def user_message(error: BaseException) -> str | None:
    """The one-line message for a user's error; None for an internal error, whose traceback is shown."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            # torch hands on what a DataLoader's worker raised with its traceback as the text
            text = str(seen).rstrip().rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2]
            return "".join(c if c.isprintable() else " " for c in text)  # names in it may hold line breaks, or worse
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in EXTRAS:
        package = str(error.name).partition(".")[0]
        extra = EXTRAS[package]
        return f"{package} is not installed: pip install 'quintet[{extra}]', in a checkout pip install -e '.[{extra}]'"
    hydra_error = type(error).__module__.startswith(("hydra.errors", "hydra.core.override_parser"))
    if hydra_error or isinstance(error, OmegaConfBaseException):
        return explain(error)
    if type(error).__module__ == "submitit.core.utils":
        return explain_job(error)
    return "another rank has ended: see its own message for the reason" if LOST_RANK.search(str(error)) else None


def explain_job(error: BaseException) -> str:
    """submitit's report of a failed job as one line: the job's own error when it wrote one, else the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    job = re.search(r"[Jj]ob (\S+) ", lines[0])
    log = re.search(r"with path (\S+)/\S+_result\.pkl", lines[0])
    where = f"; its logs are in {log.group(1)}" if log else ""
    return f"SLURM job {job.group(1) if job else ''} failed: {own[-1] if own else lines[-1]}{where}"
