"""What the benchmark scripts share: the composed training configuration, a temporary run directory, a printed table."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quintet.common.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(os.environ.get("QUINTET_RESULTS", REPOSITORY / "docs" / "results"))  # `make bench` has a folder a commit

SECTION_S = 600  # a section's limit: far above what one needs on a busy machine, so that only a hang meets it


def parser(description: str, result: str) -> argparse.ArgumentParser:
    """Options that every script has; what is left over are train.py overrides."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("overrides", nargs="*", help="as for train.py: experiment=wavenet/sample data.root=...")
    made.add_argument("--publish", default=None, metavar="NAME", help=f"write docs/results/NAME.json, e.g. {result}")
    made.add_argument("--subset", action="store_true", help="the data are a part of the official set: say so")
    return made


@contextmanager
def one_line_errors():
    """A user's mistake ends the script with one line and exit code 1, as in train.py."""
    from omegaconf.errors import OmegaConfBaseException

    from quintet.harness.config.compose import explain

    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if isinstance(error, OmegaConfBaseException) or type(error).__module__.startswith("hydra."):
            sys.exit(f"error: {explain(error)}")
        raise


def compose_training(overrides: list[str], run_dir: Path):
    """The checked and resolved configuration that `train.py <overrides>` would run, with `run_dir` for its files."""
    from omegaconf import OmegaConf, open_dict

    from quintet.harness import cli
    from quintet.harness.config import compose
    from quintet.harness.config.config import Origin, check

    assert cli  # registers the resolvers that conf/train.yaml uses
    cfg = compose.compose_checked("train", overrides)
    with open_dict(cfg):
        cfg.run_dir, cfg.run_id = str(run_dir), "benchmark"
        if "${hydra:" in str(OmegaConf.to_container(cfg, resolve=False)["name"]):
            cfg.name = "benchmark"  # the name of the choices: only known inside hydra.main
    check(cfg, Origin(tuple(overrides)))
    OmegaConf.resolve(cfg)
    return cfg


def build_data(cfg, stage: str = "fit"):
    """The prepared data module of a configuration."""
    from quintet.harness.config.build import build

    datamodule = build(cfg.data)
    datamodule.prepare_data()
    datamodule.setup(stage)
    return datamodule


def build_module(cfg, datamodule):
    """The model sized by the data; also tells the data module its receptive field, so that it works with no trainer."""
    from quintet.harness.config.build import build

    module = build(cfg.model, data_info=datamodule.data_info)
    if getattr(datamodule, "context", 0) is None:
        datamodule.context = module.receptive_field
    return module


def data_name(cfg) -> str:
    """Folder name of the data without the private path before it, or that it is a synthetic sample."""
    source = cfg.data.get("source") or {}
    if ".samples." in str(source.get("_target_")):
        return f"synthetic sample ({source['_target_'].rpartition('.')[2]})"
    return Path(str(cfg.data.get("root") or cfg.data._target_)).name


def print_table(title: str, rows: list[dict]) -> None:
    """Rows as write_result takes them, aligned."""
    lines = [("metric", "value", "unit", "note")]
    for row in rows:
        value = f"{row['value']:.6g}" if isinstance(row["value"], float) else str(row["value"])
        lines.append((row["metric"], value, row["unit"], row.get("note") or ""))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    print(f"\n{title}")
    for metric, value, unit, note in lines:
        print(f"  {metric:<{widths[0]}}  {value:>{widths[1]}}  {unit:<{widths[2]}}  {note}".rstrip())


def report(publish: str | None, rows: list[dict], title: str, **facts) -> None:
    """Print the rows, and write docs/results/PUBLISH.json if a name was given; `facts` as write_result takes them."""
    print_table(title, rows)
    if publish:
        from quintet.harness.results import write_result

        write_result(RESULTS / f"{publish}.json", title=title, rows=rows, **facts)


class CheckFailed(AssertionError):
    """A check did not hold."""


def require(held: bool, message: str) -> None:
    """Raise CheckFailed unless `held`."""
    if not held:
        raise CheckFailed(message)


class Skip(Exception):
    """A section cannot run here; the message says why."""


class OutOfTime(Exception):
    """A section used up its time box."""


@contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after `seconds` (at the next Python instruction)."""

    def stop(signum, frame) -> None:
        raise OutOfTime(f"not finished within {seconds:.3g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def row(metric: str, value, unit: str = "", note: str | None = None) -> dict:
    """One row as write_result takes it."""
    return {"metric": metric, "value": value, "unit": unit, "note": note}


def run_section(name: str, section: Callable[[], Iterator[dict]], seconds: float) -> list[dict]:
    """Rows of one section; a failure or a missing package becomes a row of its own, after the rows made before it."""
    if seconds <= 0:
        return [row(name, "skipped: no time left")]
    rows: list[dict] = []
    try:
        with time_box(seconds):
            for made in section():
                rows.append(made)  # one by one: what was measured before a failure stays
    except (Skip, ImportError) as reason:
        rows.append(row(name, f"skipped: {reason}"))
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        rows.append(row(name, f"failed: {reason}"))
    return rows
