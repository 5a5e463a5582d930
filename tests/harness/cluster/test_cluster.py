"""Submission, arrays, two nodes, time limit, preemption, requeue, cancel and failure on a real SLURM of this machine.

The runs that SLURM interrupts must end as the one that it leaves alone: same weights bit for bit, same metrics.csv, and
every rank took every step once.
"""

import csv
import json

import pytest
import torch

from quintet.common.checkpoints import load_checkpoint

STEPS = 30  # of 6 an epoch on two ranks, 12 on one
MODEL = [
    "model=logistic_regression",
    "data=digits_sample",
    "callbacks=quiet",
    "model.optimizer.name=adam",
    "model.optimizer.lr=0.01",
    "data.batch_size=100",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=1",
]
ONE_RANK = [*MODEL, "trainer=cpu"]
TWO_NODES = [*MODEL, "trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2"]


def rows(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_end(one, other):
    for name in ("last", "best"):
        a, b = (load_checkpoint(run / "checkpoints" / f"{name}.ckpt") for run in (one, other))
        assert a["global_step"] == b["global_step"]
        assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
    assert rows(one) == rows(other)


def assert_each_step_once(run, ranks):
    taken = sorted(run.steps())
    assert taken == [(rank, step) for rank in range(ranks) for step in range(1, STEPS + 1)]


@pytest.fixture(scope="module")
def limited(cluster):
    """A plain batch job that its time limit will interrupt; it sleeps beside the other tests."""
    options = ["--time=2", "--signal=USR2@60", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=4G", "--nodelist=n1"]
    return cluster.batch("limited", options, *ONE_RANK, step=3)


@pytest.fixture(scope="module")
def array(cluster, limited):
    """Two jobs of one rank in one array, nobody interrupts them."""
    run = cluster.run("array", *ONE_RANK, "seed=1,2")
    jobs = []
    run.until(lambda: jobs.extend(run.jobs()) or jobs or run.process.poll() is not None)
    assert run.end() == 0, run.said + "\n".join(run.logs())
    return run, jobs


@pytest.fixture(scope="module")
def two_nodes(cluster, limited):
    """One rank on each of two nodes, nobody interrupts them."""
    run = cluster.run("two_nodes", *TWO_NODES)
    run.shown = run.show(run.job())
    assert run.end() == 0, run.said + "\n".join(run.logs())
    return run


def test_an_array(array):
    run, jobs = array
    assert {job.split("_")[0] for job in jobs} == {jobs[0].split("_")[0]} and "_" in jobs[0]
    assert "2 job(s) of 1 nodes x 1 tasks, 1 CPUs a task, 4 GB a node" in run.said
    ends = [load_checkpoint(run.directory(n) / "checkpoints" / "last.ckpt") for n in (0, 1)]
    assert [e["global_step"] for e in ends] == [STEPS, STEPS]
    assert [e["quintet_config"]["run_id"] for e in ends] == ["id-0", "id-1"]
    assert [e["quintet_config"]["seed"] for e in ends] == [1, 2]
    data_info = json.loads((run.directory(1) / "environment.json").read_text())
    assert data_info["command"].startswith("train.py") and "seed=2" in data_info["command"]


def test_two_nodes(two_nodes):
    shown = two_nodes.shown
    assert (shown["NumNodes"].split("-")[0], shown["NumTasks"], shown["Requeue"]) == ("2", "2", "1")
    assert_each_step_once(two_nodes, ranks=2)
    assert rows(two_nodes.directory())[-1]["step"]


def test_interrupted_three_times(cluster, two_nodes):
    """Warned before training, preempted by another job, `scontrol requeue`; with one rank slower than the other."""
    wandb = ["logger=wandb", "logger.wandb.mode=offline"]
    run = cluster.run("interrupted", *TWO_NODES, *wandb, step=0.3, setup=600)
    job = run.job()
    run.until(lambda: (run.folder / "setup-0").exists())
    cluster.tell("scancel", "--signal=USR2", job)
    run.pace("setup", 0)
    run.restarted(job, 1)
    assert run.steps() == []

    run.at_step(4)
    cluster.tell("sbatch", "-p", "high", "-w", "n2", "-c2", "--output=/dev/null", "--wrap", "sleep 2")
    run.restarted(job, 2)
    preempted_at = max(step for _, step in run.steps())
    assert 4 <= preempted_at < STEPS

    run.at_step(preempted_at + 3)
    cluster.tell("scontrol", "requeue", job)
    run.pace("step", 0)
    run.restarted(job, 3)
    assert run.end() == 0, run.said + "\n".join(run.logs())
    assert_each_step_once(run, ranks=2)
    assert_same_end(run.directory(), two_nodes.directory())
    started = list((run.directory() / "wandb").glob("offline-run-*-id-0"))
    assert len(started) >= 2  # the same W&B run, gone on with


def test_time_limit(limited, array):
    """The warning of SLURM's own clock; then the rest without a break."""
    run, job = limited, limited.job()
    run.until(lambda: int(run.show(job)["Restarts"]) >= 1)
    assert 0 < len(run.steps()) < STEPS
    run.pace("step", 0)
    run.restarted(job, 1)
    assert run.end() == 0, run.said + "\n".join(run.logs())
    assert_each_step_once(run, ranks=1)
    assert_same_end(run.cluster.folder / "logs" / "limited" / "id", array[0].directory(0))


def test_cancel_saves_and_stays_cancelled(cluster):
    run = cluster.run("cancelled", *ONE_RANK, step=0.3)
    job = run.job()
    run.at_step(3)
    cluster.tell("scancel", job)
    assert run.end() == 1
    assert f"error: SLURM job {job} failed" in run.said and "Traceback" not in run.said
    assert run.show(job)["JobState"] == "CANCELLED" and run.show(job)["Restarts"] == "0"
    saved = load_checkpoint(run.directory() / "checkpoints" / "last.ckpt")["global_step"]
    assert saved == max(step for _, step in run.steps())


def test_a_failing_rank_ends_the_job(cluster):
    """The other rank waits for it in a collective; srun ends it, and the message reaches the user."""
    run = cluster.run("failing", *TWO_NODES, step=0.1)
    run.pace("fail", 2)
    job = run.job()
    assert run.end() == 1
    shown = run.show(job)
    assert shown["JobState"] == "FAILED"
    assert f"error: SLURM job {job} failed" in run.said and "Traceback" not in run.said
    assert any("rank 1 fails here" in log for log in run.logs())


def test_refused_before_submission(cluster):
    run = cluster.run("refused", *ONE_RANK, "hydra.launcher.partition=none")
    assert run.end() == 1
    assert "error: SLURM would refuse the job: " in run.said and "partition" in run.said.lower()
    run = cluster.run("refused_gpus", *MODEL, "trainer=gpu", "hydra.launcher.gpus_per_node=9")
    assert run.end() == 1
    assert "error: SLURM would refuse the job: " in run.said
    assert not run.jobs()
