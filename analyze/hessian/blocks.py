"""Each layer's own block of the Hessian: its trace with a standard error, and its largest eigenvalue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from analyze.hessian.density import rademacher
from analyze.hessian.krylov import dot, multiply, require_finite
from analyze.hessian.lanczos import extreme_eigenpairs
from analyze.hessian.operator import HessianOperator
from analyze.hessian.spec import Blocks, Config
from analyze.hessian.trace import probe_product
from analyze.results import Progress, silent
from models.randomness import derived_seed


@dataclass(frozen=True)
class Block:
    """The parameters that one module owns, and where they lie in the flat vector of all."""

    name: str
    """The module, or the parameter itself where the model owns it directly."""
    parameters: tuple[str, ...]
    """Names, in the order of the flat vector."""
    slices: tuple[slice, ...]
    """One for each of them; a module's parameters need not be adjacent."""

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(part.stop - part.start for part in self.slices)


def partition(names: Sequence[str], sizes: Sequence[int]) -> list[Block]:
    """Group parameters by the module that owns them, in order of first appearance.

    `layer1.0.conv1` owns `layer1.0.conv1.weight` and `.bias`. A tied parameter belongs to the module that it is
    first named after; a parameter of the model itself is a block of its own. Empty ones are in no block.

    Args:
        names: Of the parameters, in the order of the flat vector.
        sizes: Number of weights of each.
    """
    owned: dict[str, list[tuple[str, slice]]] = {}
    begin = 0
    for name, size in zip(names, sizes, strict=True):
        if size:
            owned.setdefault(name.rpartition(".")[0] or name, []).append((name, slice(begin, begin + size)))
        begin += size
    return [
        Block(owner, tuple(name for name, _ in parts), tuple(where for _, where in parts))
        for owner, parts in owned.items()
    ]


def block_samples(blocks: Sequence[Block], z: Tensor, product: Tensor) -> np.ndarray:
    r"""One unbiased sample of every block's trace, from one product.

    $$E[z_b^\top (H z)_b] = \mathrm{tr} H_{bb}, \qquad
      \mathrm{Var} = 2 \lVert \mathrm{off}(H_{bb}) \rVert_F^2 + \sum_{c \ne b} \lVert H_{bc} \rVert_F^2$$

    for a Rademacher vector z over all parameters; the second term, absent where z lives in the block alone, is
    what makes small blocks beside large ones noisy. The samples of all blocks add up to z'Hz.

    Args:
        blocks: Of the flat vector.
        z: (n,).
        product: H z, (n,).

    Returns:
        (block,) float64.

    Raises:
        FloatingPointError: The product holds NaN or infinity.
    """
    samples = np.array([sum(dot(z[part], product[part]) for part in block.slices) for block in blocks])
    require_finite(float(samples.sum()), 1)
    return samples


def grow(
    operator: HessianOperator,
    seed: int,
    config: Config,
    done: Blocks | None,
    progress: Progress = silent,
    *,
    sample: Callable[[int], np.ndarray] | None = None,
) -> Iterator[Blocks]:
    """Yield the blocks' traces and largest eigenvalues after each step from which they can be resumed.

    First `block_samples` vectors that all blocks share. Blocks whose standard error then exceeds `block_error`
    of their trace get as many vectors of their own, `operator.group` at a time, and their estimate is from those
    alone. What is left of a choice by outcome is that the others keep estimates that looked good: that biases a
    trace by at most 0.4 of its standard error (a normal mean kept where it exceeds a bound). Last, each block's
    largest eigenvalue.

    Args:
        operator: The Hessian.
        seed: All random vectors are functions of it, of the block's number and of their own number.
        config: `block_samples`, `block_error`, `block_tolerance`, `max_products`, `basis_memory`.
        done: What there is already; the outcome is the same bit for bit as without a break. With more
            `block_samples` than it has, the choice of noisy blocks is made anew from all of them.
        progress: Called after each product.
        sample: `block_samples` of probe p as a function of p, where the products are computed elsewhere too.

    Raises:
        FloatingPointError: A product holds NaN or infinity.
        ValueError: A block's basis does not fit into `basis_memory`.
    """
    blocks = partition(operator.names, operator.sizes)

    def computed(probe: int) -> np.ndarray:
        return block_samples(blocks, *probe_product(operator, seed, probe))

    found = _nothing(blocks) if done is None else done
    for probe in range(len(found.samples), config.block_samples):
        found = replace(found, samples=np.vstack([found.samples, (sample or computed)(probe)]))
        found = _estimated(found)
        progress("blocks", probe + 1, config.block_samples, "random vectors for the traces")
        yield found
    noisy = _noisy(found, config.block_error)
    if len(found.own_samples) != len(found.samples):
        own = np.full_like(found.samples, np.nan)
        own[: len(found.own_samples), noisy] = found.own_samples[:, noisy]
        found = _estimated(replace(found, own_samples=own))
        yield found
    for number in np.flatnonzero(noisy).tolist():
        for column in _own_samples(operator, seed, blocks[number], number, found.own_samples[:, number], progress):
            own = found.own_samples.copy()
            own[:, number] = column
            found = _estimated(replace(found, own_samples=own))
            yield found
    for number in np.flatnonzero(np.isnan(found.largest)).tolist():
        found = _with_largest(operator, seed, config, blocks[number], number, found, progress)
        yield found


def is_complete(done: Blocks | None, config: Config) -> bool:
    """Whether nothing is left of what the config asks for."""
    return (
        done is not None
        and len(done.samples) >= config.block_samples
        and len(done.own_samples) == len(done.samples)
        and not np.isnan(done.own_samples[:, _noisy(done, config.block_error)]).any()
        and not np.isnan(done.largest).any()
    )


def _nothing(blocks: Sequence[Block]) -> Blocks:
    unknown = np.full(len(blocks), np.nan)
    return Blocks(
        block=np.array([block.name for block in blocks], dtype=object),
        size=np.array([block.size for block in blocks]),
        trace=unknown,
        trace_stderr=unknown,
        largest=unknown,
        largest_residual=unknown,
        products=np.zeros(len(blocks), dtype=np.int64),
        converged=np.zeros(len(blocks), dtype=bool),
        samples=np.zeros((0, len(blocks))),
        own_samples=np.zeros((0, len(blocks))),
    )


def _mean_and_error(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (block,) and their standard errors, NaN for a single sample, of samples (sample, block)."""
    count = len(samples)
    error = samples.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.full(samples.shape[1], np.nan)
    return samples.mean(axis=0), error


def _estimated(found: Blocks) -> Blocks:
    """The same with traces from each block's own samples where there are as many as shared ones."""
    trace, error = _mean_and_error(found.samples)
    if len(found.own_samples) == len(found.samples):
        own_trace, own_error = _mean_and_error(found.own_samples)
        own = ~np.isnan(own_trace)
        trace[own], error[own] = own_trace[own], own_error[own]
    return replace(found, trace=trace, trace_stderr=error)


def _noisy(found: Blocks, share: float) -> np.ndarray:
    """Which blocks' traces the shared samples leave with a standard error above this share of them."""
    trace, error = _mean_and_error(found.samples)
    return error > share * np.abs(trace)


def _own_samples(
    operator: HessianOperator, seed: int, block: Block, number: int, column: np.ndarray, progress: Progress
) -> Iterator[np.ndarray]:
    """Fill the NaNs of a block's own samples (own_sample,), one group of vectors at a time."""
    column = column.copy()
    begin, count = int(np.sum(~np.isnan(column))), len(column)
    part = operator.block(block.parameters)
    while begin < count:
        # groups start at multiples of their size, so that a resumed run multiplies the same vectors together
        end = min(begin - begin % operator.group + operator.group, count)
        own_seed = _seed_of(seed, number)
        z = torch.stack([rademacher(part.size, own_seed, i, part.dtype, part.device) for i in range(begin, end)])
        column[begin:end] = [dot(*pair) for pair in zip(z, multiply(part, z), strict=True)]
        require_finite(column[begin:end].sum(), end)
        begin = end
        progress("blocks: noisy traces", begin, count, f"{block.name}: {column[:begin].mean():.4g}")
        yield column.copy()


def _with_largest(
    operator: HessianOperator,
    seed: int,
    config: Config,
    block: Block,
    number: int,
    found: Blocks,
    progress: Progress,
) -> Blocks:
    count = len(found.block)

    def report(products: int, values: np.ndarray, residuals: np.ndarray) -> None:
        progress("blocks: eigenvalues", number, count, f"{block.name}: {values[0]:.4g}, product {products}")

    pairs = extreme_eigenpairs(
        operator.block(block.parameters),
        largest=1,
        smallest=0,
        tolerance=config.block_tolerance,
        max_products=config.max_products,
        basis_bytes=int(config.basis_memory * 2**30),
        seed=_seed_of(seed, number),
        on_product=report,
    )
    progress("blocks: eigenvalues", number + 1, count, f"{block.name}: {pairs.largest[0]:.4g}")
    columns = {
        "largest": pairs.largest[0],
        "largest_residual": pairs.largest_residual[0],
        "products": pairs.products,
        "converged": pairs.converged,
    }
    changed = {name: getattr(found, name).copy() for name in columns}
    for name, value in columns.items():
        changed[name][number] = value
    return replace(found, **changed)


def _seed_of(seed: int, number: int) -> int:
    return derived_seed(seed, 0, 0, 1 + number)
