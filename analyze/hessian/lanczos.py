"""Extreme eigenpairs of a symmetric operator that is known only by its products with vectors.

Lanczos, always fully reorthogonalised; when the basis is full it is compressed (thick restart), never truncated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from analyze.hessian.krylov import KrylovSpace, NoMemoryError, Operator, row_bytes

# The wanted values must hold still for this many products before they are believed.
_PATIENCE = 2
# An eigenvector counts as excluded where the space would show it if the start vector held a tenth of a random
# vector's usual share of it, 1/sqrt(n); 8 % of random vectors hold less.
_SHARE = 0.1
# "Well beyond" a value: by this many times the residual that it is allowed.
_BEYOND = 10


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenpairs at both ends of a spectrum; within the residual of each value lies a true eigenvalue."""

    largest: np.ndarray
    """(k,) float64, descending; if they were chosen by magnitude, signed, with |lambda| descending."""
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
    which: Literal["algebraic", "magnitude"] = "algebraic",
    tolerance: float = 1e-3,
    floor: float | None = None,
    max_products: int = 1000,
    basis_size: int | None = None,
    basis_bytes: int | None = None,
    multiplicity: bool = False,
    seed: int = 0,
    start: Tensor | None = None,
    noise: float = 1.0,
    state: Mapping[str, np.ndarray] | None = None,
    on_product: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
    on_restart: Callable[[dict[str, np.ndarray]], None] | None = None,
) -> Eigenpairs:
    r"""The largest and smallest eigenvalues with their vectors, by thick-restart Lanczos.

    Each product adds a vector to an orthonormal basis V of a Krylov space, in which Rayleigh-Ritz solves

    $$V^\top H V s = \theta s, \qquad v = V s, \qquad \lVert H v - \theta v \rVert = \beta |s_{last}|.$$

    It stops when every wanted pair has a residual of at most r = max(tolerance |theta|, floor max|theta|). But a
    small residual shows an eigenpair, not that it is the outermost: the start holds only some 1/sqrt(n) of
    any one eigenvector, so that residual may hide an eigenvalue r sqrt(n) further out. So, too, none of the wanted
    values may have moved by more than r over the last two products, and the space must have magnified whatever lies
    10 r beyond each of them so much that a start with 0.1/sqrt(n) of its vector would have shown it (see
    `KrylovSpace.log_growth`; 8 % of random vectors hold less). For values apart from the bulk, that costs
    nothing. When the basis is full, the best half goes on (Wu & Simon, "Thick-Restart Lanczos Method for Large
    Symmetric Eigenvalue Problems", SIAM J. Matrix Anal. Appl. 22, 2000).

    One Krylov space holds one vector of each eigenspace, so copies of a multiple eigenvalue are found only
    after the space closes (it then goes on from a new random vector, until that changes nothing) or with
    `multiplicity`. The same goes for eigenvalues closer together than the tolerance.

    Args:
        operator: the symmetric map; any definiteness.
        largest: how many from the top, k.
        smallest: how many from the bottom, m. An end inside a dense bulk costs far more than an outlier.
        which: with "magnitude", `largest` counts the eigenvalues of largest |lambda|, and `smallest` must be 0.
        tolerance: of the residual, relative to each |theta|.
        floor: of the residual, relative to the operator's scale max|theta|; lets an eigenvalue near zero
            converge. By default tolerance / 100, so that `tolerance` is relative for eigenvalues above 1 % of
            the scale, and at least 100 eps of the dtype (1.2e-5 in float32): products are good for no more.
        max_products: stop there in any case, with `converged=False`.
        basis_size: vectors held before a restart. By default 100, or 2 (k + m) + 20 if that is more.
        basis_bytes: upper bound for the basis in bytes; it makes restarts earlier, never less orthogonal. The
            result's k + m vectors come on top.
        multiplicity: find the copies of multiple eigenvalues: after convergence search on from a new random
            vector, orthogonal to the pairs found, until that changes nothing. About doubles the products.
        seed: of the random vectors. They come from a generator of their own on the CPU: the same on every
            device.
        start: (n,) a guess, such as a sum of another batch's eigenvectors. What lies beyond the pairs found is looked
            for in the random vector alone.
        noise: norm of the random vector that is added to the guess of norm 1. It has to show that nothing was missed,
            so less of it takes more products.
        state: from `on_restart`, to go on from; all other arguments must be as they were. The outcome has the
            same bits as if it had never stopped.
        on_product: called after each product with their number, the current largest values and their
            residuals.
        on_restart: called after each restart of a full basis with all that `state` needs: arrays by name. The
            vectors may be a view of the basis: write or copy them before returning.

    Returns:
        The pairs. Their residuals hold what the computed products say: beta |s_last|, the part of the
        products' rounding that broke their symmetry, and an allowance for the rounding of the basis.

    Raises:
        ValueError: more pairs wanted than exist, or than `basis_size`, `basis_bytes`, `max_products` or the memory
            allow; a start of the wrong shape; a product of the wrong shape; a state of another run.
        FloatingPointError: a product holds NaN or infinity.
    """
    _check_counts(operator.size, largest, smallest, max_products)
    if which == "magnitude" and smallest:
        raise ValueError(f"smallest={smallest}: by magnitude there is one end only, so smallest must be 0.")
    if not noise > 0:
        raise ValueError(f"noise={noise}: expected a positive number, or a guess would hide what it lacks.")
    capacity = _capacity(operator, largest + smallest, basis_size, basis_bytes)
    if floor is None:
        floor = max(tolerance / 100, 100 * torch.finfo(operator.dtype).eps)
    generator = torch.Generator().manual_seed(seed)
    by_magnitude = which == "magnitude"
    # What a warm start lacks, it holds only in its random part.
    random = 1.0 if start is None else noise / math.hypot(1.0, noise)
    search = _Search(largest, smallest, by_magnitude, tolerance, floor, multiplicity)
    search.needed = math.log(math.sqrt(operator.size) / (_SHARE * random))
    if state is None:
        space = KrylovSpace(operator, capacity, _start_vector(operator, start, noise, generator))
    else:
        space = KrylovSpace.restore(operator, capacity, state)
        search.restore(state)
        generator.set_state(torch.from_numpy(np.array(state["generator"])))
        del state  # its vectors are in the basis now
    while True:
        if space.count == capacity:
            values, coordinates = space.ritz()
            space.restart(values, coordinates, search.best_half(values, capacity))
            if on_restart is not None:
                on_restart({**space.state(), **search.state(), "generator": generator.get_state().numpy()})
        closed = not space.step()
        values, coordinates = space.ritz()
        residuals = space.residuals(values, coordinates)
        if on_product is not None:
            shown = search.index(values)[: min(largest, len(values))]
            on_product(space.products, values[shown], residuals[shown])
        verdict = search.judge(space, values, residuals, space.estimates(coordinates), closed)
        if verdict == "found" or space.count == operator.size or space.products >= max_products:
            break
        if verdict == "search on":
            if search.before is not None:
                space.restart(values, coordinates, search.index(values), keep_next=False)
            space.append(_normal(operator, generator))

    index = search.index(values)
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

    def __init__(
        self,
        largest: int,
        smallest: int,
        by_magnitude: bool,
        tolerance: float,
        floor: float,
        copies: bool,
    ):
        self.largest, self.smallest, self.by_magnitude = largest, smallest, by_magnitude
        self.tolerance, self.floor = tolerance, floor
        self.copies = copies
        self.needed = 0.0
        """Logarithm of how much an eigenvector must have been magnified before its absence is believed."""
        self.history: list[np.ndarray] = []
        self.before: np.ndarray | None = None
        """The wanted values when the search last went on from a new random vector, if all of them existed."""

    def index(self, values: np.ndarray, further: int = 0) -> np.ndarray:
        """Where the wanted are among the ascending values: from the top down, then from the bottom up."""
        count = len(values)
        if self.by_magnitude:
            return np.argsort(-np.abs(values), kind="stable")[: self.largest + further]
        top = min(self.largest + further * (self.largest > 0), count)
        bottom = min(self.smallest + further * (self.smallest > 0), count)
        return np.r_[np.arange(count - 1, count - 1 - top, -1), np.arange(bottom)]

    def best_half(self, values: np.ndarray, capacity: int) -> np.ndarray:
        """What a restart keeps: the wanted pairs, and half of the rest in the proportion of the wanted."""
        wanted = self.largest + self.smallest
        spare = (capacity - wanted) // 2
        if self.by_magnitude:
            return np.sort(self.index(values, further=spare))
        top = self.largest + round(spare * self.largest / wanted)
        bottom = wanted + spare - top
        return np.r_[np.arange(bottom), np.arange(len(values) - top, len(values))]

    def allowed(self, values: np.ndarray) -> np.ndarray:
        """Residual up to which each pair counts as converged."""
        return np.maximum(self.tolerance * np.abs(values), self.floor * np.abs(values).max())

    def judge(
        self, space: KrylovSpace, values: np.ndarray, residuals: np.ndarray, estimates: np.ndarray, closed: bool
    ) -> str:
        """Say "found", "go on", or "search on" (from a new random vector)."""
        # A space that closed holds one vector of each eigenspace it has met: there may be copies beside it.
        self.copies |= closed
        index = self.index(values)
        if len(values) < self.largest + self.smallest:
            return "search on" if closed else "go on"
        allowed = self.allowed(values)
        # Where +x and -x are equally far out, rounding decides each time which comes first.
        wanted = np.abs(values[index]) if self.by_magnitude else values[index]
        self.history = [*self.history[-_PATIENCE:], wanted]

        def unchanged(earlier: np.ndarray) -> bool:
            return bool(np.all(np.abs(wanted - earlier) <= allowed[index]))

        # Copies show up only once the new vector's own outermost pairs, next in line to the wanted, have
        # converged.
        tested = self.index(values, further=1) if self.copies else index
        complete = len(values) >= self.largest + self.smallest + (len(tested) - len(index))
        # Where rounding alone exceeds what is allowed, going on doesn't help; `converged` will say no.
        good_enough = (residuals <= allowed) | (estimates <= 0.1 * allowed)
        settled = (
            complete
            and len(self.history) > _PATIENCE
            and all(unchanged(earlier) for earlier in self.history)
            and bool(np.all(good_enough[tested]))
            and self._outermost(space, values, allowed)
        )
        if settled and not self.copies:
            return "found"
        if not (settled or closed):
            return "go on"
        if self.before is not None and unchanged(self.before):
            return "found"
        self.before = wanted
        return "search on"

    def _outermost(self, space: KrylovSpace, values: np.ndarray, allowed: np.ndarray) -> bool:
        """Whether an eigenvalue well beyond a wanted one would have shown itself by now.

        A residual r can hide an eigenvalue r sqrt(n) away, for the start holds only some 1/sqrt(n) of its vector.
        """
        index = self.index(values)
        top = np.arange(len(index)) < self.largest
        beyond = _BEYOND * allowed[index]
        if self.by_magnitude:
            points = np.abs(values[index]) + beyond
            points, beyond = np.r_[points, -points], np.r_[beyond, beyond]
        else:
            points = values[index] + np.where(top, beyond, -beyond)
        return bool(np.all(space.log_growth(values, points, beyond) >= self.needed))

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` needs."""
        before = np.zeros(0) if self.before is None else self.before
        return {"history": np.array(self.history), "settled": before, "copies": np.array(self.copies)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on as the search that `state` was taken of."""
        self.history = list(np.array(state["history"]))
        self.before = np.array(state["settled"]) if len(state["settled"]) else None
        self.copies = bool(state["copies"])


def _normal(operator: Operator, generator: torch.Generator) -> Tensor:
    return torch.randn(operator.size, generator=generator).to(operator.device, operator.dtype)


def _start_vector(operator: Operator, start: Tensor | None, noise: float, generator: torch.Generator) -> Tensor:
    random = _normal(operator, generator)
    if start is None:
        return random
    if start.shape != random.shape:
        raise ValueError(f"The start vector has shape {tuple(start.shape)}; expected {tuple(random.shape)}.")
    start = start.detach().to(random)
    norm = float(torch.linalg.vector_norm(start, dtype=torch.float64))
    if not 0 < norm < math.inf:
        raise ValueError(f"The start vector has norm {norm}; expected a finite vector that is not zero.")
    return start / norm + noise * random / torch.linalg.vector_norm(random, dtype=torch.float64).to(random.dtype)


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
    row = row_bytes(operator)
    if basis_size is None:
        basis_size = max(2 * wanted + 20, 100)
    if basis_bytes is not None:
        # One more vector is held: the next.
        basis_size = min(basis_size, basis_bytes // row - 1)
    least = min(wanted + 2, operator.size)
    if basis_size < least:
        raise NoMemoryError(
            f"A basis of {basis_size} vectors is too small for {wanted} eigenpairs: it needs at least "
            f"{least} ({(least + 1) * row:,} bytes). Raise basis_size or basis_bytes, or ask for fewer pairs."
        )
    return min(basis_size, operator.size)
