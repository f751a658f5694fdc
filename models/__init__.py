"""The spatial-smoothing model zoo, checkpoints in and out, evaluation and training."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoint": [
            "Checkpoint",
            "from_how_do_vits_work",
            "load_checkpoint",
            "save_checkpoint",
            "to_how_do_vits_work",
        ],
        "ensemble": ["Ensemble", "mean_log_probability"],
        "metrics": ["Metrics"],
        "randomness": ["fixed_randomness"],
        "recorded": ["recorded_data"],
        "registry": ["get_model", "names"],
    },
)
