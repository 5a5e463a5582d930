"""A real SLURM for the tests beside this file, and a Lightning plugin that paces runs and writes down their steps."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import REPOSITORY

HERE = Path(__file__).parent
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
# Lightning finds it by its entry point: the runs themselves know nothing of it.
PLUGIN = '''
import os, time
from pathlib import Path
from lightning.pytorch.callbacks import Callback

FOLDER = Path(os.environ["PACE"])

def seconds(what):
    path = FOLDER / what
    return float(path.read_text() or 0) if path.exists() else 0.0

class Pace(Callback):
    """Sleeps `setup` seconds before training, `step` seconds a batch (twice that on rank 1), and logs every batch."""

    def setup(self, trainer, module, stage):
        (FOLDER / f"setup-{trainer.global_rank}").touch()
        time.sleep(seconds("setup"))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        with (FOLDER / "steps").open("a") as file:
            file.write(f"{trainer.global_rank} {trainer.global_step}\\n")
        if trainer.global_rank == 1 and trainer.global_step == seconds("fail"):
            raise ValueError("rank 1 fails here")
        time.sleep(seconds("step") * (1 + trainer.global_rank))

def callbacks():
    return Pace()
'''


class Cluster:
    """Commands of SLURM, and runs of train.py in its queue."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commands = folder, []
        plugin = folder / "plugin"
        (plugin / "pace-0.dist-info").mkdir(parents=True)
        (plugin / "pace.py").write_text(PLUGIN)
        (plugin / "pace-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pace\nVersion: 0\n")
        points = "[lightning.pytorch.callbacks_factory]\npace = pace:callbacks\n"
        (plugin / "pace-0.dist-info" / "entry_points.txt").write_text(points)
        paths = [str(plugin), str(REPOSITORY / "src")]
        self.env = os.environ | {
            "SLURM_CONF": str(folder / "slurm" / "slurm.conf"),
            "PATH": f"{HERE / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join(paths),
            "MASTER_ADDR": "127.0.0.1",  # both nodes are this machine, and their names are made up
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable,
        }

    def tell(self, *command: str) -> str:
        """Output of a command that must succeed."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def stop(self) -> None:
        """Cancel what a failed test has left, and wait for it: a step outlives SLURM's daemons."""
        subprocess.run(["scancel", "--user=root"], env=self.env, timeout=60)
        deadline = time.monotonic() + 60
        while self.tell("squeue", "-h") and time.monotonic() < deadline:
            time.sleep(0.2)
        for command in self.commands:
            if command.poll() is None:
                command.kill()

    def run(self, name: str, *arguments: str, **kwargs) -> "Run":
        """`train.py -m launcher=slurm ...` as a process that waits for its jobs."""
        return Run(self, name, [sys.executable, "train.py", "-m", "launcher=slurm", *arguments], **kwargs)

    def batch(self, name: str, options: list[str], *arguments: str, **kwargs) -> "Run":
        """`sbatch --wait scripts/slurm.sbatch ...` as a process that waits for its job."""
        output = f"--output={self.folder}/{name}.out"
        command = ["sbatch", "--wait", f"--job-name={name}", output, *options, "scripts/slurm.sbatch", *arguments]
        return Run(self, name, command, **kwargs)


class Run:
    """A run in the queue: its command, its jobs, the steps that its ranks took."""

    def __init__(self, cluster: Cluster, name: str, command: list[str], step: float = 0, setup: float = 0) -> None:
        self.cluster, self.name = cluster, name
        self.folder = cluster.folder / name
        self.folder.mkdir()
        self.pace("step", step)
        self.pace("setup", setup)
        shared = [f"name={name}", f"paths.log_dir={cluster.folder}/logs", f"paths.cache_dir={cluster.folder}/cache"]
        env = cluster.env | {"PACE": str(self.folder), "QUINTET_RUN_ID": "id"}
        self.log = (self.folder / "log").open("w")
        self.process = subprocess.Popen(
            [*command, *shared], cwd=REPOSITORY, env=env, stdout=self.log, stderr=subprocess.STDOUT
        )
        cluster.commands.append(self.process)

    def pace(self, what: str, seconds: float) -> None:
        """Set the plugin's pace, also while the run goes on."""
        (self.folder / what).write_text(str(seconds))

    @property
    def said(self) -> str:
        return (self.folder / "log").read_text()

    def directory(self, number: int = 0) -> Path:
        return self.cluster.folder / "logs" / self.name / "multirun_id" / str(number)

    def steps(self) -> list[tuple[int, int]]:
        """(rank, step) of every batch so far, in the order they ended."""
        path = self.folder / "steps"
        return [tuple(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []

    def jobs(self) -> list[str]:
        return self.cluster.tell("squeue", "-h", "-n", self.name, "-o", "%i").split()

    def job(self) -> str:
        """Number of its only job, once it is in the queue."""
        self.until(lambda: self.jobs() or self.process.poll() is not None)
        (number,) = self.jobs()
        return number

    def show(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        words = self.cluster.tell("scontrol", "-o", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until(self, done, seconds: float = 240) -> None:
        """Wait, but not for ever."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, self.said + "\n".join(self.logs())
            time.sleep(0.1)

    def logs(self) -> list[str]:
        """The tail of SLURM's logs of this run."""
        found = (self.cluster.folder / "logs" / self.name).rglob("*_log.*")
        return [f"{p.name}:\n{p.read_text()[-1500:]}" for p in [*found, *self.cluster.folder.glob(f"{self.name}.out")]]

    def restarted(self, job: str, times: int) -> None:
        """Wait until the job runs again; SLURM holds a requeued one back for two minutes."""

        def running() -> bool:
            assert self.process.poll() is None, self.said + "\n".join(self.logs())
            shown = self.show(job)
            if shown["JobState"] == "PENDING" and int(shown["Restarts"]) >= times:
                # may fail: the job can have begun since it was asked for
                command = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
                subprocess.run(command, env=self.cluster.env, capture_output=True, timeout=60)
            return shown["JobState"] == "RUNNING" and int(shown["Restarts"]) >= times

        self.until(running)

    def at_step(self, step: int) -> None:
        """Wait until every rank that has begun took `step`, or the process ended."""
        self.until(lambda: any(s >= step for _, s in self.steps()) or self.process.poll() is not None)
        assert self.process.poll() is None, self.said + "\n".join(self.logs())

    def end(self, seconds: float = 240) -> int:
        """Exit code of the command."""
        self.until(lambda: self.process.poll() is not None, seconds)
        return self.process.returncode


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Two nodes of two CPUs on this machine."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(
            f"no SLURM here: {', '.join(missing)} missing (apt-get install slurmctld slurmd slurm-client munge)"
        )
    if os.geteuid():
        pytest.skip("SLURM's daemons have to be started by root")
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("needs the machine for itself: make test-slurm")
    found = Cluster(tmp_path_factory.mktemp("cluster"))
    port = str(20000 + os.getpid() % 500 * 20)
    base = str(found.folder / "slurm")
    try:
        done = subprocess.run([HERE / "cluster.sh", "up", base, port], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        yield found
        found.stop()
    finally:
        subprocess.run([HERE / "cluster.sh", "down", base], timeout=60)
