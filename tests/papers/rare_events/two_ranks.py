"""One of the two processes of test_ranks.py: `python two_ranks.py RANK FOLDER`."""

import sys
from pathlib import Path

import torch
from test_ranks import CONFIG, batches
from torch import distributed

from quintet.common.errors import UserError
from quintet.papers.rare_events.memory.memory import Memory, MemoryConfig
from quintet.papers.rare_events.memory.token_memory import RecallConfig, TokenMemory


def uneven(rank: int) -> Memory:
    """Rank 0 has seven tokens, more than half of the eight slots, rank 1 one: both must take as many steps."""
    torch.manual_seed(0)
    tokens = TokenMemory(MemoryConfig(slots=8, width=5, neighbours=2), RecallConfig(), 5, 3, counts=[1] * 9)
    features = torch.randn(8, 5)[slice(0, 7) if rank == 0 else slice(7, 8)]
    with torch.no_grad():
        query, answer = tokens.read(features)
        tokens.write(query, torch.arange(8)[slice(0, 7) if rank == 0 else slice(7, 8)], answer)
    return tokens.memory


def main(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    memory = Memory(CONFIG, 9)
    own = slice(0, 4) if rank == 0 else slice(4, 6)
    for x, value in batches():
        memory(x[own], value[own])
    bad = torch.full((1, 5), torch.nan if rank == 1 else 1.0)
    try:
        memory(bad, torch.tensor([0]))
    except UserError:
        (folder / f"refused{rank}").touch()
    with memory.snapshot():
        if rank == 0:  # in evaluation each for itself: rank 1 need not come along
            memory(torch.randn(1, 5), torch.tensor([0]))
    torch.save(memory.state_dict(), folder / f"rank{rank}.pt")
    torch.save(uneven(rank).state_dict(), folder / f"tokens{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
