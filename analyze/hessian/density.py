"""Spectral density of a symmetric operator from products with random vectors (probes)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from analyze.hessian.kernel import default_width, kernel_density
from analyze.hessian.krylov import Deflated, GroupOperator, KrylovSpace, NoMemoryError, Operator, multiply, row_bytes
from analyze.hessian.spec import Config, Density
from analyze.results import Progress, silent
from data_cache import InputError


def grow(
    operator: GroupOperator,
    seed: int,
    config: Config,
    done: Density | None = None,
    progress: Progress = silent,
    *,
    vectors: Tensor | None = None,
    values: np.ndarray | Sequence[float] = (),
    residuals: np.ndarray | Sequence[float] = (),
) -> Iterator[Density]:
    """The density from `config.probes` probes, after each group of them.

    Probes are computed `operator.group` at a time, or as many as `config.basis_memory` holds, in groups that begin at
    multiples of that: a run that goes on after any group has the bits of one that never stopped. Where products of
    several vectors at once round otherwise than single ones, so do groups that an earlier number of probes cut short.

    Args:
        operator: The symmetric map.
        seed: 0 or more.
        config: `probes`, `steps`, `basis_memory`.
        done: The density so far, of the same arguments but fewer probes.
        progress: Called after each product.
        vectors: (k, n) orthonormal rows: the eigenvectors to take out.
        values: (k,) their eigenvalues.
        residuals: (k,) and their residuals.

    Yields:
        The density so far, with its curve.

    Raises:
        InputError: The basis does not fit into `config.basis_memory`, or into memory.
        FloatingPointError: A product holds NaN or infinity.
    """
    order = np.argsort(values)
    outlier, residual = (np.asarray(x, dtype=np.float64)[order] for x in (values, residuals))
    group = _group(operator, config, len(outlier))
    nodes, weights = ([], []) if done is None else (list(done.node), list(done.weight))
    while len(nodes) < config.probes:
        begin = len(nodes)
        end = min(config.probes, (begin // group + 1) * group)

        def report(count: int, begin: int = begin, end: int = end) -> None:
            name = f"probe {begin + 1}" if end == begin + 1 else f"probes {begin + 1} to {end}"
            progress("density", begin * config.steps + count, config.probes * config.steps, name)

        try:
            more = slq_group(operator, seed, range(begin, end), config.steps, deflate=vectors, on_product=report)
        except NoMemoryError as error:
            raise InputError(f"{error} Lower --steps.") from error
        nodes.extend(more[0])
        weights.extend(more[1])
        yield _density(np.array(nodes), np.array(weights), outlier, residual)


def is_complete(done: Density | None, config: Config) -> bool:
    """Whether there are as many probes as the config asks for."""
    return done is not None and len(done.node) >= config.probes


def _group(operator: GroupOperator, config: Config, deflated: int) -> int:
    """How many probes to compute at once."""
    steps = min(config.steps, max(1, operator.size - deflated))
    needed, available = (steps + 1) * row_bytes(operator), config.basis_memory * 2**30
    if needed > available:
        most = int(available / row_bytes(operator)) - 1
        advice = f"--steps to {most}, or raise" if most > 0 else "the number of --parameters, or raise"
        raise InputError(
            f"the density's {steps} steps need a basis of {needed / 2**30:.3g} GiB, but --basis-memory is "
            f"{config.basis_memory:g}: lower {advice} it."
        )
    return max(1, min(operator.group, int(available / needed)))


def _density(node: np.ndarray, weight: np.ndarray, outlier: np.ndarray, residual: np.ndarray) -> Density:
    width = default_width(node, weight, outlier)
    x, curve = kernel_density(node, weight, outlier, width=width)
    return Density(node, weight, outlier, residual, width, x, curve)


def slq_probe(
    operator: Operator,
    seed: int,
    probe: int,
    steps: int,
    *,
    deflate: Tensor | None = None,
    on_product: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Gauss quadrature of the spectral density that one random vector sees: stochastic Lanczos quadrature.

    m steps of Lanczos, fully reorthogonalised, from a Rademacher vector z give $T = V^\top H V = S \Theta
    S^\top$, and

    $$\frac{z^\top f(H) z}{n} \approx \sum_i w_i f(\theta_i), \qquad w_i = S_{1i}^2,$$

    exactly for polynomials f of degree up to 2m - 1: the first two moments are $z^\top H z / n$ and
    $\lVert H z \rVert^2 / n$. Its mean over probes is tr f(H) / n (Ubaru, Chen & Saad, "Fast Estimation of
    tr(f(A)) via Stochastic Lanczos Quadrature", SIAM J. Matrix Anal. Appl. 38, 2017).

    With k eigenvectors deflated, z and H are projected off them on both sides, and the weights sum to (n - k) / n:
    those eigenvalues weigh 1 / n each, exactly, and all steps go to the rest. Vectors with residuals r count as
    eigenvectors of a matrix that is within sqrt(2) ||r|| of H in the Frobenius norm.

    Args:
        operator: the symmetric map.
        seed: 0 or more.
        probe: number of the probe, 0 or more.
        steps: products, m. With m >= n the quadrature is exact.
        deflate: (k, n) orthonormal rows.
        on_product: called after each product with their number.

    Returns:
        Nodes (m,), ascending, and weights (m,). If the space closes early, the last node is repeated with weight 0.

    Raises:
        ValueError: steps below 1.
        NoMemoryError: the m + 1 vectors of the basis do not fit into memory.
        FloatingPointError: a product holds NaN or infinity.
    """
    nodes, weights = slq_group(operator, seed, [probe], steps, deflate=deflate, on_product=on_product)
    return nodes[0], weights[0]


def slq_group(
    operator: Operator,
    seed: int,
    probes: Sequence[int],
    steps: int,
    *,
    deflate: Tensor | None = None,
    on_product: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`slq_probe` of several probes in lockstep: their products are computed together, by `operator.matmat`.

    Args:
        operator: the symmetric map.
        seed: 0 or more.
        probes: numbers of the probes, P.
        steps: products of each, m, and m + 1 vectors of memory.
        deflate: (k, n) orthonormal rows.
        on_product: called after each step with the number of products so far.

    Returns:
        Nodes (P, m) and weights (P, m), a row as `slq_probe` of that probe; to the bit if matmat rounds as matvec does.

    Raises:
        ValueError: steps below 1.
        NoMemoryError: P (m + 1) vectors do not fit into memory.
        FloatingPointError: a product holds NaN or infinity.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}; expected 1 or more.")
    size, deflated = operator.size, 0 if deflate is None else len(deflate)
    if deflated == size:  # nothing is left
        return np.zeros((len(probes), steps)), np.zeros((len(probes), steps))
    starts = [rademacher(size, seed, probe, operator.dtype, operator.device) for probe in probes]
    if deflate is not None and deflated:
        operator = Deflated(operator, deflate)
        starts = list(operator.project(torch.stack(starts)))
    most = min(steps, size - deflated)
    spaces = [KrylovSpace(operator, most, start) for start in starts]
    going_on = spaces
    while going_on:
        products = multiply(operator, torch.stack([space.newest for space in going_on]))
        stepped = [space.step(product) for space, product in zip(going_on, products, strict=True)]
        going_on = [s for s, open_ in zip(going_on, stepped, strict=True) if open_ and s.count < most]
        if on_product is not None:
            on_product(sum(space.products for space in spaces))
    quadratures = [_quadrature(space, steps) for space in spaces]
    nodes, weights = (np.stack(rows) for rows in zip(*quadratures, strict=True))
    return nodes, weights * ((size - deflated) / size)


def _quadrature(space: KrylovSpace, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (steps,) of a space, the weights summing to 1."""
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
