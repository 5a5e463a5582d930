"""The searches against a plain sort of all cosines, and the approximate ones through a life of changes."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.papers.rare_events.memory import search as searches
from quintet.papers.rare_events.memory.memory import SEARCH_TYPES, Memory, MemoryConfig
from quintet.papers.rare_events.memory.search import ExactSearch, cosines, merge, recall, top_k

pytest.importorskip("faiss")
BACKENDS = {
    "lsh": {"lsh_tables": 8, "lsh_bits": 6, "lsh_probes": 8},
    "faiss": {"faiss_lists": 16, "faiss_probes": 6},
}


def config(**settings_) -> MemoryConfig:
    return MemoryConfig(**{"slots": 3000, "width": 32, "neighbours": 10, "projection": False, **settings_})


def make_search(config: MemoryConfig) -> ExactSearch:
    return SEARCH_TYPES[config.search](config)


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def clustered(centres: torch.Tensor, count: int) -> torch.Tensor:
    chosen = centres[torch.randint(len(centres), (count,))]
    return torch.nn.functional.normalize(chosen + 0.4 * unit(count, centres.shape[1]), dim=1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 400), st.integers(1, 12), st.integers(20, 200), st.integers(0, 1000), st.integers(1, 4))
def test_exact_search_is_a_sort_whatever_the_chunks_and_blocks(keys, k, chunk, seed, batch):
    torch.manual_seed(seed)
    keys_nd, query_bd = unit(keys, 6), unit(batch, 6)
    similarity_bk, rows_bk = ExactSearch(config(width=6, chunk_rows=chunk)).nearest(query_bd, keys_nd, k)
    expected = (query_bd @ keys_nd.T).sort(dim=1, descending=True).values[:, :k]
    assert similarity_bk.shape == rows_bk.shape == (batch, k)
    torch.testing.assert_close(similarity_bk[:, : expected.shape[1]], expected)
    assert (similarity_bk[:, expected.shape[1] :] == -torch.inf).all() and (rows_bk[:, expected.shape[1] :] == -1).all()
    if keys:
        found = torch.einsum("bd,bkd->bk", query_bd, keys_nd[rows_bk]).masked_fill(rows_bk < 0, -torch.inf)
        torch.testing.assert_close(found, similarity_bk)
    assert all(len(set(row)) == len(row) for row in (r[r >= 0].tolist() for r in rows_bk))


@pytest.mark.parametrize("rows", [1023, 1024, 4096])
def test_cosines_of_whole_chunks_are_float32_products(rows):
    """Within float32 rounding, which bfloat16 or TF32 products would miss by far."""
    query_bd, keys_nd = unit(16, 256), unit(rows, 256)
    with torch.no_grad():
        found = cosines(query_bd, keys_nd)
    torch.testing.assert_close(found.double(), query_bd.double() @ keys_nd.double().T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [2, 1100])
def test_the_k_largest_are_found_with_one_thread_and_several_and_merged(rows, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    values = torch.zeros(rows, 1003)  # 1100 rows are enough for several threads
    values[0, 500:505], values[1, -3:] = torch.arange(1.0, 6), torch.arange(1.0, 4)
    kept, where = top_k(values, 5)
    assert kept.shape == where.shape == (rows, 5) and not kept[2:].any()
    assert kept[0].tolist() == [5, 4, 3, 2, 1] and where[0].tolist() == [504, 503, 502, 501, 500]
    assert kept[1].tolist() == [3, 2, 1, 0, 0] and where[1, :3].tolist() == [1002, 1001, 1000]
    kept, where = merge((kept[:2], where[:2]), (torch.tensor([[4.5], [0.5]]), torch.tensor([[7], [8]])), 3)
    assert where.tolist() == [[504, 7, 503], [1002, 1001, 1000]]


@pytest.mark.parametrize("name", BACKENDS)
def test_recall_on_clustered_keys(name):
    """What is reported is what a count by hand gives, and few lists or buckets hold nearly every neighbour."""
    torch.manual_seed(0)
    centres = unit(100, 32)
    keys_nd, query_bd = clustered(centres, 3000), clustered(centres, 200)
    found = make_search(config(search=name, exact_below=0, **BACKENDS[name]))
    first, all_k = recall(found, query_bd, keys_nd, 10)
    rows_bk = found.nearest(query_bd, keys_nd, 10)[1]
    true_bk = (query_bd @ keys_nd.T).topk(10).indices
    assert first == pytest.approx(float((rows_bk[:, 0] == true_bk[:, 0]).float().mean()), abs=0.011)
    by_hand = [len(set(a.tolist()) & set(b.tolist())) / 10 for a, b in zip(rows_bk, true_bk, strict=True)]
    assert all_k == pytest.approx(sum(by_hand) / len(by_hand), abs=0.005)
    assert first >= 0.95 and all_k >= 0.9
    assert found.index_bytes > 0 and ExactSearch(config()).index_bytes == 0


@pytest.mark.parametrize("name", BACKENDS)
def test_a_search_of_every_list_or_bucket_is_exact_through_a_life_of_changes(name):
    """Writes, clearing, `snapshot` with clearing inside, growth beyond: after each, what an exact memory finds."""
    torch.manual_seed(1)
    everything = {"lsh": {"lsh_tables": 2, "lsh_bits": 3, "lsh_probes": 8}, "faiss": {"faiss_probes": 99}}[name]
    shared = {"slots": 300, "width": 8, "neighbours": 7, "age_noise": 8.0}
    fast = Memory(config(search=name, exact_below=20, chunk_rows=64, **everything, **shared), 50)
    plain = Memory(config(**shared), 50)

    def same(count: int) -> None:
        for _ in range(count):
            query_bd, value_b = unit(30, 8), torch.randint(50, (30,))
            answers = [memory.read(query_bd) for memory in (fast, plain)]
            torch.testing.assert_close(answers[0].similarity, answers[1].similarity, rtol=0, atol=1e-5)
            assert torch.equal(answers[0].value, answers[1].value)
            # The same write for both, so that rounding in the cosines cannot make them differ.
            for memory in (fast, plain):
                memory.write(query_bd, value_b, answers[1])

    same(8)
    with fast.snapshot(), plain.snapshot():
        same(8)  # overwrites and grows
        with fast.snapshot(), plain.snapshot():
            same(2)
        fast.clear(), plain.clear()
        same(5)
    same(3)
    fast.clear(), plain.clear()
    same(12)
    twin = copy.deepcopy(fast)
    torch.testing.assert_close(twin.read(unit(2, 8)).similarity.shape, torch.Size([2, 7]))
    same(1)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_resumed_approximate_memory_finds_the_same(name):
    torch.manual_seed(2)
    centres = unit(40, 32)
    few = {"lsh_tables": 2, "lsh_bits": 6, "lsh_probes": 1, "faiss_lists": 16, "faiss_probes": 1}
    settings_ = {"search": name, "exact_below": 100, "slots": 1500, **few}
    memory = Memory(config(**settings_), 40)
    for _ in range(30):
        memory(clustered(centres, 100), torch.randint(40, (100,)))
    resumed = Memory(config(**settings_), 40)
    for _ in range(3):
        resumed(unit(100, 32), torch.arange(100) % 40)  # has an index of other keys
    resumed.load_state_dict(copy.deepcopy(memory.state_dict()))
    query_bd = clustered(centres, 64)
    one, other = memory.read(query_bd), resumed.read(query_bd)
    torch.testing.assert_close(one.similarity, other.similarity, rtol=0, atol=1e-6)
    assert torch.equal(one.value, other.value)
    assert memory.recall(query_bd) == resumed.recall(query_bd)
    assert memory.recall(query_bd)[1] < 1  # not by searching everything


def test_a_memory_is_searched_with_other_lists_than_it_was_trained_with():
    memory, other = (
        Memory(config(search="faiss", exact_below=100, slots=400, faiss_lists=lists), 5) for lists in (4, 8)
    )
    for _ in range(4):
        memory(unit(100, 32), torch.arange(100) % 5)
    memory.read(unit(1, 32))
    other.load_state_dict(memory.state_dict())
    other.read(unit(1, 32))
    assert other.search.learned.tolist() == [8, other.filled, 0]


@pytest.mark.parametrize("name", BACKENDS)
def test_a_snapshot_restores_what_a_search_has_learned(name):
    memory = Memory(config(search=name, exact_below=100, slots=600, **BACKENDS[name]), 5)
    for _ in range(3):
        memory(unit(100, 32), torch.arange(100) % 5)
    memory.read(unit(1, 32))
    before = {key: tensor.clone() for key, tensor in memory.state_dict().items()}
    with memory.snapshot():
        for _ in range(12):
            memory(unit(100, 32), torch.arange(100) % 5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in memory.state_dict().items())


def test_hashing_tries_the_buckets_across_the_nearest_planes():
    """The planes far from the query would lead to buckets with nothing near in them."""
    torch.manual_seed(3)
    centres = unit(300, 32)
    keys_nd, query_bd = clustered(centres, 3000), clustered(centres, 200)

    def found(probes: int) -> float:
        settings_ = {"search": "lsh", "exact_below": 0, "lsh_tables": 1, "lsh_bits": 10, "lsh_probes": probes}
        return recall(make_search(config(**settings_)), query_bd, keys_nd, 10)[0]

    assert found(8) > found(1) + 0.1


def test_small_memories_are_searched_exactly(monkeypatch):
    memory = Memory(config(search="lsh", exact_below=50), 5)
    monkeypatch.setattr(searches.IndexedSearch, "_update_index", lambda *_: pytest.fail("indexed"))
    memory(unit(50, 32), torch.arange(50) % 5)
    assert memory.read(unit(3, 32)).value.min() >= 0


def test_lists_are_learned_again_when_the_keys_have_changed():
    memory = Memory(config(search="faiss", exact_below=100, slots=400, faiss_lists=4), 400)
    for _ in range(3):
        memory(unit(100, 32), torch.randint(400, (100,)))
    memory.read(unit(1, 32))
    first = memory.search.centroids.clone()
    assert memory.search.learned.tolist() == [4, 200, 100]
    for _ in range(20):
        memory(unit(100, 32), torch.randint(400, (100,)))
    memory.read(unit(1, 32))
    assert memory.search.learned[1] == 400 and not torch.equal(first, memory.search.centroids)
    memory.clear()
    assert memory.search.index_bytes == 0 and not memory.search.learned.any()
