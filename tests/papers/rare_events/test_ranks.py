"""Two processes that train together hold one memory: the one that a single process would have."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from quintet.papers.rare_events.memory.memory import Memory, MemoryConfig

SCRIPT = Path(__file__).with_name("two_ranks.py")
CONFIG = MemoryConfig(slots=20, width=5, neighbours=4, projection=False)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Seven batches of 6 examples, of which rank 0 gets the first four: ranks may differ in size."""
    random = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 5, generator=random), torch.randint(9, (6,), generator=random)) for _ in range(7)]


def test_two_ranks_hold_the_same_memory_as_one_process(tmp_path):
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
    alone = Memory(CONFIG, 9)
    for x, value in batches():
        alone(x, value)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], tensor, rtol=0, atol=1e-6)
    assert (tmp_path / "refused0").exists() and (tmp_path / "refused1").exists()  # one rank's NaN stops both
    tokens = [torch.load(tmp_path / f"tokens{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(torch.equal(tokens[0][name], tokens[1][name]) for name in tokens[0])
    assert sorted(tokens[0]["values"].tolist()) == list(range(8))
