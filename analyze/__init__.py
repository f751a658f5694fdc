"""Analyses of trained vision models. Importing this package loads no torch; names that need it are lazy."""

from __future__ import annotations

from pathlib import Path

import lazy_loader

_ORDER = ("variance", "fourier", "robustness", "hessian", "landscape")


def analyses() -> list[str]:
    """The names of all analyses, the folders here that have a `spec.py`, in the order in which they are run."""
    found = {spec.parent.name for folder in __path__ for spec in Path(folder).glob("*/spec.py")}
    return [name for name in _ORDER if name in found] + sorted(found.difference(_ORDER))


__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=analyses(),
    submod_attrs={"subject": ["Subject"], "run": ["RunFile", "open_run"]},
)
__all__ += ["analyses"]
