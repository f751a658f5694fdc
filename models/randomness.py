"""Randomness as a function of counters, so that whatever is random can be drawn again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*counters: int) -> int:
    """A 64-bit seed that is a fixed, well-mixed function of non-negative whole numbers."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0])


@contextmanager
def fixed_randomness(device: torch.device | str, *counters: int) -> Iterator[None]:
    """Draw torch's random numbers on the CPU and `device` from `derived_seed(*counters)` for a while.

    Both generators are given back in the state they were in, also after an exception. Python's and NumPy's
    generators are not touched.
    """
    device = torch.device(device)
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    seed = derived_seed(*counters)
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
