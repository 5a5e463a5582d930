"""train.py and the real `wandb` command, logged in to a server of the tests, and a plugin that makes a rank fail."""

import os
import subprocess
import sys
from pathlib import Path

from commands import REPOSITORY
from wandb_server import ENTITY, Server

KEY = "5ec2e7" + "0123456789" * 3 + "abcd"  # 40 characters, as W&B's are
# Lightning finds it by its entry point: the runs themselves know nothing of it.
PLUGIN = """
import os
from lightning.pytorch.callbacks import Callback

class Fail(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if os.environ.get("FAIL_AT") == f"{trainer.global_rank}:{trainer.global_step}":
            raise RuntimeError(f"rank {trainer.global_rank} fails here")

def callbacks():
    return Fail()
"""


class Client:
    """Runs train.py and the `wandb` command as a user would, logged in to the server of the tests."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        plugin = folder / "plugin"
        (plugin / "fail-0.dist-info").mkdir(parents=True)
        (plugin / "fail.py").write_text(PLUGIN)
        (plugin / "fail-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: fail\nVersion: 0\n")
        points = "[lightning.pytorch.callbacks_factory]\nfail = fail:callbacks\n"
        (plugin / "fail-0.dist-info" / "entry_points.txt").write_text(points)
        (folder / "home").mkdir()
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": KEY,
            "WANDB_ENTITY": ENTITY,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DIR": str(folder),  # the agent's; train.py's is the run directory
            "HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # an agent starts `python`
            "PYTHONPATH": f"{plugin}:{REPOSITORY / 'src'}",
        }
        self.paths = [f"paths.log_dir={folder}/logs", f"paths.cache_dir={folder}/cache", "name=test"]

    def call(self, command: list[str], env: dict | None = None, timeout: float = 600):
        """The finished process with stdout and stderr as text."""
        return subprocess.run(
            command, cwd=REPOSITORY, env=self.env | (env or {}), capture_output=True, text=True, timeout=timeout
        )

    def train(self, *arguments: str, env: dict | None = None, code: int | None = 0):
        """train.py, which must end with `code` (None: with any but 0)."""
        extra = [] if arguments[0].startswith("resume=") else ["logger=wandb", *self.paths]
        done = self.call([sys.executable, "train.py", *arguments, *extra], env)
        assert done.returncode == code or (code is None and done.returncode), done.stdout[-2000:] + done.stderr[-4000:]
        return done

    def wandb(self, *arguments: str, env: dict | None = None):
        """`wandb ARGUMENTS`, which must succeed."""
        done = self.call([sys.executable, "-m", "wandb", *arguments], env)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done

    def directory(self, run_id: str) -> Path:
        return self.folder / "logs" / "test" / run_id
