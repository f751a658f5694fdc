"""Which spatial frequencies each layer keeps, and at which ones the network is random: spectra of feature maps."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["spec", "figures"],
    submod_attrs={"compute": ["compute"], "spec": ["Config", "Result"]},
)
