"""The smoothing operator of spatial smoothing (Park & Kim 2022, arXiv 2105.12639).

`smooth` is what the model zoo calls; `status` says in one line which path computes it.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"smoothing": ["smooth", "status"]})
