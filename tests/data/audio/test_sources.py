"""Every layout on files made here: ids, speakers, tags, splits, and what is wrong with a broken one."""

import csv
import hashlib
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from audio_files import write_audio

from quintet.common.errors import UserError
from quintet.data.audio.clips import Clips
from quintet.data.audio.librispeech import LibriSpeech
from quintet.data.audio.ljspeech import LJSpeech
from quintet.data.audio.magnatagatune import MagnaTagATune
from quintet.data.audio.timit import CORE_TEST, DEVELOPMENT, TIMIT
from quintet.data.audio.vctk import VCTK, speaker_info
from quintet.data.samples.timit import write_timit_sample
from quintet.data.samples.vctk import SampleVCTK, write_vctk_sample


def ids(source, tmp_path):
    return [recording.id for recording in source.recordings(tmp_path / "cache")]


def vctk92(root):
    for speaker in ("p225", "p226", "s5"):
        for number in (1, 2):
            for mic in (1, 2):
                if (speaker, mic) != ("s5", 2):
                    write_audio(root / f"wav48_silence_trimmed/{speaker}/{speaker}_{number:03d}_mic{mic}.flac")
    (root / "speaker-info.txt").write_text(
        "ID  AGE  GENDER  ACCENTS  REGION COMMENTS\np225  23  F    English    Southern\n"
    )
    return root


def test_vctk_92(tmp_path):
    root = vctk92(tmp_path / "VCTK-Corpus-0.92")
    found = VCTK(str(root)).recordings(tmp_path)
    assert [(r.id, r.speaker) for r in found[:3]] == [("p225_001", "p225"), ("p225_002", "p225"), ("p226_001", "p226")]
    assert all(r.path.name.endswith("_mic1.flac") for r in found) and len(found) == 6
    assert ids(VCTK(str(root), speakers=["p226"]), tmp_path) == ["p226_001", "p226_002"]
    with pytest.warns(UserWarning, match=r"mic2\.flac of s5: 1 speaker"):
        assert len(VCTK(str(root), mic=2).recordings(tmp_path)) == 4
    assert speaker_info(root) == {"p225": {"age": "23", "gender": "F", "accent": "English"}}
    with pytest.raises(UserError, match=r"unknown speaker p999; known: p225, p226, s5"):
        VCTK(str(root), speakers=["p225", "p999"]).recordings(tmp_path)
    with pytest.raises(UserError, match="mic=3"):
        VCTK(str(root), mic=3).recordings(tmp_path)


def test_vctk_80_and_speaker_info_without_p(tmp_path):
    write_audio(tmp_path / "VCTK-Corpus/wav48/p225/p225_001.wav")
    (tmp_path / "VCTK-Corpus/speaker-info.txt").write_text("ID AGE GENDER ACCENTS\n225 23 F English Southern\n")
    assert ids(VCTK(str(tmp_path / "VCTK-Corpus")), tmp_path) == ["p225_001"]
    assert list(speaker_info(tmp_path / "VCTK-Corpus")) == ["p225"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_is_read_as_its_folder_is(tmp_path, kind):
    vctk92(tmp_path / "in" / "VCTK-Corpus-0.92")
    format_ = {"zip": "zip", "tar": "tar", "tar.gz": "gztar"}[kind]
    archive = shutil.make_archive(str(tmp_path / "VCTK-Corpus-0.92"), format_, tmp_path / "in")
    digest = hashlib.sha256(Path(archive).read_bytes()).hexdigest()  # it is not the official zip of that name
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  {Path(archive).name}\n")
    assert len(ids(VCTK(archive), tmp_path)) == 6
    # the configured folder does not exist, its archive lies beside it
    assert len(ids(VCTK(str(tmp_path / "VCTK-Corpus-0.92")), tmp_path)) == 6
    assert len(list((tmp_path / "cache" / "unpacked").glob("*.lock"))) == 1


def test_unsafe_and_broken_archives_are_refused(tmp_path):
    outside = tmp_path / "evil.txt"
    bad_zip, bad_tar = tmp_path / "a.zip", tmp_path / "b.tar"
    outside.write_text("x")
    with zipfile.ZipFile(bad_zip, "w") as bundle:
        bundle.writestr("../../../escaped.txt", "x")
    with tarfile.open(bad_tar, "w") as bundle:
        bundle.add(outside, arcname="../../../escaped.txt")
    (tmp_path / "c.zip").write_bytes(b"not an archive")
    for name in ("a.zip", "b.tar"):
        with pytest.raises(UserError, match="refused"):
            VCTK(str(tmp_path / name)).recordings(tmp_path / "x" / "y" / "cache")
    with pytest.raises(UserError, match=r"c\.zip.*download it again"):
        VCTK(str(tmp_path / "c.zip")).recordings(tmp_path / "cache")
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not [p for p in (tmp_path / "cache" / "unpacked").iterdir() if p.is_dir()]


@pytest.mark.parametrize("source", [VCTK, LJSpeech, TIMIT, MagnaTagATune, LibriSpeech, Clips])
def test_missing_data_says_what_to_put_where(tmp_path, source):
    with pytest.raises(UserError, match=r"put .* there, or set data\.root=<path>, or try data=\w+_sample") as error:
        source(str(tmp_path / "nowhere")).recordings(tmp_path)
    assert str(tmp_path / "nowhere") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("source", [VCTK, LJSpeech, TIMIT, MagnaTagATune, Clips])
def test_another_layout_says_so(tmp_path, source):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="no recordings in the expected layout"):
        source(str(tmp_path / "folder")).recordings(tmp_path)


def test_librispeech(tmp_path):
    root = tmp_path / "LibriSpeech"
    for speaker, chapter in (("14", "100"), ("16", "7"), ("16", "8")):
        write_audio(root / f"dev-clean/{speaker}/{chapter}/{speaker}-{chapter}-0000.flac")
    (root / "SPEAKERS.TXT").write_text("; comment | x\n14   | F | dev-clean | 25.03 | A\n77 | M | test-other | 1 | B\n")
    source = LibriSpeech(str(root), subsets=["dev-clean"])
    assert [(r.id, r.speaker) for r in source.recordings(tmp_path)] == [
        ("14-100-0000", "14"), ("16-7-0000", "16"), ("16-8-0000", "16"),
    ]  # fmt: skip
    assert ids(LibriSpeech(str(tmp_path), ["dev-clean"], ["16"]), tmp_path) == ["16-7-0000", "16-8-0000"]
    with pytest.raises(UserError, match=r"unknown speaker 77; known: 14, 16; SPEAKERS.TXT: 77 is in test-other"):
        LibriSpeech(str(root), ["dev-clean"], [77]).recordings(tmp_path)
    with pytest.raises(UserError, match="no LibriSpeech subset train-clean-100"):
        LibriSpeech(str(root)).recordings(tmp_path)


def test_ljspeech(tmp_path):
    root = tmp_path / "LJSpeech-1.1"
    write_audio(root / "wavs/LJ001-0001.wav", rate=22050)
    (root / "metadata.csv").write_text('LJ001-0001|He said "a|b|c\n')
    assert ids(LJSpeech(str(root)), tmp_path) == ["LJ001-0001"]
    (root / "metadata.csv").write_text("LJ001-0001|a|a\nLJ001-0002|b|b\n")
    with pytest.raises(UserError, match=r"row 2 names LJ001-0002.*missing"):
        LJSpeech(str(root)).recordings(tmp_path)


PATTERN = r"(?P<velocity>[A-Za-z]+) (?P<note>[A-G]#?-?\d+)"


def test_clips_tags_from_names_whatever_the_case(tmp_path):
    for name in ("FF A#2.flac", "Mf B-1.flac", "MF C4.flac", "Mp D0.wav"):
        write_audio(tmp_path / "piano" / name)
    (tmp_path / "piano" / "readme.txt").write_text("x")
    found = Clips(str(tmp_path / "piano"), PATTERN).recordings(tmp_path)
    assert {r.id: r.tags for r in found} == {
        "FF A#2": ("velocity=FF", "note=A#2"), "MF C4": ("velocity=MF", "note=C4"),
        "Mf B-1": ("velocity=MF", "note=B-1"), "Mp D0": ("velocity=MP", "note=D0"),
    }  # fmt: skip
    write_audio(tmp_path / "piano" / "odd.wav")
    with pytest.raises(UserError, match=r"odd\.wav: the name does not match"):
        Clips(str(tmp_path / "piano"), PATTERN).recordings(tmp_path)
    assert len(Clips(str(tmp_path / "piano")).recordings(tmp_path)) == 5


def test_clips_tags_from_a_csv(tmp_path):
    write_audio(tmp_path / "c" / "x" / "one.wav")
    table = tmp_path / "c" / "tags.csv"
    table.write_text("file,tags,speaker\nx/one.wav,slow; piano,ann\n")
    (found,) = Clips(str(tmp_path / "c"), tags_csv="tags.csv").recordings(tmp_path)
    assert (found.id, found.tags, found.speaker) == ("x/one", ("slow", "piano"), "ann")
    table.write_text("file,tags\nx/two.wav,slow\n")
    with pytest.raises(UserError, match=r"tags\.csv row 2: x/two\.wav is missing"):
        Clips(str(tmp_path / "c"), tags_csv="tags.csv").recordings(tmp_path)
    table.write_text("name,tags\n")
    with pytest.raises(UserError, match="row 1 must name the columns"):
        Clips(str(tmp_path / "c"), tags_csv="tags.csv").recordings(tmp_path)
    with pytest.raises(UserError, match="not both"):
        Clips(str(tmp_path / "c"), PATTERN, "tags.csv").recordings(tmp_path)


def test_magnatagatune(tmp_path):
    root, rows = tmp_path / "mtat", []
    for number, folder in enumerate("0bcf"):
        path = write_audio(root / folder / f"clip-{number}.mp3", format="MP3")
        rows.append(
            [str(number), "1", "1" if number < 2 else "0", "1" if number == 3 else "0", f"{folder}/{path.name}"]
        )
    with (root / "annotations_final.csv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["clip_id", "guitar", "no voice", "slow", "mp3_path"], *rows])
    found = MagnaTagATune(str(root)).recordings(tmp_path)
    assert [(r.id, r.split) for r in found] == [
        ("0/clip-0", "train"), ("b/clip-1", "train"), ("c/clip-2", "val"), ("f/clip-3", "test"),
    ]  # fmt: skip
    assert found[0].tags == ("guitar", "no voice") and found[3].tags == ("guitar", "slow")
    assert MagnaTagATune(str(root), top_tags=2).recordings(tmp_path)[3].tags == ("guitar",)
    found[0].path.unlink()
    with pytest.raises(UserError, match=r"names 0/clip-0\.mp3, which is missing"):
        MagnaTagATune(str(root)).recordings(tmp_path)


@pytest.mark.parametrize("lower", [False, True])
def test_timit_in_either_case(tmp_path, lower):
    write_timit_sample(tmp_path / "TIMIT", num_utterances=1)
    if lower:
        for path in sorted((tmp_path / "TIMIT").rglob("*"), reverse=True):
            path.rename(path.with_name(path.name.lower()))
    found = TIMIT(str(tmp_path / "TIMIT")).recordings(tmp_path)
    assert {r.id: r.split for r in found} == {
        "fcjf0_sx1": "train", "mdac0_sx1": "train", "fdaw0_sx1": "train", "faks0_sx1": "val", "felc0_sx1": "test",
    }  # fmt: skip
    assert all(r.speaker is None for r in found)
    assert len(TIMIT(str(tmp_path / "TIMIT"), use_sa=True).recordings(tmp_path)) == 10


def test_timit_speaker_lists():
    assert len(CORE_TEST) == 24 and len(DEVELOPMENT) == 50 and not CORE_TEST & DEVELOPMENT
    # two men and one woman from each of eight dialect regions
    assert sum(name[0] == "m" for name in CORE_TEST) == 16


def test_the_vctk_sample_is_deterministic_and_differs_between_voices(tmp_path):
    for name in ("a", "b"):
        write_vctk_sample(tmp_path / name, num_speakers=2, num_utterances=2, seconds=0.5)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 2 * 2 * 2 + 1
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    source = SampleVCTK(str(tmp_path / "s"), num_speakers=2, num_utterances=2, seconds=0.5)
    audio = [source.read(r)[0] for r in source.recordings(tmp_path)]
    assert len(audio) == 4 and len({a.tobytes() for a in audio}) == 4 and all(abs(a).max() > 8000 for a in audio)
