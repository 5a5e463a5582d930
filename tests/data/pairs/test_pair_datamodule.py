"""PairsDataModule: what a batch holds, what the vocabulary is learnt from, and the order by length."""

from collections import Counter

import pytest
import torch

from quintet.common.errors import UserError
from quintet.data.order import LengthSampler
from quintet.data.pairs.datamodule import PairsDataModule
from quintet.data.pairs.symbols import Symbols
from quintet.data.pairs.vocabulary import Subwords, SymbolIds
from quintet.data.samples.pairs import SamplePairs
from quintet.data.special_ids import BOS, EOS


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


def sample(cache, batch_size=8, vocabulary=None, **options):
    source = SamplePairs(str(cache / "sample"), num_train=120, num_val=9, num_test=10)
    module = PairsDataModule(source, vocabulary or Subwords(300), batch_size, str(cache), **options)
    module.prepare_data()
    module.setup()
    return module


def test_a_batch_is_the_lines_with_bos_eos_and_zeros(cache):
    module = sample(cache)
    batch = module.batch("test", [3, 0, 7])
    assert batch.index.tolist() == [3, 0, 7]
    for row, index in enumerate((3, 0, 7)):
        source, target = batch.source[row].tolist(), batch.target[row].tolist()
        s, t = int(batch.source_length[row]), int(batch.target_length[row])
        assert source[s - 1] == EOS and not any(source[s:]) and all(source[:s])
        assert target[0] == BOS and target[t - 1] == EOS and not any(target[t:]) and all(target[:t])
        assert module.codecs["source"].decode(source) == module.texts("test", "source")[index]
        assert module.decode(target) == module.texts("test", "target")[index]
    assert max(batch.source_length) == batch.source.shape[1] and max(batch.target_length) == batch.target.shape[1]


def test_loaders_cover_their_splits_once_and_keep_the_order_of_the_test(cache):
    module = sample(cache, eval_batch_size=4)
    seen = [row for batch in module.train_dataloader() for row in batch.index.tolist()]
    assert sorted(seen) == list(range(120)) and seen != sorted(seen)
    assert [row for batch in module.test_dataloader() for row in batch.index.tolist()] == list(range(10))


def test_held_out_text_changes_neither_vocabulary_nor_counts(cache, tmp_path):
    class Other(SamplePairs):
        def find(self, cache_dir):
            folder = super().find(cache_dir)
            for path in (folder / "raw").glob("[vt]*l*.gz"):
                if not path.name.startswith("train"):
                    import gzip

                    path.write_bytes(gzip.compress(b"zzzz zzzz qqqq\n" * 50))
            return folder

    ours = sample(cache)
    source = Other(str(tmp_path), num_train=120, num_val=9, num_test=10)
    other = PairsDataModule(source, Subwords(300), 8, str(tmp_path))
    other.prepare_data()
    other.setup()
    assert other.texts("val", "source")[0].startswith("zzzz")
    assert other.data_info == ours.data_info
    assert other.codecs["source"].tokenizer.to_str() == ours.codecs["source"].tokenizer.to_str()


def test_counts_are_of_the_training_targets_in_use(cache):
    for module in (sample(cache), sample(cache, max_pairs=20), sample(cache, batch_size=4, max_tokens=12)):
        wanted = Counter()
        for batch in module.train_dataloader():
            wanted.update(batch.target[batch.target > 3].tolist())
        counts = module.data_info["target_counts"]
        assert {i: n for i, n in enumerate(counts) if n} == dict(wanted)
        assert len(counts) == module.data_info["target_size"]
    assert len(sample(cache, max_pairs=20).sets["train"]) == 20
    short = sample(cache, batch_size=4, max_tokens=12)
    assert 0 < len(short.sets["train"]) < 120 and len(short.sets["test"]) == 10
    assert all(int(b.source_length.max()) <= 13 for b in short.train_dataloader())


def test_encoding_happens_once(cache, monkeypatch):
    first = sample(cache)
    monkeypatch.setattr(Subwords, "build", lambda *_: pytest.fail("built again"))
    assert sample(cache).data_info == first.data_info
    with pytest.raises(pytest.fail.Exception):
        sample(cache, vocabulary=Subwords(310))  # another key


def test_bad_sizes_are_user_errors(cache):
    with pytest.raises(UserError, match=r"data\.max_tokens=1: the shortest training pair has \d+ tokens"):
        sample(cache, max_tokens=1)
    with pytest.raises(UserError, match=r"data\.max_pairs=0: give 1 or more or null"):
        sample(cache, max_pairs=0)
    wrong = PairsDataModule(
        Symbols(str(cache), largest=50, num_train=9, num_val=3, num_test=3), SymbolIds(20), 3, cache
    )
    with pytest.raises(UserError, match=r"outside 2\.\.20: see data\.vocabulary\.largest"):
        wrong.prepare_data()


LENGTHS = torch.randint(1, 60, (101,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_sampler_by_length_covers_all_and_ranks_keep_step(world):
    samplers = [LengthSampler(LENGTHS, 4, seed=1, window=5, rank=r, world_size=world) for r in range(world)]
    batches = [list(sampler) for sampler in samplers]
    assert {len(b) for b in batches} == {len(samplers[0])}
    for step in zip(*batches, strict=True):
        assert len({len(batch) for batch in step}) == 1
    seen = [item for b in batches for batch in b for item in batch]
    assert set(seen) == set(range(101)) and len(seen) - 101 < world


def test_sampler_by_length_pads_less_and_depends_on_seed_and_epoch_only():
    def padding(window):
        batches = list(LengthSampler(LENGTHS, 4, seed=1, window=window))
        return sum(int(LENGTHS[b].max()) * len(b) - int(LENGTHS[b].sum()) for b in batches)

    assert padding(25) < 0.4 * padding(1)
    whole = list(LengthSampler(LENGTHS, 4, seed=1, window=5, position=lambda: (2, 0)))
    assert list(LengthSampler(LENGTHS, 4, seed=1, window=5, position=lambda: (2, 9))) == whole[9:]
    assert list(LengthSampler(LENGTHS, 4, seed=1, window=5, position=lambda: (3, 0))) != whole
    lengths = [int(LENGTHS[b].float().mean()) for b in whole]
    assert lengths != sorted(lengths)  # short and long batches in turn, not from short to long


def test_the_order_is_the_same_in_every_process():
    """Pinned: a process that resumes must deal out what the one before would have; Python's hash of a text differs."""
    batches = list(LengthSampler([3, 1, 2, 3, 1, 2, 2], 2, seed=3, window=2))
    assert batches == [[5, 6], [2, 0], [4, 1], [3]]
