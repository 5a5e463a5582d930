"""A rank that fails ends all ranks, with its own message."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import REPOSITORY

SCRIPT = Path(__file__).with_name("failing_rank.py")
OVERRIDES = ["experiment=influence/sample", "callbacks=quiet", "trainer=ddp_cpu", "model.optimizer.name=adam",
             "model.optimizer.lr=0.01", "data.batch_size=100", "trainer.enable_progress_bar=false",
             "trainer.max_epochs=5"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("where", ["1 on_train_batch_start user", "1 build user"])
def test_all_ranks_end_with_the_message_of_the_one_that_failed(house, where):
    """In training, where the others wait for its gradients, and before it has met them."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *OVERRIDES, *house.paths, f"run_id={where.split()[1]}"], cwd=REPOSITORY,
        capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1", "FAIL": where},
    )  # fmt: skip
    assert done.returncode != 0
    assert f"error: rank {where[0]} has had enough" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
