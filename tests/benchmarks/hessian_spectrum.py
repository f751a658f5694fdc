"""The max-eigenvalue spectrum: what warm starts save, and what it takes beyond its products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
from torch import Tensor

from analyze import Subject
from analyze.hessian import Config, HessianOperator, extreme_eigenpairs
from analyze.hessian.spectrum import grow


@contextmanager
def seconds_in_products() -> Iterator[list[float]]:
    """Collects the seconds that each product of any operator takes, building its graph included."""
    seconds: list[float] = []
    plain = HessianOperator.matvec

    def timed(operator: HessianOperator, v: Tensor) -> Tensor:
        begin = time.perf_counter()
        product = plain(operator, v)
        seconds.append(time.perf_counter() - begin)
        return product

    with mock.patch.object(HessianOperator, "matvec", timed):
        yield seconds


def cold_products(subject: Subject, config: Config, number: int) -> int:
    """Products that a mini-batch takes from a random vector."""
    part = subject.minibatch(number, config.minibatch, augmented=config.augment)
    operator = HessianOperator(part, graph_memory=config.graph_memory, number=number)
    return extreme_eigenpairs(
        operator,
        largest=config.top,
        smallest=1,
        tolerance=config.spectrum_tolerance,
        max_products=config.max_products,
        seed=subject.seed,
    ).products


def measure(ckpt: str, quick: bool, log: Callable[[str], None]) -> dict:
    """Warm and cold on the same mini-batches, with the weight decay that the network was trained with."""
    batches, images = (2, 4) if quick else (8, 64)
    subject = Subject.load(ckpt, device="cpu")
    config = Config(parts=("max-spectrum",), batches=batches, minibatch=images)
    with seconds_in_products() as seconds:
        begin = time.perf_counter()
        *_, spectrum = grow(subject, config)
        total = time.perf_counter() - begin
    warm = np.asarray(spectrum.hvps, dtype=int)[1:]  # the first has nothing to start from
    overhead = total / sum(seconds) - 1
    log(f"warm: {warm.tolist()} products, overhead {100 * overhead:.1f} % of the products' time")
    cold = np.array([cold_products(subject, config, number) for number in range(1, batches)])
    log(f"cold: {cold.tolist()} products")
    return {
        "checkpoint": ckpt,
        "images": images,
        "top": config.top,
        "tolerance": config.spectrum_tolerance,
        "warm products": warm.tolist(),
        "cold products": cold.tolist(),
        "warm / cold": float(warm.mean() / cold.mean()),
        "seconds": total,
        "overhead beyond products": overhead,
        "converged": bool(np.all(spectrum.converged)),
    }
