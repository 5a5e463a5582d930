"""Two processes share the sweeps over the training set and find what one finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from influence_ranks import everything

SCRIPT = Path(__file__).with_name("influence_ranks.py")


@pytest.mark.slow
def test_two_ranks_find_what_one_process_finds(tmp_path):
    path = os.pathsep.join(filter(None, [str(SCRIPT.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    started = [
        subprocess.Popen([sys.executable, SCRIPT, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-2000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    alone = everything()
    assert len(alone) == 9
    for name, scores in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], scores, msg=lambda text, name=name: f"{name}: {text}")
    # and one process reads what two have written
    again = everything(tmp_path / "cache")
    assert all(torch.equal(again[name], ranks[0][name]) for name in alone if name != "self")
