"""Every sweep file: W&B's own schema, our own configuration check for all that it may try, a metric that is logged."""

import re
from functools import cache

import pytest
import yaml
from commands import REPOSITORY
from omegaconf import OmegaConf
from test_experiments import composed

from quintet.harness.config import compose, config
from quintet.harness.run.fit import fit

FILES = [REPOSITORY / "sweep.yaml", *sorted((REPOSITORY / "sweeps").glob("*.yaml"))]
COMMAND = ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
names = pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")


@cache
def read(path):
    return yaml.safe_load(path.read_text())


def experiments(path):
    """The experiment of the file, and the one that its comment offers for the real data."""
    (real,) = re.findall(r"experiment: \{value: [\w/]+\} # ([\w/]+) once", path.read_text())
    return [read(path)["parameters"]["experiment"]["value"], real]


def possible(parameter):
    """All values of a parameter, or the ends of its range."""
    if "values" in parameter:
        return parameter["values"]
    return [parameter["value"]] if "value" in parameter else [parameter["min"], parameter["max"]]


def trials(path):
    """So many that each possible value of each parameter comes up."""
    values = {key: possible(parameter) for key, parameter in read(path)["parameters"].items()}
    for number in range(max(map(len, values.values()))):
        yield {key: {"value": v[number % len(v)]} for key, v in values.items()}


def overrides(trial):
    """The command line as W&B's agent writes it."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    return utils.create_sweep_command_args({"args": trial})["args_no_hyphens"]


def checked(trial, *more):
    given = [*overrides(trial), *more]
    cfg = compose.compose_checked("train", given)
    config.check(cfg, config.Origin(tuple(given)))
    return cfg


def test_the_methods_and_the_papers():
    assert {read(path)["method"] for path in FILES} == {"grid", "random", "bayes"}
    papers = {p.name for p in (REPOSITORY / "src" / "quintet" / "papers").iterdir() if (p / "protocols").is_dir()}
    assert {path.stem for path in FILES} - {"sweep"} <= papers


@names
def test_schema(path):
    """Every one of W&B's, and what it takes but the agent or Hydra does not."""
    sweeps = pytest.importorskip("sweeps", reason="W&B's schema: see Makefile")
    assert sweeps.schema_violations_from_proposed_config(read(path)) == []
    assert sweeps.schema_violations_from_proposed_config(read(path) | {"method": "guess"}) != []
    assert (read(path)["program"], read(path)["command"]) == ("train.py", COMMAND)
    for key, parameter in read(path)["parameters"].items():
        assert "parameters" not in parameter, f"{key}: nested, write dotted keys"
        assert None not in possible(parameter), f'{key}: "null" in quotes'


@names
def test_every_value_is_accepted(path):
    for trial in trials(path):
        for experiment in experiments(path):
            cfg = checked(trial | {"experiment": {"value": experiment}})
            for key, part in trial.items():
                if "." in key:
                    wanted = None if part["value"] == "null" else part["value"]
                    assert OmegaConf.select(cfg, key) == wanted, key


@names
def test_what_wandb_draws_is_accepted(path):
    sweeps = pytest.importorskip("sweeps", reason="W&B's search: see Makefile")
    past = []
    for number in range(4):  # bayes looks at what has come of the ones before
        trial = sweeps.next_run(read(path), past)
        checked(trial.config)
        trial.state, trial.summary_metrics = sweeps.RunState.finished, {read(path)["metric"]["name"]: 1 / (1 + number)}
        past.append(trial)


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Metrics that an epoch of an experiment on small data has logged."""
    folder = tmp_path_factory.mktemp("sweeps")

    @cache
    def of(experiment):
        path = config.CONF / "experiment" / f"{experiment}.yaml"
        one_epoch = ["trainer.max_steps=-1", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]
        return fit(composed(path, folder, *one_epoch))

    return of


@pytest.mark.slow
@names
def test_the_metric_is_logged(path, logged):
    metric = read(path)["metric"]["name"]
    for experiment in experiments(path):
        assert metric in logged(experiment), sorted(logged(experiment))
