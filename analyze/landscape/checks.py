"""What files of strangers may hold that is no landscape. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from data_cache.errors import InputError

if TYPE_CHECKING:
    from analyze.landscape.spec import Result


def check_arrays(result: Result) -> None:
    """Refuse arrays that are no landscape, though their shapes fit.

    Raises:
        InputError: Text for numbers, an axis that does not ascend, no frames, or counts that are none.
    """
    for field in fields(result):
        value = getattr(result, field.name)
        kinds = "iu" if field.name in ("frame", "status") else "iuf"
        if isinstance(value, np.ndarray) and value.dtype.kind not in kinds:
            raise InputError(f"the landscape holds {field.name} in {value.dtype}; the file is damaged.")
    for name in ("x", "y"):
        axis = getattr(result, name)
        if not (len(axis) and np.isfinite(axis).all() and (axis[1:] > axis[:-1]).all()):
            raise InputError(
                f"the landscape's {name} must be finite numbers, each above the last; the file is damaged."
            )
    if not len(result.frame):
        raise InputError("the landscape holds no frames; the file is damaged.")
    if not (np.isfinite(result.count).all() and (result.count >= 0).all()):
        raise InputError("the landscape holds counts of images that are no counts; the file is damaged.")
    if result.prescan is not None and not len(result.prescan.radius):
        raise InputError("the landscape's pre-scan holds no points; the file is damaged.")


def check_subject(subject: Mapping[str, Any]) -> None:
    """Refuse what says of what a landscape is in other words than figures and tables read; nothing at all is fine.

    Raises:
        InputError: Something is missing, or of another type.
    """
    wanted: dict[str, Any] = {"checkpoint": str, "model": str, "data": str, "images": int, "weight_decay": int | float}
    for name, kind in wanted.items():
        if subject and not isinstance(subject.get(name), kind):
            found = repr(subject[name]) if name in subject else "missing"
            raise InputError(f"the landscape does not say what it is of: {name} is {found}.")
