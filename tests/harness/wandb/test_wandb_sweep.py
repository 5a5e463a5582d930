"""`wandb sweep` and `wandb agent`, the real ones, with train.py as the program."""

import re
import threading
import time

import pytest
import yaml
from commands import REPOSITORY
from wandb_client import KEY


@pytest.fixture(scope="module")
def sweep_file(client):
    """The influence functions' sweep as it is in the repository, its runs a few steps long but for the first one."""
    pytest.importorskip("sweeps", reason="W&B's search: pip install --no-deps sweeps==0.3.0 (see Makefile)")
    config = yaml.safe_load((REPOSITORY / "sweeps" / "influence.yaml").read_text())
    fixed = {
        "callbacks": "quiet",
        "data.batch_size": 300,
        "model.optimizer.name": "adam",
        "trainer.log_every_n_steps": 1,
    }
    fixed |= dict(path.split("=") for path in client.paths)
    config["parameters"] |= {key: {"value": value} for key, value in fixed.items()}
    config["parameters"] |= {
        "trainer.max_epochs": {"value": "null"},
        "trainer.max_steps": {"values": [10_000_000, 6]},
        "trainer.max_time": {"value": "00:00:05:00"},  # should nobody stop the first one
        "model.l2": {"value": 0.01},
    }
    path = client.folder / "sweep.yaml"
    path.write_text(yaml.dump(config))
    return path


def give_up_once_it_reports(server, trial):
    """As the Stop button of W&B's page, or early_terminate, does."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if trial in server.runs and server.runs[trial].values("val/loss"):
            server.given_up.add(trial)
            return
        time.sleep(0.1)


@pytest.mark.slow
def test_a_sweep_with_an_agent(client, sweep_file):
    """Two trials: the first is stopped by the sweep and counts as finished, the second runs to its end."""
    said = client.wandb("sweep", str(sweep_file)).stderr
    (path,) = re.findall(r"wandb agent (\S+)", said)
    entity, project, name = path.split("/")
    sweep = client.server.sweeps[name]
    assert (entity, project, sweep.warnings) == ("lab", "quintet", [])

    first, second = f"{name}-0", f"{name}-1"
    threading.Thread(target=give_up_once_it_reports, args=(client.server, first), daemon=True).start()
    said = client.wandb("agent", "--count", "2", path, env={"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"})
    assert list(sweep.trials) == [first, second], said.stderr[-3000:]
    for trial in (first, second):
        run = client.server.runs[trial]
        assert (run.state, run.exit_code, run.sweep) == ("finished", 0, name), said.stderr[-3000:]
        assert run.values("val/loss")
        chosen = {key: part["value"] for key, part in sweep.trials[trial].items()}
        folder = client.directory(trial)  # the run directory has W&B's id, for resume= to find both
        saved = yaml.safe_load((folder / "config.yaml").read_text())
        assert (saved["run_id"], saved["trainer"]["max_steps"]) == (trial, chosen["trainer.max_steps"])
        assert saved["trainer"]["max_epochs"] is None  # null, not the string None
        assert run.config["model"]["l2"] == saved["model"]["l2"] == chosen["model.l2"]
    assert client.server.runs[second].values("trainer/global_step")[-1] == 6
    assert "Received SIGTERM" in said.stdout and "Traceback" not in said.stderr
    assert "Ignoring" not in said.stderr  # W&B's word for an id that is not its own
    assert KEY not in said.stderr + said.stdout
