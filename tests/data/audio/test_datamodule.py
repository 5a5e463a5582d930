import multiprocessing
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from audio_files import ready, tone, write_audio

from quintet.common.errors import UserError
from quintet.data.audio import decode
from quintet.data.audio.clips import Clips
from quintet.data.audio.datamodule import AudioDataModule
from quintet.data.audio.features.mel import MelSpectrogram
from quintet.data.audio.hub import Hub
from quintet.data.audio.vctk import VCTK
from quintet.data.samples.clips import SampleClips
from quintet.data.samples.timit import SampleTIMIT
from quintet.data.samples.vctk import SampleVCTK


def sample(tmp_path, **kwargs):
    return SampleVCTK(str(tmp_path / "s"), **{"num_speakers": 3, "num_utterances": 5, "seconds": 0.3} | kwargs)


def test_facts_and_batches(tmp_path, make):
    module = ready(make(sample(tmp_path), features=MelSpectrogram(n_mels=8, n_fft=256)))
    assert module.data_info == {
        "sample_rate": 16000, "num_classes": 256, "speakers": ["p225", "p226", "p227"], "tags": [],
        "local_channels": 8, "hop_length": 80, "phones": [],
    }  # fmt: skip
    assert [module.num_utterances(split) for split in ("train", "val", "test")] == [9, 3, 3]
    batch = next(iter(module.train_dataloader()))
    assert batch.audio.shape == (2, 160 + 800)  # context 100 rounded up to whole frames
    assert batch.local.shape == (2, 8, 12) and batch.mask.shape == (2, 800) and batch.tags is None
    assert batch.speaker.dtype == batch.utterance.dtype == torch.int64
    seen = torch.cat([b.mask.sum(1) for b in module.train_dataloader()]).sum()
    assert int(seen) == sum(len(module.utterance("train", i)["pcm"]) for i in range(9))


def test_utterance_and_its_chunks_agree(tmp_path, make):
    module = ready(make(sample(tmp_path)))
    item, chunk = module.utterance("val", 1), module.val_set
    assert item["pcm"].dtype == np.int16 and item["id"].startswith(module.data_info["speakers"][item["speaker"]])
    whole = torch.cat([b.audio[100:][b.mask] for b in chunk if int(b.utterance) == 1])
    assert whole.tolist() == chunk.table[item["pcm"].view(np.uint16)].tolist()
    with pytest.raises(UserError, match="utterance 3 of split val: it has 3"):
        module.utterance("val", 3)


def test_tags_are_multi_hot(tmp_path, make):
    source = SampleClips(str(tmp_path / "c"), pattern=r"(?P<velocity>[A-Za-z]+) (?P<note>[A-G]#?-?\d+)", num_notes=4)
    module = ready(make(source))
    assert module.data_info["tags"] == [
        "note=C#4",
        "note=C4",
        "note=D#4",
        "note=D4",
        "velocity=FF",
        "velocity=MF",
        "velocity=PP",
    ]
    batch = next(iter(module.val_dataloader()))
    assert batch.tags.dtype == torch.float32 and batch.tags.sum(1).tolist() == [2.0] * len(batch.tags)
    names = {f"velocity={module.utterance('val', 0)['id'][:2].upper()}", f"note={module.utterance('val', 0)['id'][3:]}"}
    assert {module.data_info["tags"][i] for i in torch.nonzero(batch.tags[0])[:, 0]} == names


def test_the_second_start_decodes_nothing(tmp_path, make, monkeypatch):
    first = ready(make(sample(tmp_path)))
    monkeypatch.setattr("quintet.data.audio.store.load", lambda *a: pytest.fail("decoded again"))
    again = ready(make(sample(tmp_path)))
    assert again._folder == first._folder
    assert all(torch.equal(a.audio, b.audio) for a, b in zip(first.train_set, again.train_set, strict=True))


def test_changed_files_or_settings_are_decoded_again(tmp_path, make):
    for number in range(5):
        write_audio(tmp_path / "c" / f"{number}.wav", tone(0.1, hertz=100 + number))
    source = Clips(str(tmp_path / "c"))
    first = ready(make(source))._folder
    assert ready(make(source, resample=True))._folder != first
    write_audio(tmp_path / "c" / "2.wav", tone(0.1, hertz=500))
    assert ready(make(source))._folder != first


def _prepare(folder):
    source = SampleVCTK(f"{folder}/s", num_speakers=2, num_utterances=4, seconds=0.3)
    settings = {"sample_rate": 16000, "chunk_samples": 800, "batch_size": 2, "context": 80}
    mel = MelSpectrogram(n_mels=4, n_fft=256)
    AudioDataModule(source=source, cache_dir=f"{folder}/cache", features=mel, **settings).prepare_data()


def test_processes_prepare_at_the_same_time(tmp_path, make):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        pool.map(_prepare, [str(tmp_path)] * 3)
    folders = [p for p in (tmp_path / "cache" / "audio").iterdir() if p.is_dir()]
    assert len(folders) == 2 and all(len(p.name.replace("-", "")) in (16, 32) for p in folders)  # nothing half-written
    assert ready(make(sample(tmp_path, num_speakers=2, num_utterances=4)))._folder in folders


def test_nothing_is_left_behind_by_a_failure(tmp_path, make):
    write_audio(tmp_path / "c" / "a.wav", rate=8000)
    with pytest.raises(UserError, match="8000 Hz"):
        make(Clips(str(tmp_path / "c"))).prepare_data()
    assert not [p for p in (tmp_path / "cache" / "audio").iterdir() if p.is_dir()]


def test_audio_is_mapped_not_copied(tmp_path, make):
    module = ready(make(sample(tmp_path)))
    assert not module.utterance("train", 0)["pcm"].flags.owndata
    column = module._splits["train"].pcm
    assert len(pickle.dumps(column)) < 500  # a spawned worker opens the file itself
    assert (pickle.loads(pickle.dumps(column))[1] == column[1]).all()


def test_worker_processes_give_the_same_batches(tmp_path, make):
    module, workers = ready(make(sample(tmp_path))), ready(make(sample(tmp_path), num_workers=2))
    pairs = zip(module.train_dataloader(), workers.train_dataloader(), strict=True)
    assert all(torch.equal(a.audio, b.audio) for a, b in pairs)


def test_context_is_the_networks_receptive_field(tmp_path, make):
    module = ready(make(sample(tmp_path), context=None))
    with pytest.raises(UserError, match=r"data\.context is null"):
        module.train_set  # noqa: B018
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(receptive_field=321), global_rank=0, world_size=1)
    assert module.train_set[0].audio.shape == (321 + 800,)


def test_timit_splits_and_phones(tmp_path, make):
    from quintet.data.audio.phones import TimitPhones

    source = SampleTIMIT(str(tmp_path / "t"), num_utterances=2, seconds=0.4)
    module = ready(make(source, phones=TimitPhones(), val_fraction=0, test_fraction=0))
    assert [module.num_utterances(split) for split in ("train", "val", "test")] == [6, 2, 2]
    assert module.data_info["speakers"] == [] and len(module.data_info["phones"]) == 61
    batch = next(iter(module.val_dataloader()))
    assert batch.phones.shape == (2, 5) and batch.phones[0, 0] == module.data_info["phones"].index("h#")
    assert batch.speaker is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": 5000}, r"data\.batch_size=5000 .* larger than the"),
        ({"batch_size": 0}, r"data\.batch_size=0"),
        ({"test_fraction": 0}, r"the test split is empty: raise data\.test_fraction"),
        (
            {"max_utterances": 3, "val_fraction": 0.6, "test_fraction": 0.3},
            r"the training split of .* is empty: 3 utterances are too few",
        ),
        ({"on_bad_file": "ignore"}, r"on_bad_file=ignore: choose error or skip"),
        ({"chunk_samples": 0}, r"data\.chunk_samples=0"),
        ({"quantization": 1}, r"data\.quantization=1"),
        ({"features": MelSpectrogram(), "chunk_samples": 801}, r"chunk_samples=801 must be a multiple of 80"),
        ({"sample_rate": 8000}, r"has 16000 Hz, data\.sample_rate is 8000"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, r"data\.val_fraction=0\.6"),
    ],
)
def test_bad_settings(tmp_path, make, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        module = ready(make(sample(tmp_path), **overrides))
        module.train_dataloader()
        module.test_dataloader()
    assert "\n" not in str(error.value)


def test_no_validation_and_max_utterances(tmp_path, make):
    module = ready(make(sample(tmp_path), val_fraction=0, test_fraction=0, max_utterances=4))
    assert module.num_utterances("train") == 4 and module.val_dataloader() == []
    assert len(module.data_info["speakers"]) == 3


def write_parquet(path, tones):
    """The columns as the Hub stores them: bytes and path of the encoded file, and a speaker."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [write_audio(path.parent / "files" / f"{hertz}.flac", tone(0.1, hertz=hertz)) for hertz in tones]
    audio = pa.array([{"bytes": f.read_bytes(), "path": f.name} for f in files])
    who = pa.array([f"spk{number % 2}" for number in range(len(files))])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"audio": audio, "who": who}), path)
    return {decode.read_file(file)[0].tobytes() for file in files}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    return Hub


def test_hub_source_reads_parquet(tmp_path, make, hub):
    path = tmp_path / "set.parquet"
    expected = write_parquet(path, range(100, 260, 20))
    module = ready(make(hub(str(path), speaker_column="who")))
    assert module.data_info["speakers"] == ["spk0", "spk1"]
    splits = [(s, i) for s in ("train", "val", "test") for i in range(module.num_utterances(s))]
    assert {module.utterance(s, i)["pcm"].tobytes() for s, i in splits} == expected and len(expected) == 8
    assert ready(make(hub(str(path), speaker_column="who", speakers=["spk1"]))).data_info["speakers"] == ["spk1"]
    with pytest.raises(UserError, match=r"audio_column=sound: .* has the columns audio, who"):
        make(hub(str(path), audio_column="sound")).prepare_data()
    with pytest.raises(UserError, match="no Hub data set at"):
        make(hub(str(tmp_path / "nothing.parquet"))).prepare_data()


def test_hub_source_keeps_the_splits_of_a_data_set(tmp_path, make, hub):
    counts = {"train": 3, "validation": 2, "test": 1}
    audio = {s: write_parquet(tmp_path / "set" / f"{s}.parquet", range(100, 100 + n)) for s, n in counts.items()}
    splits = {"train": "train", "val": "validation", "test": "test"}
    module = ready(make(hub(str(tmp_path / "set"), splits=splits)))
    for ours, theirs in splits.items():
        found = {module.utterance(ours, i)["pcm"].tobytes() for i in range(module.num_utterances(ours))}
        assert found == audio[theirs]


def test_hub_source_says_what_plain_audio_files_need(tmp_path, make, hub, monkeypatch):
    write_audio(tmp_path / "folder" / "train" / "0.wav", tone(0.1))
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(UserError, match="indexes only with torchcodec"):
        make(hub(str(tmp_path / "folder"))).prepare_data()


def test_speakers_keep_their_split_when_others_are_added(tmp_path, make):
    corpus = sample(tmp_path).recordings(tmp_path)[0].path.parents[2]
    one = ready(make(VCTK(str(corpus), speakers=["p226"])))
    everyone = ready(make(VCTK(str(corpus))))
    ids = {u for u in everyone._splits["val"].ids if u.startswith("p226")}
    assert ids == set(one._splits["val"].ids)
