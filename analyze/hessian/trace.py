"""Trace of a symmetric operator from products with random vectors (probes)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from analyze.hessian.density import rademacher
from analyze.hessian.krylov import (
    Deflated,
    GroupOperator,
    NoMemoryError,
    Operator,
    allocate,
    dot,
    multiply,
    orthogonalize,
    require_finite,
    row_bytes,
)
from analyze.hessian.spec import Config, Trace
from analyze.results import Progress, silent
from data_cache import InputError

# Numbers of the sketch's random vectors begin here: apart from those of the probes.
_SKETCH = 1 << 32


def grow(
    operator: GroupOperator,
    seed: int,
    config: Config,
    done: Trace | None = None,
    progress: Progress = silent,
    *,
    sample: Callable[[int], float] | None = None,
) -> Iterator[Trace]:
    r"""The trace from `config.trace_samples` probes, after each of them.

    Hutchinson's estimate, or Hutch++ with `config.sketch` directions Q, the range of H times as many random
    vectors (Meyer, Musco, Musco & Woodruff, "Hutch++: Optimal Stochastic Trace Estimation", SOSA 2021):

    $$t_p = \mathrm{tr}(Q H Q^\top) + z_p^\top (I - Q^\top Q) H (I - Q^\top Q) z_p.$$

    Each sample is unbiased, and with outliers in Q they vary less. The sketch costs 2 products for each direction and
    is computed anew when a run goes on, to the same bits.

    Args:
        operator: The symmetric map.
        seed: 0 or more.
        config: `trace_samples`, `sketch`, `basis_memory`.
        done: The trace so far, of the same arguments but fewer samples.
        progress: Called after each product.
        sample: Has `trace_sample` of a probe of this operator and seed, where its product serves others too. Without
            a sketch it is used instead of computing that.

    Yields:
        The trace so far.

    Raises:
        InputError: The sketch does not fit into `config.basis_memory`, or into memory.
        FloatingPointError: A product holds NaN or infinity.
    """
    samples = [] if done is None else list(done.samples)
    if is_complete(done, config):
        return
    rank = min(config.sketch, operator.size)
    total = 2 * rank + config.trace_samples
    sketched = 0.0
    draw = sample or partial(trace_sample, operator, seed)
    if rank:
        basis, sketched = _sketched(
            operator, seed, rank, config, lambda count, note: progress("trace", count, total, note)
        )
        draw = partial(trace_sample, Deflated(operator, basis), seed)
    while len(samples) < config.trace_samples:
        samples.append(sketched + draw(len(samples)))
        estimate, stderr = trace_estimate(samples)
        progress("trace", 2 * rank + len(samples), total, f"{estimate:.4g} ± {stderr:.2g}")
        yield Trace(estimate, stderr, sketched, np.array(samples))


def _sketched(
    operator: GroupOperator, seed: int, rank: int, config: Config, report: Callable[[int, str], None]
) -> tuple[Tensor, float]:
    """`sketch`, if it fits into the memory that the config allows."""
    needed = rank * row_bytes(operator) / 2**30
    if needed > config.basis_memory:
        raise InputError(
            f"a sketch of {rank} directions needs {needed:.3g} GiB, but --basis-memory is {config.basis_memory:g}: "
            "lower --sketch, or raise it."
        )
    try:
        return sketch(operator, seed, rank, on_product=lambda count: report(count, f"sketching {rank} directions"))
    except NoMemoryError as error:
        raise InputError(f"{error} Lower --sketch.") from error


def is_complete(done: Trace | None, config: Config) -> bool:
    """Whether there are as many samples as the config asks for."""
    return done is not None and len(done.samples) >= config.trace_samples


def sketch(
    operator: GroupOperator, seed: int, rank: int, *, on_product: Callable[[int], None] | None = None
) -> tuple[Tensor, float]:
    r"""An orthonormal basis Q of the range of H S, for random signs S, and the trace tr(Q H Q^T) over it.

    Args:
        operator: The symmetric map.
        seed: 0 or more.
        rank: Vectors in S, r; 2 r products, and r vectors of memory.
        on_product: Called with the number of products so far.

    Returns:
        Q (r, n) orthonormal rows, fewer if the operator's rank is, and the trace.

    Raises:
        NoMemoryError: The vectors do not fit into memory.
        FloatingPointError: A product holds NaN or infinity.
    """
    rows = allocate(rank, operator)
    for i in range(rank):
        rows[i] = rademacher(operator.size, seed, _SKETCH + i, operator.dtype, operator.device)
    done = 0
    for group in rows.split(operator.group):
        group.copy_(multiply(operator, group))
        done += len(group)
        if on_product is not None:
            on_product(done)
    kept, scale = 0, 0.0
    for row in rows:
        length = float(torch.linalg.vector_norm(row, dtype=torch.float64))
        require_finite(length, kept + 1)
        scale = max(scale, length)
        rows[kept] = row
        norm = orthogonalize(rows[kept], rows[:kept])[1]
        # what is left is rounding, where the operator's rank is below r
        if norm > 100 * torch.finfo(operator.dtype).eps * scale:
            rows[kept] /= norm
            orthogonalize(rows[kept], rows[:kept])
            rows[kept] /= torch.linalg.vector_norm(rows[kept], dtype=torch.float64)
            kept += 1
    basis = rows[:kept]
    trace = 0.0
    for group in basis.split(operator.group):
        trace += sum(dot(q, product) for q, product in zip(group, multiply(operator, group), strict=True))
        done += len(group)
        if on_product is not None:
            on_product(done)
    require_finite(trace, done)
    return basis, trace


def probe_product(operator: Operator, seed: int, probe: int) -> tuple[Tensor, Tensor]:
    """Random signs z (n,) and H z (n,): `dot(z, H z)` is a sample of the trace.

    Args:
        operator: The symmetric map.
        seed: 0 or more.
        probe: Number of the probe, 0 or more. The same one of `slq_probe` starts from z.

    Raises:
        FloatingPointError: The product holds NaN or infinity.
    """
    signs = rademacher(operator.size, seed, probe, operator.dtype, operator.device)
    product = multiply(operator, signs)
    require_finite(float(torch.linalg.vector_norm(product, dtype=torch.float64)), 1)
    return signs, product


def trace_sample(operator: Operator, seed: int, probe: int) -> float:
    r"""One unbiased sample $z^\top H z$ of the trace, for random signs z, summed in float64.

    Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix", 1990.

    Args:
        operator: The symmetric map.
        seed: 0 or more.
        probe: Number of the probe, 0 or more.

    Raises:
        FloatingPointError: The product holds NaN or infinity.
    """
    return dot(*probe_product(operator, seed, probe))


def trace_estimate(samples: Sequence[float] | np.ndarray) -> tuple[float, float]:
    r"""Mean of trace samples and its standard error.

    $$\hat{t} = \frac{1}{P} \sum_p t_p, \qquad
      \mathrm{se} = \sqrt{\frac{1}{P (P - 1)} \sum_p (t_p - \hat{t})^2}$$

    Args:
        samples: (P,), from `trace_sample`.

    Returns:
        The estimate and its standard error, NaN for a single sample.

    Raises:
        ValueError: no samples, or not one row of them.
    """
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim != 1 or len(samples) == 0:
        raise ValueError(f"samples has shape {samples.shape}; expected (probe,) with one probe or more.")
    if len(samples) == 1:
        return float(samples[0]), math.nan
    return float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples)))
