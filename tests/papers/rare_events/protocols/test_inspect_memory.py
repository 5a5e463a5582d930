"""The picture shows what the memory really holds."""

import csv

import numpy as np
import pytest
import torch
from memories import CLASSES, NoisyClasses, Plain, snapshot

from quintet.common.errors import UserError
from quintet.papers.rare_events.protocols import inspect_memory
from quintet.papers.rare_events.protocols.few_shot import plan_episodes, unit_keys
from quintet.papers.rare_events.protocols.inspect_memory import InspectMemory

SETTINGS = {"ways": 5, "showings": 4, "count": 6, "neighbours": 3, "seed": 2}


def asked(module, data, **overrides):
    module.eval()
    protocol = InspectMemory(**SETTINGS | overrides)
    with torch.no_grad():
        return protocol._queries(module, data.array, data.classes("test"))


def test_files_and_numbers(tmp_path):
    module = Plain()
    before = snapshot(module)
    found = InspectMemory(**SETTINGS)(module, NoisyClasses(noise=5.0), tmp_path)
    assert found["inspect_memory/shown"] == 6 and found["inspect_memory/right_of_shown"] == 1
    assert (tmp_path / "inspect_memory" / "neighbours.png").stat().st_size > 5000
    with (tmp_path / "inspect_memory" / "neighbours.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 3 and all(row["query_class"] == row["stored_class"] for row in rows[::3])
    assert found["inspect_memory/mean_similarity"] == pytest.approx(
        np.mean([float(row["similarity"]) for row in rows[::3]]), abs=1e-5
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("noise", [5.0, 120.0])
def test_neighbours_are_the_memory_as_it_was(noise):
    """Images, classes, ages and cosines recomputed from the whole history of writes."""
    data, module = NoisyClasses(noise=noise), Plain()
    queries = asked(module, data)
    keys_cdx = unit_keys(module, data.array)
    names = data.classes("test")
    plan = plan_episodes(1, CLASSES, 8, 5, 20, seed=2)
    slots = []  # of each: key, label, times of its examples
    for t in range(20):
        c, d, label = int(plan.classes[0, t]), int(plan.drawers[0, t]), int(plan.labels[0, t])
        query = keys_cdx[c, d]
        cosines = [float(slot[0] @ query) for slot in slots]
        order = np.argsort(cosines)[::-1][:3]
        if t >= 14:
            shown = queries[t - 14]
            assert shown.name == names[c] and np.array_equal(shown.image, data.array[c, d])
            for found, index in zip(shown.neighbours, order, strict=True):
                _, of_label, times = slots[index]
                last = times[-1]
                assert found.similarity == pytest.approx(cosines[index], abs=1e-5)
                assert found.age == t - 1 - last and found.examples == len(times)
                assert np.array_equal(found.image, data.array[plan.classes[0, last], plan.drawers[0, last]])
                assert found.name == names[plan.classes[0, last]] and of_label == plan.labels[0, last]
        if slots and slots[int(np.argmax(cosines))][1] == label:
            slot = slots[int(np.argmax(cosines))]
            slot[0] = torch.nn.functional.normalize(slot[0] + query, dim=0)
            slot[2].append(t)
        else:
            slots.append([query, label, [t]])
    assert max(found.examples for query in queries for found in query.neighbours) > 1


def test_a_full_memory_forgets_its_pictures_too():
    data = NoisyClasses(noise=200.0)
    for query in asked(Plain(slots=4, neighbours=4, age_noise=0.0), data, ways=8, showings=6, neighbours=4):
        assert len(query.neighbours) == 4 and max(found.age for found in query.neighbours) < 48
        assert all(1 <= found.examples <= 6 for found in query.neighbours), "no more than one class was shown"


def test_colours_tell_right_from_wrong(tmp_path, monkeypatch):
    drawn = []
    show = inspect_memory._show
    monkeypatch.setattr(
        inspect_memory, "_show", lambda axis, *args: drawn.append((args[1], args[2])) or show(axis, *args)
    )
    queries = asked(Plain(), NoisyClasses(noise=150.0))
    inspect_memory.draw(tmp_path / "x.png", queries, 3)
    titles = iter(drawn)
    for query in queries:
        assert next(titles)[1] == "black"
        for found in query.neighbours:
            text, colour = next(titles)
            assert colour == ("tab:green" if found.name == query.name else "tab:red")
            assert f"age {found.age}" in text and f"{found.similarity:.3f}" in text
    assert {color for _, color in drawn} == {"black", "tab:green", "tab:red"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"ways": 13}, r"protocol\.ways=13, .*12 classes with 8 drawings"),
        ({"showings": 9}, r"protocol\.showings=9"),
        ({"ways": 1}, r"protocol\.ways=1 must be at least 2"),
        ({"neighbours": 0}, r"protocol\.neighbours=0"),
        ({"count": 16}, r"protocol\.count=16 must be at most .* = 15"),
    ],
)
def test_impossible_requests(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        InspectMemory(**SETTINGS | overrides)(Plain(), NoisyClasses(), tmp_path)
