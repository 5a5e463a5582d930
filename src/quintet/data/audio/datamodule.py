"""Audio of any source as mu-law windows, with the speakers, tags, conditioning frames and phones that it has."""

import json
import logging
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader

from quintet.common.errors import UserError
from quintet.data.audio import stream
from quintet.data.audio.chunks import ChunkDataset, Utterances, collate
from quintet.data.audio.hub import Hub
from quintet.data.audio.recording import Recording, Source
from quintet.data.audio.split import SPLITS, split_names, subset
from quintet.data.audio.store import FORMAT, warn_bad_files, write_store
from quintet.data.audio.stream import StreamedPcm
from quintet.data.batches import AudioBatch
from quintet.data.order import GroupSampler, check_workers, group_ends
from quintet.data.preview import Preview
from quintet.data.resumable import ResumableDataModule, ResumableLoader
from quintet.data.store import ListColumn, build_once, digest

log = logging.getLogger(__name__)


class AudioDataModule(ResumableDataModule):
    """Windows of C = `chunk_samples` targets after `context` positions of history, see AudioBatch.

    source: a quintet.data.audio Source. features: local conditioning, or null. phones: frame labels, or null.
    context: samples of history; null takes the network's receptive field. Audio is mixed down to one channel.
    streaming: decode when it is read, from the source's parquet shards, and copy nothing to the disk. The order of
    training is then that of GroupSampler: `shuffle_groups` row groups at a time, at `streams` places.
    """

    batch_type = AudioBatch

    def __init__(self, source: Source, sample_rate: int, chunk_samples: int, batch_size: int, cache_dir: str,
                 root: str | None = None, features: Any = None, phones: Any = None, quantization: int = 256,
                 num_workers: int = 0, val_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 0,
                 on_bad_file: str = "error", resample: bool = False, context: int | None = None,
                 max_utterances: int | None = None, pin_memory: bool = False, streaming: bool = False,
                 streams: int = 4, shuffle_groups: int = 4) -> None:  # fmt: skip
        super().__init__()
        self.source, self.features, self.phones, self.root = source, features, phones, root
        self.sample_rate, self.quantization, self.resample = sample_rate, quantization, resample
        self.chunk_samples, self.batch_size, self.context = chunk_samples, batch_size, context
        self.val_fraction, self.test_fraction, self.seed = val_fraction, test_fraction, seed
        self.on_bad_file, self.max_utterances = on_bad_file, max_utterances
        self.cache_dir, self.num_workers, self.pin_memory = Path(cache_dir), num_workers, pin_memory
        self.streaming, self.streams, self.shuffle_groups = streaming, streams, shuffle_groups
        self._splits: dict[str, Utterances] = {}
        self._check()

    def _check(self) -> None:
        if self.on_bad_file not in ("error", "skip"):
            raise UserError(f"data.on_bad_file={self.on_bad_file}: choose error or skip")
        if not 2 <= self.quantization <= 65536:
            raise UserError(f"data.quantization={self.quantization}: give 2 to 65536 classes")
        if self.chunk_samples < 1 or self.chunk_samples % self.grid:
            raise UserError(
                f"data.chunk_samples={self.chunk_samples} must be a multiple of {self.grid} samples, the frame length"
            )

        if self.streaming:
            self._check_streaming()

    def _check_streaming(self) -> None:
        if not hasattr(self.source, "streaming"):
            raise UserError(f"data.streaming=true reads parquet shards, not {self.source.name}: choose data=hub")
        for key, value in (("features", self.features), ("phones", self.phones), ("resample", self.resample)):
            if value:
                off = "false" if value is True else "null"
                raise UserError(f"data.streaming=true reads audio as it is: set data.{key}={off}")
        check_workers(self.num_workers, self.streams)
        self.source.streaming = True

    @property
    def hop_length(self) -> int:
        """Samples per local-conditioning frame, 0 without."""
        return self.features.hop_length(self.sample_rate) if self.features else 0

    @property
    def grid(self) -> int:
        """Windows start at multiples of this many samples: on the border of every kind of frame."""
        return math.lcm(self.hop_length or 1, self.phones.frame if self.phones else 1)

    @cached_property
    def _recordings(self) -> list[Recording]:
        return subset(self.source.recordings(self.cache_dir), self.max_utterances, self.seed)

    @cached_property
    def _folder(self) -> Path:
        """The cache folder with the decoded audio of exactly these files."""
        files = self.source.fingerprint(self._recordings)
        if self.streaming:
            return self.cache_dir / "audio" / f"lengths-{digest(stream.FORMAT, files, self.on_bad_file)}"
        key = digest(FORMAT, files, self.sample_rate, self.resample, self.on_bad_file)
        return self.cache_dir / "audio" / key

    def prepare_data(self) -> None:
        """Unpack, decode (or measure) and extract once; safe when several processes do it at the same time."""
        if self.streaming:
            measured = (self.source, self._recordings, self.sample_rate, self.on_bad_file)
            build_once(self._folder, lambda folder: stream.write_lengths(folder, *measured))
            return
        decoded = (self.source, self._recordings, self.sample_rate, self.resample, self.on_bad_file)
        build_once(self._folder, lambda folder: write_store(folder, *decoded))
        for extractor in (self.features, self.phones):
            if extractor:
                extractor.build(self._folder, self._stored(), self.sample_rate, self.cache_dir)

    def _stored(self) -> list[Recording]:
        """The recordings that were decoded, in the order of the store."""
        meta = json.loads((self._folder / "meta.json").read_text())
        by_id = {recording.id: recording for recording in self._recordings}
        return [by_id[name] for name in meta["ids"]]

    def setup(self, stage: str | None = None) -> None:
        if self._splits:
            return
        self.prepare_data()  # cheap by now; makes setup() enough on a rank that did not prepare
        stored = self._stored()
        warn_bad_files(json.loads((self._folder / "meta.json").read_text())["bad"], len(self._recordings))
        pcm = self._pcm(stored)
        local, labelled = self._open(self.features, stored)
        phones, transcribed = self._open(self.phones, stored)
        rows = [row for row in range(len(stored)) if labelled[row] and transcribed[row]]
        if not rows:
            raise UserError(f"none of the {len(stored)} utterances has usable labels: see data.features, data.phones")
        names = split_names([stored[row] for row in rows], self.val_fraction, self.test_fraction, self.seed)
        self._speakers = sorted({name for row in rows if (name := stored[row].speaker) is not None})
        self._tags = sorted({tag for row in rows for tag in stored[row].tags})
        for split in SPLITS:
            chosen = [row for row, name in zip(rows, names, strict=True) if name == split]
            self._splits[split] = self._utterances(chosen, stored, pcm, local, phones)
        if not len(self._splits["train"]):
            raise UserError(f"the training split of {self.source.name} is empty: {len(rows)} utterances are too few")
        counts = ", ".join(f"{len(self._splits[split])} {split}" for split in SPLITS)
        log.info("%s: %s utterances, %d speakers", self.source.name, counts, len(self._speakers))

    def _pcm(self, stored: Sequence[Recording]) -> Any:
        if not self.streaming:
            return ListColumn(self._folder / "pcm.arrow", "pcm")
        for shards in cast(Hub, self.source).shards.values():
            shards.keep = (self.shuffle_groups + 1) * self.streams // max(self.num_workers, 1)
        return StreamedPcm(self.source, stored, np.load(self._folder / "lengths.npy"), self.sample_rate)

    def _open(self, extractor: Any, stored: Sequence[Recording]) -> tuple[Any, Sequence[bool]]:
        if not extractor:
            return None, [True] * len(stored)
        column = extractor.open(self._folder, stored, self.sample_rate, self.cache_dir)
        return column, [len(column[row]) > 0 for row in range(len(stored))]

    def _utterances(
        self, rows: list[int], stored: Sequence[Recording], pcm: Any, local: Any, phones: Any
    ) -> Utterances:
        speaker_index: dict[str | None, int] = {name: index for index, name in enumerate(self._speakers)}
        chosen = [stored[row] for row in rows]
        return Utterances(
            rows=rows,
            ids=[recording.id for recording in chosen],
            pcm=pcm,
            speaker=[speaker_index[recording.speaker] for recording in chosen] if self._speakers else None,
            tags=[self._multi_hot(recording.tags) for recording in chosen] if self._tags else None,
            local=local,
            local_channels=self.features.channels if self.features else 0,
            hop=self.hop_length or 1,
            phones=phones,
            phone_frame=self.phones.frame if self.phones else 1,
        )

    def _multi_hot(self, tags: Sequence[str]) -> np.ndarray:
        return np.array([tag in tags for tag in self._tags], np.float32)

    @property
    def data_info(self) -> dict[str, Any]:
        """Plain values that a model needs; call after setup()."""
        assert self._splits, "call prepare_data() and setup() first"
        return {
            "sample_rate": self.sample_rate,
            "num_classes": self.quantization,
            "speakers": list(self._speakers),
            "tags": list(self._tags),
            "local_channels": self.features.channels if self.features else 0,
            "hop_length": self.hop_length,
            "phones": list(self.phones.inventory) if self.phones else [],
        }

    def chunks(self, split: str) -> ChunkDataset:
        """The windows of a split; the context is rounded up to whole frames."""
        self.setup()
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}: choose {', '.join(SPLITS)}")
        context = self.context
        if context is None:
            if self.trainer is None:
                raise UserError("data.context is null and there is no network yet: set data.context=<samples>")
            context = cast(int, self.trainer.lightning_module.receptive_field)
        context = math.ceil(max(context, 1) / self.grid) * self.grid
        return ChunkDataset(self._splits[split], self.chunk_samples, context, self.quantization)

    train_set = property(lambda self: self.chunks("train"))
    val_set = property(lambda self: self.chunks("val"))
    test_set = property(lambda self: self.chunks("test"))

    def recording_of(self, path: Path) -> Recording:
        """The recording of the data set at `path`, or a new one named after any other file."""
        path = path.resolve()
        return next((r for r in self._recordings if r.path.resolve() == path), Recording(path.stem, path))

    def num_utterances(self, split: str) -> int:
        return len(self._splits[split])

    def utterance(self, split: str, index: int) -> dict[str, Any]:
        """A whole utterance: pcm (n,) int16, speaker, tags, local (F, frames), phones (frames,), id."""
        u = self._splits[split]
        if not 0 <= index < len(u):
            raise UserError(f"utterance {index} of split {split}: it has {len(u)}, counted from 0")
        return {
            "id": u.ids[index],
            "pcm": u.pcm[u.rows[index]],
            "speaker": None if u.speaker is None else u.speaker[index],
            "tags": None if u.tags is None else u.tags[index],
            "local": None if u.local is None else u.local_frames(index).T,
            "phones": None if u.phones is None else u.phones[u.rows[index]],
        }

    def num_examples(self, split: str) -> int:
        """Windows of C targets; an utterance has as many as it takes to cover it."""
        return len(self.chunks(split))

    def example_batch(self, split: str, indices: Sequence[int]) -> AudioBatch:
        return self.chunks(split).batch(indices)

    def preview(self, split: str, index: int) -> Preview:
        """The window's targets as sound; its group is the utterance, its label the speaker, its text the tags."""
        utterance, start = self.chunks(split).locate(index)
        item, rate = self.utterance(split, utterance), self.sample_rate
        pcm = item["pcm"][start : start + self.chunk_samples]
        times = f"{start / rate:.1f}-{(start + len(pcm)) / rate:.1f} s"
        tags = [] if item["tags"] is None else [tag for tag, on in zip(self._tags, item["tags"], strict=True) if on]
        return Preview(
            title=f"{item['id']} {times}",
            text=", ".join(tags) or None,
            audio=pcm.astype(np.float32) / 32768,
            sample_rate=rate,
            group=item["id"],
            label=None if item["speaker"] is None else self._speakers[item["speaker"]],
        )

    def _loader_args(self) -> dict[str, Any]:
        return {"num_workers": self.num_workers, "pin_memory": self.pin_memory, "collate_fn": collate}

    def train_dataloader(self) -> DataLoader:
        if not self.streaming:
            return self.resumable_loader(self.train_set, self.batch_size, self.seed, **self._loader_args())
        chunks, trainer = self.train_set, self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        sampler = GroupSampler(self._group_ends(chunks), self.batch_size, self.seed, self.streams, self.shuffle_groups,
                               rank=rank, world_size=world, position=self.position)  # fmt: skip
        return ResumableLoader(chunks, batch_sampler=sampler, generator=torch.Generator().manual_seed(self.seed),
                               **self._loader_args())  # fmt: skip

    def _group_ends(self, chunks: ChunkDataset) -> np.ndarray:
        """Where the windows of each row group of the training shards end."""
        source, stored = cast(Hub, self.source), chunks.utterances.pcm.recordings
        rows = np.array([source.place(stored[row])[1] for row in chunks.utterances.rows], np.int64)
        return group_ends(rows, np.diff(chunks.ends, prepend=0), source.shards["train"].ends)

    def val_dataloader(self) -> DataLoader | list:
        return self._eval_loader("val") if self.val_fraction or len(self._splits["val"]) else []

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        chunks = self.chunks(split)
        if not len(chunks):
            raise UserError(f"the {split} split is empty: raise data.{split}_fraction or give more utterances")
        return self.eval_loader(chunks, self.batch_size, "data.batch_size", **self._loader_args())
