"""A run that SLURM interrupts anywhere ends as the uninterrupted one: weights, metrics.csv, the best checkpoint."""

import csv
import os
import shutil
import signal

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from quintet.common.checkpoints import load_checkpoint
from quintet.harness.config import compose
from quintet.harness.run import fit
from quintet.harness.slurm import signals as preemption

EPOCHS, BATCHES = 2, 6
OVERRIDES = [
    "model=logistic_regression",
    "data=digits_sample",
    "trainer=cpu",
    "callbacks=quiet",
    "model.optimizer.name=adam",
    "model.optimizer.lr=0.01",
    "data.batch_size=200",
    f"trainer.max_steps={EPOCHS * BATCHES}",
    "trainer.num_sanity_val_steps=0",
    "trainer.log_every_n_steps=1",
]


class Bell(Callback):
    """Sends this process a signal when `hook` is called for the n-th time."""

    def __init__(self, hook, n, number):
        self.left = n

        def ring(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), number)

        setattr(self, hook, ring)


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """A SLURM job without SLURM: its environment, a scontrol that writes down what it is told, a fresh owner."""
    job = {"JOB_ID": 7, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "NTASKS": 1, "NTASKS_PER_NODE": 1, "JOB_NAME": "x"}
    for key, value in job.items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n[ "$1" = -o ] && cat {tmp_path}/job\nexit 0\n')
    tool.chmod(0o755)
    (tmp_path / "job").write_text("JobId=7 JobState=RUNNING Reason=None\n")
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


def told(folder):
    """What scontrol was told, without the questions."""
    path = folder / "told"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if not line.startswith("-o")]


def train(run_dir, house, monkeypatch, bells=(), restarts=0, extra=()):
    """fit() as a SLURM start of the job in `run_dir`; the exit code if it left early."""
    signals = preemption.Signals()
    monkeypatch.setattr(fit, "SIGNALS", signals)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    real = fit.build_all.__wrapped__ if hasattr(fit.build_all, "__wrapped__") else fit.build_all

    def with_bells(nodes):
        built = real(nodes)
        return [*built, *bells] if any(isinstance(b, Callback) for b in built) else built

    with_bells.__wrapped__ = real
    monkeypatch.setattr(fit, "build_all", with_bells)
    cfg = compose.compose_checked(
        "train", [*OVERRIDES, *house.paths, *extra, f"run_dir={run_dir}", "run_id=x", "name=x"]
    )
    signals.take()
    try:
        fit.fit(cfg)
    except SystemExit as left:
        return left.code
    return 0


def state(run_dir):
    """Weights of the last and the best checkpoint, rows of metrics.csv without the clock."""
    rows = list(csv.DictReader((run_dir / "metrics.csv").open()))
    last, best = (load_checkpoint(run_dir / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    return rows, last["state_dict"], best["state_dict"], last["global_step"]


def assert_same(one, other):
    (rows_a, *weights_a, step_a), (rows_b, *weights_b, step_b) = state(one), state(other)
    assert step_a == step_b
    for a, b in zip(weights_a, weights_b, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert rows_a == rows_b


@pytest.fixture(scope="module")
def whole(house, tmp_path_factory):
    """The runs that nobody interrupted, by their extra overrides."""
    made = {}

    def make(*extra):
        if extra not in made:
            made[extra] = tmp_path_factory.mktemp("whole")
            with pytest.MonkeyPatch.context() as patch:
                assert train(made[extra], house, patch, extra=extra) == 0
        return made[extra]

    return make


PLAIN = ()
BY_EPOCHS = ("trainer.max_steps=-1", f"trainer.max_epochs={EPOCHS}")
VALIDATING = ("trainer.val_check_interval=2",)
ACCUMULATING = ("trainer.accumulate_grad_batches=4", "trainer.max_steps=4")
WORSENING = ("monitor.mode=max",)  # the first epoch stays the best
# a first batch, a last one of an epoch, around a validation, inside a step of several batches
CASES = [(PLAIN, b) for b in (1, 6, 10)] + [(VALIDATING, 2), (VALIDATING, 5), (ACCUMULATING, 2), (ACCUMULATING, 5)]
CASES += [(BY_EPOCHS, 2), (BY_EPOCHS, 6), (WORSENING, 6), ((*WORSENING, *VALIDATING), 2)]
FAST = [(PLAIN, 6), (VALIDATING, 2), (WORSENING, 6)]
CASES = [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize(("extra", "batch"), CASES)
def test_warned_while_training(slurm, house, whole, monkeypatch, batch, extra):
    run = slurm / "run"
    assert train(run, house, monkeypatch, [Bell("on_train_batch_start", batch, signal.SIGUSR2)], extra=extra) == 143
    assert told(slurm) == ["requeue 7"]
    assert train(run, house, monkeypatch, restarts=1, extra=extra) == 0
    assert_same(run, whole(*extra))


def test_warned_in_the_last_batch_ends_the_run(slurm, house, whole, monkeypatch):
    bell = Bell("on_train_batch_start", EPOCHS * BATCHES, signal.SIGUSR2)
    assert train(slurm / "run", house, monkeypatch, [bell]) == 0
    assert told(slurm) == []
    assert_same(slurm / "run", whole())


def test_starting_a_finished_run_again_changes_nothing(slurm, house, whole, monkeypatch):
    run = slurm / "run"
    shutil.copytree(whole(), run)
    assert train(run, house, monkeypatch, restarts=1) == 0
    assert_same(run, whole())


def test_warned_while_validating(slurm, house, whole, monkeypatch):
    """The next boundary is the end of the epoch: the validation is not lost."""
    bell = Bell("on_validation_batch_start", 1, signal.SIGUSR2)
    assert train(slurm / "run", house, monkeypatch, [bell]) == 143
    assert load_checkpoint(slurm / "run" / "checkpoints" / "last.ckpt")["global_step"] == BATCHES
    assert train(slurm / "run", house, monkeypatch, restarts=1) == 0
    assert_same(slurm / "run", whole())


def test_warned_before_training_requeues_at_once(slurm, house, monkeypatch):
    """Then SLURM's SIGTERM comes; nothing is saved."""
    bells = [Bell("setup", 1, signal.SIGUSR2), Bell("on_fit_start", 1, signal.SIGTERM)]
    assert train(slurm / "run", house, monkeypatch, bells) == 143
    assert told(slurm) == ["requeue 7"]
    assert not list((slurm / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(("reason", "answer"), [("None", []), ("TimeLimit", ["requeue 7_2"])])
def test_ended_by_slurm(slurm, house, whole, monkeypatch, reason, answer):
    """SIGTERM: save and leave; only after the time limit SLURM would not requeue by itself."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    (slurm / "job").write_text(f"JobId=8 JobState=COMPLETING Reason={reason} Dependency=(null)\n")
    assert train(slurm / "run", house, monkeypatch, [Bell("on_train_batch_start", 3, signal.SIGTERM)]) == 143
    assert told(slurm) == answer
    assert train(slurm / "run", house, monkeypatch, restarts=1) == 0
    assert_same(slurm / "run", whole())


def test_restarted_often_enough(slurm, monkeypatch, capfd):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    monkeypatch.setenv(preemption.LIMIT_KEY, "3")
    assert not preemption.Signals().requeue()
    assert told(slurm) == [] and preemption.LIMIT_KEY in capfd.readouterr().err


def test_a_refusal_of_slurm_is_told(slurm, monkeypatch, capfd):
    monkeypatch.setattr(preemption.time, "sleep", lambda seconds: None)
    (slurm / "bin" / "scontrol").write_text("#!/bin/sh\necho no such job >&2\nexit 1\n")
    assert not preemption.Signals().requeue()
    assert "no such job" in capfd.readouterr().err


def test_other_ranks_and_data_workers_only_take_note(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    signals = preemption.Signals()
    signals.take()
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.noted == preemption.ENDING and told(slurm) == []
    monkeypatch.setenv("SLURM_PROCID", "0")
    signals = preemption.Signals()
    signals.take()
    child = os.fork()
    if child == 0:  # inherits the handler
        os.kill(os.getpid(), signal.SIGUSR2)
        os._exit(signals.noted)
    assert os.waitpid(child, 0)[1] == 0 and told(slurm) == []


def test_outside_slurm_nothing_is_taken(monkeypatch):
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    signals = preemption.Signals()
    signals.take()
    assert not signals.taken and signal.getsignal(signal.SIGTERM) is before
