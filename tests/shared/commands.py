"""What tests of the commands share: small settings, and the metadata of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

SMALL = ["--limit", "24", "--batch-size", "16", "--largest", "2", "--tolerance", "1e-2", "--trace-samples", "3"]
SMALL += ["--probes", "2", "--steps", "4", "--quiet"]


def metadata(name: str, classes: int = 10, **kwargs) -> dict:
    """What training records, for a network of Fashion-MNIST."""
    return {
        "model": name,
        "kwargs": {"num_classes": classes, **kwargs},
        "classes": [str(i) for i in range(classes)],
        "dataset": "fashion_mnist",
        "mean": [0.286] * 3,
        "std": [0.353] * 3,
        "weight_decay": 5e-4,
    }


@dataclass(frozen=True)
class Outcome:
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str
