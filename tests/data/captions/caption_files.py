"""Small captioned data sets in the layouts of the official archives, whose images tell their number."""

import json

import numpy as np
from PIL import Image

WORDS = ("dog", "cat", "horse", "bird", "fish")


def write_image(path, number, height=12, width=16):
    """One colour, the number in its green: read it back with `number_of`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:] = (200, number, 90)
    Image.fromarray(pixels).save(path.with_suffix(".png"))
    path.with_suffix(".png").rename(path)  # a PNG under a JPEG's name: exact colours
    return path


def number_of(image_chw):
    return round(float(image_chw[1].mean()) * 255)


def captions_of(number):
    """Five, of 2 to 6 words and a full stop."""
    animal = WORDS[number % len(WORDS)]
    return [" ".join(["A", animal, "runs", "in", "the", "garden"][: 2 + k]) + " ." for k in range(5)]


def write_flickr8k(root, train=12, val=3, test=4, captions=captions_of):
    """As unpacked: Flicker8k_Dataset/, Flickr8k.token.txt and the three lists."""
    lines, counts = [], {"trainImages": train, "devImages": val, "testImages": test}
    number = 0
    for kind, count in counts.items():
        names = []
        for _ in range(count):
            names.append(f"{number:04d}_ab.jpg")
            write_image(root / "Flicker8k_Dataset" / names[-1], number)
            lines += [f"{names[-1]}#{k}\t{text}" for k, text in enumerate(captions(number))]
            number += 1
        write_lines(root / f"Flickr_8k.{kind}.txt", names)
    write_lines(root / "Flickr8k.token.txt", lines)
    return root


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def content(tables):
    """split -> [(name, number that its picture shows, captions)]."""
    return {
        split: [
            (name, number_of(table.picture(i) / 255), list(table.texts[slice(*table.first_i[i : i + 2])]["text"]))
            for i, name in enumerate(table.names())
        ]
        for split, table in tables.items()
    }


def numbers(tables):
    return {split: [number for _, number, _ in rows] for split, rows in content(tables).items()}
