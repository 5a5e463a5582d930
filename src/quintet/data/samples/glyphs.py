"""Printed letters of many scripts as if twenty people had drawn them, in Omniglot's layout: `data=glyphs_sample`."""

import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from quintet.common.errors import UserError
from quintet.data.episodes.omniglot import PARTS, SIDE, Omniglot
from quintet.data.store import build_once, digest

VERSION = 1  # raise when other files are written
# Letters of DejaVu Sans, which comes with matplotlib; none that looks like one of another script here.
ALPHABETS = {
    "background": {
        "Latin": "abcdefghijkmnqrstvwz",
        "Greek": "αβγδζηθλμξπρστφχψω",
        "Cyrillic": "бгджзийлфцчшщъыьэюя",
        "Armenian": "աբգդեզէըթժիլխծկձղճ",
        "Georgian": "აბგდევზთიკლმნოპჟრს",
        "Tifinagh": "ⴱⴳⴷⴹⴻⴼⴽⵀⵃⵄⵇⵉⵊⵎⵏⵓⵛⵜⵟⵡⵢⵣ",
        "Syllabics": "ᐁᐂᐃᐄᐅᐊᐯᐱᐳᐸᑌᑎᑐᑕᑫᑭᑯᑲ",
    },
    "evaluation": {
        "Hebrew": "אבגדהזחטכלמנעפצקרשת",
        "Lao": "ກຂຄງຈຊຍດຕຖທນບປຜຝພຟ",
        "N_Ko": "ߊߋߌߍߎߏߐߒߓߔߕߖߗߘߙߚߛߜߝߞ",
    },
}


def write_glyphs(folder: Path, characters: int, drawers: int) -> None:
    """`folder/images_background.zip` and `images_evaluation.zip` with the first `characters` of each alphabet."""
    number = 0
    for part in PARTS:
        with zipfile.ZipFile(folder / f"images_{part}.zip", "w") as bundle:
            for alphabet, letters in ALPHABETS[part].items():
                for position, letter in enumerate(letters[:characters], 1):
                    number += 1
                    for drawer in range(1, drawers + 1):
                        name = f"images_{part}/{alphabet}/character{position:02d}/{number:04d}_{drawer:02d}.png"
                        # a fixed date: the same file on every machine
                        bundle.writestr(zipfile.ZipInfo(name), draw(letter, (number, drawer)))


def draw(letter: str, key: tuple[int, int]) -> bytes:
    """One letter as a black-on-white 1-bit PNG of 105 x 105, turned, sheared, stretched and moved a little by `key`."""
    from PIL import Image, ImageDraw

    font = _font()
    picture = Image.new("L", (SIDE, SIDE), 255)
    left, top, right, bottom = font.getbbox(letter)
    corner = ((SIDE - left - right) / 2, (SIDE - top - bottom) / 2)
    ImageDraw.Draw(picture).text(corner, letter, fill=0, font=font)
    moved = picture.transform(picture.size, Image.Transform.AFFINE, warp(key), Image.Resampling.BILINEAR, fillcolor=255)
    file = io.BytesIO()
    moved.point(lambda grey: 255 * (grey > 127)).convert("1").save(file, "PNG")
    return file.getvalue()


@cache
def _font():
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 72)


def warp(key: tuple[int, int]) -> tuple[float, ...]:
    """Pillow's six affine numbers (output pixel -> input pixel) of a small random change about the middle."""
    random = np.random.default_rng([VERSION, *key])
    angle, shear = random.uniform(-0.25, 0.25), random.uniform(-0.25, 0.25)
    stretch_x, stretch_y = np.exp(random.uniform(-0.2, 0.2, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[stretch_x, shear], [0.0, stretch_y]])
    middle = np.full(2, SIDE / 2)
    shift = middle - matrix @ (middle + random.uniform(-8, 8, 2))
    return (*matrix[0], shift[0], *matrix[1], shift[1])


@dataclass
class SampleGlyphs(Omniglot):
    """Writes the zips under `root` on first use, then reads them as the official ones."""

    characters: int = 16
    drawers: int = 20

    name = "the glyph sample"

    def folder(self) -> Path:
        most = min(len(letters) for part in ALPHABETS.values() for letters in part.values())
        if not 1 <= self.characters <= most:
            raise UserError(f"data.source.characters={self.characters}: give 1 to {most} letters an alphabet")
        if not 2 <= self.drawers <= 99:
            raise UserError(f"data.source.drawers={self.drawers}: give 2 to 99")
        sizes = (self.characters, self.drawers)
        return build_once(Path(self.root) / digest(VERSION, *sizes), lambda folder: write_glyphs(folder, *sizes))
