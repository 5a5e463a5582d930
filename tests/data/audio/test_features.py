"""Frame alignment against labels written by hand, and what happens to wrong or missing labels."""

import json

import numpy as np
import pytest
from audio_files import ready, tone, write_audio

from quintet.common.errors import UserError
from quintet.data.audio.clips import Clips
from quintet.data.audio.features.alignment import phone_at, read_hts, read_phn, read_textgrid
from quintet.data.audio.features.linguistic import HTSLabels, TextGridLabels
from quintet.data.audio.features.mel import MelSpectrogram
from quintet.data.audio.features.pitch import fill_unvoiced, log_f0
from quintet.data.audio.phones import (
    TIMIT_39,
    TIMIT_61,
    TIMIT_61_TO_39,
    TextGridPhones,
    TimitPhones,
)

HOP = 80  # 5 ms at 16 kHz


def hts(*rows):
    return "".join(f"{start} {stop} {ll}^{left}-{c}+{r}={rr}@x_x/A:0\n" for start, stop, ll, left, c, r, rr in rows)


# 0-10 ms pau, 10-25 ms s, 25-30 ms ax
LAB = hts((0, 100000, "x", "x", "pau", "s", "ax"), (100000, 250000, "x", "pau", "s", "ax", "x"),
          (250000, 300000, "pau", "s", "ax", "x", "x"))  # fmt: skip


def textgrid(*rows, tier="phones"):
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "xmin = 0", "xmax = 1", "item []:"]
    words = [(0, 1, "words")]
    for number, (name, intervals) in enumerate((("words", words), (tier, rows)), 1):
        lines += [f"\titem [{number}]:", '\t\tclass = "IntervalTier"', f'\t\tname = "{name}"', "\t\txmin = 0.0"]
        for i, (start, stop, text) in enumerate(intervals, 1):
            lines += [f"\t\t\tintervals [{i}]:", f"\t\t\t\txmin = {start}", f"\t\t\t\txmax = {stop}"]
            lines += [f'\t\t\t\ttext = "{text}"']
    return "\n".join(lines)


@pytest.fixture
def clip(tmp_path):
    """One 32.5 ms clip (520 samples) `a` in `audio/`; labels go beside it."""
    write_audio(tmp_path / "audio" / "a.wav", tone(0.0325))
    return tmp_path / "audio"


def features_of(module, split="train"):
    return ready(module).utterance(split, 0)["local"]


def test_hts_frames_by_hand(clip, make):
    (clip / "lab").mkdir()
    (clip / "lab" / "a.lab").write_text(LAB)
    module = make(Clips(str(clip)), features=HTSLabels(phones=["pau", "s", "ax"]), val_fraction=0, test_fraction=0)
    local = features_of(module)
    assert module.data_info["local_channels"] == 17 and module.data_info["hop_length"] == HOP
    assert local.shape == (17, 7) and local.dtype == np.float32
    names = ["pau", "s", "ax"]
    ll, left, centre, right, rr = (local[3 * k : 3 * k + 3] for k in range(5))
    # frame f covers 5f .. 5f+5 ms, its middle is at 5f + 2.5 ms; frame 6 (32.5 ms) lies after the last phone
    assert [[names[i] for i in np.nonzero(column)[0]] for column in centre.T] == [
        ["pau"], ["pau"], ["s"], ["s"], ["s"], ["ax"], [],
    ]  # fmt: skip
    assert left[:, 0].sum() == 0 and left[:, 2].tolist() == [1, 0, 0] and ll[:, 5].tolist() == [1, 0, 0]
    assert right[:, 2].tolist() == [0, 0, 1] and right[:, 5].sum() == 0 and rr[:, 0].tolist() == [0, 0, 1]
    assert local[15, :6] == pytest.approx([0.25, 0.75, 2.5 / 15, 7.5 / 15, 12.5 / 15, 0.5], abs=1e-5)
    assert local[16, :6] == pytest.approx(np.log([0.1, 0.1, 0.15, 0.15, 0.15, 0.05]), abs=1e-5)
    assert (local[:, 6] == 0).all()


def test_label_offsets_shift_and_choose(tmp_path, make):
    for name in "abc":
        write_audio(tmp_path / "audio" / f"{name}.wav", tone(0.03))
        (tmp_path / "labels" / "lab").mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / "lab" / f"{name}.lab").write_text(LAB)
    table = {
        "a": {"label_minus_wav_offset_s": 0.01, "usable": True},
        "b": {"label_minus_wav_offset_s": 0, "usable": False},
    }
    (tmp_path / "labels" / "label_offsets.json").write_text(json.dumps(table))
    extractor = HTSLabels(root=str(tmp_path / "labels"), phones=["pau", "s", "ax"])
    module = make(Clips(str(tmp_path / "audio")), features=extractor, val_fraction=0, test_fraction=0)
    with pytest.warns(UserWarning, match=r"2 of 3 utterances have no usable labels and are left out: b, c"):
        local = features_of(module)
    assert module.num_utterances("train") == 1
    # the wav starts 10 ms into the labels: s from 0, ax from 15 ms, nothing from 20 ms
    assert local[6:9].T.argmax(1).tolist() == [1, 1, 1, 2, 0, 0] and local[6:9].sum(0).tolist() == [1, 1, 1, 1, 0, 0]


def test_textgrid_frames(clip, make):
    (clip / "TextGrid").mkdir()
    grid = textgrid((0, 0.01, ""), (0.01, 0.025, "IH1"), (0.025, 0.03, "sp"), (0.03, 0.0325, "N"))
    (clip / "TextGrid" / "a.TextGrid").write_text(grid)
    module = make(Clips(str(clip)), features=TextGridLabels(phones=["pau", "ih", "n"]), val_fraction=0, test_fraction=0)
    assert features_of(module)[6:9].T.argmax(1).tolist() == [0, 0, 1, 1, 1, 0, 0]
    frames = make(Clips(str(clip)), phones=TextGridPhones(frame=160), val_fraction=0, test_fraction=0)
    labels = ready(frames).utterance("train", 0)["phones"]  # middles at 5, 15, 25, 35 ms
    assert [frames.phones.inventory[i] for i in labels[:3]] == ["pau", "ih", "pau"] and labels[3] == -100


def test_timit_phones_61_and_39(tmp_path, make):
    folder = tmp_path / "audio"
    write_audio(folder / "a.wav", tone(0.06))
    (folder / "a.PHN").write_text("0 160 h#\n160 320 q\n320 480 ax-h\n480 640 zh\n640 800 tcl\n")
    for size, expected in ((61, ["h#", "q", "ax-h", "zh", "tcl", None]), (39, ["sil", None, "ah", "sh", "sil", None])):
        module = make(Clips(str(folder)), phones=TimitPhones(phone_set=size), val_fraction=0, test_fraction=0)
        labels = ready(module).utterance("train", 0)["phones"]
        assert [None if i == -100 else module.data_info["phones"][i] for i in labels] == expected
        assert module.train_set[0].phones.tolist() == labels[:5].tolist()
    (folder / "a.PHN").write_text("0 160 hash\n")
    with pytest.raises(UserError, match=r"a\.PHN: hash is not one of TIMIT's 61"):
        make(Clips(str(folder)), phones=TimitPhones()).prepare_data()


def test_timit_folding():
    assert len(TIMIT_61) == len(set(TIMIT_61)) == 61 and set(TIMIT_61_TO_39) == set(TIMIT_61)
    assert len(TIMIT_39) == 39 and TIMIT_61_TO_39["q"] is None
    pairs = {"ao": "aa", "ux": "uw", "nx": "n", "eng": "ng", "hv": "hh", "epi": "sil", "dx": "dx", "axr": "er"}
    assert all(TIMIT_61_TO_39[a] == b for a, b in pairs.items())
    assert all(TIMIT_61_TO_39[name] == name for name in TIMIT_39 if name != "sil")


def test_phone_borders_are_half_open(tmp_path):
    (tmp_path / "a.PHN").write_text("0 160 aa\n200 320 iy\n")
    phones = read_phn(tmp_path / "a.PHN")
    found = phone_at(phones, [0.0, 0.0099, 0.01, 0.0125, 0.0199, 0.02])
    assert [p and p.name for p in found] == ["aa", "aa", None, "iy", "iy", None]


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (read_hts, "0 100 x^x-pau+s=ax@1\nrubbish\n", "row 2: expected `start end LL"),
        (read_hts, hts((0, 200000, *"xxsxx"), (100000, 300000, *"xxsxx")), r"phone 2 \(s\) starts before"),
        (read_hts, "", "holds no phones"),
        (read_phn, "0 10\n", "row 1: expected `start end phone`"),
        (read_textgrid, textgrid((0, 1, "AA1"), tier="tones"), "no tier 'phones', only words, tones"),
        (read_textgrid, 'File type = "ooTextFile"\n0\n1\n<exists>', "none in the long format"),
    ],
)
def test_wrong_labels_name_file_and_row(tmp_path, reader, text, message):
    (tmp_path / "a.lab").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        reader(tmp_path / "a.lab")
    assert "a.lab" in str(error.value) and "\n" not in str(error.value)


def test_missing_labels(tmp_path, make):
    for name in "abcd":
        write_audio(tmp_path / "audio" / f"{name}.wav", tone(0.03))
    source = Clips(str(tmp_path / "audio"))
    with pytest.raises(UserError, match="no folder lab beside"):
        make(source, features=HTSLabels()).prepare_data()
    with pytest.raises(UserError, match=r"no label files at .*nowhere"):
        make(source, features=HTSLabels(root=str(tmp_path / "nowhere"))).prepare_data()
    (tmp_path / "audio" / "lab").mkdir()
    for name in "abc":
        (tmp_path / "audio" / "lab" / f"{name}.lab").write_text(LAB)
    with pytest.raises(UserError, match=r"1 utterances have no label file in .*, the first is d: .*on_missing=skip"):
        make(source, features=HTSLabels()).prepare_data()
    module = make(source, features=HTSLabels(on_missing="skip"), val_fraction=0.3, test_fraction=0.3)
    with pytest.warns(UserWarning, match="1 of 4 utterances .* left out: d"):
        ready(module)
    assert [module.num_utterances(split) for split in ("train", "val", "test")] == [1, 1, 1]
    with pytest.raises(UserError, match=r"phone ax, s is not in data.features.phones"):
        make(source, features=HTSLabels(on_missing="skip", phones=["pau"])).prepare_data()


def test_changed_labels_are_read_again(clip, make):
    (clip / "lab").mkdir()
    label = clip / "lab" / "a.lab"
    for first in ("pau", "sil"):  # a different file size and time
        label.write_text(LAB.replace("-pau+", f"-{first}+") if first == "pau" else LAB.replace("-pau+", "-s+"))
        module = make(Clips(str(clip)), features=HTSLabels(phones=["pau", "s", "ax"]), val_fraction=0, test_fraction=0)
        assert features_of(module)[6:9, 0].argmax() == (0 if first == "pau" else 1)


@pytest.mark.parametrize("samples", [1, 79, 80, 81, 1600, 1601])
def test_mel_has_a_frame_for_every_hop_and_silence_is_zero(samples):
    extractor = MelSpectrogram(n_mels=20, n_fft=256)
    silent = extractor.extract(None, np.zeros(samples, np.int16), 16000, None)
    assert silent.shape == (-(-samples // HOP), 20) and (silent == 0).all()


def test_mel_frame_is_centred_on_its_hop():
    """A click in the middle of hop 10 is loudest in frame 10, and as loud in 9 as in 11."""
    pcm = np.zeros(1600, np.int16)
    pcm[10 * HOP + HOP // 2] = 30000
    energy = MelSpectrogram(n_mels=20, n_fft=256).extract(None, pcm, 16000, None).mean(1)
    assert energy.argmax() == 10 and energy[9] == pytest.approx(energy[11], rel=1e-3) and energy[12] == 0


def test_frame_rate_must_fit_the_sample_rate(clip, make):
    with pytest.raises(UserError, match=r"frame_rate=200 does not divide data.sample_rate=22050"):
        make(Clips(str(clip)), features=MelSpectrogram(), sample_rate=22050, chunk_samples=441)


def test_log_f0_of_a_tone_and_of_silence():
    pcm = np.concatenate([tone(0.2, hertz=200.0), np.zeros(1600)])
    frames = log_f0((pcm * 32767).astype(np.int16), 16000, HOP, 60)
    assert frames.shape == (60, 2) and frames.dtype == np.float32
    assert frames[5:35, 0] == pytest.approx(np.log(2.0), abs=0.02) and (frames[5:35, 1] == 1).all()
    assert (frames[55:, 1] == 0).all() and frames[55:, 0] == pytest.approx(np.log(2.0), abs=0.05)


def test_unvoiced_frames_are_interpolated():
    f0 = np.array([np.nan, 100.0, np.nan, 400.0, np.nan])
    filled = fill_unvoiced(f0, np.array([False, True, False, True, False]))
    assert filled[:, 0] == pytest.approx([0, 0, np.log(2), np.log(4), np.log(4)])
    assert filled[:, 1].tolist() == [0, 1, 0, 1, 0]
    assert (fill_unvoiced(np.full(3, np.nan), np.zeros(3, bool)) == 0).all()
