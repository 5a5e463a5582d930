"""Train, validation and test by utterance, stratified by speaker."""

import random
from collections import defaultdict
from collections.abc import Sequence

from quintet.common.errors import UserError
from quintet.data.audio.recording import Recording

SPLITS = ("train", "val", "test")


def split_names(recordings: Sequence[Recording], val: float, test: float, seed: int) -> list[str]:
    """The split of every recording: the corpus' own where it has one, else the fractions of each speaker.

    A speaker's split depends on that speaker's utterances and the seed only: it stays when speakers are added.
    At least one utterance of a speaker goes to every non-zero fraction if three or more are there.
    Raises UserError for fractions that leave nothing to train on.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UserError(f"data.val_fraction={val}, data.test_fraction={test}: give fractions whose sum is below 1")
    if any(recording.split for recording in recordings):
        return [recording.split or "train" for recording in recordings]
    names = ["train"] * len(recordings)
    by_speaker = defaultdict(list)
    for index, recording in sorted(enumerate(recordings), key=lambda pair: pair[1].id):
        by_speaker[recording.speaker].append(index)
    for speaker, indices in by_speaker.items():
        random.Random(f"{seed}:{speaker}").shuffle(indices)
        num_val, num_test = _share(len(indices), val), _share(len(indices), test)
        for index in indices[:num_val]:
            names[index] = "val"
        for index in indices[num_val : num_val + num_test]:
            names[index] = "test"
    return names


def _share(count: int, fraction: float) -> int:
    return max(round(count * fraction), int(fraction > 0 and count >= 3))


def subset(recordings: Sequence[Recording], limit: int | None, seed: int) -> list[Recording]:
    """At most `limit` recordings, taken from the speakers in turn (`data.max_utterances`)."""
    if limit is None or limit >= len(recordings):
        return list(recordings)
    if limit < 1:
        raise UserError(f"data.max_utterances={limit}: give 1 or more, or null for all")
    by_speaker = defaultdict(list)
    for recording in recordings:
        by_speaker[recording.split, recording.speaker].append(recording)
    for key, group in by_speaker.items():
        random.Random(f"{seed}:{key}").shuffle(group)
    turns = sorted((turn, str(key), r) for key, group in by_speaker.items() for turn, r in enumerate(group))
    return sorted((r for _, _, r in turns[:limit]), key=lambda recording: recording.id)
