"""The max-eigenvalue spectrum: what warm starts save, and what it takes beyond its products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
from torch import Tensor

from analyze import Subject
from analyze.hessian import Config, HessianOperator
from analyze.hessian.spectrum import grow


@contextmanager
def seconds_in_products() -> Iterator[list[float]]:
    """Collects the seconds of each product on a graph that stands: building it is not one of them."""
    seconds: list[float] = []
    plain = HessianOperator.matvec

    def timed(operator: HessianOperator, v: Tensor) -> Tensor:
        standing = bool(operator._kept)
        begin = time.perf_counter()
        product = plain(operator, v)
        if standing:
            seconds.append(time.perf_counter() - begin)
        return product

    with mock.patch.object(HessianOperator, "matvec", timed):
        yield seconds


def measure(ckpt: str, quick: bool, log: Callable[[str], None]) -> dict:
    """Warm and cold on the same mini-batches, with the weight decay that the network was trained with."""
    batches, images = (2, 4) if quick else (6, 128)
    subject = Subject.load(ckpt, device="cpu")
    found = {}
    for start in ("cold", "warm"):
        config = Config(parts=("max-spectrum",), batches=batches, minibatch=images, warm_start=start == "warm")
        with seconds_in_products() as seconds:
            begin = time.perf_counter()
            *_, spectrum = grow(subject, config)
            total = time.perf_counter() - begin
        products = int(spectrum.hvps.sum())
        in_products = float(np.median(seconds)) * products
        found[start] = {
            "products": spectrum.hvps.tolist(),
            "seconds": total,
            "overhead beyond products": total / in_products - 1,
            "converged": bool(np.all(spectrum.converged)),
        }
        log(f"{start}: {spectrum.hvps.tolist()} products, {found[start]['overhead beyond products']:.1%} overhead")
    cold, warm = (np.mean(found[start]["products"][1:]) for start in ("cold", "warm"))
    return {
        "checkpoint": ckpt,
        "images": images,
        "top": config.top,
        "tolerance": config.spectrum_tolerance,
        **found,
        "warm / cold": float(warm / cold),
    }
