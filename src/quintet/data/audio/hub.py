"""Any audio data set that `datasets.load_dataset` reads: a Hub id, a parquet file or a folder of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quintet.data.audio.decode import read_bytes, read_file
from quintet.data.audio.recording import Recording, Source, choose_speakers
from quintet.errors import UserError


@dataclass
class Hub(Source):
    """root: the Hub id or a local path. subset: its configuration name.

    splits: {train: train, val: validation, test: test} to keep its own; {train: train} alone is split here.
    """

    subset: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train"})
    audio_column: str = "audio"
    speaker_column: str | None = None
    speakers: Sequence[str] | None = None

    name = "Hub data set"
    put = "a Hub id, or local parquet files,"

    def recordings(self, cache_dir: Path) -> list[Recording]:
        loaded = {ours: self._load(theirs) for ours, theirs in self.splits.items()}
        own = len(loaded) > 1
        self._audio = {ours: dataset[self.audio_column] for ours, dataset in loaded.items()}
        self._versions = {ours: dataset._fingerprint for ours, dataset in loaded.items()}
        found = [r for ours, dataset in loaded.items() for r in self._rows(dataset, ours, ours if own else None)]
        if self.speaker_column:
            keep = set(choose_speakers(self.speakers, sorted({r.speaker for r in found if r.speaker})))
            found = [recording for recording in found if recording.speaker in keep]
        return found

    def _load(self, split: str) -> Any:
        from datasets import Audio, load_dataset
        from datasets.exceptions import DatasetGenerationError

        local = Path(self.root).expanduser()
        if not local.exists() and (self.root.count("/") != 1 or self.root.startswith(("/", "."))):
            raise UserError(self.missing())
        try:
            path = {"path": "parquet", "data_files": str(local)} if local.is_file() else {"path": str(self.root)}
            dataset = load_dataset(**path, name=self.subset, split=split)
        except (ImportError, DatasetGenerationError) as error:
            if not isinstance(error, ImportError) and not isinstance(error.__cause__, ImportError):
                raise
            raise UserError(
                f"{self.root} holds plain audio files, which datasets only indexes with torchcodec: install that, or"
                " read a local folder with data.source._target_=quintet.data.audio.clips.Clips"
            ) from error
        except (FileNotFoundError, ValueError, ConnectionError) as error:
            raise UserError(
                f"data.root={self.root} (split {split}) cannot be loaded: {str(error).splitlines()[0]}"
            ) from error
        for key, column in (("audio_column", self.audio_column), ("speaker_column", self.speaker_column)):
            if column is not None and column not in dataset.column_names:
                raise UserError(
                    f"data.source.{key}={column}: {self.root} has the columns {', '.join(dataset.column_names)}"
                )
        return dataset.cast_column(self.audio_column, Audio(decode=False))

    def _rows(self, dataset: Any, ours: str, split: str | None) -> list[Recording]:
        speakers = dataset[self.speaker_column] if self.speaker_column else [None] * len(dataset)
        ids = (f"{ours}-{row:08d}" for row in range(len(dataset)))
        return [
            Recording(name, Path(f"{self.root}:{name}"), None if speaker is None else str(speaker), split=split)
            for name, speaker in zip(ids, speakers, strict=True)
        ]

    def read(self, recording: Recording) -> tuple[NDArray, int]:
        ours, row = recording.id.rsplit("-", 1)
        audio = self._audio[ours][int(row)]
        return read_bytes(audio["bytes"], str(recording.path)) if audio["bytes"] else read_file(Path(audio["path"]))

    def fingerprint(self, recordings: Sequence[Recording]) -> list:
        return [self._versions, [[r.id, r.speaker, r.split] for r in recordings]]
