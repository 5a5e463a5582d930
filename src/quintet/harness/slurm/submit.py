"""Submitting to SLURM: resources from the trainer's configuration, checked here instead of after hours in the queue."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from quintet.common.errors import UserError
from quintet.harness.config.config import Origin, check
from quintet.harness.config.resolvers import base_id
from quintet.harness.messages import one_line_errors
from quintet.harness.slurm.signals import LIMIT_KEY

GPU_TASK_GB, CPU_TASK_GB = 16, 4
MIN_TRAINING_S = 60  # between the start of a job and its warning
TOOLS = ("sbatch", "srun", "scontrol")
# fields of the launcher that sbatch is asked about in advance
ASKED = ("partition", "account", "qos", "constraint", "exclude", "gres", "gpus_per_node", "cpus_per_task", "nodes")


@dataclass(frozen=True)
class Resources:
    """What one job asks of SLURM; `null` in the launcher's yaml is filled in from here."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int | None
    cpus_per_task: int
    mem_gb: int
    timeout_min: int


def check_mode(mode: str, launcher: str) -> None:
    """launcher=slurm without -m would train here, on the login node."""
    if mode == "RUN" and launcher == "submitit_slurm":
        raise UserError("launcher=slurm submits with Hydra's multirun: add -m, also for a single job")


def check_tasks(cfg: DictConfig) -> None:
    """In a SLURM step: as many tasks as the trainer has devices, or ranks would wait for ever."""
    if "SLURM_PROCID" not in os.environ or "SLURM_NTASKS" not in os.environ:
        return
    tasks, devices, nodes = int(os.environ["SLURM_NTASKS"]), cfg.trainer.get("devices", 1), cfg.trainer.num_nodes
    if isinstance(devices, int) and devices > 0 and devices * nodes != tasks:
        raise UserError(
            f"trainer.devices={devices} on trainer.num_nodes={nodes} needs {devices * nodes} tasks, but srun started "
            f"{tasks}: set --ntasks-per-node={devices} --nodes={nodes}"
        )


def resources(cfg: DictConfig, launcher: DictConfig) -> Resources:
    """Nodes, tasks, GPUs, CPUs, memory and minutes of a job; UserError for what SLURM or Lightning would refuse."""
    trainer, nodes = cfg.trainer, int(cfg.trainer.get("num_nodes", 1))
    on_cpu = str(trainer.get("accelerator", "auto")) == "cpu"
    tasks = _tasks_per_node(trainer.get("devices", 1), on_cpu, launcher.gpus_per_node)
    check_strategy(trainer.get("strategy", "auto"), tasks, nodes)
    gpus = None if on_cpu else launcher.gpus_per_node or tasks
    if gpus is not None and gpus < tasks:
        raise UserError(f"hydra.launcher.gpus_per_node={gpus} is fewer than trainer.devices={tasks}")
    if on_cpu and launcher.gpus_per_node:
        raise UserError(f"hydra.launcher.gpus_per_node={launcher.gpus_per_node}, but trainer.accelerator=cpu")
    return Resources(
        nodes=nodes,
        tasks_per_node=tasks,
        gpus_per_node=None if launcher.gres else gpus,
        cpus_per_task=launcher.cpus_per_task or 1 + int(cfg.data.get("num_workers") or 0),
        mem_gb=launcher.mem_gb or tasks * (CPU_TASK_GB if on_cpu else GPU_TASK_GB),
        timeout_min=_minutes(launcher, trainer.get("max_time")),
    )


def _tasks_per_node(devices: Any, on_cpu: bool, gpus_per_node: int | None) -> int:
    """One task a device, as SLURM starts the ranks itself."""
    if str(devices) in ("-1", "auto"):
        if on_cpu and str(devices) == "auto":
            return 1
        if gpus_per_node:
            return gpus_per_node
        raise UserError(
            f"trainer.devices={devices}: SLURM has to be told how many, this machine's own do not count: "
            "say trainer.devices=4, or hydra.launcher.gpus_per_node=4"
        )
    if not isinstance(devices, int) or devices < 1:
        raise UserError(f"trainer.devices={devices}: under launcher=slurm give how many devices a node uses, 1 or more")
    return devices


def check_strategy(strategy: Any, tasks: int, nodes: int) -> None:
    """Several tasks must train together, and SLURM, not Lightning, starts them."""
    if nodes < 1:
        raise UserError(f"trainer.num_nodes={nodes}: give 1 or more")
    if tasks * nodes == 1 or not isinstance(strategy, str):
        return
    what = f"trainer.num_nodes={nodes} trainer.devices={tasks}"
    if not strategy.startswith(("ddp", "fsdp", "deepspeed")):
        raise UserError(f"{what} with trainer.strategy={strategy}: choose trainer=ddp (or trainer.strategy=ddp)")
    if strategy.endswith(("_fork", "_spawn", "_notebook")):
        raise UserError(f"{what}: SLURM starts the processes itself, trainer.strategy={strategy} does too: choose ddp")


def _minutes(launcher: DictConfig, max_time: str | None) -> int:
    """The time limit; a shorter trainer.max_time, with a quarter of an hour to start and end, shortens it."""
    minutes = int(launcher.timeout_min)
    if isinstance(max_time, str) and re.fullmatch(r"\d+:\d+:\d+:\d+", max_time):
        days, hours, mins, seconds = map(int, max_time.split(":"))
        minutes = min(minutes, 15 + (days * 24 + hours) * 60 + mins + -(-seconds // 60))
    if minutes < 2:
        raise UserError(f"hydra.launcher.timeout_min={minutes}: SLURM's clock is coarse, give 2 minutes or more")
    if minutes * 60 - launcher.signal_delay_s < MIN_TRAINING_S:
        raise UserError(
            f"hydra.launcher.signal_delay_s={launcher.signal_delay_s} leaves less than a minute of "
            f"timeout_min={minutes} to train in: a longer limit, or a shorter delay"
        )
    return minutes


class BeforeSubmission(Callback):
    """Hydra's hook of conf/launcher/slurm.yaml: check every job, fill in the launcher, say what is sent."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exits with one line when something is wrong: Hydra turns a callback's exceptions into warnings."""
        with one_line_errors(list(config.hydra.overrides.task)):
            missing = [tool for tool in TOOLS if shutil.which(tool) is None]
            if missing:
                raise UserError(
                    f"launcher=slurm needs {' and '.join(missing)}, not found on this machine: submit from the "
                    "cluster's login node, or leave launcher=local"
                )
            jobs = job_configs(config)
            asked = same_resources(jobs, config.hydra.launcher)
            fill_in(config.hydra.launcher, asked)
            ask_sbatch(config.hydra.launcher)
            announce(config, asked, len(jobs))


def job_configs(config: DictConfig) -> list[DictConfig]:
    """The configurations of all jobs, each checked as train.py would; of other sweepers than Hydra's own the base."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not str(config.hydra.sweeper._target_).endswith("BasicSweeper"):
        return [config]
    of_search = [f"{key}={values}" for key, values in (config.hydra.sweeper.params or {}).items()]
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides([*of_search, *config.hydra.overrides.task])
    jobs = []
    for chosen in BasicSweeper.split_arguments(overrides, None)[0]:
        job = loader.load_sweep_config(config, chosen)
        choices = tuple((k, str(v)) for k, v in job.hydra.runtime.choices.items() if v)
        with read_write(job), open_dict(job):
            del job["hydra"]
        check(job, Origin(tuple(chosen), choices))
        jobs.append(job)
    return jobs


def same_resources(jobs: list[DictConfig], launcher: DictConfig) -> Resources:
    """What each job of the array asks for: one array can only ask for one thing."""
    asked = {resources(job, launcher) for job in jobs}
    if len(asked) > 1:
        first, second = (asdict(r) for r in sorted(asked, key=repr)[:2])
        differ = ", ".join(f"{k} {first[k]} and {second[k]}" for k in first if first[k] != second[k])
        raise UserError(f"the jobs of one array must ask for the same resources, but have {differ}: submit them apart")
    return asked.pop()


def fill_in(launcher: DictConfig, asked: Resources) -> None:
    """The derived values, what the job's environment needs, and leave to be requeued."""
    exports = [
        f"export QUINTET_RUN_ID={shlex.quote(base_id())}",  # the run directory and the W&B run of every start
        "export SLURM_KILL_BAD_EXIT=1",  # a rank that fails ends the others
        f"export {LIMIT_KEY}={launcher.max_num_timeout}",
    ]
    with read_write(launcher), open_dict(launcher):
        for key, value in asdict(asked).items():
            launcher[key] = value
        launcher.setup = [*exports, *(launcher.setup or [])]
        launcher.additional_parameters = {"requeue": True} | dict(launcher.additional_parameters)


def ask_sbatch(launcher: DictConfig) -> None:
    """`sbatch --test-only`: partition, account, limits and sizes are the cluster's to judge."""
    flags = [f"--{k.replace('_', '-')}={launcher[k]}" for k in ASKED if launcher.get(k) is not None]
    flags += [f"--ntasks-per-node={launcher.tasks_per_node}", f"--mem={launcher.mem_gb}G"]
    command = ["sbatch", "--test-only", *flags, f"--time={launcher.timeout_min}", "--wrap=true"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [re.sub(r"^(sbatch: )?(error: )?", "", line) for line in done.stderr.splitlines() if line.strip()]
        raise UserError(f"SLURM would refuse the job: {'; '.join(lines)} (asked: {' '.join(flags)})")


def announce(config: DictConfig, asked: Resources, jobs: int) -> None:
    """What is sent, where its logs are, and how to look after it."""
    gpus = f"{asked.gpus_per_node} GPUs a node, " if asked.gpus_per_node else ""
    shape = f"{asked.nodes} nodes x {asked.tasks_per_node} tasks, {gpus}{asked.cpus_per_task} CPUs a task"
    folder = Path(OmegaConf.select(config, "hydra.sweep.dir"))
    print(f"SLURM: {jobs} job(s) of {shape}, {asked.mem_gb} GB a node, {asked.timeout_min} minutes")
    print(f"       runs in {folder}, SLURM's logs in {folder}/.submitit", flush=True)
    if shutil.which("sacct") is None or subprocess.run(["sacct", "-n", "-X"], capture_output=True).returncode:
        print("       no accounting (sacct) here: a job that dies without a word is waited for for ever")
    print("       this waits for them; Ctrl-C leaves them in the queue, scancel ends them", flush=True)
