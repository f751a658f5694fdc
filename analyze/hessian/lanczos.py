"""Extreme eigenpairs of a symmetric operator that is known only by its products with vectors.

Lanczos, always fully reorthogonalised; when the basis is full it is compressed (thick restart), never truncated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analyze.hessian.krylov import KrylovSpace, Operator

# The wanted values must hold still for this many products before they are believed.
_PATIENCE = 2


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenpairs at both ends of a spectrum; within the residual of each value lies a true eigenvalue."""

    largest: np.ndarray
    """(k,) float64, descending."""
    largest_residual: np.ndarray
    """(k,) float64, ||H v - lambda v|| with ||v|| = 1, rounding of the run included."""
    smallest: np.ndarray
    """(m,) float64, ascending."""
    smallest_residual: np.ndarray
    """(m,) float64, as `largest_residual`."""
    largest_vectors: Tensor
    """(k, n) orthonormal rows, in the operator's dtype and on its device."""
    smallest_vectors: Tensor
    """(m, n) orthonormal rows, orthogonal to `largest_vectors` too."""
    products: int
    """Products H v that were computed."""
    converged: bool
    """Whether every residual met the tolerance; if not, the residuals tell how far each pair is."""


def extreme_eigenpairs(
    operator: Operator,
    *,
    largest: int = 5,
    smallest: int = 1,
    tolerance: float = 1e-3,
    floor: float | None = None,
    max_products: int = 1000,
    basis_size: int | None = None,
    basis_bytes: int | None = None,
    multiplicity: bool = False,
    seed: int = 0,
    start: Tensor | None = None,
    on_product: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> Eigenpairs:
    r"""The algebraically largest and smallest eigenvalues with their vectors, by thick-restart Lanczos.

    Each product adds a vector to an orthonormal basis V of a Krylov space, in which Rayleigh-Ritz solves

    $$V^\top H V s = \theta s, \qquad v = V s, \qquad \lVert H v - \theta v \rVert = \beta |s_{last}|.$$

    It stops when every wanted pair has a residual of at most max(tolerance |theta|, floor max|theta|), AND
    none of the wanted values has moved by more than that over the last two products: a small residual shows
    an eigenpair, not that it is the outermost. When the basis is full, the best half goes on (Wu & Simon,
    "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems", SIAM J. Matrix Anal. Appl. 22,
    2000).

    One Krylov space holds one vector of each eigenspace, so copies of a multiple eigenvalue are found only
    after the space closes (it then goes on from a new random vector, until that changes nothing) or with
    `multiplicity`. The same goes for eigenvalues closer together than the tolerance.

    Args:
        operator: the symmetric map; any definiteness.
        largest: how many from the top, k.
        smallest: how many from the bottom, m. An end inside a dense bulk costs far more than an outlier.
        tolerance: of the residual, relative to each |theta|.
        floor: of the residual, relative to the operator's scale max|theta|; lets an eigenvalue near zero
            converge. By default tolerance / 100, so that `tolerance` is relative for eigenvalues above 1 % of
            the scale, and at least 100 eps of the dtype (1.2e-5 in float32): products are good for no more.
        max_products: stop there in any case, with `converged=False`.
        basis_size: vectors held before a restart. By default as many as fit into 1 GiB, at most 100, at least
            2 (k + m) + 20.
        basis_bytes: upper bound for the basis in bytes; it makes restarts earlier, never less orthogonal. The
            result's k + m vectors come on top.
        multiplicity: find the copies of multiple eigenvalues: after convergence search on from a new random
            vector, orthogonal to the pairs found, until that changes nothing. About doubles the products.
        seed: of the random vectors. They come from a generator of their own on the CPU: the same on every
            device.
        start: (n,) a guess, such as a sum of another batch's eigenvectors. It is mixed half and half with a
            random vector, so that it can't hide the eigenvectors that it lacks.
        on_product: called after each product with their number, the current largest values and their
            residuals.

    Returns:
        The pairs. Their residuals hold what the computed products say: beta |s_last|, the part of the
        products' rounding that broke their symmetry, and an allowance for the rounding of the basis.

    Raises:
        ValueError: more pairs wanted than exist, or than `basis_size`, `basis_bytes` or `max_products` allow;
            a start of the wrong shape; a product of the wrong shape.
        FloatingPointError: a product holds NaN or infinity.
    """
    _check_counts(operator.size, largest, smallest, max_products)
    capacity = _capacity(operator, largest + smallest, basis_size, basis_bytes)
    if floor is None:
        floor = max(tolerance / 100, 100 * torch.finfo(operator.dtype).eps)
    generator = torch.Generator().manual_seed(seed)
    space = KrylovSpace(operator, capacity, _start_vector(operator, start, generator))
    search = _Search(largest, smallest, tolerance, floor, copies=multiplicity)
    while True:
        if space.count == capacity:
            space.restart(search.best_half(space.ritz()[1], capacity))
        closed = not space.step()
        values, coordinates = space.ritz()
        residuals = space.residuals(values, coordinates)
        if on_product is not None:
            shown = search.index(len(values))[: min(largest, len(values))]
            on_product(space.products, values[shown], residuals[shown])
        verdict = search.judge(values, residuals, space.estimates(coordinates), closed)
        if verdict == "found" or space.count == operator.size or space.products >= max_products:
            break
        if verdict == "search on":
            if search.before is not None:
                space.restart(coordinates[:, search.index(len(values))], keep_next=False)
            space.append(_normal(operator, generator))

    index = search.index(len(values))
    top, bottom = index[:largest], index[largest:]
    vectors = space.combine(coordinates[:, index])
    return Eigenpairs(
        largest=values[top],
        largest_residual=residuals[top],
        smallest=values[bottom],
        smallest_residual=residuals[bottom],
        largest_vectors=vectors[:largest],
        smallest_vectors=vectors[largest:],
        products=space.products,
        converged=(verdict == "found" or space.count == operator.size)
        and bool(np.all(residuals[index] <= search.allowed(values)[index])),
    )


class _Search:
    """Which Ritz pairs are wanted, and whether they have been found."""

    def __init__(self, largest: int, smallest: int, tolerance: float, floor: float, copies: bool):
        self.largest, self.smallest = largest, smallest
        self.tolerance, self.floor = tolerance, floor
        self.copies = copies
        self.history: list[np.ndarray] = []
        self.before: np.ndarray | None = None
        """The wanted values when the search last went on from a new random vector, if all of them existed."""

    def index(self, count: int, further: int = 0) -> np.ndarray:
        """Where the wanted are among `count` ascending values: from the top down, then from the bottom up."""
        top = min(self.largest + further * (self.largest > 0), count)
        bottom = min(self.smallest + further * (self.smallest > 0), count)
        return np.r_[np.arange(count - 1, count - 1 - top, -1), np.arange(bottom)]

    def best_half(self, coordinates: np.ndarray, capacity: int) -> np.ndarray:
        """What a restart keeps: the wanted pairs, and half of the rest in the proportion of the wanted."""
        wanted = self.largest + self.smallest
        spare = (capacity - wanted) // 2
        top = self.largest + round(spare * self.largest / wanted)
        bottom = wanted + spare - top
        return np.hstack([coordinates[:, :bottom], coordinates[:, len(coordinates) - top :]])

    def allowed(self, values: np.ndarray) -> np.ndarray:
        """Residual up to which each pair counts as converged."""
        return np.maximum(self.tolerance * np.abs(values), self.floor * np.abs(values).max())

    def judge(self, values: np.ndarray, residuals: np.ndarray, estimates: np.ndarray, closed: bool) -> str:
        """Say "found", "go on", or "search on" (from a new random vector)."""
        # A space that closed holds one vector of each eigenspace it has met: there may be copies beside it.
        self.copies |= closed
        index = self.index(len(values))
        if len(values) < self.largest + self.smallest:
            return "search on" if closed else "go on"
        allowed = self.allowed(values)
        self.history = [*self.history[-_PATIENCE:], values[index]]

        def unchanged(earlier: np.ndarray) -> bool:
            return bool(np.all(np.abs(values[index] - earlier) <= allowed[index]))

        # Copies show up only once the new vector's own outermost pairs, next in line to the wanted, have
        # converged.
        tested = self.index(len(values), further=1) if self.copies else index
        complete = len(values) >= self.largest + self.smallest + (len(tested) - len(index))
        # Where rounding alone exceeds what is allowed, going on doesn't help; `converged` will say no.
        good_enough = (residuals <= allowed) | (estimates <= 0.1 * allowed)
        settled = (
            complete
            and len(self.history) > _PATIENCE
            and all(unchanged(earlier) for earlier in self.history)
            and bool(np.all(good_enough[tested]))
        )
        if settled and not self.copies:
            return "found"
        if not (settled or closed):
            return "go on"
        if self.before is not None and unchanged(self.before):
            return "found"
        self.before = values[index]
        return "search on"


def _normal(operator: Operator, generator: torch.Generator) -> Tensor:
    return torch.randn(operator.size, generator=generator).to(operator.device, operator.dtype)


def _start_vector(operator: Operator, start: Tensor | None, generator: torch.Generator) -> Tensor:
    random = _normal(operator, generator)
    if start is None:
        return random
    if start.shape != random.shape:
        raise ValueError(f"The start vector has shape {tuple(start.shape)}; expected {tuple(random.shape)}.")
    start = start.detach().to(random)
    norm = float(torch.linalg.vector_norm(start, dtype=torch.float64))
    if not 0 < norm < math.inf:
        raise ValueError(f"The start vector has norm {norm}; expected a finite vector that is not zero.")
    return start / norm + random / torch.linalg.vector_norm(random, dtype=torch.float64).to(random.dtype)


def _check_counts(size: int, largest: int, smallest: int, max_products: int) -> None:
    if min(largest, smallest) < 0 or largest + smallest == 0:
        raise ValueError(f"largest={largest} and smallest={smallest}: expected counts of which one is positive.")
    if max(largest, smallest) > size:
        raise ValueError(
            f"largest={largest}, smallest={smallest}: an operator of size {size} has only {size} eigenvalues."
        )
    if max_products < min(largest + smallest, size):
        raise ValueError(
            f"max_products={max_products} is too few for {largest} largest and {smallest} smallest "
            "eigenpairs; each needs at least one product."
        )


def _capacity(operator: Operator, wanted: int, basis_size: int | None, basis_bytes: int | None) -> int:
    row = operator.size * torch.finfo(operator.dtype).bits // 8
    if basis_size is None:
        basis_size = max(2 * wanted + 20, min(100, 2**30 // row))
    if basis_bytes is not None:
        # One more vector is held: the next.
        basis_size = min(basis_size, basis_bytes // row - 1)
    least = min(wanted + 2, operator.size)
    if basis_size < least:
        raise ValueError(
            f"A basis of {basis_size} vectors is too small for {wanted} eigenpairs: it needs at least "
            f"{least} ({(least + 1) * row:,} bytes). Raise basis_size or basis_bytes, or ask for fewer pairs."
        )
    return min(basis_size, operator.size)
