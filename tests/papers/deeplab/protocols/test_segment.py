"""Pictures of all kinds through `segment`, and what is written of them."""

import csv

import numpy as np
import pytest
from PIL import Image
from shapes import evaluated, loaded

from quintet.common.errors import UserError
from quintet.data.pictures import find_pictures, read_upright
from quintet.data.segmentation.labels import voc_colours
from quintet.papers.deeplab.crf.crf import CrfConfig, infer
from quintet.papers.deeplab.inference import Inference
from quintet.papers.deeplab.protocols.segment import shrunk


@pytest.fixture(scope="module")
def rgb(shapes_run):
    _, data = loaded(shapes_run)
    return data.raw("test", 1)[0]


def save(path, array, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).convert(mode).save(path, **options)
    return path


def labels_of(run, name):
    picture = Image.open(run / "eval" / "segment" / "labels" / f"{name}.png")
    assert picture.mode == "P"
    return np.array(picture)


def by_hand(run, image, crf=None):
    module, data = loaded(run)
    found = Inference(canvas=129, pad_colour=data.pad_colour).probabilities(module, image).numpy()
    return (found if crf is None else infer(found, image, crf)).argmax(0)


def test_labels_overlay_and_panel_of_a_picture(monkeypatch, shapes_run, tmp_path, rgb):
    path = save(tmp_path / "one.png", rgb)
    found = evaluated(monkeypatch, shapes_run, "segment", f"protocol.inputs={path}", "protocol.crf.sa=15",
                      "protocol.crf.sb=10")  # fmt: skip
    before, after = by_hand(shapes_run, rgb), by_hand(shapes_run, rgb, CrfConfig(sa=15, sb=10))
    labels = labels_of(shapes_run, "one")
    assert (labels == after).mean() > 0.998 and (labels != before).mean() > 0.005
    assert found["pixels_changed_by_crf"] == pytest.approx((before != after).mean(), abs=2e-3)
    overlay = np.array(Image.open(shapes_run / "eval" / "segment" / "overlays" / "one.png")).astype(float)
    np.testing.assert_array_equal(overlay[labels == 0], rgb[labels == 0])
    painted = 0.4 * rgb + 0.6 * voc_colours()[labels]
    assert abs(overlay - painted)[labels != 0].max() < 1
    with Image.open(shapes_run / "eval" / "segment" / "panels" / "one.png") as panel:
        assert panel.width > 2 * panel.height and len(np.unique(np.array(panel.convert("L")))) > 50
    with (shapes_run / "eval" / "segment" / "classes.csv").open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert float(rows["background"]["share"]) == pytest.approx((labels == 0).mean(), rel=1e-4)
    assert float(rows["background"]["share_before_crf"]) == pytest.approx((before == 0).mean(), rel=1e-4)


def test_a_folder_of_all_kinds(monkeypatch, shapes_run, tmp_path, rgb, capsys):
    """Broken pictures are named, the others are written, and the exit says so."""
    save(tmp_path / "grey.png", rgb, "L")
    save(tmp_path / "cmyk.jpg", rgb, "CMYK")
    alpha = np.dstack([rgb, np.where(np.arange(129) < 60, 0, 255)[None].repeat(97, 0).astype(np.uint8)])
    save(tmp_path / "alpha.png", alpha, "RGBA")
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    turned = Image.fromarray(rgb)
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn clockwise
    turned.save(tmp_path / "phone.jpg", exif=exif, quality=95)
    save(tmp_path / "thin.png", rgb[:, :1])
    save(tmp_path / "flat.png", rgb[:1])
    save(tmp_path / "dot.png", rgb[:1, :1])
    save(tmp_path / "inner" / "grey.png", rgb)
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "cmyk.jpg").read_bytes()[:900])
    (tmp_path / "none.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("not looked at")
    with pytest.raises(SystemExit) as ended:
        evaluated(monkeypatch, shapes_run, "segment", f"protocol.inputs={tmp_path}", "protocol.crf=null")
    assert ended.value.code == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: 2 of 11 pictures were left out")
    assert f"corrupt image {tmp_path}/broken.jpg" in line and f"corrupt image {tmp_path}/none.png" in line
    upright = np.rot90(rgb, -1)
    sizes = {"grey": (97, 129), "cmyk": (97, 129), "alpha": (97, 129), "deep": (97, 129), "phone": upright.shape[:2],
             "thin": (97, 1), "flat": (1, 129), "dot": (1, 1), "inner_grey": (97, 129)}  # fmt: skip
    for name, size in sizes.items():
        assert labels_of(shapes_run, name).shape == size
        assert (shapes_run / "eval" / "segment" / "panels" / f"{name}.png").stat().st_size > 1000
    np.testing.assert_array_equal(labels_of(shapes_run, "inner_grey"), by_hand(shapes_run, rgb))
    grey = np.array(Image.fromarray(rgb).convert("L"))[..., None].repeat(3, 2)
    np.testing.assert_array_equal(labels_of(shapes_run, "grey"), by_hand(shapes_run, grey))
    on_white = rgb.copy()
    on_white[:, :60] = 255
    np.testing.assert_array_equal(labels_of(shapes_run, "alpha"), by_hand(shapes_run, on_white))
    red = rgb[..., :1].repeat(3, 2)
    np.testing.assert_array_equal(labels_of(shapes_run, "deep"), by_hand(shapes_run, red))
    assert (labels_of(shapes_run, "phone") == by_hand(shapes_run, np.ascontiguousarray(upright))).mean() > 0.9


def test_large_pictures_are_shrunk_and_written_at_their_own_size(monkeypatch, shapes_run, tmp_path, rgb):
    large = np.array(Image.fromarray(rgb).resize((258, 194)))
    path = save(tmp_path / "large.png", large)
    arguments = [f"protocol.inputs={path}", "protocol.crf=null"]
    evaluated(monkeypatch, shapes_run, "segment", *arguments, "protocol.max_side=129")
    small = np.array(Image.fromarray(large).resize((129, 97), Image.Resampling.BILINEAR))
    wanted = by_hand(shapes_run, small).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(labels_of(shapes_run, "large"), wanted)
    evaluated(monkeypatch, shapes_run, "segment", *arguments)
    np.testing.assert_array_equal(labels_of(shapes_run, "large"), by_hand(shapes_run, large))
    assert shrunk(np.zeros((1, 5000, 3), np.uint8), 100).shape == (1, 100, 3)


def test_the_split_itself_with_its_truth(monkeypatch, shapes_run):
    found = evaluated(monkeypatch, shapes_run, "segment", "protocol.count=2", "protocol.crf=null")
    assert found["images"] == 2 and found["pixels_changed_by_crf"] == 0


def test_names_do_not_collide(tmp_path, rgb):
    for name in ("a.jpg", "a.png", "sub/b.png", "sub/c/b.png"):
        save(tmp_path / name, rgb)
    assert set(find_pictures([str(tmp_path)])) == {"a_jpg", "a_png", "sub_b", "sub_c_b"}
    with pytest.raises(UserError, match="two pictures would both be written as b_png"):
        find_pictures([str(tmp_path / "sub" / "b.png"), str(tmp_path / "sub" / "c" / "b.png")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no picture with one of the endings"):
        find_pictures([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="there is no such image or folder"):
        find_pictures([str(tmp_path / "nowhere")])


def test_pictures_are_read_upright(tmp_path, rgb):
    for tag, turned in ((3, np.rot90(rgb, 2)), (6, np.rot90(rgb, -1)), (8, np.rot90(rgb)), (2, rgb[:, ::-1])):
        picture = Image.fromarray(rgb)
        exif = picture.getexif()
        exif[0x0112] = tag
        picture.save(tmp_path / "turned.png", exif=exif)
        np.testing.assert_array_equal(read_upright(tmp_path / "turned.png"), turned)
