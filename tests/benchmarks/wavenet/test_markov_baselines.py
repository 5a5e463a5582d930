"""The Markov baselines against sources of known entropy, SciPy, and the network's own targets."""

import itertools
import json

import numpy as np
import pytest
from scipy.stats import entropy

from benchmarks.wavenet import markov_baselines
from quintet.common.errors import UserError

MarkovModel, entropy_bits = markov_baselines.MarkovModel, markov_baselines.entropy_bits
baselines, network_rows = markov_baselines.baselines, markov_baselines.network_rows


def markov_source(order: int, classes: int, length: int, seed: int):
    """Samples of a random order-k chain and the entropy rate of its true conditionals on them, in bits."""
    table = np.random.default_rng(7).dirichlet(np.full(classes, 0.3), size=(classes,) * order)
    rng = np.random.default_rng(seed)
    x, bits = list(rng.integers(0, classes, order)), 0.0
    for _ in range(length):
        p = table[tuple(x[-order:])]
        x.append(rng.choice(classes, p=p))
        bits -= np.log2(p[x[-1]])
    return np.array(x), bits / length


@pytest.mark.parametrize("order", [1, 2])
def test_a_model_of_the_sources_order_reaches_its_entropy_rate(order):
    train, _ = markov_source(order, 5, 40_000, seed=3)
    held_out, rate = markov_source(order, 5, 8_000, seed=4)
    assert rate > 0.3 and not np.array_equal(train[:100], held_out[:100])
    model = MarkovModel(2, 5).fit([train]).tune([held_out])
    assert model.bits([held_out], order) == pytest.approx(rate, abs=0.02)
    if order == 2:
        assert model.bits([held_out], 1) > rate + 0.1, "an order-1 model cannot know an order-2 source"


@pytest.mark.parametrize("smoothing", [("witten_bell", 1.0), ("witten_bell", 0.25), ("discount", 0.7)])
def test_the_probabilities_of_all_classes_add_up_to_one(smoothing):
    rng = np.random.default_rng(1)
    model = MarkovModel(2, 4).fit([rng.integers(0, 3, 30)])  # sparse: class 3 and many contexts were never seen
    model.smoothing = [smoothing] * 3
    for context in itertools.product(range(4), repeat=2):
        total = sum(model.probabilities(np.array([*context, c]))[-1] for c in range(4))
        assert total == pytest.approx(1.0)


def test_order_zero_entropy_is_scipys():
    rng = np.random.default_rng(2)
    parts = [rng.binomial(15, 0.4, 500), rng.binomial(15, 0.7, 300)]
    histogram = np.bincount(np.concatenate(parts), minlength=16)
    assert entropy_bits(parts, 16) == pytest.approx(entropy(histogram, base=2))
    assert MarkovModel(0, 16).fit(parts).bits(parts) == pytest.approx(entropy(histogram, base=2), abs=0.01)


def test_unseen_classes_keep_a_finite_price():
    model = MarkovModel(2, 8).fit([np.zeros(50, np.int64)])
    assert np.isfinite(model.bits([np.arange(8)]))


def test_silence_stands_before_an_utterance():
    model = MarkovModel(2, 8)
    assert list(model._contexts(np.array([1, 2, 3]), 2)) == [4 * 8 + 4, 4 * 8 + 1, 1 * 8 + 2]


class Tiny:
    """The part of AudioDataModule that the baselines use."""

    quantization = 256

    def __init__(self):
        rng = np.random.default_rng(5)
        wave = (8000 * np.sin(np.arange(4000) * 0.05)).astype(np.int16)
        self.pcm = {"train": [wave, wave[:1000]], "val": [wave[500:900]], "test": [rng.permutation(wave)[:300]]}

    def num_utterances(self, split):
        return len(self.pcm[split])

    def utterance(self, split, index):
        return {"pcm": self.pcm[split][index]}


def test_rows_cover_both_splits_and_a_sine_is_easy_with_memory():
    rows = {row["metric"]: row["value"] for row in baselines(Tiny())}
    assert rows["training samples"] == 5000
    assert rows["val/bits order-2 Markov"] < rows["val/bits order-1 Markov"] < rows["val/bits order-0 Markov"]
    assert rows["test/bits order-2 Markov"] > rows["test/bits order-0 Markov"], "shuffled, the memory misleads"
    assert rows["val/bits order-0 entropy"] <= rows["val/bits order-0 Markov"]


def test_the_networks_number_comes_from_its_result_file(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(
        json.dumps({"rows": [{"metric": "test/bits", "value": 3.5}, {"metric": "test/nats", "value": 2.4}]})
    )
    assert [(row["metric"], row["value"]) for row in network_rows(path)] == [("test/bits network", 3.5)]
    path.write_text(json.dumps({"rows": []}))
    with pytest.raises(UserError, match="test/bits"):
        network_rows(path)
    with pytest.raises(UserError, match="not a result file"):
        network_rows(tmp_path / "absent.json")
