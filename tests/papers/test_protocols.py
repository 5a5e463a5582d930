"""Every protocol on a tiny model and tones: files, numbers that a hand calculation knows, refusals."""

import csv
from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from tones import CHANNELS, HOP, TINY, ToneData, fitted

from quintet.common.errors import UserError
from quintet.data.audio.datamodule import AudioDataModule
from quintet.data.audio.features.linguistic import HTSLabels
from quintet.data.audio.features.mel import MelSpectrogram
from quintet.data.samples.vctk import SampleVCTK
from quintet.harness.run.test import Test
from quintet.metrics.audio import NATS_PER_BIT
from quintet.papers.wavenet.module import WaveNetModule
from quintet.papers.wavenet.protocols.copy_synthesis import (
    CopySynthesis,
    log_spectral_distance,
    mel_cepstral_distortion,
)
from quintet.papers.wavenet.protocols.generate import Generate, features_of, read_wav
from quintet.papers.wavenet.protocols.phones import Phones, training_counts, viterbi
from quintet.papers.wavenet.protocols.speaker_swap import SpeakerSwap


def test_the_default_protocol_adds_nothing(trained, tones, tmp_path):
    assert Test()(trained, tones, tmp_path) == {}


def test_generate_writes_sound_and_pictures(trained, tones, tmp_path):
    result = Generate(seconds=0.02, speaker="high", count=2, backend="eager")(trained, tones, tmp_path)
    files = sorted(path.name for path in (tmp_path / "generate").iterdir())
    assert files == ["high_0.png", "high_0.wav", "high_1.png", "high_1.wav"]
    info = soundfile.info(tmp_path / "generate" / "high_0.wav")
    assert (info.frames, info.samplerate, info.subtype) == (320, 16000, "PCM_16")
    assert result["generate/seconds_of_audio"] == pytest.approx(0.04)
    assert result["generate/samples_per_second"] > 0


def test_generate_is_reproducible_and_continues_a_prompt(trained, tones, tmp_path):
    prompt = tmp_path / "prompt.wav"
    soundfile.write(prompt, tones.utterance("test", 0)["pcm"], 16000)
    options = {"seconds": 0.01, "speaker": "low", "prompt": str(prompt), "backend": "eager"}
    for folder in ("a", "b"):
        Generate(**options, seed=3)(trained, tones, tmp_path / folder)
    Generate(**options, seed=4)(trained, tones, tmp_path / "c")
    a, b, c = (soundfile.read(tmp_path / f / "generate" / "low_0.wav")[0] for f in "abc")
    both = soundfile.read(tmp_path / "a" / "generate" / "low_0_with_prompt.wav")[0]
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert len(both) == 640 + 160 and np.array_equal(both[640:], a)


def test_prompt_of_another_rate_is_refused_unless_resampling_is_asked_for(tmp_path):
    path = tmp_path / "slow.wav"
    soundfile.write(path, np.zeros(800), 8000)
    with pytest.raises(UserError, match=r"8000 Hz, but the model 16000 Hz: add protocol\.resample=true"):
        read_wav(str(path), 16000, False, "protocol.prompt")
    assert len(read_wav(str(path), 16000, True, "protocol.prompt")) == 1600
    with pytest.raises(UserError, match="no such file"):
        read_wav(str(tmp_path / "none.wav"), 16000, False, "protocol.prompt")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match="cannot be read as audio"):
        read_wav(str(tmp_path / "broken.wav"), 16000, False, "protocol.prompt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speaker": "p999"}, "protocol.speaker=p999 is unknown to this model: choose of low, high"),
        ({"tags": ["piano"]}, "this model has no tags"),
        ({"condition_on": "x.wav"}, "no local conditioning"),
        ({"prompt": "missing.wav"}, "no such file"),
    ],
)
def test_generate_refuses_what_the_model_cannot_do(trained, tones, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        Generate(seconds=0.01, **options)(trained, tones, tmp_path)
    assert not (tmp_path / "generate").exists()


def test_generate_refuses_no_time_and_cold_temperatures():
    with pytest.raises(UserError, match=r"protocol\.seconds"):
        Generate(seconds=0)
    with pytest.raises(UserError, match=r"protocol\.temperature"):
        Generate(temperature=-1)


def test_copy_synthesis(tmp_path):
    data = ToneData(local=True)
    module = WaveNetModule(TINY | {"local_channels_hidden": 4}, {}, data.data_info)
    result = CopySynthesis(count=2, seconds=0.03, backend="eager")(module, data, tmp_path)
    rows = list(csv.reader((tmp_path / "copy_synthesis" / "distances.csv").open()))
    assert len(rows) == 3 and {row[0] for row in rows[1:]} == {"tone_0", "tone_1"}
    mean = np.mean([float(row[1]) for row in rows[1:]])
    assert result["copy/log_spectral_distance_db"] == pytest.approx(mean, rel=1e-4)
    assert soundfile.info(tmp_path / "copy_synthesis" / "0_copy.wav").frames == 480
    with pytest.raises(UserError, match="local conditioning"):
        CopySynthesis()(WaveNetModule(TINY, {}, ToneData().data_info), ToneData(), tmp_path)


def test_generate_conditions_on_another_recording(tmp_path):
    data, path = ToneData(local=True), tmp_path / "other.wav"
    data.features, data.cache_dir = MelSpectrogram(n_mels=CHANNELS, n_fft=256, f_max=4000.0), tmp_path
    soundfile.write(path, data.utterance("test", 0)["pcm"], 16000)
    features = features_of(str(path), WaveNetModule(TINY, {}, data.data_info), data, False)
    assert features.shape == (CHANNELS, 640 // HOP)
    module = WaveNetModule(TINY | {"local_channels_hidden": 4}, {}, data.data_info)
    result = Generate(seconds=9, condition_on=str(path), backend="eager")(module, data, tmp_path)
    assert result["generate/seconds_of_audio"] == pytest.approx(640 / 16000)  # the features end there


def test_condition_on_finds_the_labels_of_a_file_of_the_set_and_of_any_other(tmp_path):
    source = SampleVCTK(str(tmp_path / "vctk"), num_speakers=1, num_utterances=3, seconds=0.3, sample_rate=16000)
    data = AudioDataModule(source, 16000, 800, 1, str(tmp_path), features=HTSLabels(), context=10)
    data.setup()
    module = SimpleNamespace(data_info=data.data_info)
    wanted = data.utterance("test", 0)
    recording = next(r for r in source.recordings(tmp_path) if r.id == wanted["id"])
    assert recording.path.stem != recording.id  # p225_003_mic1.flac against p225_003.lab
    assert np.array_equal(features_of(str(recording.path), module, data, False), wanted["local"])
    data.features.root = str(next(tmp_path.rglob("lab")))
    other = tmp_path / f"{recording.id}.wav"  # outside the set, named as its label file
    soundfile.write(other, wanted["pcm"], 16000)
    assert np.array_equal(features_of(str(other), module, data, False), wanted["local"])
    with pytest.raises(UserError, match=r"no label file in .*, the first is unknown"):
        features_of(str(other.rename(tmp_path / "unknown.wav")), module, data, False)


def test_distances_know_level_and_identity():
    wave = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    assert log_spectral_distance(wave, wave) == 0.0
    # Half the amplitude is 6.02 dB at every frequency; the cepstrum without coefficient 0 does not see it.
    assert log_spectral_distance(wave, wave / 2, floor_db=-200) == pytest.approx(20 * np.log10(2), rel=1e-3)
    assert mel_cepstral_distortion(wave, wave / 2, 16000) == pytest.approx(0.0, abs=0.05)
    assert mel_cepstral_distortion(wave, np.cumsum(wave) / 10, 16000) > 5


def test_speaker_swap(trained, tones, tmp_path):
    result = SpeakerSwap()(trained, tones, tmp_path)
    right = [trained.example_losses(b).mean().item() / NATS_PER_BIT for b in tones.test_dataloader()]
    swapped = [b._replace(speaker=1 - b.speaker) for b in tones.test_dataloader()]
    wrong = [trained.example_losses(b).mean().item() / NATS_PER_BIT for b in swapped]
    assert result["swap/bits_right_speaker"] == pytest.approx(np.mean(right), rel=1e-5)
    assert result["swap/bits_wrong_speaker"] == pytest.approx(np.mean(wrong), rel=1e-5)
    assert result["swap/right_beats_every_wrong"] == np.mean(np.less(right, wrong)) == 1.0
    rows = list(csv.reader((tmp_path / "speaker_swap" / "bits_by_true_and_given_speaker.csv").open()))
    assert rows[0] == ["true_speaker", "low", "high"] and float(rows[1][1]) < float(rows[1][2])
    assert (tmp_path / "speaker_swap" / "swap.png").stat().st_size > 1000
    with pytest.raises(UserError, match="at least two speakers"):
        SpeakerSwap()(WaveNetModule(TINY, {}, ToneData(speakers=0).data_info), ToneData(speakers=0), tmp_path)


def test_phones(tmp_path, monkeypatch):
    data = ToneData(phones=True)
    recognition = {"channels": 4, "layers": 1, "frame": 160}
    module = WaveNetModule(TINY | {"recognition": recognition}, {}, data.data_info).eval()
    # Every frame is recognised as sil.
    monkeypatch.setattr(module, "forward", lambda batch: (None, torch.tensor([[[1.0], [0.0]]]).expand(2, 2, 2)))
    result = Phones()(module, data, tmp_path)
    assert result["phones/frame_accuracy"] == 0.5
    assert result["phones/frames"] == 6 * 4
    # sil aa sil aa recognised as sil: three deletions of four.
    assert result["phones/phone_error_rate_without_bigram"] == pytest.approx(0.75)
    rows = list(csv.reader((tmp_path / "phones" / "phones.csv").open()))
    assert rows[1:] == [["sil", "12", "1"], ["aa", "12", "0"]]
    with pytest.raises(UserError, match="recognition"):
        Phones()(WaveNetModule(TINY, {}, ToneData().data_info), ToneData(), tmp_path)


def test_majority_class_and_bigram_come_from_training_labels():
    data = ToneData(phones=True)
    labels = {"train": [-100, -100, -100, 1, 1, 0], "test": [0, 0, 0, 0, 0, 0]}
    data.utterance = lambda split, index: {"phones": np.array(labels[split])}
    counts_p, transitions_pp = training_counts(data, 2)
    count = data.num_utterances("train")
    assert counts_p.tolist() == [count, 2 * count] and transitions_pp.tolist() == [[0, 0], [count, count]]


def test_viterbi_is_the_best_of_all_paths():
    rng = np.random.default_rng(0)
    for _ in range(20):
        log_posterior_fp = np.log(rng.dirichlet(np.ones(3), size=5))
        counts_p, transitions_pp = rng.integers(0, 9, 3), rng.integers(0, 9, (3, 3))
        prior_p = (counts_p + 1) / (counts_p + 1).sum()
        next_pp = (transitions_pp + 1) / (transitions_pp + 1).sum(1, keepdims=True)

        def score(path, log_fp=log_posterior_fp, prior_p=prior_p, next_pp=next_pp):
            seen = sum(log_fp[f, p] - np.log(prior_p[p]) for f, p in enumerate(path))
            return np.log(prior_p[path[0]]) + seen + sum(np.log(next_pp[a, b]) for a, b in pairwise(path))

        best = max(product(range(3), repeat=5), key=score)
        assert viterbi(log_posterior_fp, counts_p, transitions_pp).tolist() == list(best)


def test_viterbi_passes_over_a_single_odd_frame():
    log_posterior_fp = np.log([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.9, 0.1], [0.9, 0.1]])
    assert viterbi(log_posterior_fp, np.array([50, 50]), np.array([[45, 5], [5, 45]])).tolist() == [0] * 5


def test_recogniser_learns_the_frames(tmp_path):
    data = ToneData(phones=True)
    network = TINY | {"recognition": {"channels": 8, "layers": 1, "frame": 160}}
    module = fitted(WaveNetModule(network, {}, data.data_info), data, 60)
    result = Phones()(module, data, tmp_path)
    assert result["phones/frame_accuracy"] > result["phones/majority_frame_accuracy"] == 0.5


def test_media_writes_sound_and_pictures(trained, tones, tmp_path):
    paths = trained.make_media(tones, tmp_path)
    wavs = [soundfile.info(path) for path in paths if path.suffix == ".wav"]
    assert sorted(path.suffix for path in paths) == [".png", ".png", ".wav", ".wav", ".wav", ".wav"]
    assert all((info.subtype, info.frames, info.samplerate) == ("PCM_16", 320, 16000) for info in wavs)
