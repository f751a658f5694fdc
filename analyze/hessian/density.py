"""Spectral density and trace of a symmetric operator from products with random vectors (probes)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from analyze.hessian.krylov import KrylovSpace, Operator, dot, multiply, require_finite


def slq(
    operator: Operator,
    *,
    probes: int = 4,
    steps: int = 30,
    seed: int = 0,
    first_probe: int = 0,
    on_product: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Stochastic Lanczos quadrature of the spectral density, from `probes` random vectors.

    See `slq_probe`. Probe p depends on `seed` and p alone, so the result is the stack of probes first_probe,
    first_probe + 1, ..., no matter how many are asked for at a time.

    Args:
        operator: the symmetric map.
        probes: how many random vectors, P. The error of a mean falls as 1 / sqrt(P n).
        steps: products for each, m, and m + 1 vectors of memory.
        seed: 0 or more.
        first_probe: number of the first probe, to go on with an earlier run.
        on_product: called after each product with the number of products so far in this call.

    Returns:
        Nodes (P, m), ascending for each probe, in units of the eigenvalues, and their weights (P, m), which
        sum to 1 for each probe. Both float64.

    Raises:
        ValueError: probes or steps below 1.
        FloatingPointError: a product holds NaN or infinity.
    """
    if probes < 1:
        raise ValueError(f"probes={probes}; expected 1 or more.")
    products = 0

    def count(_: int) -> None:
        nonlocal products
        products += 1
        if on_product is not None:
            on_product(products)

    pairs = [slq_probe(operator, seed, first_probe + p, steps, on_product=count) for p in range(probes)]
    return np.stack([nodes for nodes, _ in pairs]), np.stack([weights for _, weights in pairs])


def slq_probe(
    operator: Operator,
    seed: int,
    probe: int,
    steps: int,
    *,
    on_product: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Gauss quadrature of the spectral density that one random vector sees.

    m steps of Lanczos, fully reorthogonalised, from a Rademacher vector z give $T = V^\top H V = S \Theta
    S^\top$, and

    $$\frac{z^\top f(H) z}{n} \approx \sum_i w_i f(\theta_i), \qquad w_i = S_{1i}^2,$$

    exactly for polynomials f of degree up to 2m - 1: the first two moments are $z^\top H z / n$ and
    $\lVert H z \rVert^2 / n$. Its mean over probes is tr f(H) / n (Ubaru, Chen & Saad, "Fast Estimation of
    tr(f(A)) via Stochastic Lanczos Quadrature", SIAM J. Matrix Anal. Appl. 38, 2017).

    Args:
        operator: the symmetric map.
        seed: 0 or more.
        probe: number of the probe, 0 or more.
        steps: products, m. With m >= n the quadrature is exact.
        on_product: called after each product with their number.

    Returns:
        Nodes (m,), ascending, and weights (m,), which sum to 1. If the space closes early, the last node is
        repeated with weight 0.

    Raises:
        ValueError: steps below 1.
        FloatingPointError: a product holds NaN or infinity.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}; expected 1 or more.")
    start = rademacher(operator.size, seed, probe, operator.dtype, operator.device)
    space = KrylovSpace(operator, min(steps, operator.size), start)
    going_on = True
    while going_on and space.count < steps:
        going_on = space.step()
        if on_product is not None:
            on_product(space.products)
    values, coordinates = space.ritz()
    weights = coordinates[0] ** 2
    padding = (0, steps - space.count)
    return np.pad(values, padding, mode="edge"), np.pad(weights / weights.sum(), padding)


def rademacher(
    size: int, seed: int, probe: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Random signs (size,), -1 or 1 with equal chance: a pure function of `seed` and `probe`, both 0 or more.

    They are drawn on the CPU by a generator of their own, so all devices and dtypes get the same.
    """
    state = np.random.SeedSequence([seed, probe]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
    signs = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8)
    return signs.mul_(2).sub_(1).to(device, dtype)


def trace_sample(operator: Operator, seed: int, probe: int) -> float:
    r"""One unbiased sample $z^\top H z$ of the trace, for a Rademacher vector z, summed in float64.

    Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix", 1990. The same probe of
    `slq_probe` has it as n times its mean node.

    Args:
        operator: the symmetric map.
        seed: 0 or more.
        probe: number of the probe, 0 or more.

    Raises:
        FloatingPointError: the product holds NaN or infinity.
    """
    signs = rademacher(operator.size, seed, probe, operator.dtype, operator.device)
    sample = dot(signs, multiply(operator, signs))
    require_finite(sample, 1)
    return sample


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
