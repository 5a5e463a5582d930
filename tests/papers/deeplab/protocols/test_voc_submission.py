"""The archive for VOC's server: names, kind of the pictures, and the numbers of what it holds."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from shapes import evaluated, loaded

from quintet.common.errors import UserError
from quintet.data.segmentation.labels import voc_colours
from quintet.papers.deeplab.inference import Inference
from quintet.papers.deeplab.protocols import voc_submission


def read(archive):
    with tarfile.open(archive) as bundle:
        return {m.name: bundle.extractfile(m).read() for m in bundle if m.isfile()}


def test_the_archive_holds_every_image_as_the_server_reads_it(monkeypatch, shapes_run):
    arguments = ["protocol.crf=null", "protocol.flip=true"]
    found = evaluated(monkeypatch, shapes_run, "voc_submission", *arguments)
    scores = evaluated(monkeypatch, shapes_run, "multiscale", *arguments)
    files = read(shapes_run / "eval" / "voc_submission" / "comp6_val_cls.tar.gz")
    module, data = loaded(shapes_run)
    names = data.names("test")
    assert sorted(files) == [f"results/VOC2012/Segmentation/comp6_val_cls/{name}.png" for name in sorted(names)]
    for index, name in enumerate(names):
        image, *_ = data.raw("test", index)
        picture = Image.open(io.BytesIO(files[f"results/VOC2012/Segmentation/comp6_val_cls/{name}.png"]))
        assert picture.format == "PNG" and picture.mode == "P"
        inference = Inference(canvas=129, pad_colour=data.pad_colour, flip=True)
        np.testing.assert_array_equal(np.array(picture), inference.probabilities(module, image).argmax(0))
        palette = np.array(picture.getpalette("RGB")).reshape(-1, 3)
        np.testing.assert_array_equal(palette, voc_colours()[: len(palette)])
    for key in ("miou", "accuracy", "miou_chosen", "images"):
        assert found[key] == scores[key]


def test_images_without_public_labels(monkeypatch, shapes_run):
    """VOC's own test list: no scores, all files, under the list's name."""
    real = voc_submission.VocSubmission.maps
    monkeypatch.setattr(
        voc_submission.VocSubmission,
        "maps",
        lambda *given: (one._replace(labels_hw=None) for one in real(*given)),
    )
    found = evaluated(monkeypatch, shapes_run, "voc_submission", "protocol.crf=null", "protocol.competition=comp5")
    assert found["images"] == 4 and not any("iou" in key for key in found)
    assert len(read(shapes_run / "eval" / "voc_submission" / "comp5_val_cls.tar.gz")) == 4


def test_the_server_wants_all_images_and_its_own_classes(monkeypatch, shapes_run, caplog):
    evaluated(monkeypatch, shapes_run, "voc_submission", "protocol.crf=null", "protocol.count=3")
    assert "3 of 4 images; the server wants all" in caplog.text and "VOC's 21 classes" in caplog.text
    files = read(shapes_run / "eval" / "voc_submission" / "comp6_val_cls.tar.gz")
    assert len(files) == 3  # nothing is left of an earlier call


def test_an_archive_that_differs_is_refused(monkeypatch, shapes_run, capsys):
    real = voc_submission.read_archive

    def altered(archive):
        for name, labels in real(archive):
            labels[0, 0] += 1
            yield name, labels

    monkeypatch.setattr(voc_submission, "read_archive", altered)
    with pytest.raises(SystemExit):
        evaluated(monkeypatch, shapes_run, "voc_submission", "protocol.crf=null")
    assert "does not hold what was predicted" in capsys.readouterr().err


def test_pictures_of_another_kind_are_refused(tmp_path):
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as bundle:
        bundle.add(tmp_path / "a.png", "a.png")
    with pytest.raises(UserError, match=r"a\.png is not a PNG with a palette"):
        list(voc_submission.read_archive(tmp_path / "a.tar.gz"))


def test_the_competition_is_one_of_two(monkeypatch, shapes_run, capsys):
    with pytest.raises(SystemExit):
        evaluated(monkeypatch, shapes_run, "voc_submission", "protocol.competition=comp7")
    assert "protocol.competition=comp7: choose comp5 or comp6" in capsys.readouterr().err
