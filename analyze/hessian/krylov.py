"""A Krylov space, fully reorthogonalised, grown one product with a symmetric operator at a time.

Without reorthogonalising, float32 returns copies ("ghosts") of the eigenvalues it has already found. The basis is
one flat (m, n) tensor, so that reorthogonalising is a few matrix products a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data_cache.errors import first_line

# Inner products are summed in the operator's dtype within a chunk and in float64 over chunks: a float32 sum
# over all of n = 1e6 would leave the basis orthogonal to 5e-5 only. A GPU sums in parallel, and pays for each
# launch.
_CHUNK, _CHUNK_GPU = 1 << 14, 1 << 18


class NoMemoryError(ValueError):
    """The vectors asked for do not fit into memory."""


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

    def matmat(self, vectors: Tensor) -> Tensor:
        """Products with several vectors at once, (k, n) to (k, n); `vectors` must not be written to."""


class GroupOperator(Operator, Protocol):
    """An operator that also says how many vectors at once it is fastest with."""

    @property
    def group(self) -> int:
        """Vectors to give to `matmat` at a time, 1 or more."""


class Deflated:
    r"""An operator with some directions taken out: $(I - Q^\top Q) H (I - Q^\top Q)$ for orthonormal rows Q (k, n).

    Where the rows are eigenvectors, the rest of the spectrum is as it was. Both sides are projected in float64
    sums, so that the rounding of a float32 vector cannot bring a deflated eigenvalue back.
    """

    def __init__(self, operator: Operator, basis: Tensor):
        """Keep both; `basis` (k, n) must have orthonormal rows."""
        self.operator, self.basis = operator, basis
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device

    def matvec(self, v: Tensor) -> Tensor:
        """Product with a vector, (n,) to (n,)."""
        return self.project(multiply(self.operator, self.project(v[None])))[0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """Products with several vectors at once, (k, n) to (k, n)."""
        return self.project(multiply(self.operator, self.project(vectors)))

    def project(self, vectors: Tensor) -> Tensor:
        """Copies of the vectors (k, n) without their part in the deflated directions."""
        rows = vectors.clone()
        for row in rows:
            orthogonalize(row, self.basis)
        return rows


class KrylovSpace:
    r"""An orthonormal basis V, grown one product at a time, and the projection of the operator onto it.

    After j steps the operator's products with the first j vectors are known, as

    $$H V_j = V_{j+1} P_j + F, \qquad P_j = V_{j+1}^\top H V_j \in R^{(j+1) \times j},$$

    where P is kept in float64 as computed, not symmetrised: what its upper triangle has beyond three
    diagonals is the rounding of the products. Of F, the rounding and whatever restarts dropped, a small R is
    kept with ||R s|| = ||F s||, as far as that is known.
    """

    def __init__(self, operator: Operator, capacity: int, start: Tensor):
        """Allocate capacity + 1 vectors; `start` (n,), not zero, becomes the first.

        Raises:
            NoMemoryError: They do not fit into memory.
        """
        self.operator = operator
        self.count = 0
        self.products = 0
        self.vectors = allocate(capacity + 1, operator)
        self.projected = np.zeros((capacity + 1, capacity))
        self._lost = np.zeros((capacity, capacity))
        self._guessed = 0
        self._eps = torch.finfo(operator.dtype).eps
        self._scale = 0.0
        self.append(start)

    @property
    def newest(self) -> Tensor:
        """The vector (n,) that the next step multiplies."""
        return self.vectors[self.count]

    def step(self, product: Tensor | None = None) -> bool:
        """Multiply the newest vector and append what is new in the product; False if nothing is: it closed.

        Args:
            product: (n,) of the operator and `newest`, where it has been computed already.

        Raises:
            FloatingPointError: the product holds NaN or infinity.
        """
        j = self.count
        row = self.vectors[j + 1]
        row.copy_(multiply(self.operator, self.vectors[j]) if product is None else product)
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
            self._log_norm += math.log(norm)
            row.div_(norm)
        return not closed

    def append(self, vector: Tensor) -> None:
        """Go on from this vector (n,), made orthogonal to the basis, in place of the next one."""
        row = self.vectors[self.count]
        row.copy_(vector)
        for _ in range(2):
            norm = orthogonalize(row, self.vectors[: self.count])[1]
            row.div_(norm)
        self._dropped, self._log_norm = np.zeros(0), 0.0
        self._before = self.ritz()[0]

    def log_growth(self, values: np.ndarray, points: np.ndarray, blur: np.ndarray) -> np.ndarray:
        r"""How much the space has magnified eigenvectors of eigenvalues at these points: log |p(x)|, (point,).

        The next vector is $p(H) z$ with z the start (or the last vector appended), and p a polynomial that is
        zero at all Ritz values, those dropped in restarts too. It has norm 1, so an eigenvalue x that is not among
        the Ritz values can only have a share of at most 1 / |p(x)| in z (van Dorsselaer, Hochstenbach & van
        der Vorst, "Computing Probabilistic Bounds for Extreme Eigenvalues of Symmetric Matrices with the Lanczos
        Method", SIAM J. Matrix Anal. Appl. 22, 2000).

        Args:
            values: (j,) the present Ritz values.
            points: (point,) where, x.
            blur: (point,) Ritz values closer than this count as so far away.
        """

        def log_product(roots: np.ndarray) -> np.ndarray:
            distance = np.maximum(np.abs(points[:, None] - roots), blur[:, None])
            return np.log(np.maximum(distance, np.finfo(np.float64).tiny)).sum(axis=1)

        # What was there before the vector appended is orthogonal to it, and takes no part.
        return log_product(values) + log_product(self._dropped) - log_product(self._before) - self._log_norm

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
        out = allocate(coordinates.shape[1], self.operator)
        self._rotate(coordinates, out)
        return out

    def restart(self, values: np.ndarray, coordinates: np.ndarray, keep: np.ndarray, keep_next: bool = True) -> None:
        """Compress the basis, in place, to some Ritz vectors and, if told, the next vector.

        Args:
            values: (j,) of `ritz`.
            coordinates: (j, j) of `ritz`.
            keep: Indices of those to keep, in the order in which they go on.
            keep_next: Whether the next vector stays; if not, `append` one.
        """
        j, kept_count = len(values), len(keep)
        coordinates = coordinates[:, keep]
        product = self.projected[:j, :j] @ coordinates
        kept = coordinates.T @ product
        coupling = self.projected[j, :j] @ coordinates
        lost = [
            self._lost[:j, :j] @ coordinates,
            product - coordinates @ kept,
            self._rotation_error * np.eye(kept_count),
        ]
        if not keep_next:
            lost.append(coupling[None])
        self._rotate(coordinates, self.vectors[:kept_count])
        self.projected[:] = 0
        self.projected[:kept_count, :kept_count] = kept
        if keep_next:
            self.vectors[kept_count] = self.vectors[j]
            self.projected[kept_count, :kept_count] = coupling
        self._lost[:] = 0
        self._lost[:kept_count, :kept_count] = np.linalg.qr(np.vstack(lost), mode="r")
        self._guessed = 0 if keep_next and self._guessed == 0 else kept_count
        self._dropped = np.r_[self._dropped, np.delete(values, keep)]
        self.count = kept_count

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs to go on to the same bits: the vectors as views where they are on the CPU."""
        j = self.count
        return {
            "vectors": self.vectors[: j + 1].cpu().numpy(),
            "projected": self.projected[: j + 1, :j].copy(),
            "lost": self._lost[:j, :j].copy(),
            "dropped": self._dropped.copy(),
            "before": self._before.copy(),
            "scalars": np.array([self._scale, self._log_norm]),
            "counts": np.array([self.products, self._guessed], dtype=np.int64),
        }

    @classmethod
    def restore(cls, operator: Operator, capacity: int, state: Mapping[str, np.ndarray]) -> KrylovSpace:
        """The space that `state` was taken of.

        Raises:
            ValueError: The state is of an operator of another size or dtype, or does not fit into `capacity`.
        """
        vectors = state["vectors"]
        count, dtype = len(vectors) - 1, str(operator.dtype).removeprefix("torch.")
        if vectors.shape[1] != operator.size or vectors.dtype.name != dtype or count >= capacity:
            raise ValueError(
                f"The state holds {vectors.shape} {vectors.dtype} vectors; expected (k, {operator.size}) of {dtype} "
                f"with k of at most {capacity}: it is of another run."
            )
        space = cls(operator, capacity, torch.from_numpy(np.array(vectors[0])))
        space.count = count
        for row, vector in zip(space.vectors, vectors, strict=False):
            row.copy_(torch.from_numpy(np.array(vector)))
        space.projected[: count + 1, :count] = state["projected"]
        space._lost[:count, :count] = state["lost"]
        space._dropped, space._before = np.array(state["dropped"]), np.array(state["before"])
        space._scale, space._log_norm = (float(x) for x in state["scalars"])
        space.products, space._guessed = (int(x) for x in state["counts"])
        return space

    def _rotate(self, coordinates: np.ndarray, out: Tensor) -> None:
        """Write coordinates^T V to `out`, which may be rows of V: chunk by chunk, in float64 (never TF32)."""
        basis = self.vectors[: len(coordinates)]
        rotation = torch.from_numpy(np.ascontiguousarray(coordinates.T)).to(basis.device)
        for part in _parts(basis[0]):
            out[:, part] = (rotation @ basis[:, part].double()).to(out.dtype)


def multiply(operator: Operator, vectors: Tensor) -> Tensor:
    """Products with one vector (n,) or several (k, n), detached; a group of one goes through `matvec`.

    Raises:
        ValueError: The products' shape isn't that of the vectors.
    """
    if vectors.ndim == 1:
        products = operator.matvec(vectors).detach()
    elif len(vectors) == 1:
        return multiply(operator, vectors[0])[None]
    else:
        products = operator.matmat(vectors).detach()
    if products.shape != vectors.shape:
        raise ValueError(
            f"A product of the operator has shape {tuple(products.shape)}; expected {tuple(vectors.shape)}."
        )
    return products


def row_bytes(operator: Operator) -> int:
    """Bytes of one vector."""
    return operator.size * torch.finfo(operator.dtype).bits // 8


def allocate(count: int, operator: Operator) -> Tensor:
    """Uninitialised vectors (count, n) of the operator's dtype, on its device.

    Raises:
        NoMemoryError: They do not fit into memory.
    """
    try:
        return torch.empty(count, operator.size, dtype=operator.dtype, device=operator.device)
    # torch says RuntimeError where the CPU's memory is exhausted, of which its OutOfMemoryError is a kind
    except (MemoryError, RuntimeError) as error:
        raise NoMemoryError(
            f"No memory for a basis of {count} vectors ({count * row_bytes(operator):,} bytes): {first_line(error)}. "
            "Ask for fewer vectors, or free memory."
        ) from error


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
