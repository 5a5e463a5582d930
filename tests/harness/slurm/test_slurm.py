"""What a job asks of SLURM, derived from the configuration, and what is refused before it is sent."""

import pytest
from commands import REPOSITORY
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf, open_dict

from quintet.common.errors import UserError
from quintet.harness.config import compose
from quintet.harness.messages import explain_job
from quintet.harness.slurm import submit as slurm

CONF = REPOSITORY / "conf"
LAUNCHER = {"gpus_per_node": None, "cpus_per_task": None, "mem_gb": None, "gres": None, "timeout_min": 1440,
            "signal_delay_s": 120}  # fmt: skip


def asked(*overrides, **launcher):
    """Resources of the composed configuration."""
    cfg = compose.compose_checked("train", ["name=test", "run_dir=x", "run_id=x", *overrides])
    return slurm.resources(cfg, OmegaConf.create(LAUNCHER | launcher))


def test_two_nodes_of_four_gpus():
    found = asked("trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2", "data=voc2012", "model=deeplab")
    assert found == slurm.Resources(
        nodes=2, tasks_per_node=4, gpus_per_node=4, cpus_per_task=5, mem_gb=64, timeout_min=1440
    )


def test_a_cpu_job_asks_for_no_gpu():
    found = asked("trainer=ddp_cpu")
    assert (found.tasks_per_node, found.gpus_per_node, found.mem_gb, found.cpus_per_task) == (2, None, 8, 1)


def test_one_gpu_by_default():
    assert asked("trainer=auto").gpus_per_node == 1


def test_what_the_launcher_says_wins():
    found = asked("trainer=gpu", gpus_per_node=4, cpus_per_task=9, mem_gb=100)
    assert (found.gpus_per_node, found.cpus_per_task, found.mem_gb, found.tasks_per_node) == (4, 9, 100, 1)
    assert asked("trainer=gpu", gres="gpu:a100:1").gpus_per_node is None


def test_all_devices_of_a_node_when_their_number_is_known():
    assert asked("trainer=ddp", gpus_per_node=8).tasks_per_node == 8


@pytest.mark.parametrize(
    ("max_time", "minutes"), [("00:01:00:01", 15 + 61), ("05:00:00:00", 1440), ("null", 1440), ("00:00:00:30", 16)]
)
def test_a_short_run_asks_for_a_short_time(max_time, minutes):
    assert asked(f"trainer.max_time={max_time}").timeout_min == minutes


@pytest.mark.parametrize(
    ("overrides", "launcher", "words"),
    [
        (["trainer=ddp"], {}, "trainer.devices=-1"),
        (["trainer.devices=auto"], {}, "trainer.devices=auto"),
        (["trainer=ddp", "trainer.devices=[0,1]"], {}, "how many devices"),
        (["trainer=ddp", "trainer.devices=0"], {}, "1 or more"),
        (["trainer.num_nodes=2"], {}, "trainer=ddp"),
        (["trainer=cpu", "trainer.devices=2"], {}, "trainer=ddp"),
        (["trainer=ddp_cpu", "trainer.strategy=ddp_spawn"], {}, "ddp_spawn"),
        (["trainer=ddp", "trainer.devices=4"], {"gpus_per_node": 2}, "gpus_per_node=2"),
        (["trainer=cpu"], {"gpus_per_node": 2}, "accelerator=cpu"),
        ([], {"timeout_min": 1}, "2 minutes"),
        ([], {"timeout_min": 3, "signal_delay_s": 150}, "signal_delay_s=150"),
    ],
)
def test_refused(overrides, launcher, words):
    with pytest.raises(UserError) as caught:
        asked(*overrides, **launcher)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_sweep_over_resources_is_refused():
    launcher = OmegaConf.create(LAUNCHER)
    jobs = [
        compose.compose_checked("train", ["name=t", "run_dir=x", "run_id=x", "trainer=ddp_cpu", f"trainer.devices={n}"])
        for n in (1, 2)
    ]
    with pytest.raises(UserError, match=r"tasks_per_node 1 and 2.*submit them apart"):
        slurm.same_resources(jobs, launcher)
    assert slurm.same_resources(jobs[:1] * 3, launcher).tasks_per_node == 1


def test_without_multirun_is_refused():
    with pytest.raises(UserError, match="add -m"):
        slurm.check_mode("RUN", "submitit_slurm")
    slurm.check_mode("MULTIRUN", "submitit_slurm")
    slurm.check_mode("RUN", "basic")


def test_tasks_and_devices_must_agree(monkeypatch):
    cfg = OmegaConf.create({"trainer": {"devices": 2, "num_nodes": 2}})
    slurm.check_tasks(cfg)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(UserError, match="--ntasks-per-node=2 --nodes=2"):
        slurm.check_tasks(cfg)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    slurm.check_tasks(cfg)


def failed(text):
    return explain_job(RuntimeError(text))


def test_a_failed_job_is_one_line():
    line = failed(
        "Job 12_3 (task: 0) with path /runs/.submitit/12_3/12_3_0_result.pkl\nhas not produced any output "
        "(state: FAILED)\nError stream produced:\n-----\nwarning: x\nerror: data.root=/none does not exist\nsrun: bye"
    )
    assert line == "SLURM job 12_3 failed: data.root=/none does not exist; its logs are in /runs/.submitit/12_3"
    assert "srun: bye" in failed("Job 4 (task: 0) with path /a/4_0_result.pkl\nhas not\nsrun: bye")


def test_the_launcher_is_filled_in(monkeypatch):
    monkeypatch.setenv("QUINTET_RUN_ID", "my run")
    launcher = OmegaConf.create(LAUNCHER | {"setup": ["module load cuda"], "max_num_timeout": 7,
                                            "additional_parameters": {"reservation": "r"}})  # fmt: skip
    slurm.fill_in(launcher, slurm.Resources(1, 2, None, 3, 8, 60))
    assert launcher.tasks_per_node == 2 and launcher.gpus_per_node is None
    assert launcher.setup[0] == "export QUINTET_RUN_ID='my run'" and launcher.setup[-1] == "module load cuda"
    assert "export QUINTET_MAX_RESTARTS=7" in launcher.setup
    assert launcher.additional_parameters == {"requeue": True, "reservation": "r"}


def test_a_search_is_as_many_jobs_as_it_has_combinations():
    """Its ranges stand in the sweeper, not on the command line; both are multiplied."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        said = ["experiment=influence/sample", "search=influence", "seed=1,2"]
        whole = hydra_compose("train", overrides=said[:2], return_hydra_config=True)
        with open_dict(whole):
            whole.hydra.overrides.task = said
        jobs = slurm.job_configs(whole)
    assert sorted((job.model.l2, job.seed) for job in jobs) == [
        (l2, seed) for l2 in (0.0001, 0.001, 0.01, 0.1, 1.0) for seed in (1, 2)
    ]
