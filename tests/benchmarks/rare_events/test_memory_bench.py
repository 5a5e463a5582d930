"""benchmarks/rare_events/memory.py: the looped peers follow the same rules as the memory, and every row is made."""

import pytest
import torch

pytest.importorskip("faiss")
from benchmarks.rare_events import memory as bench

pytestmark = pytest.mark.slow

SETTING = bench.Setting(slots=[400], batches=[3], width=16, neighbours=5, repeats=1, queries=20)


def test_the_looped_peers_write_what_the_memory_writes():
    """Batches of one, so that the batch's own rules do not matter; no noise, so that the oldest is the same."""
    torch.manual_seed(0)
    keys, ask = bench.clustered(40, 16)
    config = bench.MemoryConfig(slots=40, width=16, neighbours=5, projection=False, age_noise=0.0)
    ours = bench.full_memory(config, keys)
    ours.last_used.copy_(torch.randperm(40))
    loops = [bench.LoopedMemory(ours, batched) for batched in (False, True)]
    for step in range(60):
        query_bd = ask(1)
        value_b = ours.read(query_bd).value if step % 2 else torch.randint(bench.NUM_VALUES, (1,))
        for memory in (ours, *loops):
            (memory if memory is ours else memory.step)(query_bd, value_b)
    for loop in loops:
        torch.testing.assert_close(loop.keys, ours.keys)
        assert torch.equal(loop.values, ours.values) and torch.equal(loop.ages.long(), ours.ages)


def test_every_row_is_made():
    rows = {entry["metric"]: entry for entry in bench.run_all(SETTING)}
    assert len(rows) == 3 + 2 + 3 * 7
    assert all(entry["value"] > 0 for entry in rows.values())
    note = rows["query, 400 random, near queries slots, batch 3: lsh, 32 probes"]["note"]
    assert "times faster; recall@1 " in note and "MiB beside the keys' 0" in note
