"""Whatever is typed or read: the right data, or one line that names what is wrong; never another exception or silence.

Few examples here, the same each time; `QUINTET_FUZZ=100 python -m pytest tests/test_fuzz.py` tries a hundred times as
many, and new ones.
"""

import io
import json
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import soundfile
import yaml
from fuzzing import few
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from quintet.common.errors import UserError
from quintet.data.audio.decode import read_bytes, read_file
from quintet.data.captions.coco import COCO
from quintet.data.captions.csv_folder import CaptionCSV
from quintet.data.captions.flickr8k import Flickr8k
from quintet.data.segmentation.labels import as_rgb, open_picture, plain_map, read_labels
from quintet.harness.config import compose, config
from quintet.harness.config.signature import signature_of
from quintet.harness.messages import user_message


def one_line(error: BaseException, *names: str) -> None:
    """The message that a user would see; anything that would be a traceback is raised."""
    message = user_message(error)
    if message is None:
        raise error
    assert message.strip() and "\n" not in message.strip(), message
    for name in names:
        assert name in message, (name, message)


# --- configurations ---------------------------------------------------------------------------------------------------

ODD = ["null", "true", "1", "-1", "1e400", ".nan", "''", "[]", "{}", "[1,[2]]", "{a: 1}", "x", "../x", "${name}", "${x",
       "${oc.env:HOME}", "a b", "ü", "\\$", "1,2", "range(3)",
       "{_target_: os.system}", "'", '"', "=", "???", "1_0"]  # fmt: skip
HEAD = ["", "+", "++", "~", "~~", "@", "-", "--"]


@cache
def known_keys() -> list[str]:
    """Every dotted key of a composed configuration, groups and parents included."""
    plain = yaml.safe_load(json.dumps(config.OmegaConf.to_container(composed([]), resolve=False)))

    def walk(node, path):
        for key, value in node.items():
            yield path + key
            if isinstance(value, dict):
                yield from walk(value, f"{path}{key}.")

    return sorted(
        {*walk(plain, ""), *compose.groups(), "hydra.run.dir", "hydra.sweeper", "hydra/launcher", "model@data"}
    )


def composed(overrides: list[str]):
    return compose.compose_checked("train", ["name=test", "run_dir=logs/test", "run_id=x", *overrides])


KEYS = st.one_of(
    st.deferred(lambda: st.sampled_from(known_keys())),
    st.deferred(lambda: st.sampled_from(known_keys()).map(lambda key: key + "x")),
    st.text("abcxyz._/@:", max_size=12),
)
VALUES = st.one_of(st.sampled_from(ODD), st.text(max_size=12), st.integers().map(str), st.floats().map(str))
OVERRIDE = st.one_of(
    st.tuples(st.sampled_from(HEAD), KEYS, st.just("="), VALUES).map("".join), st.tuples(KEYS).map("".join)
)


@few(60)
@given(overrides=st.lists(OVERRIDE, min_size=1, max_size=3))
@example(overrides=["model=null"])
@example(overrides=["data.source=1"])
@example(overrides=["~data"])
@example(overrides=["callbacks.best=true"])
@example(overrides=["logger.csv=_target_"])
def test_any_override_composes_or_is_one_line(overrides):
    try:
        cfg = composed(overrides)
        config.check(cfg, config.Origin(tuple(overrides)))
        config.OmegaConf.resolve(cfg)
        config.check(cfg, config.Origin(tuple(overrides)))
    except Exception as error:
        one_line(error)
        return
    assert signature_of(cfg.model._target_) and signature_of(cfg.data._target_)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("_target_"), inner),
    max_leaves=6,
)


@cache
def saved() -> dict:
    cfg = composed([])
    cfg.name = "test"
    return config.OmegaConf.to_container(cfg, resolve=True)


@few(40)
@given(data=st.data(), value=PLAIN)
def test_any_saved_configuration_is_taken_or_one_line(data, value, tmp_path):
    """A run's config.yaml with something else at one place."""
    content = json.loads(json.dumps(saved()))
    node, path = content, []
    while isinstance(node, dict) and node and (not path or data.draw(st.booleans())):
        path.append(data.draw(st.sampled_from(sorted(node))))
        parent, node = node, node[path[-1]]
    if data.draw(st.booleans()):
        parent[path[-1]] = value
    else:
        del parent[path[-1]]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    try:
        config.check(compose.saved_config(tmp_path), config.Origin())
    except Exception as error:
        one_line(error)


@few(40)
@given(raw=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(raw=b"? ")
@example(raw=b"a: {null: 1}")
def test_any_bytes_as_a_saved_configuration(raw, tmp_path):
    (tmp_path / "config.yaml").write_bytes(raw)
    with pytest.raises(UserError) as caught:
        config.check(compose.saved_config(tmp_path), config.Origin())
    one_line(caught.value)


# --- damaged files ----------------------------------------------------------------------------------------------------


def damaged(data, raw: bytes) -> bytes:
    """Cut off, with flipped bits, with bytes put in or taken out, or all of it random."""
    kind = data.draw(st.sampled_from(["cut", "flip", "insert", "drop", "random"]))
    at = data.draw(st.integers(0, len(raw) - 1))
    if kind == "cut":
        return raw[:at]
    if kind == "random":
        return data.draw(st.binary(max_size=200))
    if kind == "flip":
        changed = bytearray(raw)
        for _ in range(data.draw(st.integers(1, 4))):
            changed[data.draw(st.integers(0, min(len(raw) - 1, 60)) | st.integers(0, len(raw) - 1))] ^= 1 << data.draw(
                st.integers(0, 7)
            )
        return bytes(changed)
    extra = data.draw(st.binary(min_size=1, max_size=9))
    return raw[:at] + (extra if kind == "insert" else b"") + raw[at + (0 if kind == "insert" else len(extra)) :]


@cache
def sound(kind: str) -> bytes:
    file = io.BytesIO()
    audio = np.random.default_rng(0).integers(-9000, 9000, (300, 2 if kind == "WAV2" else 1)).astype(np.int16)
    name = kind if kind == "FLAC" else kind[:3]
    soundfile.write(file, audio, 8000, format=name, subtype="FLOAT" if kind == "WAVF" else None)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "WAV2", "WAVF", "FLAC", "OGG"])
@few(25)
@given(data=st.data())
def test_damaged_sound(kind, data, tmp_path):
    raw = damaged(data, sound(kind))
    path = tmp_path / "sound.wav"
    path.write_bytes(raw)
    found = []
    for read, name in ((lambda: read_file(path), str(path)), (lambda: read_bytes(raw, "cell 7"), "cell 7")):
        try:
            pcm, rate = read()
        except Exception as error:
            one_line(error, name)
            found.append(None)
            continue
        assert pcm.dtype == np.int16 and pcm.ndim in (1, 2) and rate > 0
        found.append(pcm.tobytes())
    assert found[0] == found[1]
    if len(raw) < len(sound(kind)) and raw == sound(kind)[: len(raw)]:
        assert found[0] is None, "a cut off file was taken for a whole one"


@pytest.mark.parametrize("kind", ["WAV", "WAV2", "WAVF", "FLAC", "OGG"])
def test_sound_cut_off_at_every_byte(kind):
    """Also in the middle of the last sample, which libsndfile passes over without a word."""
    whole = sound(kind)
    for size in range(len(whole)):
        with pytest.raises(UserError):
            read_bytes(whole[:size], "cell 7")


def test_a_header_of_more_samples_than_memory_holds():
    raw = bytearray(sound("FLAC"))
    raw[21] |= 0x0F  # the highest bits of 36 that count them
    with pytest.raises(UserError, match=r"cell 7 (cannot be decoded|is truncated)"):
        read_bytes(bytes(raw), "cell 7")


FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]


@cache
def picture(kind: str, mode: str) -> bytes | None:
    file = io.BytesIO()
    values = np.random.default_rng(1).integers(0, 3, (9, 11, 4), np.uint8)
    try:
        image = Image.fromarray(values)
        image = (
            Image.fromarray(values[..., 0].astype(np.uint16)) if mode == "I;16" else image.convert("RGB").convert(mode)
        )
        image.save(file, kind)
    except (OSError, ValueError):
        return None  # there is no such conversion, or this format has no such mode
    return file.getvalue()


@few(120)
@given(kind=st.sampled_from(FORMATS), mode=st.sampled_from(MODES), data=st.data(), whole=st.booleans())
def test_pictures_of_every_mode_whole_and_damaged(kind, mode, data, whole, tmp_path):
    raw = picture(kind, mode)
    assume(raw is not None)
    path = tmp_path / "picture.png"
    path.write_bytes(raw if whole else damaged(data, raw))
    try:
        rgb = np.array(as_rgb(open_picture(path), path))
    except Exception as error:
        one_line(error, str(path))
        if whole:  # only these have numbers that are no colours
            assert mode in ("F", "I", "I;16"), error
    else:
        assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size
        assert not whole or rgb.shape == (9, 11, 3)
    try:
        labels = read_labels(path, plain_map(["a", "b", "c"]))
    except Exception as error:
        one_line(error, str(path))
    else:
        assert labels.dtype == np.uint8 and set(np.unique(labels)) <= {0, 1, 2, 255}


# --- lists of captions ------------------------------------------------------------------------------------------------

LINE = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["0.jpg,a dog", "1.jpg,,", '"0.jpg', "0.jpg#0\ta dog", "1.jpg#1\t", "#0\tx", "0.jpg#x\ty", "2.jpg"]
    ),
)
END = st.sampled_from(["\n", "\r\n", "\r", ""])


@pytest.fixture
def folder(tmp_path):
    for number in range(2):
        Image.new("RGB", (5, 4), (number * 50, 0, 0)).save(tmp_path / f"{number}.jpg")
    return tmp_path


def read(source, folder, *names: str) -> None:
    """Captions with images that exist, or one line."""
    try:
        tables = source.splits(folder / "cache")
    except Exception as error:
        one_line(error)
        return
    for table in tables.values():
        assert len(table) and table.num_images
        for name, text in zip(table.names(), table.texts["text"], strict=False):
            assert name and text.strip()


@few(40)
@given(head=st.sampled_from(["image,caption", "image,caption,split", "image", "", "\ufeffimage,caption"]),
       lines=st.lists(st.tuples(LINE, END).map("".join), max_size=5), on_error=st.sampled_from(["fail", "skip"]),
       encoding=st.sampled_from(["utf-8", "utf-16", "latin-1"]))  # fmt: skip
def test_any_table_of_captions(folder, head, lines, on_error, encoding):
    (folder / "captions.csv").write_bytes((head + "\n" + "".join(lines)).encode(encoding, "replace"))
    read(CaptionCSV(str(folder), on_error=on_error, images="."), folder)


@few(40)
@given(lines=st.lists(st.tuples(LINE, END).map("".join), max_size=5), names=st.lists(LINE, max_size=3),
       on_error=st.sampled_from(["fail", "skip"]))  # fmt: skip
def test_any_token_file_of_flickr8k(folder, lines, names, on_error):
    good = [f"{n}.jpg#{k}\ta dog {k}\n" for n in range(2) for k in range(5)]
    (folder / "Flicker8k_Dataset").mkdir(exist_ok=True)
    for number in range(2):
        (folder / "Flicker8k_Dataset" / f"{number}.jpg").write_bytes((folder / f"{number}.jpg").read_bytes())
    (folder / "Flickr8k.token.txt").write_text("".join([*good, *lines]), encoding="utf-8", errors="replace")
    for split, listed in (("train", ["0.jpg", *names]), ("dev", ["1.jpg"]), ("test", [])):
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(listed), encoding="utf-8", errors="replace")
    read(Flickr8k(str(folder), on_error=on_error), folder)


@few(40)
@given(data=st.data(), on_error=st.sampled_from(["fail", "skip"]))
def test_any_annotations_of_coco(folder, data, on_error):
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(2)],
        "annotations": [{"id": n, "image_id": n % 2, "caption": f"a dog {n}"} for n in range(4)],
    }
    odd = st.none() | st.integers(-2, 5) | st.text(max_size=5) | st.floats() | st.sampled_from([[], {}, "../0.jpg"])
    for _ in range(data.draw(st.integers(0, 2))):
        part = data.draw(st.sampled_from(["images", "annotations"]))
        row = data.draw(st.sampled_from(range(2)))
        key = data.draw(st.sampled_from(["id", "file_name", "image_id", "caption"]))
        value = deepcopy(data.draw(odd))  # a mutable one may be drawn again, and end up in itself
        if isinstance(content[part], list) and row < len(content[part]) and isinstance(content[part][row], dict):
            content[part][row][key] = value
        if data.draw(st.integers(0, 9)) == 0:
            content[part] = value
        elif data.draw(st.integers(0, 9)) == 0 and isinstance(content[part], list) and row < len(content[part]):
            content[part][row] = value
    (folder / "annotations").mkdir(exist_ok=True)
    for split in ("train", "val"):
        (folder / f"{split}2014").mkdir(exist_ok=True)
        for number in range(2):
            (folder / f"{split}2014" / f"{number}.jpg").write_bytes((folder / f"{number}.jpg").read_bytes())
        path = folder / "annotations" / f"captions_{split}2014.json"
        raw = json.dumps(content)
        path.write_text(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.integers(0, 5)) == 0 else raw)
    read(COCO(str(folder), on_error=on_error, division="official"), folder)
