"""A Krylov space, fully reorthogonalised, grown one product with a symmetric operator at a time.

Without reorthogonalising, float32 returns copies ("ghosts") of the eigenvalues it has already found. The basis is
one flat (m, n) tensor, so that reorthogonalising is a few matrix products a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# Inner products are summed in the operator's dtype within a chunk and in float64 over chunks: a float32 sum
# over all of n = 1e6 would leave the basis orthogonal to 5e-5 only. A GPU sums in parallel, and pays for each
# launch.
_CHUNK, _CHUNK_GPU = 1 << 14, 1 << 18


class Operator(Protocol):
    """A symmetric linear map on flat vectors: all that the solvers of this package know."""

    @property
    def size(self) -> int:
        """Number of rows n."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors that go in and come out: float32 or float64."""

    @property
    def device(self) -> torch.device:
        """Where these vectors live."""

    def matvec(self, v: Tensor) -> Tensor:
        """Product with a vector, (n,) to (n,); `v` must not be written to."""


class KrylovSpace:
    r"""An orthonormal basis V, grown one product at a time, and the projection of the operator onto it.

    After j steps the operator's products with the first j vectors are known, as

    $$H V_j = V_{j+1} P_j + F, \qquad P_j = V_{j+1}^\top H V_j \in R^{(j+1) \times j},$$

    where P is kept in float64 as computed, not symmetrised: what its upper triangle has beyond three
    diagonals is the rounding of the products. Of F, the rounding and whatever restarts dropped, a small R is
    kept with ||R s|| = ||F s||, as far as that is known.
    """

    def __init__(self, operator: Operator, capacity: int, start: Tensor):
        """Allocate capacity + 1 vectors; `start` (n,), not zero, becomes the first."""
        self.operator = operator
        self.count = 0
        self.products = 0
        self.vectors = torch.empty(capacity + 1, operator.size, dtype=operator.dtype, device=operator.device)
        self.projected = np.zeros((capacity + 1, capacity))
        self._lost = np.zeros((capacity, capacity))
        self._guessed = 0
        self._eps = torch.finfo(operator.dtype).eps
        self._scale = 0.0
        self.append(start)

    def step(self) -> bool:
        """Multiply the newest vector and append what is new in the product; False if nothing is: it closed.

        Raises:
            FloatingPointError: the product holds NaN or infinity.
        """
        j = self.count
        row = self.vectors[j + 1]
        row.copy_(multiply(self.operator, self.vectors[j]))
        self.products += 1
        coefficients, norm = orthogonalize(row, self.vectors[: j + 1])
        length = math.hypot(np.linalg.norm(coefficients), norm)
        require_finite(length, self.products)
        self._scale = max(self._scale, length)
        self.projected[: j + 1, j] = coefficients
        # Where the next vector was replaced, the part of older products along this one follows by symmetry.
        self.projected[j, : self._guessed] = coefficients[: self._guessed]
        self.count = j + 1
        closed = self.count == self.operator.size or norm <= 10 * self._eps * self._scale
        self._lost[: j + 1, j] = 0
        self._lost[j, j] = math.hypot(2 * self._eps * length, norm if closed else 0.0)
        if not closed:
            self.projected[j + 1, j] = norm
            row.div_(norm)
        return not closed

    def append(self, vector: Tensor) -> None:
        """Go on from this vector (n,), made orthogonal to the basis, in place of the next one."""
        row = self.vectors[self.count]
        row.copy_(vector)
        for _ in range(2):
            norm = orthogonalize(row, self.vectors[: self.count])[1]
            row.div_(norm)

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Rayleigh-Ritz values (j,), ascending, and their vectors' coordinates, the columns of (j, j)."""
        # The upper triangle holds true inner products, also where a new vector was appended.
        return np.linalg.eigh(self.projected[: self.count, : self.count], UPLO="U")

    @property
    def _rotation_error(self) -> float:
        """Error in the product of a combination of the basis, from rounding it and its coordinates."""
        return (self._eps / 2 + 10 * np.finfo(np.float64).eps) * self._scale

    def estimates(self, coordinates: np.ndarray) -> np.ndarray:
        """Residuals (j,) in exact arithmetic: beta |s_last|."""
        return np.abs(self.projected[self.count, : self.count] @ coordinates)

    def residuals(self, values: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        """Residuals (j,), rounding included: ||P s - theta s||, the norm of F s, and that of V s."""
        j = self.count
        defect = self.projected[: j + 1, :j] @ coordinates
        defect[:j] -= coordinates * values
        lost = self._lost[:j, :j] @ coordinates
        return np.sqrt(np.sum(defect**2, axis=0) + np.sum(lost**2, axis=0) + self._rotation_error**2)

    def combine(self, coordinates: np.ndarray) -> Tensor:
        """Vectors (k, n) with these coordinates (j, k)."""
        out = torch.empty(coordinates.shape[1], *self.vectors.shape[1:]).to(self.vectors)
        self._rotate(coordinates, out)
        return out

    def restart(self, coordinates: np.ndarray, keep_next: bool = True) -> None:
        """Compress the basis, in place, to the vectors of coordinates (j, k) and, if told, the next one."""
        j, keep = coordinates.shape
        product = self.projected[:j, :j] @ coordinates
        kept = coordinates.T @ product
        coupling = self.projected[j, :j] @ coordinates
        lost = [
            self._lost[:j, :j] @ coordinates,
            product - coordinates @ kept,
            self._rotation_error * np.eye(keep),
        ]
        if not keep_next:
            lost.append(coupling[None])
        self._rotate(coordinates, self.vectors[:keep])
        self.projected[:] = 0
        self.projected[:keep, :keep] = kept
        if keep_next:
            self.vectors[keep] = self.vectors[j]
            self.projected[keep, :keep] = coupling
        self._lost[:] = 0
        self._lost[:keep, :keep] = np.linalg.qr(np.vstack(lost), mode="r")
        self._guessed = 0 if keep_next and self._guessed == 0 else keep
        self.count = keep

    def _rotate(self, coordinates: np.ndarray, out: Tensor) -> None:
        """Write coordinates^T V to `out`, which may be rows of V: chunk by chunk, in float64 (never TF32)."""
        basis = self.vectors[: len(coordinates)]
        rotation = torch.from_numpy(np.ascontiguousarray(coordinates.T)).to(basis.device)
        for part in _parts(basis[0]):
            out[:, part] = (rotation @ basis[:, part].double()).to(out.dtype)


def multiply(operator: Operator, v: Tensor) -> Tensor:
    """Product (n,), detached; raises ValueError if its shape isn't that of `v`."""
    product = operator.matvec(v).detach()
    if product.shape != v.shape:
        raise ValueError(f"A product of the operator has shape {tuple(product.shape)}; expected {tuple(v.shape)}.")
    return product


def require_finite(value: float, product: int) -> None:
    """Raise FloatingPointError if the norm of a product, or a sum of its entries, isn't a finite number."""
    if not math.isfinite(value):
        raise FloatingPointError(
            f"Product {product} with the operator is not finite (NaN or infinity); "
            "check the loss and its derivatives at these weights, or use float64."
        )


def orthogonalize(row: Tensor, basis: Tensor) -> tuple[np.ndarray, float]:
    """Remove from `row` (n,), in place, its part in the span of the orthonormal rows of `basis` (m, n).

    Classical Gram-Schmidt, twice: that is enough (Giraud, Langou, Rozloznik & van den Eshof 2005), and each
    pass is two matrix products.

    Returns:
        The coefficients (m,) of the part removed, and the norm of what is left, both summed in float64.
    """
    total = torch.zeros(len(basis), dtype=torch.float64, device=row.device)
    for _ in range(2):
        coefficients = torch.zeros_like(total)
        for part in _parts(row):
            coefficients += basis[:, part] @ row[part]
        for part in _parts(row):
            row[part].addmv_(basis[:, part].T, coefficients.to(row.dtype), alpha=-1)
        total += coefficients
    norm = torch.linalg.vector_norm(row, dtype=torch.float64)
    host = torch.cat([total, norm[None]]).cpu().numpy()
    return host[:-1], float(host[-1])


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product of two vectors (n,), accumulated in float64."""
    return float(sum(torch.dot(a[part].double(), b[part].double()) for part in _parts(a)))


def _parts(vector: Tensor) -> Iterator[slice]:
    chunk = _CHUNK if vector.device.type == "cpu" else _CHUNK_GPU
    return (slice(begin, begin + chunk) for begin in range(0, len(vector), chunk))
