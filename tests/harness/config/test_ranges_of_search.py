"""search=: the ranges of the sweep files without a server, Hydra's own sweeper for grids and Optuna for the rest."""

import csv

import pytest
import yaml
from commands import REPOSITORY, TINY
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from omegaconf import OmegaConf

from quintet.harness.config import compose
from quintet.harness.paths import CONF

FILES = sorted((CONF / "search").glob("*.yaml"))


def hydra_range(key, text):
    """(values) or (low, high, logarithmic) of a range as Hydra reads it."""
    value = OverridesParser.create().parse_override(f"{key}={text}").value()
    if isinstance(value, ChoiceSweep):
        return ["null" if v is None else v for v in value.list]
    return value.start, value.end, "log" in value.tags


def wandb_range(parameter):
    """The same of a sweep file's parameter."""
    if "values" in parameter:
        return parameter["values"]
    return parameter["min"], parameter["max"], parameter["distribution"] == "log_uniform_values"


def test_one_a_sweep_file():
    assert [path.stem for path in FILES] == sorted(p.stem for p in (REPOSITORY / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_same_ranges_as_the_sweep_file(path):
    search = yaml.safe_load(path.read_text())
    sweep = yaml.safe_load((REPOSITORY / "sweeps" / path.name).read_text())
    sweeper, metric = search["hydra"]["sweeper"], sweep["metric"]
    ours = {key: hydra_range(key, text) for key, text in sweeper["params"].items()}
    theirs = {key: wandb_range(p) for key, p in sweep["parameters"].items() if "value" not in p}
    assert ours == theirs
    for key, values in ours.items():  # Optuna draws whole numbers from whole bounds
        assert isinstance(values, list) or type(values[0]) is type(sweep["parameters"][key]["min"])
    assert search["optimized_metric"] == metric["name"]
    chosen = {k: v for d in search.get("defaults", []) for k, v in d.items()}
    sampler = {"random": "random", "bayes": None, "grid": None}[sweep["method"]]
    assert chosen.get("override /hydra/sweeper/sampler") == sampler
    assert ("override /hydra/sweeper" in chosen) == (sweep["method"] != "grid")
    if sweep["method"] != "grid":
        assert (f"{sweeper['direction']}", sweeper["n_trials"]) == (metric["goal"], sweep["run_cap"])


@pytest.mark.slow
def test_a_search_with_optuna(house):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="Optuna's sweeper: see Makefile")
    limits = ["trainer.max_steps=2", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
    folder = house.folder / "search"
    few = ["hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=3", f"hydra.sweep.dir={folder}"]
    tiny = [t for t in TINY if "stack" not in t]
    done = house.run("train.py", "-m", *tiny, *limits, "search=wavenet", *few)
    assert done.returncode == 0, done.stderr[-3000:]
    results = []
    for number in (0, 1):
        with (folder / str(number) / "metrics.csv").open() as file:
            value = next(float(row["val/bits"]) for row in csv.DictReader(file) if row["val/bits"])
        results.append((value, OmegaConf.load(folder / str(number) / "config.yaml")))
    best = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    value, cfg = min(results, key=lambda r: r[0])
    assert best["best_value"] == pytest.approx(value)
    assert results[0][1].model.optimizer.lr != results[1][1].model.optimizer.lr
    for key, chosen in best["best_params"].items():
        assert OmegaConf.select(cfg, key) == pytest.approx(chosen), key


def test_search_is_for_many_runs(house):
    done = house.run("train.py", "experiment=influence/sample", "search=influence")
    assert done.returncode == 1 and done.stderr == "error: search=influence is many runs: add -m\n"
    done = house.run("train.py", "resume=somewhere", "search=influence")
    assert done.returncode == 1 and done.stderr == "error: resume= takes no search=: it continues one run\n"


def test_without_optuna_it_says_what_to_install():
    error = ValueError("In 'search/x': Could not find 'hydra/sweeper/optuna'\n\nAvailable options in 'hydra/sweeper'")
    assert "pip install --no-deps hydra-optuna-sweeper" in compose.explain(error)
