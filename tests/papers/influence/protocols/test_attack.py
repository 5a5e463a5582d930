"""The attack protocol from the command line on the digits sample and the features of a random network."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy.stats import beta

from quintet.common.errors import UserError
from quintet.harness import cli
from quintet.harness.config import compose
from quintet.harness.run.fit import fit
from quintet.papers.influence.attack.poison import PoisonedTraining
from quintet.papers.influence.protocols.attack import Attack

pytestmark = pytest.mark.filterwarnings("ignore:data.features.weights=null")
STRONG = ["protocol.attack.step=30", "protocol.attack.radius=120", "protocol.attack.iterations=6"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A logistic top layer on the sample's ones and sevens."""
    folder = tmp_path_factory.mktemp("attack")
    overrides = ["experiment=influence/dogfish_features", "data=digits_sample_features", "trainer=cpu",
                 "callbacks=quiet", "trainer.enable_progress_bar=false", "data.max_train=60", "model.l2=0.0001",
                 "data.features.name=resnet18", "data.features.image_size=16",  # a random MobileNetV2 gives nothing
                 "run_id=x", f"paths.cache_dir={folder}/cache", f"run_dir={folder}/run"]  # fmt: skip
    cfg = compose.compose_checked("train", overrides)
    OmegaConf.resolve(cfg)
    fit(cfg)
    return folder / "run"


def evaluated(monkeypatch, run, *arguments):
    """result.json's metrics by name, and the rows of attack.csv."""
    command = ["eval.py", f"run={run}", "protocol=attack", "trainer=cpu", "trainer.enable_progress_bar=false"]
    monkeypatch.setattr("sys.argv", [*command, *arguments])
    assert cli.eval_main() == 0
    folder = run / "eval" / "attack"
    result = json.loads((folder / "result.json").read_text())
    with (folder / "attack.csv").open() as file:
        return {row["metric"]: row["value"] for row in result["rows"]}, list(csv.DictReader(file))


def test_flips_and_says_how(monkeypatch, run):
    """With a radius far above half a level, so that there is something to flip, and so that the bytes do change."""
    metrics, rows = evaluated(monkeypatch, run, *STRONG, "protocol.max_queries=4", "protocol.counts=[1,2,8]")
    folder = run / "eval" / "attack"
    assert {"attack.csv", "trajectories.csv", "margins.png", "attack.png"} <= {p.name for p in folder.iterdir()}
    queries = list(dict.fromkeys(row["query"] for row in rows))
    assert len(queries) == metrics["attack/queries"] == 4
    ended = []
    for query in queries:
        mine = [row for row in rows if row["query"] == query]
        stages = [(row["images_moved"], row["rank"]) for row in mine]
        assert stages == [("1", "0"), ("1", "1"), ("2", "0"), ("8", "0")][: len(mine)]
        # every attempt but the last one failed, and the last one did not, unless it was the last stage
        assert [row["flipped"] for row in mine[:-1]] == ["False"] * (len(mine) - 1)
        assert mine[-1]["flipped"] == "True" or len(mine) == 4
        ended.append(int(mine[-1]["images_moved"]) if mine[-1]["flipped"] == "True" else 99)
        first = mine[0]["train_images"].split()
        for row in mine:
            assert len(row["train_images"].split()) == int(row["images_moved"])
            assert float(row["margin_before"]) > 0 and (float(row["margin_after"]) < 0) == (row["flipped"] == "True")
            assert (float(row["probability_after"]) < 0.5) == (row["flipped"] == "True")
            assert float(row["largest_move_levels"]) <= 120.01 and row["same_8bit_image"] == "False"
        assert mine[-1]["train_images"].split()[:1] == first or mine[-1]["rank"] == "1"
    for count in (1, 2, 8):
        won = sum(count >= end for end in ended)
        assert metrics[f"attack/flipped_{count}"] == won / 4
        low = beta.ppf(0.025, won, 5 - won) if won else 0.0  # Clopper and Pearson
        assert metrics[f"attack/flipped_{count}_low"] == pytest.approx(low)
    assert metrics["attack/flipped_8"] > 0 and metrics["attack/same_8bit_image"] == 0


def test_half_a_level_changes_no_byte_and_is_first_order(monkeypatch, run):
    arguments = ["protocol.max_queries=2", "protocol.counts=[1,3]", "protocol.attack.iterations=3"]
    metrics, rows = evaluated(monkeypatch, run, *arguments, "protocol.attack.step=0.2")
    assert metrics["attack/same_8bit_image"] == 1 and {row["same_8bit_image"] for row in rows} == {"True"}
    assert metrics["attack/largest_move_levels"] == pytest.approx(0.499, abs=1e-3)
    assert metrics["attack/first_step_actual_over_predicted"] == pytest.approx(1, abs=0.1)
    for row in rows:
        assert float(row["first_step_predicted"]) > 0 and float(row["loss_after"]) > float(row["loss_before"])
    with (run / "eval" / "attack" / "trajectories.csv").open() as file:
        paths = list(csv.DictReader(file))
    assert len(paths) == 4 * len(rows) and {path["iteration"] for path in paths} == {"0", "1", "2", "3"}


@pytest.mark.slow
def test_a_second_call_goes_on_from_what_is_finished(monkeypatch, run):
    arguments = [*STRONG, "protocol.counts=[2]", "protocol.seed=5"]
    attacked = []
    real = PoisonedTraining.run
    monkeypatch.setattr(PoisonedTraining, "run", lambda self, a: attacked.extend(x.query for x in a) or real(self, a))
    _, first = evaluated(monkeypatch, run, *arguments, "protocol.max_queries=2")
    assert len(attacked) == 2
    _, more = evaluated(monkeypatch, run, *arguments, "protocol.max_queries=3", "protocol.attack.images_at_once=3")
    assert len(attacked) == 3 and more[: len(first)] == first and len(more) > len(first)
    evaluated(monkeypatch, run, *arguments, "protocol.max_queries=3", "protocol.attack.radius=121")
    assert len(attacked) == 6  # other settings are another attack
    assert len(np.unique(attacked)) == 3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("protocol.counts=[2,1]", r"protocol.counts=[2, 1]: give rising numbers"),
        ("protocol.counts=[1,61]", "there are 60 training images"),
        ("protocol.max_queries=0", "protocol.max_queries=0: give 1 or more"),
        ("protocol.attack.alpha=1", "alpha"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, run, capsys, argument, message):
    with pytest.raises(SystemExit):
        evaluated(monkeypatch, run, argument)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]


def test_data_without_a_frozen_network_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs images and a frozen network's features"):
        Attack()(None, SimpleNamespace(features=None), tmp_path)
