"""Any audio data set that `datasets.load_dataset` reads: a Hub id, a parquet file or a folder of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quintet.common.errors import UserError
from quintet.data.audio.decode import BadAudio, measure, read_bytes, read_file
from quintet.data.audio.recording import Recording, Source, choose_speakers
from quintet.data.hub import load_split
from quintet.data.shards import ParquetShards, find_shards


@dataclass
class Hub(Source):
    """root: the Hub id or a local path. subset: its configuration name.

    splits: {train: train, val: validation, test: test} to keep its own; {train: train} alone is split here.
    streaming: read parquet shards as they are needed, see data.streaming, instead of a copy in the cache.
    """

    subset: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train"})
    audio_column: str = "audio"
    speaker_column: str | None = None
    speakers: Sequence[str] | None = None
    streaming: bool = False

    name = "Hub data set"
    put = "a Hub id, or local parquet files,"

    def recordings(self, cache_dir: Path) -> list[Recording]:
        own = len(self.splits) > 1
        if self.streaming:
            return self._chosen(self._of_shards(Path(cache_dir), own))
        loaded = {ours: self._load(theirs) for ours, theirs in self.splits.items()}
        self._audio = {ours: dataset[self.audio_column] for ours, dataset in loaded.items()}
        self._versions = {ours: dataset._fingerprint for ours, dataset in loaded.items()}
        found = []
        for ours, dataset in loaded.items():
            speakers = dataset[self.speaker_column] if self.speaker_column else [None] * len(dataset)
            found += self._rows(speakers, ours, ours if own else None)
        return self._chosen(found)

    def _of_shards(self, cache_dir: Path, own: bool) -> list[Recording]:
        columns = [self.audio_column, *([self.speaker_column] if self.speaker_column else [])]
        found = []
        self.shards: dict[str, ParquetShards] = {}
        for ours, theirs in self.splits.items():
            files = find_shards(self.root, self.subset, theirs, cache_dir)
            ParquetShards(files, columns)  # raises UserError for a missing column
            shards = self.shards[ours] = ParquetShards(files, columns[:1])
            speakers = shards.column(self.speaker_column) if self.speaker_column else [None] * len(shards)
            found += self._rows(speakers, ours, ours if own else None)
        self._versions = {ours: shards.key for ours, shards in self.shards.items()}
        return found

    def _chosen(self, found: list[Recording]) -> list[Recording]:
        if self.speaker_column:
            keep = set(choose_speakers(self.speakers, sorted({r.speaker for r in found if r.speaker})))
            found = [recording for recording in found if recording.speaker in keep]
        return found

    def _load(self, split: str) -> Any:
        from datasets import Audio

        columns = {"audio_column": self.audio_column, "speaker_column": self.speaker_column}
        try:
            dataset = load_split(str(self.root), self.subset, split, columns, None, self.missing())
        except UserError as error:
            cause = error.__cause__
            if not isinstance(cause, ImportError) and not isinstance(getattr(cause, "__cause__", None), ImportError):
                raise
            raise UserError(
                f"{self.root} holds plain audio files, which datasets indexes only with torchcodec: install torchcodec,"
                " or read a local folder with data.source._target_=quintet.data.audio.clips.Clips"
            ) from error
        return dataset.cast_column(self.audio_column, Audio(decode=False))

    def _rows(self, speakers: Sequence, ours: str, split: str | None) -> list[Recording]:
        ids = (f"{ours}-{row:08d}" for row in range(len(speakers)))
        return [
            Recording(name, Path(f"{self.root}:{name}"), None if speaker is None else str(speaker), split=split)
            for name, speaker in zip(ids, speakers, strict=True)
        ]

    def read(self, recording: Recording) -> tuple[NDArray, int]:
        audio, where = self._cell(recording)
        return read_bytes(audio["bytes"], where) if audio["bytes"] else read_file(Path(audio["path"]))

    def length(self, recording: Recording) -> tuple[int, int]:
        """(samples, rate in Hz) from the header of a file in a shard. Raises BadAudio."""
        audio, where = self._cell(recording)
        return measure(audio["bytes"], where)

    def place(self, recording: Recording) -> tuple[str, int]:
        """(split, row in its shards)."""
        ours, row = recording.id.rsplit("-", 1)
        return ours, int(row)

    def _cell(self, recording: Recording) -> tuple[dict[str, Any], str]:
        ours, row = self.place(recording)
        if not self.streaming:
            return self._audio[ours][row], str(recording.path)
        audio, where = self.shards[ours].row(row)[self.audio_column], self.shards[ours].where(row)
        audio = audio if isinstance(audio, dict) else {"bytes": audio}
        if not isinstance(audio.get("bytes"), bytes):
            raise BadAudio(f"{where}: column {self.audio_column} holds no bytes of an audio file")
        return audio, where

    def fingerprint(self, recordings: Sequence[Recording]) -> list:
        return [self._versions, [[r.id, r.speaker, r.split] for r in recordings]]
