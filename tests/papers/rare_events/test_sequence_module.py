"""The memory inside sequence models: loss by hand, prediction before the write, and what is remembered."""

import math

import pytest
import torch

from quintet.common.errors import UserError
from quintet.data.batches import SequencePairBatch
from quintet.papers.rare_events.memory.memory import MemoryAnswer, MemoryConfig
from quintet.papers.rare_events.memory.token_memory import RecallConfig, TokenMemory
from quintet.papers.rare_events.module import RareEventsModule
from quintet.papers.rare_events.sequence_module import SymbolModule, TranslationModule, mean_by_row

MEMORY = {"slots": 64, "width": 6, "neighbours": 4}
COUNTS = [0, 0, 0, 0, 50, 40, 30, 20, 10, 5, 2, 1]
FACTS = {"source_size": 12, "target_size": 12, "target_counts": COUNTS}
NETWORKS = {
    TranslationModule: {"width": 24, "dropout": 0.0, "query": "context_state"},
    SymbolModule: {"maps": 24, "steps": 2},
}
BOTH = pytest.mark.parametrize("kind", [TranslationModule, SymbolModule])


def module_of(kind, memory=MEMORY, **options):
    torch.manual_seed(0)
    return kind(NETWORKS[kind], memory=memory, optimizer={"lr": 0.01}, data_info=FACTS, **options)


def batch_of(*rows):
    """Pairs of like symbols: s -> s, as [bos, ..., eos]."""
    pad = torch.nn.utils.rnn.pad_sequence
    source = pad([torch.tensor([*row, 2]) for row in rows], batch_first=True)
    target = pad([torch.tensor([1, *row, 2]) for row in rows], batch_first=True)
    sizes = torch.tensor([len(row) for row in rows])
    return SequencePairBatch(source, target, sizes + 1, sizes + 2, torch.arange(len(rows)))


BATCH = batch_of([4, 5, 6], [7, 8], [9, 10, 11, 4])


def train(module, *batches):
    module.train()
    module.log = lambda *_, **__: None
    for batch in batches:
        module.training_step(batch, 0)
    return module.eval()


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items() if "token_memory.memory" in name}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@BOTH
def test_loss_is_mean_cross_entropy_of_real_tokens_plus_the_memorys(kind):
    module = train(module_of(kind, recall={"loss_weight": 0.5}), BATCH)
    with torch.no_grad():
        out, losses = module.outputs(BATCH), module.example_losses(BATCH)
    at = 0
    for row, length in enumerate((BATCH.target_length - 1).tolist()):
        total = 0.0
        for t in range(length):
            column = out.logits[at].double()
            nats = math.log(column.exp().sum()) - float(column[BATCH.target[row, t + 1]])
            total += nats + 0.5 * float(out.memory_loss[at])
            at += 1
        assert losses[row].item() == pytest.approx(total / length, rel=1e-5)
    assert at == len(out.token) and float(out.memory_loss.sum()) > 0


@BOTH
def test_without_memory_the_loss_is_cross_entropy_alone_and_search_none_means_the_same(kind):
    plain, none = (module_of(kind, memory) for memory in (None, MEMORY | {"search": "none"}))
    assert plain.memory is None and none.memory is None and none.hparams["memory"] is None
    out = plain.outputs(BATCH)
    nats = torch.nn.functional.cross_entropy(out.logits, out.token, reduction="none")
    torch.testing.assert_close(plain.example_losses(BATCH), mean_by_row(nats, out.row, 3))
    assert plain.state_dict().keys() == none.state_dict().keys()


@BOTH
def test_a_pairs_loss_does_not_depend_on_the_batch_around_it(kind):
    module = train(module_of(kind), BATCH)
    together = module.example_losses(BATCH)
    for row, symbols in enumerate(([4, 5, 6], [7, 8], [9, 10, 11, 4])):
        torch.testing.assert_close(module.example_losses(batch_of(symbols))[0], together[row], rtol=1e-5, atol=1e-6)


@BOTH
def test_training_writes_every_real_token_after_it_answered(kind):
    module = module_of(kind)
    assert module.outputs(BATCH).answer.value.tolist() == [-1] * 12
    train(module, BATCH)
    written = module.memory.values[: module.memory.filled].tolist()
    assert sorted(written) == sorted([4, 5, 6, 2, 7, 8, 2, 9, 10, 11, 4, 2])


@BOTH
def test_looking_writes_nothing_and_gradients_reach_all_parts(kind):
    module = train(module_of(kind), BATCH)
    before = state_of(module)
    module.train()
    module.example_losses(batch_of([11, 10], [4, 5])).mean().backward()
    module.eval().validation_step(BATCH, 0)
    assert same(before, state_of(module))
    silent = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@BOTH
def test_rare_tokens_only_when_asked(kind):
    module = train(module_of(kind, recall={"max_count": 5}), BATCH)
    assert sorted(module.memory.values[: module.memory.filled].tolist()) == [2, 2, 2, 9, 10, 11]
    out = module.outputs(BATCH)
    frequent = torch.isin(out.token, torch.tensor([4, 5, 6, 7, 8]))
    assert out.memory_loss[frequent].abs().sum() == 0
    train(module, batch_of([4, 5]), batch_of([6, 7]))  # eos alone is remembered of these
    assert set(module.memory.values[: module.memory.filled].tolist()) == {2, 9, 10, 11}


def test_the_mix_is_the_retrieved_embedding_times_confidence():
    torch.manual_seed(0)
    tokens = TokenMemory(MemoryConfig(**MEMORY), RecallConfig(mix_scale=3.0), 6, 4, COUNTS)
    top, table = torch.randn(3, 4), torch.randn(12, 4)
    confidence, value = torch.tensor([0.5, 0.0, 1.0]), torch.tensor([7, -1, 11])
    answer = MemoryAnswer(value, confidence, torch.zeros(3, 4, dtype=torch.int64), torch.rand(3, 4))
    expected = torch.stack([top[0] + 0.5 * 3 * table[7], top[1], top[2] + 3 * table[11]])
    torch.testing.assert_close(tokens.combine(top, answer, table), expected)
    gated = TokenMemory(MemoryConfig(**MEMORY), RecallConfig(mix_scale=3.0, gated=True), 6, 4, COUNTS)
    weight, bias = gated.gate.weight[0], gated.gate.bias
    inputs = torch.cat([top[0], confidence[:1], answer.similarity[0, :1]])
    mixed = top[0] + torch.sigmoid(weight @ inputs + bias) * 0.5 * 3 * table[7]
    torch.testing.assert_close(gated.combine(top, answer, table)[0], mixed)


@BOTH
def test_what_was_shown_once_is_said_again_without_any_training(kind):
    """One-shot learning: the weights are random, only the memory has seen the pair."""
    module = module_of(kind, recall={"mix_scale": 60.0}).eval()
    pair = batch_of([9, 4, 11])
    assert module.outputs(pair).logits.argmax(1).tolist() != [9, 4, 11, 2]
    module.show(pair)
    assert module.outputs(pair).logits.argmax(1).tolist() == [9, 4, 11, 2]
    with module.without_memory():
        assert module.outputs(pair).logits.argmax(1).tolist() != [9, 4, 11, 2]
    if kind is SymbolModule:
        assert module.predict(pair).tolist() == [[9, 4, 11, 2]]
    else:
        assert module.translate(pair, beam_size=3) == [[9, 4, 11]]


def test_translation_by_beam_is_the_best_under_the_models_own_scores():
    module = train(module_of(TranslationModule), BATCH)
    with torch.no_grad():
        found = module.translate(BATCH, beam_size=200, alpha=0.0, max_length=3)
    for row in range(3):
        source = (BATCH.source[row : row + 1], BATCH.source_length[row : row + 1])
        best = max(all_outputs(module, source, 3), key=lambda item: item[0])
        assert found[row] == best[1]


def all_outputs(module, source, length):
    """(log probability, tokens) of every output that ends within `length` tokens, one by one through the network."""
    import itertools

    body = [token for token in range(12) if token != 2]
    prefixes = [p for size in range(length) for p in itertools.product(body, repeat=size)]
    for size in range(length):
        group = [p for p in prefixes if len(p) == size]
        told = torch.tensor([[1, *p] for p in group])
        rows = [part.expand(len(group), *part.shape[1:]) for part in source]
        with torch.no_grad():
            top, features = module.network(*rows, told)
            logits, *_ = module.scores(top.flatten(0, 1), features.flatten(0, 1))
        log_btv = logits.log_softmax(1).view(len(group), size + 1, -1)
        for prefix, log_tv in zip(group, log_btv, strict=True):
            yield sum(float(log_tv[t, token]) for t, token in enumerate([*prefix, 2])), list(prefix)


@BOTH
def test_checkpoint_is_plain_and_brings_the_memory_back(kind, tmp_path):
    from lightning import Trainer

    module = train(module_of(kind), BATCH)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    loaded = kind.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True).eval()
    torch.testing.assert_close(loaded.example_losses(BATCH), module.example_losses(BATCH), rtol=0, atol=0)
    other = module_of(kind, MEMORY | {"slots": 32})
    with pytest.raises(UserError, match=r"not of this \w+: 3 tensors differ, first 'token_memory\.memory"):
        other.on_load_checkpoint(torch.load(tmp_path / "m.ckpt", weights_only=True))


def test_more_tokens_than_half_the_slots_are_written_in_parts():
    module = train(module_of(SymbolModule, MEMORY | {"slots": 8}), BATCH)  # 12 tokens
    assert module.memory.filled == 8 and int(module.memory.step) == 3


def test_nothing_to_show_without_memory_and_bad_settings():
    with pytest.raises(UserError, match=r"model\.memory=null"):
        module_of(SymbolModule, None).show(BATCH)
    for options, message in (({"recall": {"max_count": 0}}, r"model\.recall\.max_count=0"),
                             ({"recall": {"weight": 1}}, r"model\.recall has no key 'weight'"),
                             ({"label_smoothing": 1.0}, r"model\.label_smoothing=1\.0")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            module_of(SymbolModule, **options)


def test_tensors_of_earlier_versions_get_their_present_names():
    old = ["network.to_top.weight", "tokens.memory.stamps", "tokens.memory.search.learned"]
    assert list(TranslationModule.renamed(dict.fromkeys(old))) == [
        "network.to_output.weight",
        "token_memory.memory.last_used",
        "token_memory.memory.search.learned",
    ]
    assert list(RareEventsModule.renamed({"memory.hints": 0, "memory.keys": 0})) == [
        "memory.slot_of_value",
        "memory.keys",
    ]
