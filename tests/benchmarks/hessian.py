"""What a Hessian-vector product costs in gradients, and what the solver adds: `make bench`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from machine import describe, side_by_side

from analyze import Subject, hessian
from analyze.hessian import HessianOperator


@dataclass(frozen=True)
class Config:
    """Measure on a shipped checkpoint."""

    ckpt: str = "resnet_mcdo_smoothing_18"
    """Checkpoint."""
    limit: int = 128
    """Images."""
    rounds: int = 7
    """Repetitions; the median is reported."""
    out: Path = Path(__file__).parent / "results" / "hessian.json"
    """JSON to write."""


def measure(config: Config) -> dict[str, object]:
    """Seconds and ratios of one run."""
    subject = Subject.load(config.ckpt, limit=config.limit)
    kept, recomputed = HessianOperator(subject, graph_memory=16), HessianOperator(subject, graph_memory=0)
    v = torch.randn(kept.size, generator=torch.Generator().manual_seed(0))
    seconds = side_by_side(
        {
            "gradient": recomputed.loss_and_gradient,
            "product, graphs kept": lambda: kept.matvec(v),
            "product, recomputed": lambda: recomputed.matvec(v),
        },
        config.rounds,
    )
    ratios = {f"{name} / gradient": seconds[name] / seconds["gradient"] for name in list(seconds)[1:]}

    spent = 0.0
    plain = kept.matvec

    def timed(vector: torch.Tensor) -> torch.Tensor:
        nonlocal spent
        begin = time.perf_counter()
        product = plain(vector)
        spent += time.perf_counter() - begin
        return product

    kept.matvec = timed
    begin = time.perf_counter()
    pairs = hessian.extreme_eigenpairs(kept, largest=5, smallest=0, tolerance=1e-3)
    total = time.perf_counter() - begin
    return {
        "checkpoint": config.ckpt,
        "images": config.limit,
        "parameters": kept.size,
        "rounds": config.rounds,
        "seconds": seconds,
        "ratios": ratios,
        "top 5 to residual 1e-3": {
            "products": pairs.products,
            "seconds": total,
            "solver share of the time": 1 - spent / total,
            "worst relative residual": float((pairs.largest_residual / abs(pairs.largest)).max()),
            "converged": pairs.converged,
        },
    }


def main() -> None:
    """Measure, write JSON, print it."""
    config = tyro.cli(Config)
    content = json.dumps({"machine": describe(), **measure(config)}, indent=2)
    config.out.parent.mkdir(exist_ok=True)
    config.out.write_text(content + "\n")
    print(content)


if __name__ == "__main__":
    main()
