"""How fast the memory is: a whole step beside looped transcriptions, exact search beside faiss, approximate ones.

    python -m benchmarks.rare_events.memory [--slots 8192 100000 1000000] [--publish rare_memory_speed]

Every candidate runs in turn within each repeat, so that a busy moment hits all of them; medians are reported. A step is
query, answer, margin loss and update, without the backward pass. Keys are full memories of width 256, of three kinds:
clustered (20 keys a class), random with queries near some key, and random with random queries.
"""

import argparse
import copy
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import report, row
from quintet.papers.rare_events.memory.memory import SEARCH_TYPES, Memory, MemoryConfig
from quintet.papers.rare_events.memory.search import recall

NUM_VALUES = 1000
NOISE = 0.5  # length of what is added to a unit centre or key
PROBES = {"lsh": (8, 32, 128), "faiss": (16, 32, 64)}
LONG = 4096  # examples x thousand slots from which on a looped step is timed on part of the batch


@dataclass
class Setting:
    """What is measured."""

    slots: list[int]
    batches: list[int]
    width: int
    neighbours: int
    repeats: int
    queries: int  # that recall is counted over

    def config(self, slots: int, search: str = "exact", **settings) -> MemoryConfig:
        sizes = {"slots": slots, "width": self.width, "neighbours": self.neighbours}
        return MemoryConfig(**sizes, search=search, projection=False, exact_below=0, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="+", default=[8192, 100_000, 1_000_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--neighbours", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--queries", type=int, default=512, help="that recall is counted over")
    parser.add_argument("--publish", default=None, metavar="NAME", help="write docs/results/NAME.json")
    args = vars(parser.parse_args())
    publish = args.pop("publish")
    setting = Setting(**args)
    began, load = time.perf_counter(), os.getloadavg()[0]  # what else the machine was doing
    rows = []
    for made in run_all(setting):
        print(f"  {made['metric']}: {made['value']} {made['unit']}  {made['note'] or ''}", flush=True)
        rows.append(made)
    report(
        publish,
        rows,
        title=f"Memory speed: width {setting.width}, {setting.neighbours} neighbours, full memories",
        protocol=f"median of {setting.repeats} repeats, candidates in turn, {torch.get_num_threads()} threads; "
        f"recall over {setting.queries} queries; a step is query, answer, loss and update, no backward pass",
        data=f"synthetic unit vectors; clusters of 20 and near queries have noise of length {NOISE}",
        subset=False,
        seconds=time.perf_counter() - began,
        extra={"load": load},
    )


@torch.no_grad()
def run_all(setting: Setting) -> Iterator[dict]:
    for slots in setting.slots:
        torch.manual_seed(0)
        keys, ask = clustered(slots, setting.width)
        yield from whole_steps(setting, keys, ask)
        yield from queries_alone(setting, keys, ask)
        for kind, make in KINDS.items():
            keys, ask = (keys, ask) if make is clustered else make(slots, setting.width)
            yield from approximate(setting, kind, keys, ask)


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def noisy(x_nd: Tensor) -> Tensor:
    return F.normalize(x_nd + NOISE * unit(*x_nd.shape), dim=1)


def clustered(slots: int, width: int) -> tuple[Tensor, Callable[[int], Tensor]]:
    """Keys around slots / 20 centres, and queries that are new examples of the same classes."""
    centres = unit(max(1, slots // 20), width)

    def ask(count: int) -> Tensor:
        return noisy(centres[torch.randint(len(centres), (count,))])

    return torch.cat([ask(min(65536, slots - start)) for start in range(0, slots, 65536)]), ask


def near(slots: int, width: int) -> tuple[Tensor, Callable[[int], Tensor]]:
    keys = unit(slots, width)
    return keys, lambda count: noisy(keys[torch.randint(slots, (count,))])


def scattered(slots: int, width: int) -> tuple[Tensor, Callable[[int], Tensor]]:
    return unit(slots, width), lambda count: unit(count, width)


KINDS = {"clustered": clustered, "random, near queries": near, "random": scattered}


def full_memory(config: MemoryConfig, keys: Tensor) -> Memory:
    """A memory that holds `keys`, as if it had been loaded from a checkpoint; written in random order."""
    memory = Memory(config, NUM_VALUES)
    state = memory.state_dict()
    state["keys"], state["values"] = keys, torch.randint(NUM_VALUES, (config.slots,))
    state["last_used"], state["step"] = torch.randperm(config.slots) // 16, torch.tensor(config.slots // 16 + 1)
    memory.load_state_dict(state, strict=False)
    return memory.train()


class LoopedMemory:
    """The published rules one example at a time in plain PyTorch (or, with `batched`, only their update)."""

    def __init__(self, memory: Memory, batched: bool) -> None:
        self.config, self.batched = memory.config, batched
        self.keys, self.values, self.ages = memory.keys.clone(), memory.values.clone(), memory.ages.float()
        self.recent = torch.zeros(NUM_VALUES, dtype=torch.int64)

    @torch.no_grad()
    def step(self, query_bd: Tensor, value_b: Tensor) -> None:
        similarity_bm = query_bd @ self.keys.T if self.batched else [None] * len(query_bd)
        found = [self.query(*args) for args in zip(query_bd, value_b, similarity_bm, strict=True)]
        for query_d, value, nearest in zip(query_bd, value_b, found, strict=True):
            self.update(query_d, value, nearest)

    def query(self, query_d: Tensor, value: Tensor, similarity_m: Tensor | None) -> Tensor:
        similarity_m = self.keys @ query_d if similarity_m is None else similarity_m
        near_k = similarity_m.topk(self.config.neighbours)
        torch.softmax(near_k.values * self.config.softmax_temperature, 0)
        slots_k = torch.cat([near_k.indices, self.recent[value][None]])
        similarity_k = torch.cat([near_k.values, similarity_m[self.recent[value]][None]])
        right_k = self.values[slots_k] == value
        wrong = similarity_k.masked_fill(right_k, -torch.inf).max()
        right = similarity_k.masked_fill(~right_k, -torch.inf).max()
        torch.relu(wrong - right + self.config.margin)
        return near_k.indices[0]

    def update(self, query_d: Tensor, value: Tensor, nearest: Tensor) -> None:
        if self.values[nearest] == value:
            slot = nearest
            self.keys[slot] = F.normalize(self.keys[slot] + query_d, dim=0)
        else:
            noise_m = (2 * torch.rand(len(self.ages)) - 1) * self.config.age_noise
            slot = (self.ages + noise_m).argmax()
            self.keys[slot], self.values[slot] = query_d, value
        self.ages += 1
        self.ages[slot] = 0
        self.recent[value] = slot


def whole_steps(setting: Setting, keys: Tensor, ask: Callable[[int], Tensor]) -> Iterator[dict]:
    memory = full_memory(setting.config(len(keys)), keys)
    loops = {"looped": LoopedMemory(memory, False), "looped update, batched query": LoopedMemory(memory, True)}
    for batch in setting.batches:
        # Other queries each time: branch predictors learn a sort that is repeated.
        examples = itertools.cycle([(ask(batch), torch.randint(NUM_VALUES, (batch,))) for _ in range(32)])
        part = min(batch, max(4, LONG * 1000 // len(keys)))  # a looped step takes as long as it has examples
        candidates = {"ours": (lambda it=examples: memory(*next(it)), 1.0)}
        for name, loop in loops.items():

            def step(loop: LoopedMemory = loop, part: int = part, it=examples) -> None:
                loop.step(*(tensor[:part] for tensor in next(it)))

            candidates[name] = (step, batch / part)
        taken = measure(candidates, setting.repeats)
        where = f"step, {len(keys):,} slots, batch {batch}"
        yield row(f"{where}: ours", round(taken["ours"], 3), "ms")
        for name in loops:
            note = f"{taken[name] / taken['ours']:.1f} times ours"
            note += f"; timed on {part} examples and scaled" if part < batch else ""
            yield row(f"{where}: {name}", round(taken[name], 3), "ms", note)


def queries_alone(setting: Setting, keys: Tensor, ask: Callable[[int], Tensor]) -> Iterator[dict]:
    """Our exact search and faiss' flat index, k neighbours each."""
    import faiss

    search, k = SEARCH_TYPES["exact"](setting.config(len(keys))), setting.neighbours
    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = faiss.IndexFlatIP(setting.width)
    flat.add(keys.numpy())
    for batch in setting.batches:
        queries = itertools.cycle(ask(32 * batch).split(batch))
        candidates = {
            "ours, exact": (lambda it=queries: search.nearest(next(it), keys, k), 1.0),
            "faiss flat": (lambda it=queries: flat.search(next(it).numpy(), k), 1.0),
        }
        taken = measure(candidates, setting.repeats)
        where = f"query, {len(keys):,} slots, batch {batch}"
        yield row(f"{where}: ours, exact", round(taken["ours, exact"], 3), "ms")
        note = f"{taken['faiss flat'] / taken['ours, exact']:.1f} times ours"
        yield row(f"{where}: faiss flat", round(taken["faiss flat"], 3), "ms", note)


def approximate(setting: Setting, kind: str, keys: Tensor, ask: Callable[[int], Tensor]) -> Iterator[dict]:
    """Time, recall and extra memory of the approximate searches beside the exact one, on one kind of keys."""
    k, batch, some = setting.neighbours, setting.batches[0], ask(setting.queries)
    exact = SEARCH_TYPES["exact"](setting.config(len(keys)))
    searches, found = {"exact": exact}, {}
    for name, tried in PROBES.items():
        search = SEARCH_TYPES[name](setting.config(len(keys), name))
        began = time.perf_counter()
        search.nearest(some[:1], keys, 1)  # makes the index
        built = time.perf_counter() - began
        for probes in tried:
            one = copy.copy(search)
            one._index, one.config = search._index, replace(search.config, **{f"{name}_probes": probes})
            first, all_k = recall(one, some, keys, k)
            note = f"recall@1 {first:.3f}, @{k} {all_k:.3f}; {one.index_bytes / 2**20:,.0f} MiB beside the keys' "
            searches[f"{name}, {probes} probes"] = one
            found[f"{name}, {probes} probes"] = f"{note}{keys.numel() * 4 / 2**20:,.0f}, made in {built:.1f} s"
    queries = itertools.cycle(ask(32 * batch).split(batch))
    candidates = {name: (lambda s=search: s.nearest(next(queries), keys, k), 1.0) for name, search in searches.items()}
    taken = measure(candidates, setting.repeats)
    where = f"query, {len(keys):,} {kind} slots, batch {batch}"
    yield row(f"{where}: exact", round(taken["exact"], 3), "ms")
    for name, note in found.items():
        faster = f"{taken['exact'] / taken[name]:.1f} times faster; "
        yield row(f"{where}: {name}", round(taken[name], 3), "ms", faster + note)


def measure(candidates: dict[str, tuple[Callable[[], object], float]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each candidate times its factor; quick ones run several times within a repeat."""
    counts = {}
    for name, (run, _) in candidates.items():
        run()  # compile, fill caches
        began = time.perf_counter()
        run()
        counts[name] = max(1, math.ceil(0.05 / (time.perf_counter() - began)))
    seconds = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, (run, _) in candidates.items():
            began = time.perf_counter()
            for _ in range(counts[name]):
                run()
            seconds[name].append((time.perf_counter() - began) / counts[name])
    return {name: 1000 * factor * statistics.median(seconds[name]) for name, (_, factor) in candidates.items()}


if __name__ == "__main__":
    main()
