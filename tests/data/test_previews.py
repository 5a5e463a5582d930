"""Examples by index: the same at every call, independent of each other, for the eye and for each model's loss."""

import numpy as np
import pytest
import torch

from quintet.common.errors import UserError
from quintet.data.audio.datamodule import AudioDataModule
from quintet.data.audio.features.mel import MelSpectrogram
from quintet.data.episodes.datamodule import EpisodeDataModule
from quintet.data.pairs.datamodule import PairsDataModule
from quintet.data.pairs.symbols import Symbols
from quintet.data.pairs.vocabulary import Subwords, SymbolIds
from quintet.data.resumable import ResumableDataModule
from quintet.data.samples.clips import SampleClips
from quintet.data.samples.glyphs import SampleGlyphs
from quintet.data.samples.pairs import SamplePairs
from quintet.data.samples.vctk import SampleVCTK
from quintet.papers.rare_events.module import RareEventsModule
from quintet.papers.rare_events.sequence_module import SymbolModule, TranslationModule
from quintet.papers.wavenet.module import WaveNetModule

RATE, CHUNK = 8000, 800
WAVENET = {f"{part}_channels": 8 for part in ("residual", "gate", "skip", "head")} | {"layers_per_stack": 4}
SMALL = {"neighbours": 8, "width": 8, "slots": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exhibits")


def audio(folder, source=None, **options):
    source = source or SampleVCTK(str(folder / "vctk"), num_speakers=2, num_utterances=4, seconds=0.5, sample_rate=RATE)
    return AudioDataModule(source, RATE, CHUNK, 2, str(folder), context=100, val_fraction=0.2, **options)


def notes(folder):
    pattern = r"(?P<velocity>[A-Za-z]+) (?P<note>[A-G]#?-?\d+)"
    return audio(folder, SampleClips(str(folder / "clips"), pattern, num_notes=4, seconds=0.3, sample_rate=RATE))


def glyphs(folder):
    source = SampleGlyphs(str(folder / "glyphs"), characters=3, drawers=5)
    return EpisodeDataModule(source, str(folder), width=3, length=7, shots=[1], batch_size=2, episodes_per_epoch=8,
                             val_episodes=3, test_episodes=4, val_alphabets=1, image_size=12)  # fmt: skip


def sentences(folder, **options):
    source = SamplePairs(str(folder / "pairs"), num_train=40, num_val=5, num_test=6)
    return PairsDataModule(source, Subwords(300), 4, str(folder), **options)


def symbols(folder):
    source = Symbols(str(folder / "symbols"), largest=40, num_train=30, num_val=5, num_test=6)
    return PairsDataModule(source, SymbolIds(40), 4, str(folder))


def wavenet(data):
    return WaveNetModule(WAVENET, {}, data.data_info)


def rare_events(data, memory=SMALL):
    return RareEventsModule({"channels": [4], "width": 8}, {}, data.data_info, memory=memory)


def translator(data):
    return TranslationModule({"width": 8}, memory=SMALL, optimizer={}, data_info=data.data_info)


def neural_gpu(data):
    return SymbolModule({"maps": 6, "steps": 2}, memory=SMALL, optimizer={}, data_info=data.data_info)


PAIRED = {
    "speakers": (audio, wavenet),
    "mel": (lambda folder: audio(folder, features=MelSpectrogram(n_mels=8, frame_rate=200, n_fft=256)), wavenet),
    "tags": (notes, wavenet),
    "episodes": (glyphs, rare_events),
    "episodes without memory": (glyphs, lambda data: rare_events(data, None)),
    "sentences": (sentences, translator),
    "symbols": (symbols, neural_gpu),
}


def ready(module):
    module.prepare_data()
    module.setup()
    return module


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", PAIRED)
def test_an_examples_loss_depends_on_it_alone(folder, name, split):
    """In any company, in any order, at the first and at the second call."""
    make_data, make_model = PAIRED[name]
    data = ready(make_data(folder))
    torch.manual_seed(0)
    module = make_model(data)
    if hasattr(module, "show"):  # a memory that has something to say
        module.show(data.example_batch("train", range(10)))
    module.eval()
    count = min(5, data.num_examples(split))
    with torch.no_grad():
        together = module.example_losses(data.example_batch(split, range(count)))
        backwards = module.example_losses(data.example_batch(split, range(count)[::-1])).flip(0)
        alone = torch.cat([module.example_losses(data.example_batch(split, [i])) for i in range(count)])
    assert together.shape == (count,) and torch.isfinite(together).all() and len(set(together.tolist())) > 1
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backwards, together, rtol=1e-5, atol=1e-5)


def test_windows_of_an_utterance_put_together_are_the_utterance(folder):
    data = ready(audio(folder))
    shown = [data.preview("test", i) for i in range(data.num_examples("test"))]
    assert len({window.title for window in shown}) == len(shown)
    for index in range(data.num_utterances("test")):
        item = data.utterance("test", index)
        mine = [window for window in shown if window.group == item["id"]]
        assert np.array_equal(np.concatenate([w.audio for w in mine]), item["pcm"].astype(np.float32) / 32768)
        assert {window.label for window in mine} == {data.data_info["speakers"][item["speaker"]]} == {item["id"][:4]}
        assert mine[0].title == f"{item['id']} 0.0-0.1 s" and mine[0].sample_rate == RATE
    batch = data.example_batch("test", [len(shown) - 1, 0])
    assert [data.utterance("test", int(u))["id"] for u in batch.utterance] == [shown[-1].group, shown[0].group]
    assert batch.mask.sum(1).tolist() == [len(shown[-1].audio), len(shown[0].audio)]


def test_a_note_is_shown_with_its_tags(folder):
    data = ready(notes(folder))
    window = data.preview("train", 0)
    named = [tag.split("=")[1] for tag in window.text.split(", ")]
    assert sorted(window.group.split()) == sorted(named) and window.label is None


def test_an_episode_is_a_sheet_of_its_drawings_in_order(folder):
    data = ready(glyphs(folder))
    batch, window = data.example_batch("test", [2]), data.preview("test", 2)
    assert window.image.shape == (3 * 13 - 1, 3 * 13 - 1)
    for t in range(7):
        row, column = divmod(t, 3)
        cell = window.image[row * 13 : row * 13 + 12, column * 13 : column * 13 + 12]
        assert np.array_equal(cell, 1 - batch.images[0, t, 0].numpy())
    names = data.classes("test")
    assert window.text.split(", ") == [names[c] for c in batch.classes[0, :3].tolist()]
    first = next(iter(data.train_dataloader()))
    for index in range(2):  # the first epoch's
        assert torch.equal(first.images[index], data.example_batch("train", [index]).images[0])


def test_a_pair_is_its_lines(folder):
    data = ready(sentences(folder, max_tokens=12))
    count = data.num_examples("train")
    assert count < 40
    for index in (0, count - 1):
        batch, pair = data.example_batch("train", [index]), data.preview("train", index)
        source, target = data.codecs["source"].decode(batch.source[0].tolist()), data.decode(batch.target[0].tolist())
        assert pair.text == f"{source} -> {target}" and pair.title == f"pair {int(batch.index)}"
    assert int(batch.index) > count - 1  # a row of the split, not a place among the short ones


@pytest.mark.parametrize("make", [audio, glyphs, sentences])
def test_unknown_splits_are_named(folder, make):
    data = ready(make(folder))
    for call in (data.num_examples, lambda s: data.example_batch(s, [0]), lambda s: data.preview(s, 0)):
        with pytest.raises(UserError, match="unknown split 'dev': choose train, val, test"):
            call("dev")


def test_a_data_module_that_cannot_says_so():
    class Bare(ResumableDataModule):
        pass

    for call in (
        lambda m: m.num_examples("train"),
        lambda m: m.example_batch("train", [0]),
        lambda m: m.preview("train", 0),
    ):
        with pytest.raises(NotImplementedError, match=r"^Bare "):
            call(Bare())
