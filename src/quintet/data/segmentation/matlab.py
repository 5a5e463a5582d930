"""Masks that come as MATLAB files: SBD, PASCAL-Context and PASCAL-Part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quintet.common.errors import UserError

# The six parts of a person (Chen et al. 2016, "Attention to scale"), of PASCAL-Part's 24 names
PERSON_PARTS = {
    1: "head hair lear rear leye reye lebrow rebrow nose mouth",
    2: "torso neck",
    3: "luarm ruarm",
    4: "llarm rlarm lhand rhand",
    5: "luleg ruleg",
    6: "llleg rlleg lfoot rfoot",
}
PART_NUMBER = {name: number for number, names in PERSON_PARTS.items() for name in names.split()}


def read_mat(path: Path) -> NDArray:
    """(H, W) numbers; the name of the variable in the file tells which of the three sets it belongs to.

    Raises UserError naming a file that is missing, broken or of another set.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False)
    except FileNotFoundError as error:
        raise UserError(f"mask {path} is missing: it was there when the data set was read") from error
    except Exception as error:  # SciPy's reader raises whatever a broken byte leads to
        reason = " ".join(str(error).split())
        raise UserError(f"corrupt mask {path}: {reason}; replace it, or take it out of the list") from error
    known = [name for name in NUMBERS if name in content]
    if not known:
        names = ", ".join(name for name in content if not name.startswith("__"))
        raise UserError(f"mask {path} has no variable {' or '.join(NUMBERS)}, only {names or 'nothing'}")
    try:
        numbers_hw = NUMBERS[known[0]](content[known[0]])
    except (AttributeError, IndexError) as error:
        raise UserError(f"mask {path}: its {known[0]} is not made as in the official files ({error})") from error
    if numbers_hw.ndim != 2 or numbers_hw.dtype.kind not in "biuf":
        kind = f"{numbers_hw.dtype} of shape {numbers_hw.shape}"
        raise UserError(f"mask {path}: its {known[0]} is {kind}, not one number for each pixel")
    return numbers_hw


def person_parts(annotation: Any) -> NDArray[np.uint8]:
    """(H, W) 0..6 of one image of PASCAL-Part: the parts of all people in it, everything else 0."""
    objects = np.atleast_1d(annotation.objects)
    parts_hw = np.zeros(np.atleast_2d(objects[0].mask).shape, np.uint8)
    for item in objects:
        if getattr(item, "class") != "person":
            continue
        # the head holds hair, eyes and mouth; of different parts the later one hides the earlier one
        for part in np.atleast_1d(item.parts):
            if part.part_name in PART_NUMBER:
                parts_hw[np.atleast_2d(part.mask) > 0] = PART_NUMBER[part.part_name]
    return parts_hw


NUMBERS: dict[str, Callable[[Any], NDArray]] = {  # by the variable's name
    "LabelMap": np.atleast_2d,
    "GTcls": lambda variable: np.atleast_2d(variable.Segmentation),
    "anno": person_parts,
}
