"""Shards larger than the disk: every item once, on ranks and in workers, resumed exactly, the same as from a copy."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset, Features, Image, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from stream_run import CHUNK, RATE, audio, captions, run

from quintet.common.errors import UserError
from quintet.data.audio.datamodule import AudioDataModule
from quintet.data.audio.hub import Hub
from quintet.data.order import GroupSampler, group_ends
from quintet.data.shards import ParquetShards

# --- the order --------------------------------------------------------------------------------------------------------


def batches(sizes, rank=0, world=1, epoch=0, first=0, **options):
    settings_ = {"batch_size": 3, "seed": 5, "streams": 2, "window": 2} | options
    ends = np.cumsum(sizes)
    return GroupSampler(ends, rank=rank, world_size=world, position=lambda: (epoch, first), **settings_)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) >= 8),
    world=st.integers(1, 3),
    streams=st.integers(1, 4),
    window=st.integers(1, 5),
    size=st.integers(1, 2),
    data=st.data(),
)
def test_everything_once_the_same_number_of_batches_everywhere_and_exact_from_anywhere(
    sizes, world, streams, window, size, data
):
    options = {"world": world, "streams": streams, "window": window, "batch_size": size}
    ranks = [list(batches(sizes, rank=rank, **options)) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    assert len(ranks[0]) == len(batches(sizes, **options))
    assert [[len(batch) for batch in rank] for rank in ranks] == [[len(batch) for batch in ranks[0]]] * world
    seen = [item for rank in ranks for batch in rank for item in batch]
    assert set(seen) == set(range(sum(sizes))) and len(seen) - sum(sizes) < world
    for rank in ranks:
        assert all(rank)  # no batch is empty
    first = data.draw(st.integers(0, len(ranks[0])))
    for rank in range(world):
        assert list(batches(sizes, rank=rank, first=first, **options)) == ranks[rank][first:]
    again = [list(batches(sizes, rank=rank, epoch=1, **options)) for rank in range(world)]
    assert {item for rank in again for batch in rank for item in batch} == set(range(sum(sizes)))


def test_another_epoch_and_another_seed_have_another_order():
    sizes = [7, 3, 9, 4]
    orders = [list(batches(sizes, epoch=epoch, seed=seed)) for epoch in (0, 1) for seed in (5, 6)]
    assert len({str(order) for order in orders}) == 4
    assert list(batches(sizes, views=True, epoch=2)) == [[46 + i for i in b] for b in batches(sizes, epoch=2)]


@pytest.mark.parametrize("world", [1, 2])
def test_a_worker_reads_few_groups_that_another_reads(world):
    """DataLoader gives batch g to worker g mod W. At most the groups that are cut between streams are read twice."""
    sizes, workers = [10] * 40, 2
    group = np.repeat(np.arange(40), 10)
    read = [set() for _ in range(world * workers)]
    for rank in range(world):
        for number, batch in enumerate(batches(sizes, rank=rank, world=world, streams=4, batch_size=5)):
            read[rank * workers + number % workers] |= set(group[batch])
    assert sum(map(len, read)) <= 40 + 4 * world - 1
    # and at any time no more than the window's
    last = []
    for batch in list(batches(sizes, streams=1, window=3, batch_size=5)):
        last = (last + sorted(set(group[batch])))[-60:]
    assert len(set(last[:6])) <= 3


def test_where_groups_end():
    rows, items, row_ends = np.array([0, 2, 3, 7]), np.array([2, 1, 5, 4]), np.array([3, 6, 9])
    assert group_ends(rows, items, row_ends).tolist() == [3, 8, 12]
    assert group_ends(rows, None, row_ends).tolist() == [2, 3, 4]


def test_impossible_settings():
    with pytest.raises(UserError, match=r"data\.streams=0"):
        batches([4, 4], streams=0)
    with pytest.raises(UserError, match="the split is empty"):
        batches([])
    with pytest.raises(UserError, match=r"data\.num_workers=3 does not divide data\.streams=4"):
        AudioDataModule(Hub("x"), 16000, 800, 2, "cache", streaming=True, num_workers=3)


# --- audio ------------------------------------------------------------------------------------------------------------

FILE = {"bytes": Value("binary"), "path": Value("string")}  # what an Audio column is in parquet


def flac(length, number):
    pcm = np.random.default_rng(number).integers(-3000, 3000, length).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, pcm, RATE, format="FLAC")
    return file.getvalue()


def write_shards(folder, columns, rows, shards, group):
    """Uneven parquet shards in the layout of `datasets`; shard i holds the rows of `shards[i]`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, chosen in enumerate(shards):
        part = {name: [rows[name][i] for i in chosen] for name in columns}
        name = f"train-{number:05d}-of-{len(shards):05d}.parquet"
        Dataset.from_dict(part, features=columns).to_parquet(str(folder / name), batch_size=group)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Three uneven shards of 23 recordings of one to nine windows."""
    folder = tmp_path_factory.mktemp("speech")
    lengths = np.random.default_rng(0).integers(100, 9 * CHUNK, 23).tolist()
    rows = {"audio": [{"bytes": flac(n, i), "path": None} for i, n in enumerate(lengths)],
            "speaker": [f"p{i % 3}" for i in range(23)]}  # fmt: skip
    columns = Features({"audio": FILE, "speaker": Value("string")})
    write_shards(folder, columns, rows, [range(2), range(2, 17), range(17, 23)], group=4)
    return folder


def same(one, other):
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_streamed_audio_is_the_copied_audio(speech, tmp_path):
    """Every window, the speakers and the splits are what the decoded store gives; and nothing was copied."""
    fractions = {"val_fraction": 0.2, "test_fraction": 0.1}
    streamed, copied = (
        audio(speech, tmp_path / "a", **fractions),
        audio(speech, tmp_path / "b", streaming=False, **fractions),
    )
    for module in (streamed, copied):
        module.prepare_data()
        module.setup()
    assert streamed.data_info == copied.data_info and streamed.data_info["speakers"] == ["p0", "p1", "p2"]
    for split in ("train", "val", "test"):
        assert streamed.num_examples(split) == copied.num_examples(split) > 0
        every = range(streamed.num_examples(split))
        assert same(streamed.example_batch(split, every), copied.example_batch(split, every))
    stored = sum(path.stat().st_size for path in (tmp_path / "a" / "audio").rglob("*") if path.is_file())
    assert stored < 5000 < sum(path.stat().st_size for path in (tmp_path / "b").rglob("*.arrow"))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_see_every_window_once(speech, tmp_path, workers):
    module = audio(speech, tmp_path, num_workers=workers)
    module.setup()
    seen = [tuple(window.tolist()) for batch in module.train_dataloader() for window in batch.audio]
    windows = [tuple(window.audio.tolist()) for window in module.train_set]
    assert sorted(seen) == sorted(windows) and seen != windows
    plain = [tuple(w.tolist()) for b in audio(speech, tmp_path, num_workers=0).train_dataloader() for w in b.audio]
    assert seen == plain  # the number of workers changes nothing


def test_what_is_wrong_with_streamed_audio(speech, tmp_path):
    with pytest.raises(UserError, match=r"has no column sound: it has audio, speaker"):
        AudioDataModule(Hub(str(speech), audio_column="sound"), RATE, CHUNK, 2, str(tmp_path), streaming=True).setup()
    with pytest.raises(UserError, match=r"has 8000 Hz, data.sample_rate is 16000 Hz"):
        AudioDataModule(Hub(str(speech)), 16000, CHUNK, 2, str(tmp_path), streaming=True).setup()
    with pytest.raises(UserError, match=r"has no split dev: it has train"):
        AudioDataModule(
            Hub(str(speech), splits={"train": "dev"}), RATE, CHUNK, 2, str(tmp_path), streaming=True
        ).setup()
    with pytest.raises(UserError, match=r"set data.resample=false"):
        audio(speech, tmp_path, resample=True)
    files = [flac(900, 0), flac(900, 1)[:-300], b"not audio"]  # the second one's header is whole: known when it is read
    rows = {"audio": [{"bytes": file, "path": None} for file in files]}
    write_shards(tmp_path / "bad", Features({"audio": FILE}), rows, [range(3)], group=2)
    options = {"sample_rate": RATE, "chunk_samples": CHUNK, "batch_size": 2, "context": 50, "streaming": True,
               "val_fraction": 0.0, "test_fraction": 0.0, "cache_dir": str(tmp_path / "cache")}  # fmt: skip
    with pytest.raises(UserError, match=r"train-00000-of-00001.parquet, row 2 cannot be decoded"):
        AudioDataModule(Hub(str(tmp_path / "bad")), **options).setup()
    module = AudioDataModule(Hub(str(tmp_path / "bad")), on_bad_file="skip", **options)
    with pytest.warns(UserWarning, match="left out 1 of 3 files"):
        module.setup()
    with pytest.raises(UserError, match=r"row 1|its header promised"):
        list(module.train_dataloader())
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"train\.parquet is not a parquet file"):
        AudioDataModule(Hub(str(tmp_path / "text")), **options).setup()
    with pytest.raises(UserError, match=r"is not one: write the data set as parquet"):
        (tmp_path / "csv").mkdir()
        (tmp_path / "csv" / "train.csv").write_text("audio\nx\n")
        AudioDataModule(Hub(str(tmp_path / "csv")), **options).setup()


def test_row_groups_are_kept_and_dropped(speech):
    shards = ParquetShards([str(path) for path in sorted(speech.glob("*.parquet"))], ["speaker"], keep=2)
    assert [shards.row(i)["speaker"] for i in range(len(shards))] == [f"p{i % 3}" for i in range(23)]
    assert shards.ends.tolist() == [2, 6, 10, 14, 17, 21, 23] and len(shards._groups) == 2
    assert shards.where(17).endswith("train-00002-of-00003.parquet, row 0")
    import pickle

    assert pickle.loads(pickle.dumps(shards)).row(22) == {"speaker": "p1"}


# --- captions ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("pictures"), {"image": [], "caption": []}
    for number in range(19):
        file = io.BytesIO()
        Picture.new("RGB", (12, 10), (number * 10, 40, 90)).save(file, "PNG")
        rows["image"].append({"bytes": file.getvalue(), "path": None})
        rows["caption"].append([f"picture {number} number {n}" for n in range(1 + number % 3)])
    columns = Features({"image": Image(decode=False), "caption": List(Value("string"))})
    write_shards(folder, columns, rows, [range(11), range(11, 12), range(12, 19)], group=3)
    return folder


def test_streamed_captions_are_the_copied_captions(pictures, tmp_path):
    streamed, copied = captions(pictures, tmp_path / "a"), captions(pictures, tmp_path / "b", streaming=False)
    assert streamed.data_info == copied.data_info
    every = range(streamed.num_examples("train"))
    assert len(every) == copied.num_examples("train") == 37
    assert same(streamed.example_batch("train", every), copied.example_batch("train", every))
    stored = sum(path.stat().st_size for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert stored < 5000 < sum(path.stat().st_size for path in (tmp_path / "b").rglob("*") if path.is_file())


@pytest.mark.parametrize("by_image", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_see_every_caption_once(pictures, tmp_path, workers, by_image):
    module = captions(pictures, tmp_path, num_workers=workers, group_by_image=by_image)
    seen = [index for batch in module.train_dataloader() for index in batch.index.tolist()]
    assert sorted(seen) == list(range(37)) and seen != sorted(seen)


def test_a_broken_image_in_a_shard_is_named(tmp_path):
    rows = {"image": [{"bytes": b"no image", "path": None}] * 2, "caption": ["a b", "c d"]}
    write_shards(
        tmp_path / "x", Features({"image": Image(decode=False), "caption": Value("string")}), rows, [[0], [1]], 1
    )
    module = captions(tmp_path / "x", tmp_path / "cache", batch_size=1)
    with pytest.raises(UserError, match=r"train-0000[01]-of-00002.parquet, row 0"):
        list(module.train_dataloader())


# --- in training ------------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).with_name("stream_run.py")


@pytest.mark.parametrize(("kind", "stop"), [("audio", 4), ("captions", 13)])  # in the first and in the second epoch
def test_stopped_in_the_middle_of_an_epoch_and_resumed(speech, pictures, tmp_path, kind, stop):
    """With two workers, which draw ahead: the rest of what the uninterrupted run sees, in its order."""
    make, root = {"audio": (audio, speech), "captions": (captions, pictures)}[kind]
    options = {"cache": tmp_path / "cache", "num_workers": 2, "streams": 2}
    whole = run(make(root, **options), tmp_path, max_steps=16, max_epochs=-1)
    first = run(make(root, **options), tmp_path, save=tmp_path / "x.ckpt", max_steps=stop, max_epochs=-1)
    assert first == whole[:stop]
    rest = run(make(root, **options), tmp_path, resume=tmp_path / "x.ckpt", max_steps=16, max_epochs=-1)
    assert len(rest) == 16 - stop and rest == whole[stop:]


@pytest.mark.slow
def test_two_ranks_over_three_uneven_shards(speech, tmp_path):
    """Neither waits for ever, and together they see everything."""
    module = audio(speech, tmp_path / "cache")
    module.setup()
    every = [str(abs(hash(tuple(window.audio.tolist())))) for window in module.train_set]
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000), "WORLD_SIZE": "2",
            "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}  # fmt: skip
    ranks = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(speech), str(tmp_path)], stdout=subprocess.PIPE, text=True,
                         stderr=subprocess.PIPE, env=os.environ | meet | {"NODE_RANK": str(rank)})
        for rank in range(2)
    ]  # fmt: skip
    seen = []
    for process in ranks:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err[-3000:]
        seen.append([line.split()[1:] for line in out.splitlines() if line.startswith("seen ")])
    assert len(seen[0]) == len(seen[1]) > 0
    windows = [window for rank in seen for batch in rank for window in batch]
    assert set(windows) == set(every) and len(windows) - len(every) <= 1
