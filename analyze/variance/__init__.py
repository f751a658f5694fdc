"""Where randomness enters the feature maps, and where it leaves: their variance over passes and over positions."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["spec", "figures"],
    submod_attrs={"compute": ["compute"], "spec": ["Config", "Result"]},
)
