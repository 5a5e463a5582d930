"""The memory's rules written out in loops over Python lists, one line of the paper at a time; for comparison only."""

import math

import torch


class SlowMemory:
    """Section 3 and 3.1 of arXiv 1703.03129 in float64, for whole batches; `oldest` is given the noise from outside."""

    def __init__(self, slots: int, neighbours: int, margin: float, num_values: int) -> None:
        self.k, self.margin = neighbours, margin
        self.temperature = max(1.0, math.log(0.2 * neighbours) / margin)
        self.keys = [None] * slots
        self.values = [-1] * slots
        self.ages = [0] * slots
        self.slot_of_value = [-1] * num_values

    def similarity(self, query: torch.Tensor, slot: int) -> float:
        return float(query @ self.keys[slot])

    def neighbours(self, query: torch.Tensor) -> list[int]:
        filled = [slot for slot in range(len(self.keys)) if self.values[slot] != -1]
        return sorted(filled, key=lambda slot: -self.similarity(query, slot))[: self.k]

    def predict(self, query: torch.Tensor) -> tuple[int, float]:
        found = self.neighbours(query)
        if not found:
            return -1, 0.0
        weights = [math.exp(self.temperature * self.similarity(query, slot)) for slot in found]
        return self.values[found[0]], weights[0] / sum(weights)

    def loss(self, query: torch.Tensor, value: int, hint: bool) -> float:
        found = self.neighbours(query)
        if hint and self.slot_of_value[value] != -1:
            found.append(self.slot_of_value[value])
        right = [self.similarity(query, slot) for slot in found if self.values[slot] == value]
        wrong = [self.similarity(query, slot) for slot in found if self.values[slot] != value]
        if not right and not wrong:
            return 0.0
        return max(0.0, max(wrong, default=0.0) - max(right, default=0.0) + self.margin)

    def write(self, queries: list[torch.Tensor], values: list[int], noise) -> None:
        """`noise(slots)` gives one number for each of the slots it is asked about."""
        nearest = [self.neighbours(query)[:1] for query in queries]
        hit = [bool(n) and self.values[n[0]] == v for n, v in zip(nearest, values, strict=True)]
        matched = {n[0] for n, h in zip(nearest, hit, strict=True) if h}
        misses = [b for b, h in enumerate(hit) if not h]
        chosen = dict(zip(misses, self.oldest(len(misses), matched, noise), strict=True))
        self.ages = [age + 1 for age in self.ages]
        for slot in matched:
            total = self.keys[slot] + sum(queries[b] for b, h in enumerate(hit) if h and nearest[b][0] == slot)
            self.keys[slot] = total / total.norm()
            self.ages[slot] = 0
        for b, slot in chosen.items():
            self.keys[slot], self.values[slot], self.ages[slot] = queries[b], values[b], 0
        for b, value in enumerate(values):
            self.slot_of_value[value] = nearest[b][0] if hit[b] else chosen[b]

    def oldest(self, count: int, matched: set[int], noise) -> list[int]:
        empty = [slot for slot in range(len(self.values)) if self.values[slot] == -1][:count]
        filled = [slot for slot in range(len(self.values)) if self.values[slot] != -1 and slot not in matched]
        drawn = dict(zip(filled, noise(filled), strict=True))
        order = sorted(filled, key=lambda slot: -(self.ages[slot] + drawn[slot]))
        return empty + order[: count - len(empty)]
