"""Load the compiled operator as LANDSCOPE_EXT says, and tell torch its shapes and its batching."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ext import build

MODES = ("off", "auto", "require")


@dataclass(frozen=True)
class Loaded:
    """What is in use."""

    devices: frozenset[str]
    """Device types that the compiled operator serves; empty: none."""
    status: str
    """One line."""


def load() -> Loaded:
    """Load what has been built, never build.

    LANDSCOPE_EXT=off takes the eager path, auto (the default) the compiled one where it is built, require insists.

    Raises:
        RuntimeError: The mode is unknown, or required kernels are not built or do not load.
    """
    mode = os.environ.get("LANDSCOPE_EXT") or "auto"
    if mode not in MODES:
        raise RuntimeError(f"LANDSCOPE_EXT is one of {', '.join(MODES)}, not {mode!r}.")
    if mode == "off":
        return Loaded(frozenset(), "eager (torch operations; LANDSCOPE_EXT=off)")
    wanted = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    devices = [device for device in wanted if build.library(device).is_file()]
    if "cpu" not in devices:  # it has the schemas
        if mode == "require":
            raise RuntimeError("LANDSCOPE_EXT=require, but the smoothing operator is not built: run `python -m ext`.")
        return Loaded(frozenset(), "eager (torch operations); `python -m ext` builds the fused one")
    try:
        for device in devices:
            torch.ops.load_library(build.library(device))
    except OSError as error:
        if mode == "require":
            raise RuntimeError(f"LANDSCOPE_EXT=require, but the smoothing operator does not load: {error}") from None
        return Loaded(frozenset(), f"eager (torch operations); the fused one does not load: {error}".splitlines()[0])
    missing = [device for device in wanted if device not in devices]
    note = "".join(f"; eager on {device}, `python -m ext` builds it" for device in missing)
    return Loaded(frozenset(devices), f"fused ({' and '.join(devices)}){note}")
