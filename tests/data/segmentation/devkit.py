"""Small data sets in the layouts of the official archives, with masks that a test can foretell."""

import numpy as np
from PIL import Image

from quintet.data.segmentation.labels import voc_colours


def labels_of(number, height=20, width=30, classes=4):
    """Blocks of classes that differ from image to image, and a border of 255."""
    rows, columns = np.mgrid[:height, :width]
    labels_hw = ((rows // 5 + columns // 6 + number) % classes).astype(np.uint8)
    labels_hw[0], labels_hw[:, -1] = 255, 255
    return labels_hw


def coloured(labels_hw):
    """A picture whose colour says the label: what a test of alignment reads it back from."""
    return np.stack([labels_hw * np.uint8(50), 255 - labels_hw * np.uint8(50), np.full_like(labels_hw, 9)], -1)


def write_picture(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path, **options)
    return path


def write_palette(path, labels_hw, colours=None):
    """An index PNG as VOC's are."""
    picture = Image.fromarray(labels_hw).convert("P")
    picture.putpalette((voc_colours() if colours is None else np.array(colours, np.uint8)).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def write_voc(root, train=5, val=3, year="2012", masks="SegmentationClass", lists="Segmentation", **sizes):
    """`root/VOCdevkit/VOC2012` with images 0, 1, ... of which the first `train` are for training."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    names = [f"{year}_{number:06d}" for number in range(train + val)]
    for number, name in enumerate(names):
        labels_hw = labels_of(number, **sizes)
        write_picture(folder / "JPEGImages" / f"{name}.jpg", coloured(labels_hw), quality=95)
        write_palette(folder / masks / f"{name}.png", labels_hw)
    for part, listed in (("train", names[:train]), ("val", names[train:])):
        write_lines(folder / "ImageSets" / lists / f"{part}.txt", listed)
    return folder


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
