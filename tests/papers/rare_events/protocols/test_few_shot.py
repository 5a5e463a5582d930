"""Both few-shot protocols against one real memory after the other, a plain nearest neighbour, and real Omniglot."""

import csv
import sys

import numpy as np
import pytest
import torch
from commands import REPOSITORY
from memories import CLASSES, DRAWERS, SIDE, NoisyClasses, Plain, snapshot
from scipy.stats import norm, sem

from quintet.common.errors import UserError
from quintet.papers.rare_events.protocols.few_shot import OneMemory, Stores, mean_and_interval, plan_episodes, unit_keys
from quintet.papers.rare_events.protocols.few_shot_streaming import FewShotStreaming
from quintet.papers.rare_events.protocols.few_shot_strict import FewShotStrict

EPISODES = 40
SETTINGS = {"ways": [3, 5], "shots": [1, 3], "episodes": EPISODES, "seed": 1}


@pytest.fixture(scope="module")
def data():
    return NoisyClasses(noise=120.0)  # so noisy that answers are often wrong: the rules matter


def embedded(module, data):
    images = torch.from_numpy(data.array).float().reshape(-1, 1, SIDE, SIDE) / 255
    module.eval()
    x = module.memory.query(module.embed(images)) if module.memory is not None else module.embed(images)
    return torch.nn.functional.normalize(x, dim=1).detach().reshape(CLASSES, DRAWERS, -1)


def one_by_one(module, keys, way, length, frozen_after=None):
    """Right answers (E, T): every episode alone in a memory of its own; no writes from image `frozen_after` on."""
    plan = plan_episodes(EPISODES, CLASSES, DRAWERS, way, length, seed=1)
    right = np.zeros((EPISODES, length), bool)
    for e in range(EPISODES):
        memory = module.blank_memory(way)
        for t in range(length):
            query = keys[plan.classes[e, t], plan.drawers[e, t]][None]
            right[e, t] = int(memory.read(query).value[0]) == plan.labels[e, t]
            if frozen_after is None or t < frozen_after:
                memory.write(query, torch.tensor([plan.labels[e, t]]))
    return right, plan.showing


@pytest.mark.parametrize("slots", [64, 4])  # 4: less than an episode has images, so that things are forgotten
def test_streaming_is_one_memory_after_the_other(data, tmp_path, slots):
    module = Plain(slots=slots)
    found = FewShotStreaming(**SETTINGS)(module, data, tmp_path)
    accuracies = set()
    for way in (3, 5):
        right, showing = one_by_one(module, embedded(module, data), way, way * 4)
        for shot in (1, 3):
            expected = right[showing == shot].mean()
            assert found[f"few_shot_streaming/{way}way_{shot}shot"] == pytest.approx(expected)
            accuracies.add(round(expected, 4))
    assert len(accuracies) == 4 and min(accuracies) > 0.2 and max(accuracies) < 0.98, accuracies


@pytest.mark.parametrize("slots", [64, 4])
def test_strict_is_frozen_after_the_examples(data, tmp_path, slots):
    module = Plain(slots=slots)
    found = FewShotStrict(**SETTINGS, queries=2)(module, data, tmp_path)
    for way in (3, 5):
        for shot in (1, 3):
            right, _ = one_by_one(module, embedded(module, data), way, way * (shot + 2), frozen_after=way * shot)
            assert found[f"few_shot_strict/{way}way_{shot}shot"] == pytest.approx(right[:, way * shot :].mean())


def test_pixels_are_a_nearest_neighbour_on_the_white_page(data, tmp_path):
    found = FewShotStrict(**SETTINGS, embedding="pixels")(None, data, tmp_path)
    page = 255.0 - data.array.reshape(CLASSES, DRAWERS, -1)
    page /= np.linalg.norm(page, axis=2, keepdims=True)
    for way in (3, 5):
        for shot in (1, 3):
            plan = plan_episodes(EPISODES, CLASSES, DRAWERS, way, way * (shot + 1), seed=1)
            right = []
            for e in range(EPISODES):
                x = page[plan.classes[e], plan.drawers[e]]
                nearest = (x[way * shot :] @ x[: way * shot].T).argmax(1)
                right.append(plan.labels[e, : way * shot][nearest] == plan.labels[e, way * shot :])
            assert found[f"few_shot_strict_pixels/{way}way_{shot}shot"] == pytest.approx(np.mean(right))


def test_a_model_without_memory_and_keeping_every_example(data, tmp_path):
    module = Plain(memory=False, projection=False)
    merged = FewShotStreaming(**SETTINGS)(module, data, tmp_path)
    right, showing = one_by_one(module, embedded(module, data), 5, 20)
    assert merged["few_shot_streaming/5way_3shot"] == pytest.approx(right[showing == 3].mean())
    kept = FewShotStreaming(**SETTINGS, store="examples")(module, data, tmp_path)
    assert kept != merged


def test_side_by_side_is_as_one_by_one_and_the_seed_matters(data, tmp_path):
    module = Plain()
    results = [FewShotStreaming(**SETTINGS | {"parallel": p})(module, data, tmp_path) for p in (1, 7, 100)]
    assert results[0] == pytest.approx(results[1]) and results[0] == pytest.approx(results[2])
    assert FewShotStreaming(**SETTINGS | {"seed": 2})(module, data, tmp_path) != results[0]


@pytest.mark.parametrize("protocol", [FewShotStreaming, FewShotStrict])
def test_easy_classes_are_all_right_and_noise_is_chance(protocol, tmp_path):
    settings = SETTINGS | {"ways": [4], "episodes": 400}
    easy = protocol(**settings)(Plain(), NoisyClasses(noise=5.0), tmp_path)
    assert easy[f"{protocol.name}/4way_1shot"] == easy[f"{protocol.name}/4way_3shot"] == 1
    noise = np.random.default_rng(0).integers(0, 256, (CLASSES, DRAWERS, SIDE, SIDE), dtype=np.uint8)
    hopeless = NoisyClasses()
    hopeless.array = noise
    found = protocol(**settings)(Plain(), hopeless, tmp_path)
    assert found[f"{protocol.name}/4way_3shot"] == pytest.approx(0.25, abs=0.06)


def test_the_trained_memory_is_bit_for_bit_the_same(data, tmp_path):
    module = Plain()
    before = snapshot(module)
    FewShotStreaming(**SETTINGS)(module, data, tmp_path)
    FewShotStrict(**SETTINGS)(module, data, tmp_path)
    after = module.state_dict()
    assert before.keys() == after.keys() and int(before["memory.step"]) == 1
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_empty_place_is_never_the_nearest():
    east, north = torch.eye(2)
    stores = Stores(2, room=4, width=2, merge=True)
    assert stores.answer(torch.stack([east, north])[:, None]).tolist() == [[-1], [-1]]
    stores.write(torch.stack([east, east]), torch.tensor([3, 3]))
    stores.write(torch.stack([north, east]), torch.tensor([5, 3]))  # the second is merged: one place stays empty
    assert stores.filled.tolist() == [2, 1]
    west = -torch.stack([east, east])[:, None]
    assert stores.answer(west).tolist() == [[5], [3]], "the only stored key is nearer than an empty place's zeros"


def test_interval_and_table(data, tmp_path):
    accuracy = np.random.default_rng(0).random(50)
    mean, interval = mean_and_interval(accuracy)
    assert mean == pytest.approx(accuracy.mean())
    assert interval == pytest.approx(norm.ppf(0.975) * sem(accuracy), rel=1e-3)
    found = FewShotStrict(**SETTINGS)(Plain(), data, tmp_path)
    with (tmp_path / "few_shot_strict" / "accuracy_network.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["ways"], row["shots"]) for row in rows] == [("3", "1"), ("3", "3"), ("5", "1"), ("5", "3")]
    assert float(rows[3]["accuracy"]) == pytest.approx(found["few_shot_strict/5way_3shot"], abs=1e-5)
    assert float(rows[3]["ci95"]) == pytest.approx(found["few_shot_strict/5way_3shot_ci95"], rel=1e-4)


def test_approximate_search_goes_through_the_real_memory(data):
    module, protocol = Plain(), FewShotStreaming(**SETTINGS)
    keys = unit_keys(module, data.array)
    plan = plan_episodes(3, CLASSES, DRAWERS, 3, 6, seed=1)
    object.__setattr__(module.config, "search", "lsh")
    if module.blank_memory(3).config.search == "lsh":
        stores = [batch[0] for batch in protocol.batches(module, keys, plan, stored=6)]
        assert len(stores) == 3 and all(isinstance(store, OneMemory) for store in stores)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"ways": [13]}, r"protocol\.ways=\[13\] must be at most 12"),
        ({"shots": [1, 8]}, r"protocol\.shots=\[1, 8\] needs 9 drawings of a class, the data has 8"),
        ({"embedding": "pixel"}, r"protocol\.embedding=pixel: choose network, pixels"),
        ({"store": "all"}, r"protocol\.store=all: choose auto, memory, examples"),
        ({"ways": []}, r"protocol\.ways=\[\]"),
        ({"shots": [0]}, r"protocol\.shots=\[0\]"),
        ({"episodes": 1}, r"protocol\.episodes=1"),
        ({"queries": 0}, r"protocol\.queries=0"),
    ],
)
def test_impossible_requests(data, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        FewShotStrict(**SETTINGS | overrides)(Plain(), data, tmp_path)


@pytest.mark.slow
def test_published_pixel_baseline_on_the_real_omniglot(tmp_path):
    """41.7 and 63.2 % (Vinyals et al. 2016), 5-way, whose split of the characters is another one: within 3 points."""
    sys.path.insert(0, str(REPOSITORY / "tests" / "data" / "episodes"))
    from drawings import module_on, real_omniglot

    module = module_on(real_omniglot(), tmp_path / "cache", image_size=28)
    assert module.images("test").shape == (659, 20, 28, 28) and module.data_info["num_classes_train"] % 4 == 0
    assert len(module.classes("train")) // 4 + len(module.classes("val")) == 964
    found = FewShotStrict(ways=[5], episodes=600, embedding="pixels")(None, module, tmp_path)
    assert found["few_shot_strict_pixels/5way_1shot"] == pytest.approx(0.417, abs=0.03)
    assert found["few_shot_strict_pixels/5way_5shot"] == pytest.approx(0.632, abs=0.03)
