"""one_shot_translation and rare_symbols on untrained networks that can only know what their memory was shown."""

import csv
import gzip
from collections import Counter

import pytest
import torch

from quintet.common.errors import UserError
from quintet.data.pairs.datamodule import PairsDataModule
from quintet.data.pairs.multi30k import Multi30k
from quintet.data.pairs.symbols import Symbols
from quintet.data.pairs.vocabulary import Subwords, SymbolIds
from quintet.papers.rare_events.protocols.one_shot_translation import OneShotTranslation
from quintet.papers.rare_events.protocols.rare_symbols import RareSymbols
from quintet.papers.rare_events.protocols.rare_words import Bin, bin_of, bins_of, word_recall
from quintet.papers.rare_events.sequence_module import SymbolModule, TranslationModule

MEMORY = {"slots": 512, "width": 16, "neighbours": 8}
LINES = [("a red dog runs", "ein roter Hund rennt"), ("two cats sleep", "zwei Katzen schlafen"),
         ("the old man reads", "der alte Mann liest"), ("a boat sinks", "ein Boot sinkt")]  # fmt: skip


def data_of(folder, test, vocabulary):
    """A corpus whose test file is `test`, and whose training file knows half of it."""
    (folder / "raw").mkdir(parents=True)
    files = {"train": LINES[:2] * 3, "val": LINES[:2], "test_2016_flickr": test}
    for name, pairs in files.items():
        for side, language in enumerate(("en", "de")):
            text = "".join(pair[side] + "\n" for pair in pairs)
            (folder / "raw" / f"{name}.{language}.gz").write_bytes(gzip.compress(text.encode()))
    module = PairsDataModule(Multi30k(str(folder)), vocabulary, 2, str(folder / "cache"))
    module.prepare_data()
    module.setup()
    return module


def translator(data, memory=MEMORY):
    torch.manual_seed(0)
    network = {"width": 16, "dropout": 0.0, "query": "context_state"}
    return TranslationModule(network, memory=memory, optimizer={}, data_info=data.data_info, recall={"mix_scale": 60.0})


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.memory.state_dict().items()}


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_odd_lines_are_translated_after_the_even_ones_were_shown(tmp_path):
    """Line 2 is line 1 again, line 4 is line 3: an untrained network knows the odd lines from the even ones."""
    test = [LINES[2], LINES[2], LINES[3], LINES[3]]
    data = data_of(tmp_path / "data", test, Subwords(300))
    module = translator(data)
    before = state_of(module)
    found = OneShotTranslation(beam_size=2, bins=[0, 1])(module, data, tmp_path)
    assert found["one_shot/lines"] == 2
    assert found["one_shot/bleu_shown"] == pytest.approx(100.0)
    assert found["one_shot/bleu_no_memory"] < 20 and found["one_shot/bleu_memory"] < 20
    assert found["one_shot/recall_0_shown"] == 1.0 and found["one_shot/words_0"] == 6  # `ein` is known
    after = state_of(module)
    assert all(torch.equal(before[name], after[name]) for name in before)
    table = rows_of(tmp_path / "one_shot_translation" / "translations.csv")
    assert [row["source"] for row in table] == ["the old man reads", "a boat sinks"]
    assert [row["shown"] for row in table] == [row["reference"] for row in table] == [LINES[2][1], LINES[3][1]]


def test_a_larger_memory_knows_the_training_split_and_the_trained_one_stays(tmp_path):
    data = data_of(tmp_path / "data", [LINES[0], LINES[2], LINES[1], LINES[3]], Subwords(300))
    module = translator(data)
    before, kept = state_of(module), module.memory
    found = OneShotTranslation(beam_size=1, larger_slots=2048)(module, data, tmp_path)
    assert found["one_shot/bleu_larger"] == pytest.approx(100.0)  # lines 1 and 3 stand in the training split
    assert found["one_shot/bleu_memory"] < 20 and found["one_shot/bleu_larger_shown"] == pytest.approx(100.0)
    assert module.memory is kept and all(torch.equal(before[n], t) for n, t in state_of(module).items())
    none = OneShotTranslation(beam_size=1, larger_slots=2048, larger_max_count=1)(module, data, tmp_path)
    assert none["one_shot/bleu_larger"] < 20  # every training token stands there three times or more
    with pytest.raises(UserError, match="16 slots is smaller than the trained one: give at least 512"):
        OneShotTranslation(beam_size=1, larger_slots=16)(module, data, tmp_path)


def test_odd_lines_are_never_shown(tmp_path):
    """Lines 1 and 3 differ from 2 and 4: nothing that only stands in them can be known."""
    data = data_of(tmp_path / "data", [LINES[2], LINES[0], LINES[3], LINES[1]], Subwords(300))
    module = translator(data)
    seen = []
    module.show = lambda batch, max_count: seen.extend(batch.index.tolist())
    OneShotTranslation(beam_size=1)(module, data, tmp_path)
    assert seen == [1, 3]


def test_a_network_without_memory_translates_all_the_same(tmp_path):
    data = data_of(tmp_path / "data", LINES, Subwords(300))
    found = OneShotTranslation(beam_size=1)(translator(data, None), data, tmp_path)
    assert "one_shot/bleu_no_memory" in found and not any("shown" in name for name in found)
    with pytest.raises(UserError, match="at least two test lines"):
        OneShotTranslation(max_lines=1)(translator(data, None), data, tmp_path)


def test_recall_counts_a_word_as_often_as_it_was_found():
    counts = Counter({"the": 500, "cat": 3, "sat": 1})
    bins = bins_of([0, 1, 2, 5])
    references = [["the", "cat", "sat", "the", "axolotl"], ["cat", "cat"]]
    hypotheses = [["the", "sat", "sat", "sat"], ["cat", "axolotl"]]
    found = word_recall(references, hypotheses, counts, bins)
    assert {b.name: value for b, value in found.items()} == {
        "0": (0, 1), "1": (1, 1), "2to4": (1, 3), "5plus": (1, 2)}  # fmt: skip


def test_bins():
    bins = bins_of([1, 2, 5])
    assert [b.name for b in bins] == ["1", "2to4", "5plus"]
    assert [bin_of(count, bins) for count in (0, 1, 4, 5, 9999)] == [None, bins[0], bins[1], Bin(5, None), Bin(5, None)]
    for wrong in ([], [2, 2], [-1, 3]):
        with pytest.raises(UserError, match=r"protocol\.bins"):
            bins_of(wrong)


def test_symbols_shown_once_are_known_and_the_bins_add_up(tmp_path):
    """The function of 40 symbols, all shown in the even test rows, asked of an untrained network in the odd ones."""
    source = Symbols(str(tmp_path), largest=40, exponent=1.5, min_length=1, max_length=1, num_train=60, num_val=3,
                     num_test=600)  # fmt: skip
    data = PairsDataModule(source, SymbolIds(40), 8, str(tmp_path / "cache"))
    data.prepare_data()
    data.setup()
    torch.manual_seed(0)
    module = SymbolModule(
        {"maps": 16, "steps": 1},
        memory=MEMORY | {"slots": 2048},
        optimizer={},
        data_info=data.data_info,
        recall={"mix_scale": 60.0},
    )
    before = state_of(module)
    found = RareSymbols(bins=[0, 1, 4], batch_size=50)(module, data, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(module).items())
    assert found["rare_symbols/sequences"] == 300
    assert found["rare_symbols/accuracy_no_memory"] < 0.2 and found["rare_symbols/accuracy_memory"] < 0.2
    assert found["rare_symbols/accuracy_shown"] > 0.9
    assert found["rare_symbols/accuracy_shown"] == found["rare_symbols/sequence_accuracy_shown"]
    table = [row for row in rows_of(tmp_path / "rare_symbols" / "accuracy.csv") if row["answers"] == "shown"]
    assert sum(int(row["asked"]) for row in table[:-1]) == 300
    assert table[-1]["training_count"] == "new" and 0 < int(table[-1]["asked"]) <= int(table[0]["asked"])
    assert found["rare_symbols/accuracy_new_shown"] == 1.0 and found["rare_symbols/accuracy_new_memory"] < 0.5
    training = Counter(" ".join(data.texts("train", "source")).split())
    unseen = [s for s in data.texts("test", "source")[0::2] if training[s] == 0]
    assert int(table[0]["asked"]) == len(unseen) > 0 and table[0]["training_count"] == "0"


def test_protocols_refuse_other_models(tmp_path):
    data = data_of(tmp_path / "data", LINES, Subwords(300))
    with pytest.raises(UserError, match="model=neural_gpu"):
        RareSymbols()(translator(data), data, tmp_path)
    with pytest.raises(UserError, match="model=translator"):
        OneShotTranslation()(torch.nn.Linear(1, 1), data, tmp_path)
