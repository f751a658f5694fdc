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
    failures = {}
    for device in wanted:
        if "cpu" not in failures:  # it has the schemas
            try:
                torch.ops.load_library(build.library(device))
            except OSError as error:
                missing = not build.library(device).is_file()
                failures[device] = "is not built: run `python -m ext`" if missing else f"does not load: {error}"
    if failures and mode == "require":
        raise RuntimeError(
            f"LANDSCOPE_EXT=require, but the smoothing operator for {' and '.join(failures)} {[*failures.values()][0]}."
        )
    if "cpu" in failures:
        return Loaded(frozenset(), f"eager (torch operations); the fused one {failures['cpu']}".splitlines()[0])
    devices = [device for device in wanted if device not in failures]
    note = "".join(f"; eager on {device}, where it {failure}" for device, failure in failures.items())
    return Loaded(frozenset(devices), f"fused ({' and '.join(devices)}){note}".splitlines()[0])
