"""The same code on real recordings in the layouts of their official archives; skipped where they are not there."""

import hashlib
from pathlib import Path

import pytest
from audio_files import ready, real

from quintet.data.audio.clips import Clips
from quintet.data.audio.features.linguistic import HTSLabels, TextGridLabels
from quintet.data.audio.librispeech import LibriSpeech
from quintet.data.audio.ljspeech import LJSpeech
from quintet.data.audio.phones import TextGridPhones
from quintet.data.audio.vctk import VCTK


def count(module):
    return sum(module.num_utterances(split) for split in ("train", "val", "test"))


def test_vctk_with_hts_labels(make, tmp_path):
    official_name = Path(real("vctk_subset/VCTK-Corpus-0.92.zip"))  # of other content than the official file
    archive = tmp_path / official_name.name
    archive.symlink_to(official_name)
    noted = hashlib.sha256(official_name.read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{noted}  {archive.name}\n")
    source = VCTK(archive)
    labels = HTSLabels(root=real("vctk_subset/full_context_labels.zip"))
    with pytest.warns(UserWarning, match="13 of 46 utterances have no usable labels"):
        module = ready(make(source, features=labels))
    assert count(module) == 33 and module.data_info["speakers"] == ["p225", "p226", "p227", "p228", "p287"]
    item = module.utterance("train", 0)
    pau = labels.inventory.index("pau") + 2 * len(labels.inventory)
    frames = len(item["pcm"]) // 80
    loud = abs(item["pcm"][: frames * 80].astype(float)).reshape(frames, 80).mean(1)
    paused = item["local"][pau, :frames] == 1
    # where the labels say pause the recording is quieter: alignment and offset have the right sign
    assert paused.any() and loud[paused].mean() < 0.3 * loud[~paused].mean()


def test_librispeech(make):
    module = ready(make(LibriSpeech(real("librispeech_subset/test-other-subset.tar"), ["test-other"])))
    assert count(module) == 80 and len(module.data_info["speakers"]) == 10


def test_ljspeech_phones_and_features(make):
    source = LJSpeech(real("ljspeech_subset/LJSpeech-1.1-subset.tar"))
    grids = real("ljspeech_subset/textgrids.zip")
    module = ready(make(source, resample=True, features=TextGridLabels(root=grids), phones=TextGridPhones(root=grids)))
    assert count(module) == 32 and module.data_info["speakers"] == []
    labels = module.utterance("train", 0)["phones"]
    assert (labels >= 0).mean() > 0.9 and len(set(labels.tolist())) > 15


def test_piano_notes(make):
    source = Clips(real("piano_subset/piano_notes_16k.zip"), r"(?P<velocity>[A-Za-z]+) (?P<note>[A-G]#?-?\d+)")
    module = ready(make(source))
    velocities = [tag for tag in module.data_info["tags"] if tag.startswith("velocity")]
    assert count(module) == 226 and velocities == [f"velocity={v}" for v in ("FF", "MF", "MP", "PP")]
