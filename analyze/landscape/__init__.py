"""The loss over a line or a plane of weights through the checkpoint, as sums over images at each point of a grid."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["spec", "figures", "animation", "export", "merge"],
    submod_attrs={
        "compute": ["compute"],
        "direction": ["Direction"],
        "grid": ["Evaluator", "Sums"],
        "spec": ["Config", "DirectionInfo", "Prescan", "Result", "Trajectory"],
    },
)
