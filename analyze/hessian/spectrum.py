"""The max-eigenvalue spectrum: extreme eigenvalues of the Hessians that training meets, one mini-batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from typing import NamedTuple

import numpy as np
from torch import Tensor

from analyze.distributed import ALONE, World
from analyze.hessian.lanczos import Eigenpairs, extreme_eigenpairs
from analyze.hessian.operator import HessianOperator
from analyze.hessian.spec import Config, MaxSpectrum, Result
from analyze.results import Progress, silent
from analyze.subject import Subject
from data_cache import InputError
from models.randomness import derived_seed


class Solved(NamedTuple):
    """One mini-batch's row of `MaxSpectrum`."""

    images: int
    loss: float
    largest: np.ndarray
    largest_residual: np.ndarray
    smallest: float
    smallest_residual: float
    hvps: int
    converged: bool


def max_eigenvalue_spectrum(subject: Subject, **options: object) -> Result:
    r"""Largest and smallest eigenvalues of the Hessian of the regularised loss, for each of many mini-batches.

    .. math:: \lambda_{1 \dots k}(H_b), \quad \lambda_n(H_b), \qquad
              H_b = \nabla^2_w \left( \ell_b(w) + \frac{\lambda}{2} \|w\|^2 \right)

    on augmented training images (Park & Kim, "Blurs Behave Like Ensembles", ICML 2022, and "How Do Vision
    Transformers Work?", ICLR 2022). Sharpness that the average over all images hides shows here, and it is what a
    step of training meets.

    Args:
        subject: Model, data and loss; its weight decay is that of the loss.
        options: Of `Config`, such as `batches=32`.

    Returns:
        A result that holds the spectrum; it can be saved and plotted.
    """
    from analyze.hessian.compute import compute

    return compute(subject, Config(parts=("max-spectrum",), **options))  # type: ignore[arg-type]


def grow(
    subject: Subject,
    config: Config,
    done: MaxSpectrum | None = None,
    *,
    engine: str = "auto",
    world: World = ALONE,
    progress: Progress = silent,
) -> Iterator[MaxSpectrum]:
    """The spectrum of mini-batches 0, 1, ..., with one more at a time; ranks take them from a shared queue.

    Each is solved on its own, from a random vector of its own, or with `config.warm_start` from the eigenvectors of
    mini-batch 0 mixed with it: mini-batches are alike, so those of the first are as good a guess as those of the one
    before, and neither the order of the work, nor a resume, nor the number of ranks changes a result.

    Args:
        subject: Model, data and loss.
        config: What to compute.
        done: Mini-batches that are there already.
        engine: As `HessianOperator` takes it.
        world: The ranks that share the work; rank 0 yields.
        progress: Called after each product and mini-batch.

    Raises:
        InputError: Other data than those of `done`.
    """
    count = min(config.batches, subject.minibatches or config.batches)
    data = subject.minibatch_spec(config.augment)
    if done is not None and done.data != data:
        raise InputError(f"the mini-batches in the run file are of {done.data}, not {data}; use --restart.")
    rows = {} if done is None else _rows_of(done)

    @cache  # of one call: mini-batch 0
    def first() -> tuple[Solved, Tensor]:
        return _solve(subject, config, 0, None, engine, report)

    def report(products: int, values: np.ndarray, residuals: np.ndarray) -> None:
        note = f"largest {values[0]:.4g} after {products} products" if len(values) else ""
        progress("max-spectrum", len(rows), count, note)

    def work(number: int) -> Solved:
        if number == 0 and config.warm_start:
            return first()[0]
        return _solve(subject, config, number, first()[1] if config.warm_start else None, engine, report)[0]

    todo = [number for number in range(count) if number not in rows]
    for number, solved in world.share_out(todo, work):
        rows[number] = solved
        progress("max-spectrum", len(rows), count, f"largest {solved.largest[0]:.4g}")
        yield _spectrum_of(rows, data)


def is_complete(done: MaxSpectrum | None, config: Config) -> bool:
    """Whether all mini-batches that are asked for are there."""
    return done is not None and set(range(config.batches)) <= set(done.batch.tolist())


def _solve(
    subject: Subject,
    config: Config,
    number: int,
    guess: Tensor | None,
    engine: str,
    report: Callable[[int, np.ndarray, np.ndarray], None],
) -> tuple[Solved, Tensor]:
    """Eigenvalues of one mini-batch, and the sum of their vectors as a guess for others."""
    part = subject.minibatch(number, config.minibatch, augmented=config.augment)
    operator = HessianOperator(
        part, engine=engine, graph_memory=config.graph_memory, number=number, parameters=config.parameters
    )
    by_magnitude = config.which == "magnitude"
    pairs = extreme_eigenpairs(
        operator,
        largest=min(config.top, operator.size),
        smallest=0 if by_magnitude else 1,
        which="magnitude" if by_magnitude else "algebraic",
        tolerance=config.spectrum_tolerance,
        max_products=config.max_products,
        basis_bytes=int(config.basis_memory * 2**30),
        seed=derived_seed(subject.seed, 3, number),
        start=guess,
        on_product=report,
    )
    loss = operator.loss_at(operator.weights())
    return _solved(part.data.images, loss, pairs), pairs.largest_vectors.sum(0) + pairs.smallest_vectors.sum(0)


def _solved(images: int, loss: float, pairs: Eigenpairs) -> Solved:
    smallest, residual = (
        float(values[0]) if len(values) else np.nan for values in (pairs.smallest, pairs.smallest_residual)
    )
    return Solved(
        images, loss, pairs.largest, pairs.largest_residual, smallest, residual, pairs.products, pairs.converged
    )


def _rows_of(done: MaxSpectrum) -> dict[int, Solved]:
    columns = [getattr(done, name) for name in Solved._fields]
    return {int(number): Solved(*row) for number, *row in zip(done.batch, *columns, strict=True)}


def _spectrum_of(rows: dict[int, Solved], data: str) -> MaxSpectrum:
    numbers = sorted(rows)
    columns = {name: np.array([getattr(rows[number], name) for number in numbers]) for name in Solved._fields}
    largest = columns["largest"]
    positive = largest[largest > 0]
    return MaxSpectrum(
        batch=np.array(numbers),
        data=data,
        share_below_zero=float(np.mean(largest < 0)),
        mean_positive=float(positive.mean()) if positive.size else np.nan,
        **columns,
    )


assert set(Solved._fields) <= {field.name for field in fields(MaxSpectrum)}
