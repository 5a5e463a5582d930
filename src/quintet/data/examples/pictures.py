"""Any picture file as RGB bytes of one size."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")


def read_picture(data: bytes, where: str, size: int, mode: str = "RGB") -> NDArray[np.uint8]:
    """(3, size, size), or (1, size, size) as mode L: the shorter side resized to `size`, then the middle cut out.

    Raises UserError naming `where` for bytes that are no whole picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
        rgb = to_rgb(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"corrupt image {where}: {reason}; replace or delete it") from error
    pixels = np.asarray(crop(rgb.convert(mode), size)).reshape(size, size, -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def to_rgb(picture: Any) -> Any:
    """Grey and CMYK converted, 16 bits brought down to 8, transparent parts laid on white.

    Errors: ValueError for 32 bits or floating point, which nobody knows the black and the white of.
    """
    from PIL import Image

    if picture.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion cuts everything above 255 off
        levels = np.asarray(picture).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"levels from {levels.min()} to {levels.max()}: save it with 8 or 16 bits")
        return Image.fromarray((levels // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("floating-point levels: save it with 8 or 16 bits")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def crop(picture: Any, size: int) -> Any:
    """torchvision's Resize and CenterCrop to the pixel, bilinear with the support of an area."""
    from PIL import Image

    short = min(picture.size)
    if short != size:
        sides = tuple(max(size, int(side * size / short)) for side in picture.size)
        picture = picture.resize(sides, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in picture.size)
    return picture.crop((left, top, left + size, top + size))
