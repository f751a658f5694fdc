"""Analyses of trained vision models. Importing this package loads no torch; names that need it are lazy."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["hessian"],
    submod_attrs={"subject": ["Subject"], "run": ["RunFile", "open_run"]},
)
