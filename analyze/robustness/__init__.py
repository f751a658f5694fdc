"""What breaks a network: noise of each frequency, Fourier basis images, adversarial attacks, corruptions."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["spec", "figures"],
    submod_attrs={
        "compute": ["compute"],
        "spec": ["Adversarial", "Clean", "Config", "Corruptions", "FrequencyNoise", "HeatMap", "Result"],
    },
)
