"""What a long computation leaves beside its run file in order to go on from: arrays that are gone when it is done."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_cache.files import written_whole


class Scratch:
    """One set of arrays in a file of their own, written whole: for states too large for each save of a run file.

    Args:
        path: The file; None keeps nothing.
        about: What the arrays depend on, as JSON can hold it. Those left by anything else are not loaded.
    """

    def __init__(self, path: Path | None = None, about: Any = None):
        self.path = path
        self._about = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()

    def load(self) -> dict[str, np.ndarray] | None:
        """The arrays that were saved last; None if there are none, or none that can be used."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                arrays = dict(stored)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None
        return arrays if str(arrays.pop("about", "")) == self._about else None

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace what is there."""
        if self.path is not None:
            with written_whole(self.path) as temporary, open(temporary, "wb") as file:
                np.savez(file, about=np.array(self._about), **arrays)  # type: ignore[arg-type]

    def clear(self) -> None:
        """Remove the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
