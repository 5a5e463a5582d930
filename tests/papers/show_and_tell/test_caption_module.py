"""The LightningModule: what it minimises, what learns in which stage, resuming, ensembles, checkpoints."""

import math

import pytest
import torch
from caption_data import CAPTIONS, ENCODER, WORDS, Captions
from lightning import Callback, Trainer, seed_everything

from quintet.common.errors import UserError
from quintet.harness.callbacks.two_stage import TwoStage
from quintet.harness.resume.checkpoint import AtomicCheckpointIO, LastCheckpoint
from quintet.harness.resume.random_state import RandomState
from quintet.papers.influence.influence import influence
from quintet.papers.influence.last_layer import split
from quintet.papers.influence.last_layer.split import at_last_layer
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.risk.linear_risk import make_risk
from quintet.papers.influence.risk.risk import weight_decay
from quintet.papers.influence.risk.softmax_risk import SoftmaxRisk
from quintet.papers.influence.solvers.direct import Direct
from quintet.papers.show_and_tell.ensemble import CaptionEnsemble
from quintet.papers.show_and_tell.module import ShowAndTellModule

SMALL = {"embedding": 24, "hidden": 24, "dropout": 0.0, "init": 0.3}
ADAM = {"name": "adam", "lr": 0.01}


@pytest.fixture(scope="module")
def data():
    return Captions()


def module_of(data, network=None, **options):
    torch.manual_seed(0)
    options = {"optimizer": ADAM, "encoder": ENCODER, "data_info": data.data_info} | options
    return ShowAndTellModule(SMALL | (network or {}), **options)


def fit(module, data, path, epochs, two_stage=None, steps=-1, resume=None, every=1, **options):
    seed_everything(7, verbose=False)
    callbacks = [RandomState(), TwoStage(two_stage), *([LastCheckpoint(str(path), every)] if every else [])]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    if not every:
        options["enable_checkpointing"] = False
    limits = {"max_epochs": epochs, "max_steps": steps, "num_sanity_val_steps": 0}
    trainer = Trainer(accelerator="cpu", callbacks=callbacks, plugins=[AtomicCheckpointIO()],
                      use_distributed_sampler=False, **limits | quiet | options)  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return trainer


@pytest.mark.parametrize("form", ["paper", "standard"])
def test_losses_by_hand(data, form):
    """-log p of every word and the end, from the probabilities of one step at a time; in mean caption lengths."""
    module, batch = module_of(data, {"lstm": form}).eval(), data.batch([3, 9])
    with torch.no_grad():
        losses, nats = module.example_losses(batch), module.nll(batch)
    assert module.mean_length == pytest.approx(sum(len(text.split()) + 1 for text in CAPTIONS) / len(CAPTIONS))
    for row in range(4):
        state, total = module.network.start(batch.features[batch.image_row[row]][None]), 0.0
        for word, following in zip(batch.words[row, :-1], batch.words[row, 1:], strict=True):
            if following == 0:
                break
            state = module.network.step(word[None], state)
            scores = module.network.logits(state.m)[0].double()
            total += scores.exp().sum().log().item() - scores[following].item()
        assert nats[row].item() == pytest.approx(total, rel=1e-4)
        assert losses[row].item() == pytest.approx(total / module.mean_length, rel=1e-4)


def test_the_mean_loss_of_all_captions_is_the_mean_over_words(data):
    module, batch = module_of(data).eval(), data.batch(list(range(16)))
    with torch.no_grad():
        words = batch.lengths.sum() - len(batch.words)
        torch.testing.assert_close(module.example_losses(batch).mean(), module.nll(batch).sum() / words)
        alone = [module.example_losses(data.example_batch("val", [n]))[0] for n in (0, 5, 31)]
    torch.testing.assert_close(torch.stack(alone), module.example_losses(batch)[[0, 5, 31]].detach())


def test_images_and_their_cached_features_are_the_same_to_it(data):
    module, batch = module_of(data).eval(), data.batch([2, 7, 11])
    shown = batch._replace(features=None, images=data.images[[2, 7, 11]])
    with torch.no_grad():
        torch.testing.assert_close(module.nll(shown), module.nll(batch))
    said = [module.generate(source, 2) for source in (batch, shown, shown.images, batch.features)]
    assert all([row[0].words for row in one] == [row[0].words for row in said[0]] for one in said)


def test_it_learns_to_say_what_it_sees(data, tmp_path):
    """Features that tell the colours, then a beam; the metrics are of the generated captions."""
    data, colour = Captions(), torch.nn.functional.one_hot(torch.arange(4), 512).float()
    data.features = torch.cat([colour.repeat_interleave(4, 0), colour.repeat(4, 1)], 1)
    module = module_of(data)
    trainer = fit(module, data, tmp_path, 30, every=0, check_val_every_n_epoch=30)
    said = [row[0] for row in module.eval().generate(data.batch(list(range(16))), 3)]
    right = sum(caption.text in CAPTIONS[2 * n : 2 * n + 2] for n, caption in enumerate(said))
    assert right >= 15 and all(caption.finished for caption in said)
    values = trainer.callback_metrics
    assert values["val/perplexity"].item() == pytest.approx(math.exp(values["val/loss"].item()), rel=1e-5)
    with torch.no_grad():
        whole = data.batch(list(range(16)))
        expected = module.nll(whole).sum() / (whole.lengths - 1).sum()
    assert values["val/loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert values["val/bleu1"] > 0.9
    several = module.generate(whole, 5, captions=5)[0]
    assert [c.log_probability for c in several] == sorted((c.log_probability for c in several), reverse=True)
    texts = {0: "a red over red", 1: "red over a red"}
    for caption in several:
        if caption.text in texts.values():
            n = next(k for k, text in texts.items() if text == caption.text)
            with torch.no_grad():
                nats = module.nll(data.example_batch("val", [n]))[0].item()
            assert caption.log_probability == pytest.approx(-nats, rel=1e-4)


def test_stage_one_leaves_the_encoder_alone_and_stage_two_does_not(data, tmp_path):
    fresh = Captions()
    module = module_of(fresh, encoder=ENCODER | {"frozen_bn": False}, finetune=ADAM | {"lr": 1e-3}, encoder_lr=0.1)
    before = {k: v.clone() for k, v in module.encoder.state_dict().items()}
    seen = []

    class Watch(TwoStage):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            inside = {id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]}
            encoder = [id(p) in inside for p in module.encoder.parameters()]
            rates = [g["lr"] for g in trainer.optimizers[0].param_groups]
            modes = {m.training for m in module.encoder.modules()}
            same = all(torch.equal(v, before[k]) for k, v in module.encoder.state_dict().items())
            seen.append((batch.features is not None, any(encoder), rates, modes, same))

    trainer = Trainer(accelerator="cpu", max_epochs=4, callbacks=[Watch(2)], logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
                      use_distributed_sampler=False)  # fmt: skip
    trainer.fit(module, fresh)
    assert seen[:8] == [(True, False, [0.01], {False}, True)] * 8
    assert [part[:2] for part in seen[8:]] == [(False, True)] * 8 and not any(part[4] for part in seen[8:])
    assert all(part[2] == pytest.approx([1e-3, 1e-4]) and part[3] == {True} for part in seen[8:])
    assert trainer.global_step == 16
    moved = [k for k, v in module.encoder.state_dict().items() if not torch.equal(v, before[k])]
    assert any("running_mean" in k for k in moved) and "body.conv1.0.weight" in moved


RESUMED = {"network": {"dropout": 0.3}, "finetune": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
           "scheduled_sampling": {"schedule": "linear", "steps": 10, "floor": 0.2}}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted():
    module = module_of(Captions(), **RESUMED)
    fit(module, Captions(), None, 3, two_stage=1, every=0)
    return module.state_dict()


@pytest.mark.parametrize("stop", [2, 4, 6, 8])
def test_resuming_is_exact_in_both_stages_and_between_them(tmp_path, uninterrupted, stop):
    """4 steps an epoch, stage 2 from step 4; the data module is a new one each time."""
    first, second = module_of(Captions(), **RESUMED), module_of(Captions(), **RESUMED)
    fit(first, Captions(), tmp_path, 3, two_stage=1, steps=stop, every=1000)
    trainer = fit(second, Captions(), tmp_path, 3, two_stage=1, resume=tmp_path / "last.ckpt", every=1000)
    assert trainer.global_step == 12 and bool(second.encoder.trained)
    for (name, value), other in zip(uninterrupted.items(), second.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_features_are_standardised_over_training_images_once(tmp_path):
    data = Captions()
    options = RESUMED | {"network": RESUMED["network"] | {"feature_scale": 0.3}}
    module = module_of(data, **options)
    assert torch.equal(module.network.feature_norm(data.features), data.features)
    fit(module, data, tmp_path, 1, two_stage=1, every=1000)
    known = module.network.feature_norm(data.features)
    spread = data.features.std(0, correction=0)
    torch.testing.assert_close(known.mean(0), torch.zeros(1024), rtol=0, atol=1e-5)
    torch.testing.assert_close(known.std(0, correction=0), 0.3 * spread / (spread + 0.1 * spread.mean()))
    # a resumed run, in which the encoder has other features, keeps what it began with
    again = module_of(Captions(), **options)
    fit(again, Captions(), tmp_path, 3, two_stage=1, resume=tmp_path / "last.ckpt", every=1000)
    assert torch.equal(again.network.feature_norm.mean, module.network.feature_norm.mean)
    loaded = ShowAndTellModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(loaded.network.feature_norm(data.features), again.network.feature_norm(data.features))


def test_stage_two_may_be_a_run_of_its_own(data, tmp_path):
    options = {"network": {"feature_scale": 0.3}}
    first = module_of(Captions(), **options)
    fit(first, Captions(), tmp_path, 2, every=1000)
    start = str(tmp_path / "last.ckpt")
    second = module_of(Captions(), start=start, **options)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    fit(second, Captions(), tmp_path / "more", 1, two_stage=0, every=1000)
    assert bool(second.encoder.trained) and torch.equal(
        second.network.feature_norm.mean, first.network.feature_norm.mean
    )
    with pytest.raises(UserError, match=r"model\.start=.* has another vocabulary"):
        module_of(Captions(words=[*WORDS[:4], *reversed(WORDS[4:])]), start=start, **options)
    with pytest.raises(UserError, match="not of this ShowAndTell"):
        module_of(Captions(), start=start)


def test_a_finished_stage_one_goes_on_with_stage_two(tmp_path, uninterrupted):
    first, second, third = (module_of(Captions(), **RESUMED) for _ in range(3))
    fit(first, Captions(), tmp_path, 1, two_stage=None, every=1000)
    assert not first.encoder.trained
    fit(second, Captions(), tmp_path / "more", 3, two_stage=1, resume=tmp_path / "last.ckpt", every=1000)
    for (name, value), other in zip(uninterrupted.items(), second.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    fit(third, Captions(), tmp_path / "half", 2, two_stage=None, steps=6, every=1000)
    with pytest.raises(UserError, match="stands in the middle of epoch 1; give 2 or more"):
        fit(third, Captions(), tmp_path, 3, two_stage=1, resume=tmp_path / "half" / "last.ckpt")


def test_jointly_from_the_start_and_never(tmp_path):
    for epochs, expected in ((0, True), (None, False)):
        module, data = module_of(Captions()), Captions()
        fit(module, data, tmp_path, 1, two_stage=epochs)
        assert bool(module.encoder.trained) == expected and data.served == ("images" if expected else "features")


def test_features_from_before_fine_tuning_are_refused_and_images_asked_for(data):
    module, fresh = module_of(data), Captions()
    module.start_joint_training()
    with pytest.raises(UserError, match=r"before it was fine-tuned: set data\.features=null"):
        module.nll(data.batch([0]))
    module.prepare_datamodule(fresh)
    assert fresh.served == "images" and module.nll(fresh.batch([0])).shape == (2,)
    with pytest.raises(UserError, match="the features have width 3, those of shufflenet_v2_x0_5 have width 1024"):
        module.generate(torch.zeros(2, 3))


def saved(module, path):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path, weights_only=True)
    return path


def test_a_checkpoint_needs_no_other_file(data, tmp_path):
    from torchvision import models

    weights, vectors = tmp_path / "w.pth", tmp_path / "v.txt"
    torch.save(models.shufflenet_v2_x0_5(weights=None).state_dict(), weights)
    vectors.write_text("red " + " ".join("1" for _ in range(24)))
    module = module_of(data, {"word_vectors": str(vectors)}, encoder=ENCODER | {"weights": str(weights)}).eval()
    path = saved(module, tmp_path / "m.ckpt")
    weights.unlink()
    vectors.unlink()
    loaded = ShowAndTellModule.load_from_checkpoint(path, weights_only=True).eval()
    images = data.images[:4]
    assert loaded.generate(images) == module.generate(images)
    other = module_of(data, {"hidden": 12})
    with pytest.raises(UserError, match=r"not of this ShowAndTell: \d+ tensors differ"):
        other.on_load_checkpoint(torch.load(path, weights_only=True))


def test_an_ensemble_averages_and_refuses_other_vocabularies(data):
    modules = [module_of(data, {"hidden": hidden}).eval() for hidden in (24, 16)]
    together, batch = CaptionEnsemble(modules).eval(), data.batch([0, 5])
    assert isinstance(together, CaptionEnsemble) and together.hparams["data_info"] == data.data_info
    with torch.no_grad():
        nats = together.nll(batch)
        logs = []
        for module in modules:
            top, word, row = module.outputs(batch)
            logs.append(module.network.logits(top).log_softmax(1))
        product = (logs[0].exp() * logs[1].exp()).sqrt()
        picked = -(product / product.sum(1, keepdim=True)).log().gather(1, word[:, None])[:, 0]
        expected = torch.stack([picked[row == b].sum() for b in range(4)])
    torch.testing.assert_close(nats, expected)
    single = CaptionEnsemble(modules[:1]).eval()
    torch.testing.assert_close(single.nll(batch), modules[0].nll(batch))
    assert single.generate(batch)[0][0].words == modules[0].generate(batch)[0][0].words
    swapped = Captions(words=[*WORDS[:-2], WORDS[-1], WORDS[-2]])
    with pytest.raises(
        UserError, match=r"ckpt\[1\] has another vocabulary than ckpt\[0\]: 10 and 10 words, word 8 is 'wh"
    ):
        CaptionEnsemble([modules[0], module_of(swapped)])


def test_an_ensemble_with_another_encoder_wants_images(data):
    one, two, fresh = module_of(data), module_of(data), Captions()
    CaptionEnsemble([one, two]).prepare_datamodule(fresh)
    assert fresh.served == "features"
    two.encoder.body.conv1[0].weight.data += 1
    CaptionEnsemble([one, two]).prepare_datamodule(fresh)
    assert fresh.served == "images"


def test_with_the_rare_events_memory(data, tmp_path):
    memory = {"slots": 64, "width": 8, "neighbours": 4}
    module = module_of(data, memory=memory, recall={"loss_weight": 0.5})
    fit(module, data, tmp_path, 1)
    assert module.token_memory.memory.filled == 64
    batch = data.batch([1])
    with torch.no_grad():
        module.eval()
        top, word, row = module.outputs(batch)
        query, answer = module.token_memory.read(top)
        mixed = module.network.logits(module.token_memory.combine(top, answer, module.network.output.weight))
        nats = torch.nn.functional.cross_entropy(mixed, word, reduction="none")
        extra = 0.5 * module.token_memory.losses(query, word, answer)
        expected = torch.stack([nats[row == b].sum() for b in range(2)])
        torch.testing.assert_close(module.nll(batch), expected)
        more = torch.stack([(nats + extra)[row == b].sum() for b in range(2)]) / module.mean_length
        torch.testing.assert_close(module.example_losses(batch), more)
    assert len(module.generate(batch)) == 1


@pytest.mark.parametrize("form", ["paper", "standard"])
def test_influence_of_captions_is_what_the_formula_says(data, form):
    """Equation 2 of Koh and Liang by autograd's own Hessian; two captions of an image share it in a batch."""
    module, train, queries = module_of(data, {"lstm": form}).eval(), Examples(data, "train"), Examples(data, "val", [3])
    found = influence(module, train, queries, params="network.output.bias", solver=Direct(damping=0.1))
    bias = module.network.output.bias

    def losses(value):
        return torch.func.functional_call(Losses(module), {"module.network.output.bias": value}, (whole,))

    whole = data.example_batch("train", range(len(CAPTIONS)))
    gradients = torch.autograd.functional.jacobian(losses, bias.detach())
    hessian = torch.autograd.functional.hessian(lambda value: losses(value).mean(), bias.detach())
    solved = torch.linalg.solve(hessian + 0.1 * torch.eye(len(bias)), gradients[3])
    expected = gradients @ solved / len(CAPTIONS)
    torch.testing.assert_close(found.delta_test_loss_if_removed[0].float(), expected, rtol=1e-3, atol=1e-7)


def test_the_layer_of_words_by_itself_gives_the_scores_of_the_whole_network(data, monkeypatch):
    module, train, queries = module_of(data).eval(), Examples(data, "train"), Examples(data, "val", [3, 4])
    last = "network.output.*"
    top, inside = at_last_layer(module, last, train)
    assert isinstance(make_risk(top, inside, last), SoftmaxRisk)
    found = influence(module, train, queries, params=last, solver=Direct(damping=0.1))
    monkeypatch.setattr(split, "SPLITS", {})
    whole = influence(module, train, queries, params=last, solver=Direct(damping=0.1))
    for name in ("delta_test_loss_if_removed", "query_losses", "train_losses", "s_test"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-3, atol=1e-6)


def test_influence_counts_the_weight_decay_of_the_stage_that_the_weights_come_from(data):
    decays = {"optimizer": ADAM | {"weight_decay": 0.1}, "finetune": ADAM | {"weight_decay": 0.3}}
    module = module_of(data, **decays)
    assert weight_decay(module) == 0.1
    assert weight_decay(at_last_layer(module, "network.output.*", Examples(data, "train"))[0]) == 0.1
    module.start_joint_training()
    assert weight_decay(module) == 0.3


def test_what_is_no_softmax_at_last_layer_needs_the_whole_captioner(data):
    train, last = Examples(data, "train"), "network.output.*"
    assert at_last_layer(module_of(data), ["network.output.*", "network.words.*"], train)[1] is train
    assert at_last_layer(module_of(data, {"tied": True}), last, train)[1] is train
    assert at_last_layer(module_of(data, memory={"slots": 64, "width": 8, "neighbours": 4}), last, train)[1] is train


class Losses(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch):
        return self.module.example_losses(batch)


def test_pictures_with_captions(data, tmp_path):
    from matplotlib.image import imread

    module = module_of(data, media_count=5).eval()
    (path,) = module.make_media(data, tmp_path)
    assert path.name == "captions.png" and imread(path)[..., :3].std() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_lr": 0}, r"model\.encoder_lr=0"),
        ({"finetune": {"schedule": "poly"}}, r"model\.finetune\.schedule=poly needs"),
        ({"network": {"hiden": 3}}, r"model\.network has no key 'hiden'"),
        ({"decoding": {"beam_size": 11}}, r"beam_size=11 must be at most 10"),
        ({"encoder": {"name": "vit"}}, r"model\.encoder\.name=vit"),
    ],
)
def test_impossible_settings(data, options, message):
    with pytest.raises(UserError, match=message):
        module_of(data, options.pop("network", None), **options)


def test_the_callback_is_for_captioners():
    with pytest.raises(UserError, match="two_stage is for models with an encoder, not Linear"):
        TwoStage(1).setup(None, torch.nn.Linear(1, 1), "fit")
    with pytest.raises(UserError, match=r"two_stage\.epochs=-1"):
        TwoStage(-1)


class Compare(Callback):
    """Rank 0 writes how far the ranks' encoders are apart, and how far they have moved."""

    def __init__(self, path):
        self.path = path

    def on_fit_start(self, trainer, module):
        self.before = flat(module.encoder)

    def on_train_end(self, trainer, module):
        every = trainer.strategy.all_gather(flat(module.encoder))
        if trainer.is_global_zero:
            torch.save(((every[0] - every[1]).abs().max(), (every[0] - self.before).abs().max()), self.path)


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_two_ranks_share_the_encoders_gradients_in_stage_two(tmp_path):
    """DDP's reducer is made in stage 1 and does not know the encoder: it has to be made again."""
    module = module_of(Captions())
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, limit_val_batches=0,
                      callbacks=[TwoStage(1), Compare(tmp_path / "apart.pt")], enable_model_summary=False,
                      use_distributed_sampler=False, **quiet)  # fmt: skip
    trainer.fit(module, Captions())
    apart, moved = torch.load(tmp_path / "apart.pt")
    assert apart == 0 and moved > 1e-4


def test_tensors_of_earlier_versions_get_their_present_names():
    old = ["network.standardise.measured", "network.standardise.mean", "network.output.weight", "tokens.memory.stamps",
           "tokens.memory.hints", "tokens.mix.weight"]  # fmt: skip
    assert list(ShowAndTellModule.renamed(dict.fromkeys(old))) == [
        "network.feature_norm.fitted",
        "network.feature_norm.mean",
        "network.output.weight",
        "token_memory.memory.last_used",
        "token_memory.memory.slot_of_value",
        "token_memory.mix.weight",
    ]
