"""A key given by mistake is refused in one line that does not repeat it, before anything is written.

That a key in its proper place, the environment, is written nowhere is tested with the runs beside this file.
"""

import subprocess
import sys

import pytest
from commands import REPOSITORY
from wandb_client import KEY

from quintet.common.errors import UserError
from quintet.harness.config import compose, config
from quintet.harness.config.secrets import refuse_on_command_line


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_nothing_is_written(script, tmp_path):
    arguments = [f"+logger.wandb.api_key={KEY}", "logger=wandb", f"paths.log_dir={tmp_path}/logs", f"run={tmp_path}"]
    command = [sys.executable, script, *(a for a in arguments if script == "eval.py" or "run=" not in a)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: 'logger.wandb.api_key' on the command line") and "wandb login" in line
    assert KEY not in line and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argument",
    [
        f"name={KEY}",
        f"'++logger.wandb.notes={KEY}'",
        f"notes=local-{KEY}",
        "data.token=short",
        "+hydra.job.env_set.WANDB_API_KEY=abc",
        "x.password=abc",
        "model.name=wandb_v1_" + "aB3_" * 8,
        "data.root=hf_" + "aB3d" * 8,
        "data.root=https://someone:something@example.org/data",
    ],
)
def test_forms_of_secrets(argument):
    with pytest.raises(UserError) as caught:
        refuse_on_command_line(["seed=1", argument.strip("'")])
    assert argument.strip("'").partition("=")[2] not in str(caught.value)


@pytest.mark.parametrize(
    "argument",
    [
        f"data.source.revision={KEY}",  # of a data set on the Hub
        "data.source.max_tokens=80",
        "tokenizer=x",
        "logger.wandb.api_key=null",
        "name=0123456789",
        "data.root=https://example.org:8080/data@2",
        "--help",
    ],
)
def test_what_is_no_secret(argument):
    refuse_on_command_line([argument])


def test_a_key_in_a_file():
    cfg = compose.compose_checked("train", ["logger=wandb", f"logger.wandb.tags=[a,'{KEY}']"])
    with pytest.raises(UserError, match=r"'logger\.wandb\.tags' in the configuration looks like a key") as caught:
        config.check(cfg, config.Origin())
    assert KEY not in str(caught.value)
