"""The images that a checkpoint goes with."""

from __future__ import annotations

import data_cache
from data_cache import ImageData, InputError
from models.checkpoint import Checkpoint


def recorded_data(checkpoint: Checkpoint, spec: str | None, split: str) -> ImageData:
    """The images named by `spec`, or else those of the data set it was trained on, normalised as it records.

    Args:
        checkpoint: What `load_checkpoint` gives.
        spec: `NAME[:SPLIT]` as `data_cache.load` takes it, or None.
        split: Which split of the recorded data set, where `spec` is None.

    Raises:
        InputError: Neither says which data, or their classes are not as many as the network's.
    """
    recorded = checkpoint.metadata
    if spec is None:
        if "dataset" not in recorded:
            raise InputError(f"{checkpoint.path} does not say what it was trained on; give --data NAME[:SPLIT].")
        data = data_cache.load(recorded["dataset"], split)
    else:
        data = data_cache.load(spec)
    if "mean" in recorded:
        data = data.with_normalization(recorded["mean"], recorded["std"])
    known = len(recorded["classes"]) if "classes" in recorded else checkpoint.kwargs.get("num_classes")
    if known not in (None, len(data.classes)):
        raise InputError(
            f"{data.spec} has {len(data.classes)} classes but {checkpoint.path} is of a network for {known}; "
            "give the --data that fits."
        )
    return data
