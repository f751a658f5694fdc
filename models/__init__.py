"""The spatial-smoothing model zoo, checkpoints in and out, evaluation and training."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoint": ["Checkpoint", "load_checkpoint", "save_checkpoint"],
        "ensemble": ["Ensemble", "mean_log_probability"],
        "metrics": ["Metrics"],
        "randomness": ["fixed_randomness"],
        "registry": ["get_model", "names"],
    },
)
