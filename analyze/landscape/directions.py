"""Directions in the space of weights: random, Hessian eigenvectors, other checkpoints, a series' principal axes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analyze.distributed import ALONE, World
from analyze.hessian.krylov import NoMemoryError
from analyze.hessian.lanczos import extreme_eigenpairs
from analyze.hessian.operator import HessianOperator
from analyze.landscape.checkpoints import Other, difference, read_series, told
from analyze.landscape.direction import Direction, read_directions
from analyze.landscape.filters import moved, normalized
from analyze.landscape.series import cosine, principal_axes, project
from analyze.landscape.spec import Config, Norm, Trajectory
from analyze.results import Progress, silent
from analyze.subject import Subject
from data_cache import InputError
from models.randomness import derived_seed

_PARALLEL = 1e-6


@dataclass(frozen=True)
class Plane:
    """The axes of a landscape through a subject's weights, and the checkpoints that were projected into it."""

    x: Direction
    y: Direction | None
    """None for a curve."""
    trajectory: Trajectory | None
    """Of the series; its `nll` is NaN, for it takes the images."""

    @property
    def cosine(self) -> float:
        """Of the angle between x and y; NaN for a curve."""
        return np.nan if self.y is None else cosine(self.x.tensors, self.y.tensors)


def make_plane(
    subject: Subject,
    config: Config,
    *,
    held: Mapping[str, Direction] | None = None,
    world: World = ALONE,
    progress: Progress = silent,
) -> Plane:
    """The directions that a config asks for; those that are random come from the subject's seed.

    Args:
        subject: Its weights are the origin.
        config: `direction_x`, `direction_y`, `one_dimensional`, `norm`, `series` and `same_directions` count.
        held: By axis, x or y, directions that are there already.
        world: The ranks that share the work of eigenvectors; all get the same bits.
        progress: Called after each product of the search for eigenvectors, and each checkpoint of the series.

    Raises:
        InputError: As `eigen_directions`, `checkpoint_direction`, `series_directions` and `read_directions`; also
            directions that span no plane.
    """
    steps = read_series(subject, config.series, progress)
    if config.same_directions is None:
        kinds = [config.direction_x] if config.one_dimensional else [config.direction_x, config.direction_y]
        made = _make(subject, kinds, config.norm, held or {}, steps, world, progress)
    else:
        made = read_directions(subject, config.same_directions)[: 2 - config.one_dimensional]
        if len(made) < 2 - config.one_dimensional:
            raise InputError(f"{config.same_directions} is of a curve, with one direction; give --one-dimensional.")
    plane = Plane(made[0], made[1] if len(made) > 1 else None, None)
    if plane.y is not None and abs(plane.cosine) > 1 - _PARALLEL:
        raise InputError(f"{plane.x.info.kind} and {plane.y.info.kind} are the same direction, which spans no plane.")
    return Plane(plane.x, plane.y, trajectory(plane, steps) if steps else None)


def _make(
    subject: Subject,
    kinds: Sequence[str],
    norm: Norm,
    held: Mapping[str, Direction],
    steps: Mapping[str, Mapping[str, Tensor]],
    world: World,
    progress: Progress,
) -> list[Direction]:
    """One direction for each kind; what eigenvectors, and what principal axes have in common is computed once."""
    wanted = {axis: kind for axis, kind in zip("xy", kinds, strict=False) if axis not in held}
    others = [kind for kind in wanted.values() if kind != "random" and not kind.startswith(("eigen:", "pca:"))]
    known = {kind: checkpoint_direction(subject, kind) for kind in others}  # before the search for eigenvectors
    if numbers := _numbers(wanted.values(), "eigen"):
        found = eigen_directions(subject, numbers, world=world, progress=progress)
        known |= {direction.info.kind: direction for direction in found}
    if numbers := _numbers(wanted.values(), "pca"):
        known |= {direction.info.kind: direction for direction in series_directions(subject, steps, max(numbers))}
    made = dict(held)
    for axis, kind in wanted.items():
        made[axis] = random_direction(subject, norm, axis) if kind == "random" else known[kind]
    return [made[axis] for axis, _ in zip("xy", kinds, strict=False)]


def _numbers(kinds: Iterable[str], group: str) -> list[int]:
    return [int(kind.removeprefix(f"{group}:")) for kind in kinds if kind.startswith(f"{group}:")]


def random_direction(subject: Subject, norm: Norm = "filter", axis: str = "x") -> Direction:
    r"""N(0, 1) in each entry of each parameter that `moved` names, then `normalized`.

    Each parameter has a random stream of its own, a function of (seed of the subject, axis, name of the parameter):
    other layers don't change it, nor does their order. It is drawn on the CPU in float32, the same for all devices
    and dtypes.

    Args:
        subject: Has the weights and the seed.
        norm: As `normalized` takes it.
        axis: Which of the two: x or y.

    Raises:
        InputError: There is nothing to move, or the direction comes out as zero.
    """
    weights, dtype = subject.parameters, torch.promote_types(subject.dtype, torch.float32)
    drawn = {name: _normal(subject, axis, name, weights[name].shape).to(dtype) for name in moved(subject)}
    if not drawn:
        raise InputError("the network has no weights that a random direction moves; take eigen:K or a checkpoint.")
    return Direction.of(subject, normalized(drawn, subject, norm), kind="random", norm=norm)


def _normal(subject: Subject, axis: str, name: str, shape: torch.Size) -> Tensor:
    words = np.frombuffer(hashlib.sha256(f"{axis} {name}".encode()).digest(), ">u8")
    generator = torch.Generator().manual_seed(derived_seed(subject.seed, *map(int, words)))
    return torch.randn(shape, generator=generator)


def eigen_directions(
    subject: Subject,
    numbers: Sequence[int],
    *,
    tolerance: float = 1e-3,
    max_products: int = 1000,
    basis_memory: float = 4.0,
    world: World = ALONE,
    progress: Progress = silent,
) -> list[Direction]:
    """Eigenvectors of the Hessian of the subject's loss, weight decay included, of length 1, in all its parameters.

    Their sign is chosen so that the entry of largest magnitude is positive.

    Args:
        subject: As for `HessianOperator`; dropout masks are those of pass 0.
        numbers: For each direction, which eigenvalue from the top it belongs to, from 1.
        tolerance: Of the residual, relative to the eigenvalue; beyond `max_products` the residuals tell.
        max_products: Hessian-vector products at most.
        basis_memory: GiB for the Krylov basis.
        world: The ranks that share the products.
        progress: Called after each product.

    Raises:
        InputError: More eigenvectors than parameters; memory is exhausted; or a product is not finite.
    """
    operator = HessianOperator(subject, world=world)
    count = max(numbers)
    if min(numbers) < 1 or count > operator.size:
        raise InputError(f"eigenvectors are numbered from 1 to the {operator.size} parameters, not {list(numbers)}.")

    def report(products: int, values: np.ndarray, residuals: np.ndarray) -> None:
        progress("eigenvectors", products, None, f"largest {values[0]:.4g}" if len(values) else "")

    try:
        pairs = extreme_eigenpairs(
            operator,
            largest=count,
            smallest=0,
            tolerance=tolerance,
            max_products=max(max_products, count),
            basis_bytes=int(basis_memory * 2**30),
            seed=subject.seed,
            on_product=report,
        )
    except (FloatingPointError, NoMemoryError) as error:
        raise InputError(str(error)) from error
    found = []
    for number in numbers:
        vector = pairs.largest_vectors[number - 1]
        vector = vector * vector[vector.abs().argmax()].sign()
        parts = zip(operator.names, vector.split(operator.sizes), strict=True)
        tensors = {name: part.view_as(subject.parameters[name]) for name, part in parts}
        value, residual = float(pairs.largest[number - 1]), float(pairs.largest_residual[number - 1])
        found.append(Direction.of(subject, tensors, kind=f"eigen:{number}", eigenvalue=value, residual=residual))
    return found


def checkpoint_direction(subject: Subject, other: Other) -> Direction:
    """From the subject's weights to those of another checkpoint, which lies at coordinate 1.

    Args:
        subject: Where it starts.
        other: Where it leads.

    Raises:
        InputError: The other is of another network, or cannot be read, or has the same weights.
    """
    tensors, rest = difference(subject, other)
    return Direction.of(subject, tensors, kind=told(other), rest=rest)


def series_directions(subject: Subject, steps: Mapping[str, Mapping[str, Tensor]], count: int = 2) -> list[Direction]:
    """The `principal_axes` of a series of checkpoints around the subject's weights.

    Args:
        subject: The origin, by custom the end of the series.
        steps: For each checkpoint by name its `difference` in parameters.
        count: One axis or two.

    Raises:
        InputError: The checkpoints span fewer dimensions.
    """
    axes, shares = principal_axes(list(steps.values()), count)
    return [
        Direction.of(subject, axis, kind=f"pca:{number}", explained=float(share))
        for number, (axis, share) in enumerate(zip(axes, shares, strict=True), start=1)
    ]


def trajectory(plane: Plane, steps: Mapping[str, Mapping[str, Tensor]]) -> Trajectory:
    """Checkpoints projected into a plane by least squares, with their distance from it; `nll` is NaN.

    Args:
        plane: Or line.
        steps: For each checkpoint by name its `difference` in parameters.
    """
    axes = [direction.on_cpu() for direction in (plane.x, plane.y) if direction is not None]
    found = [project(step, axes) for step in steps.values()]
    coordinates = np.array([[*point, 0.0][:2] for point, _ in found])
    return Trajectory(
        name=np.array(list(steps)),
        x=coordinates[:, 0],
        y=coordinates[:, 1],
        distance=np.array([distance for _, distance in found]),
        nll=np.full(len(found), np.nan),
    )
