"""Masks that come as MATLAB files: SBD, PASCAL-Context and PASCAL-Part."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quintet.errors import UserError

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
    """(H, W) numbers; which of the three sets it is is told by the variable inside.

    Errors: UserError naming a file that is missing, broken or of another set.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False)
    except FileNotFoundError as error:
        raise UserError(f"mask {path} is missing: it was there when the data set was read") from error
    except Exception as error:  # SciPy's reader raises whatever a broken byte leads to
        reason = " ".join(str(error).split())
        raise UserError(f"corrupt mask {path}: {reason}; replace it, or take it out of the list") from error
    if "LabelMap" in content:
        return np.atleast_2d(content["LabelMap"])
    if "GTcls" in content:
        return np.atleast_2d(content["GTcls"].Segmentation)
    if "anno" in content:
        return person_parts(content["anno"])
    names = ", ".join(name for name in content if not name.startswith("__"))
    raise UserError(f"mask {path} has no variable LabelMap, GTcls or anno, only {names or 'nothing'}")


def person_parts(annotation: Any) -> NDArray[np.uint8]:
    """(H, W) 0..6 of one image of PASCAL-Part: the parts of all people in it, everything else 0."""
    objects = np.atleast_1d(annotation.objects)
    parts_hw = np.zeros(np.atleast_2d(objects[0].mask).shape, np.uint8)
    for item in objects:
        if getattr(item, "class") != "person":
            continue
        # the head holds hair, eyes and mouth; of different parts the one that comes later lies on top
        for part in np.atleast_1d(item.parts):
            if part.part_name in PART_NUMBER:
                parts_hw[np.atleast_2d(part.mask) > 0] = PART_NUMBER[part.part_name]
    return parts_hw
