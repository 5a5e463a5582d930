"""Protocols of captioners on a tiny run, by eval.py's own way: files, numbers recomputed another way, refusals."""

import csv

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict
from PIL import Image

from quintet.common.errors import UserError
from quintet.harness.config import compose, config
from quintet.harness.run.evaluate import evaluate
from quintet.harness.run.fit import fit
from quintet.harness.run.second_run import load_run
from quintet.metrics.captions.metrics import NAMES, scores
from quintet.metrics.captions.tokenizer import tokenize
from quintet.papers.show_and_tell.ensemble import CaptionEnsemble
from quintet.papers.show_and_tell.protocols.caption import Caption
from quintet.papers.show_and_tell.protocols.caption_likelihood import PrefixTree, log_likelihoods
from quintet.papers.show_and_tell.protocols.caption_metrics import CaptionMetrics
from quintet.papers.show_and_tell.protocols.caption_ranking import CaptionRanking, ranks_of, scores_of, summary
from quintet.papers.show_and_tell.protocols.nearest_caption import NearestCaption, most_agreed, weighted_ngrams
from quintet.papers.show_and_tell.protocols.novelty import Novelty
from quintet.papers.show_and_tell.protocols.transfer import Transfer
from quintet.papers.show_and_tell.protocols.word_neighbours import WordNeighbours

TINY = [
    *("experiment=show_and_tell/sample", "trainer=cpu", "callbacks=quiet", "trainer.enable_progress_bar=false"),
    *("model.encoder.image_size=32", "model.network.embedding=16", "model.network.hidden=16", "data.batch_size=5"),
    *("data.source.num_train=12", "data.source.num_val=4", "data.source.num_test=6", "data.min_count=1"),
    *("data.resize_size=40", "data.crop_size=32", "trainer.num_sanity_val_steps=0", "trainer.max_epochs=8"),
    *("trainer.limit_val_batches=0", "data.features=${model.encoder}", "callbacks.two_stage.epochs=null", "run_id=x"),
    *("model.optimizer.lr=0.01", "model.network.dropout=0.0", "model.network.lstm=standard"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("captioning")


@pytest.fixture(scope="module")
def run(folder):
    overrides = [*TINY, f"paths.cache_dir={folder}/cache", f"run_dir={folder}/run"]
    cfg = compose.compose_checked("train", overrides)
    config.check(cfg, config.Origin(tuple(overrides)))
    OmegaConf.resolve(cfg)
    fit(cfg)
    return folder / "run"


@pytest.fixture(scope="module")
def loaded(run):
    return load_run(str(run), None, "cpu")


def evaluated(run, *arguments):
    request = compose.compose_checked("eval", [f"run={run}", "trainer=cpu", *arguments])
    with open_dict(request):
        request.trainer.enable_progress_bar = False
    return evaluate(compose.saved_config(run), request, command="test")


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_caption_metrics_by_the_command(run, loaded):
    module, data = loaded
    values = evaluated(run, "protocol=caption_metrics", "protocol.beam_sizes=[1,2,4]", "protocol.report=[1,4]")
    assert values["caption_metrics/images"] == 6 and not any("beam2" in name for name in values)
    batch, references = data.image_batch("test", range(6)), data.references("test", range(6))
    for beam, ending in ((1, "greedy"), (4, "beam4")):
        wanted = scores([captions[0].text for captions in module.generate(batch, beam)], references)
        assert {n: values[f"caption_metrics/{n}_{ending}"] for n in NAMES} == pytest.approx(wanted, abs=1e-12)
    assert (run / "eval" / CaptionMetrics.picture).is_file() and (run / "eval/caption_metrics/result.json").is_file()


def test_files_and_numbers_of_the_sweep(loaded, tmp_path):
    module, data = loaded
    protocol = CaptionMetrics(beam_sizes=[3, 1], report=[1, 3, 20], count=5, batch_size=2)
    values = protocol(module, data, tmp_path)
    folder = tmp_path / "caption_metrics"
    table = rows_of(folder / "beams.csv")
    assert [row["beam"] for row in table] == ["1", "3"] and (folder / "beams.png").stat().st_size > 10_000
    texts = rows_of(folder / "captions.csv")
    images = [index * 6 // 5 for index in range(5)]
    assert [row["image"] for row in texts] == [data.image_ids("test")[image] for image in images]
    for beam, ending in (("1", "greedy"), ("3", "beam3")):
        wanted = scores([row[f"beam_{beam}"] for row in texts], data.references("test", images))
        assert {n: values[f"caption_metrics/{n}_{ending}"] for n in NAMES} == pytest.approx(wanted, abs=1e-12)
    best = max(table, key=lambda row: float(row["cider"]))
    assert values["caption_metrics/best_beam_by_cider"] == float(best["beam"])


def test_novelty_by_hand(loaded, tmp_path):
    module, data = loaded
    values = Novelty(split="val", beam_size=4, captions=3)(module, data, tmp_path)
    training = {" ".join(tokenize(text)) for text in data.captions("train")}
    rows = rows_of(tmp_path / "novelty/captions.csv")
    assert [row["rank"] for row in rows[:3]] == ["1", "2", "3"] and len(rows) == 12
    found = [row["caption"] in training for row in rows]
    assert [int(row["in_training"]) > 0 for row in rows] == found
    assert values["novelty/best_3_in_training"] == pytest.approx(np.mean(found))
    assert values["novelty/best_in_training"] == pytest.approx(np.mean(found[::3]))
    human = [" ".join(tokenize(text)) for text in data.captions("val")]
    assert values["novelty/human_in_training"] == pytest.approx(np.mean([text in training for text in human]))


def test_captions_of_training_are_not_new(loaded, tmp_path, monkeypatch):
    """A captioner that says what training says, in capitals and with a full stop."""
    module, data = loaded
    monkeypatch.setattr(data, "captions", lambda split: ["A large RED circle ."] if split == "train" else [])
    one = module.generate(data.image_batch("val", [0]))[0][0]
    same = one._replace(words=["a", "large", "red", "circle"])
    other = one._replace(words=["a", "large", "red"])
    monkeypatch.setattr(type(module), "generate", lambda *a, **k: [[same, other]] * 4)
    values = Novelty(split="val", beam_size=2, captions=2)(module, data, tmp_path)
    assert (values["novelty/best_in_training"], values["novelty/best_2_in_training"]) == (1.0, 0.5)


def pairs_of(module, data, split, images):
    """log p of every caption of these images for each of them, by the loss, one image at a time."""
    whole = data.image_batch(split, images)
    rows = []
    for image in images:
        features = data.image_batch(split, [image]).features
        batch = whole._replace(features=features, image_row=torch.zeros_like(whole.image_row),
                               image_index=torch.tensor([image]))  # fmt: skip
        with torch.no_grad():
            rows.append(-module.nll(batch))
    return torch.stack(rows), whole


@pytest.mark.parametrize("members", [1, 2])
def test_likelihoods_of_all_pairs_are_the_losses(loaded, members, monkeypatch):
    module, data = loaded
    monkeypatch.setattr("quintet.papers.show_and_tell.protocols.caption_likelihood.ROWS", 12)  # in many parts
    if members == 2:
        torch.manual_seed(1)
        other = type(module)(**module.hparams).eval()
        module = CaptionEnsemble([module, other]).eval()
    wanted_ic, batch = pairs_of(module, data, "test", range(6))
    captions = [ids[1:length] for ids, length in zip(batch.words.tolist(), batch.lengths.tolist(), strict=True)]
    tree = PrefixTree.of(captions)
    found_ic = log_likelihoods(module.step_decoder(batch, 1000), 6, tree)
    torch.testing.assert_close(found_ic, wanted_ic, rtol=1e-4, atol=1e-4)
    assert tree.steps < sum(map(len, captions))


@given(st.lists(st.lists(st.integers(3, 6), max_size=5), min_size=1, max_size=12))
def test_a_tree_holds_its_captions(texts):
    captions = [[*ids, 2] for ids in texts]
    tree = PrefixTree.of(captions)
    parents = {there: (here, word) for here, following in enumerate(tree.children) for word, there in following}
    for ids, place in zip(captions, tree.ends, strict=True):
        found = []
        while place:
            place, word = parents[place]
            found.append(word)
        assert found[::-1] == ids
    prefixes = {tuple(ids[:n]) for ids in captions for n in range(len(ids))}
    assert tree.steps == len(prefixes)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 10**6))
def test_ranks_by_brute_force(images, each, seed):
    random = np.random.default_rng(seed)
    image_of = np.repeat(np.arange(images), each)
    score = random.integers(0, 6, (images, images * each)).astype(float)  # with ties
    ranks = ranks_of(score, image_of)
    for image in range(images):
        best = max(score[image, c] for c in range(images * each) if image_of[c] == image)
        above = sum(score[image, c] >= best for c in range(images * each) if image_of[c] != image)
        assert ranks["annotation"][image] == 1 + above
    for caption, image in enumerate(image_of):
        above = sum(score[i, caption] >= score[image, caption] for i in range(images) if i != image)
        assert ranks["search"][caption] == 1 + above
    assert summary(np.array([1, 2, 6, 20])) == {"r1": 0.25, "r5": 0.5, "r10": 0.75, "median_rank": 4.0}


def test_the_prior_takes_away_what_suits_every_image():
    """A caption that is likely for all images wins by log p; corrected, the one that is special for an image does."""
    log_ic = np.log(np.array([[0.5, 0.10], [0.5, 0.001]]))
    scored = scores_of(log_ic, np.array([2, 4]))
    assert scored["raw"].argmax(1).tolist() == [0, 0] and scored["prior"].argmax(1).tolist() == [1, 0]
    np.testing.assert_allclose(scored["prior"][0], np.log([1.0, 0.10 / 0.0505]))
    np.testing.assert_allclose(scored["per_token"], log_ic / [[2, 4], [2, 4]])
    assert np.isfinite(scores_of(np.full((2, 2), -2000.0), np.array([1, 1]))["prior"]).all()


def test_ranking_of_a_split(loaded, tmp_path):
    module, data = loaded
    values = CaptionRanking(batch_size=4)(module, data, tmp_path)
    wanted_ic, batch = pairs_of(module, data, "test", range(6))
    ranks = ranks_of(wanted_ic.double().numpy(), batch.image_row.numpy())
    for way in ("annotation", "search"):
        for key, value in summary(ranks[way]).items():
            assert values[f"ranking/{way}_{key}_raw"] == pytest.approx(value)
    assert (values["ranking/images"], values["ranking/captions"]) == (6, 30)
    few = CaptionRanking(captions_per_image=1, count=4, precision="bf16")(module, data, tmp_path / "few")
    assert (few["ranking/images"], few["ranking/captions"]) == (4, 4)
    assert len(rows_of(tmp_path / "caption_ranking/ranks.csv")) == 6
    first = rows_of(tmp_path / "few/caption_ranking/captions.csv")[0]
    assert first["best_by_raw"] in data.captions("test") and first["image"] == data.image_ids("test")[0]


def test_word_neighbours_by_hand(loaded, tmp_path):
    module, data = loaded
    WordNeighbours(words=["red", "circle"], top=2)(module, data, tmp_path)
    rows = rows_of(tmp_path / "word_neighbours/neighbours.csv")
    weight = module.network.words.weight.detach().double().numpy()
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    vocabulary = module.vocabulary
    for word in ("red", "circle"):
        cosine = weight @ weight[vocabulary.index(word)]
        order = [n for n in np.argsort(-cosine) if n > 3 and vocabulary[n] != word][:2]
        found = [row for row in rows if row["word"] == word]
        assert [row["neighbour"] for row in found] == [vocabulary[n] for n in order]
        assert [float(row["cosine"]) for row in found] == pytest.approx([cosine[n] for n in order], abs=1e-5)
    assert WordNeighbours()(module, data, tmp_path)["word_neighbours/words"] == 5  # the sample has none of the paper's


def test_nearest_captions(loaded, tmp_path):
    module, data = loaded
    values = NearestCaption(neighbours=3, agreeing=4)(module, data, tmp_path)
    with torch.no_grad():
        train = torch.nn.functional.normalize(module.features(data.image_batch("train", range(12))), dim=1)
        test = torch.nn.functional.normalize(module.features(data.image_batch("test", range(6))), dim=1)
    nearest = (test @ train.T).topk(3).indices.tolist()
    rows = rows_of(tmp_path / "nearest_caption/captions.csv")
    assert [row["first"] for row in rows] == [data.references("train", [near[0]])[0][0] for near in nearest]
    for row, near in zip(rows, nearest, strict=True):
        assert row["consensus"] in [text for texts in data.references("train", near) for text in texts]
    wanted = scores([row["consensus"] for row in rows], data.references("test", range(6)))
    assert values["nearest_caption/bleu1_consensus"] == pytest.approx(wanted["bleu1"])


def test_the_consensus_is_what_most_say():
    texts = ["a dog runs on grass", "a dog runs on the grass", "the dog runs on grass", "xyzzy", "two men sit"]
    vectors = weighted_ngrams(texts)
    similar = (vectors @ vectors.T).toarray()
    assert np.diag(similar)[0] == pytest.approx(1.0) and similar[0, 4] == 0
    assert most_agreed(vectors, 2) in (0, 1, 2)
    assert most_agreed(vectors[[3]], 5) == 0


def test_caption_any_picture(loaded, tmp_path):
    module, data = loaded
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(data.picture("test", 2)).save(folder / "same.png")
    Image.new("L", (50, 21)).save(folder / "grey.png")
    values = Caption(inputs=str(folder), captions=2, beam_size=3)(module, data, tmp_path)
    assert values == {"caption/pictures": 2.0, "caption/captions": 4.0}
    said = {(row["picture"], row["rank"]): row["caption"] for row in rows_of(tmp_path / "caption/captions.csv")}
    wanted = module.generate(data.images("test", [2]), 3, captions=2)[0]
    assert [said["same", "1"], said["same", "2"]] == [one.text for one in wanted]
    assert (tmp_path / "caption/captions.png").stat().st_size > 5_000
    (folder / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 pictures could not be read, the others are in .*broken\.jpg"):
        Caption(inputs=str(folder))(module, data, tmp_path)


def test_caption_images_of_the_split(loaded, tmp_path):
    module, data = loaded
    values = Caption(split="val", count=3, method="sample", temperature=2.0)(module, data, tmp_path)
    assert values["caption/pictures"] == 3
    again = Caption(split="val", count=3, method="sample", temperature=2.0)
    again(module, data, tmp_path / "again")
    first, second = (rows_of(path / "caption/captions.csv") for path in (tmp_path, tmp_path / "again"))
    assert first == second and first[0]["picture"] == data.image_ids("val")[0]
    assert Caption()(module, data, tmp_path)["caption/pictures"] == 6  # of at most 20


def test_transfer_speaks_the_runs_words(loaded, tmp_path):
    """The run's own test images in a data set without training captions, with a caption that the run cannot say."""
    module, data = loaded
    cells, own = [], [[*texts, "Zebra crossing ."] for texts in data.references("test", range(6))]
    (tmp_path / "pascal/cat").mkdir(parents=True)
    for image, texts in enumerate(own):
        Image.fromarray(data.picture("test", image)).save(tmp_path / f"pascal/cat/{image}.png")
        rows = "".join(f"<tr><td>{text}</td></tr>" for text in texts)
        cells.append(f'<tr><td><img src="cat/{image}.png"></td><td><table>{rows}</table></td></tr>')
    (tmp_path / "pascal/index.html").write_text(f"<table>{''.join(cells)}</table>")
    values = Transfer(data="pascal_sentences", root=str(tmp_path / "pascal"), beam_size=2)(module, data, tmp_path)
    said = [row["caption"] for row in rows_of(tmp_path / "transfer/captions.csv")]
    assert said == [captions[0].text for captions in module.generate(data.images("test", range(6)), 2)]
    assert {n: values[f"transfer/{n}"] for n in NAMES} == pytest.approx(scores(said, own), abs=1e-12)
    words = [word for texts in own for text in texts for word in tokenize(text)]
    unknown = sum(word not in module.vocabulary for word in words)
    assert unknown >= 12 and values["transfer/unknown_words"] == pytest.approx(unknown / len(words))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CaptionMetrics(beam_sizes=[0, 1]), r"protocol\.beam_sizes=\[0, 1\] must be at least 1"),
        (lambda: CaptionMetrics(beam_sizes=[]), r"protocol\.beam_sizes"),
        (lambda: Novelty(beam_size=3, captions=4), r"protocol\.captions=4 must be from 1 to protocol\.beam_size=3"),
        (lambda: CaptionRanking(precision="16"), "protocol.precision=16: choose 32 or bf16"),
        (lambda: CaptionRanking(captions_per_image=0), "protocol.captions_per_image=0"),
        (lambda: NearestCaption(neighbours=0), "protocol.neighbours=0"),
        (lambda: WordNeighbours(top=0), "protocol.top=0"),
        (lambda: Caption(captions=0), "protocol.captions=0"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (CaptionMetrics(count=7), "protocol.count=7: the split has 6 images"),
        (CaptionMetrics(split="none"), "unknown split 'none'"),
        (WordNeighbours(words=["zebra"]), "'zebra', which is not in the run's vocabulary"),
        (Transfer(), "protocol.data is null"),
        (Transfer(data="enron"), "protocol.data=enron has no captions"),
        (Caption(inputs="/nowhere.jpg"), "there is no such image or folder"),
        (CaptionMetrics(beam_sizes=[10_000]), "beam_size=10000 must be at most"),
    ],
)
def test_what_a_run_cannot_do_is_said(loaded, tmp_path, protocol, message):
    with pytest.raises(UserError, match=message):
        protocol(*loaded, tmp_path)


def test_other_models_are_refused(loaded, tmp_path):
    for protocol in (CaptionMetrics(), Novelty(), CaptionRanking(), WordNeighbours(), NearestCaption(), Caption(),
                     Transfer()):  # fmt: skip
        with pytest.raises(UserError, match="give a run of model=show_and_tell"):
            protocol(torch.nn.Linear(1, 1), loaded[1], tmp_path)
