"""Audio files in every state: exact, wrong rate, stereo, float, truncated, empty, no audio at all."""

import numpy as np
import pytest
import soundfile
from audio_files import ready, tone, write_audio

from quintet.common.errors import UserError
from quintet.data.audio.clips import Clips
from quintet.data.audio.decode import BadAudio, read_bytes, read_file, to_pcm16
from quintet.data.audio.load import load
from quintet.data.audio.recording import Recording


def decoded(path, rate=16000, resample=False):
    return load(Clips(str(path.parent)), Recording(path.stem, path), rate, resample)


@pytest.mark.parametrize(("name", "kwargs"), [("a.wav", {}), ("a.flac", {}), ("a.WAV", {"format": "NIST"})])
def test_16_bit_audio_is_read_exactly(tmp_path, name, kwargs):
    pcm = np.random.default_rng(0).integers(-32768, 32768, 500).astype(np.int16)
    soundfile.write(tmp_path / name, pcm, 16000, subtype="PCM_16", **kwargs)
    assert (decoded(tmp_path / name) == pcm).all()
    assert (read_bytes((tmp_path / name).read_bytes(), name)[0] == pcm).all()


def test_float_and_24_bit_files(tmp_path):
    for subtype in ("FLOAT", "PCM_24"):
        write_audio(tmp_path / f"{subtype}.wav", tone(), subtype=subtype)
        assert np.abs(decoded(tmp_path / f"{subtype}.wav") / 32768 - tone()).max() < 2e-5
    assert to_pcm16(np.array([1.0, -1.0, 2.0]), "x").tolist() == [32767, -32768, 32767]


def test_channels_are_averaged(tmp_path):
    write_audio(tmp_path / "stereo.wav", np.stack([np.full(50, 0.5), np.full(50, -0.25)], 1))
    assert np.abs(decoded(tmp_path / "stereo.wav") - 4096).max() <= 1


def test_mp3_is_read(tmp_path):
    write_audio(tmp_path / "a.mp3", tone(1.0), format="MP3")
    assert len(decoded(tmp_path / "a.mp3")) >= 16000


def test_another_rate_is_an_error_that_names_all(tmp_path):
    path = write_audio(tmp_path / "a.wav", rate=22050)
    with pytest.raises(UserError, match=r"a\.wav has 22050 Hz, data.sample_rate is 16000 Hz.*data\.resample=true"):
        decoded(path)


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_resampling_keeps_the_tone(tmp_path, rate):
    path = write_audio(tmp_path / "a.wav", tone(1.0, rate), rate=rate)
    pcm = decoded(path, resample=True)
    assert abs(len(pcm) - 16000) <= 1
    assert np.abs(pcm[2000:14000] / 32768 - tone(1.0)[2000:14000]).max() < 2e-3


def damage(path, kind):
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "garbage": b"\0" * 400, "empty": b""}[kind])


@pytest.mark.parametrize("kind", ["truncated", "garbage", "empty"])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "sphere.wav"])
def test_damaged_files_are_named(tmp_path, name, kind):
    path = write_audio(tmp_path / name, **{"format": "NIST"} if name == "sphere.wav" else {})
    assert len(read_file(path)[0]) == 3200
    damage(path, kind)
    with pytest.raises(BadAudio, match=rf"{path.name}.*on_bad_file=skip") as error:
        decoded(path)
    assert "\n" not in str(error.value)


def test_no_samples_and_not_a_number(tmp_path):
    write_audio(tmp_path / "none.wav", np.zeros(0, np.float32))
    write_audio(tmp_path / "nan.wav", np.array([0.0, np.nan], np.float32), subtype="FLOAT")
    for name, what in (("none", "no samples"), ("nan", "NaN")):
        with pytest.raises(BadAudio, match=rf"{name}\.wav holds {what}"):
            decoded(tmp_path / f"{name}.wav")


def test_bad_files_stop_or_are_counted(tmp_path, make):
    for number in range(6):
        write_audio(tmp_path / "clips" / f"{number}.wav")
    for number in (1, 4):
        damage(tmp_path / "clips" / f"{number}.wav", "truncated")
    with pytest.raises(BadAudio, match=r"1\.wav is truncated"):
        make(Clips(str(tmp_path / "clips"))).prepare_data()
    for _ in range(2):  # said again when everything comes from the cache
        module = make(Clips(str(tmp_path / "clips")), on_bad_file="skip")
        with pytest.warns(UserWarning, match=r"left out 2 of 6 files: .*1\.wav, .*4\.wav"):
            ready(module)
        assert sum(module.num_utterances(split) for split in ("train", "val", "test")) == 4


def test_nothing_left(tmp_path, make):
    damage(write_audio(tmp_path / "clips" / "a.wav"), "empty")
    with pytest.raises(UserError, match="none of the 1 files could be decoded"):
        make(Clips(str(tmp_path / "clips")), on_bad_file="skip").prepare_data()
