"""One walk over the feature maps of all layers, batch by batch, that holds no more than what is measured of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from analyze.distributed import ALONE, World
from analyze.layers import Layer, feature_maps
from analyze.results import Progress, silent
from analyze.subject import Batch, Subject

R = TypeVar("R")

FEW = 4
"""Images that tell whether passes differ."""
PIECE = {"cpu": 2**18}
"""Numbers that are worked on at a time: what stays in a CPU core's cache."""


class Observation(Protocol[R]):
    """What is measured of all layers on one batch; R is added up with `+`."""

    def add(self, position: int, maps: Tensor) -> None:
        """One more realisation of a layer's maps (B, C, H, W), neither to be kept nor to be changed."""

    def sums(self, first: int) -> R:
        """What the batch, whose first image has this number, adds to the sums over images; NumPy only."""


class Stand(NamedTuple, Generic[R]):
    """How far a walk is."""

    batches: int
    """Batches so far."""
    images: int
    """Images in them."""
    sums: R
    """Sums over them."""


class Realisations(NamedTuple):
    """The realisations of each image: of M members, realisation s is member s % M in pass s // M."""

    passes: int
    members: int
    known: bool
    """Whether the variance over them is: it is not of one pass of one random network."""

    @classmethod
    def of(cls, subject: Subject, layers: Sequence[Layer], passes: int) -> Realisations:
        """As many passes as asked for, but one if the maps of all of them are the same."""
        random, members = _is_random(subject, layers), len(subject.members)
        passes = passes if random else 1
        return cls(passes, members, known=not random or passes * members > 1)

    @property
    def count(self) -> int:
        """How many there are."""
        return self.passes * self.members

    @property
    def groups(self) -> int:
        """Realisation s belongs to group s % groups: to its member if there are several passes, else all to one."""
        return self.members if self.passes > 1 else 1

    def variance(self, squares: Tensor, drifts: Tensor, squared: Callable[[Tensor], Tensor]) -> Tensor:
        r"""Unbiased variance of a realisation, of which member and pass are both drawn at random.

        With the differences :math:`d_s` to the first realisation, in which no digits are lost to a large mean, and
        their sums :math:`D_m` over the S realisations of each of M groups,

        .. math:: v_{within} = \frac{\sum_s \|d_s\|^2 - \frac1S \sum_m \|D_m\|^2}{M (S - 1)}, \quad
            v_{between} = \frac{\sum_m \|D_m\|^2 - \frac1M \|\sum_m D_m\|^2}{S^2 (M - 1)}, \quad
            v = \Big(1 - \frac1S\Big) v_{within} + v_{between},

        which does not depend on S but for its error; of one group it is the variance within.

        Args:
            squares: Sum of the squares of all differences, of any shape.
            drifts: (groups, ...) the sums.
            squared: Makes the squares of a drift, of the shape of `squares`.
        """
        size = self.count // self.groups
        each = sum((squared(drift) for drift in drifts), torch.zeros_like(squares))
        found = (squares - each / size) / (self.groups * (size - 1))
        if self.groups > 1:
            between = (each - squared(drifts.sum(0)) / self.groups) / (size**2 * (self.groups - 1))
            found = (1 - 1 / size) * found + between
        return found.clamp(min=0.0)


def _is_random(subject: Subject, layers: Sequence[Layer]) -> bool:
    """Whether two passes of the first few images differ in any bit of the layers' maps, or in what is no number.

    The outputs alone don't tell: what is random inside may be cut off by a saturated or clipped end.
    """
    x = next(iter(subject.data))[0][:FEW]
    kept: dict[tuple[int, int], Tensor] = {}
    same = True

    def keep(position: int, member: int, maps: Tensor) -> None:
        kept[position, member] = maps.clone()

    def compare(position: int, member: int, maps: Tensor) -> None:
        nonlocal same
        same = same and torch.equal(kept.pop((position, member)), maps)

    for number, receive in enumerate((keep, compare)):
        feature_maps(subject, layers, x, 0, number, receive)
    return not same


def walk(
    subject: Subject,
    layers: Sequence[Layer],
    passes: int,
    begin: Callable[[int], Observation[R]],
    *,
    stand: Stand[R] | None = None,
    world: World = ALONE,
    progress: Progress = silent,
    part: str = "features",
) -> Iterator[Stand[R]]:
    """Observe the maps of all layers in every Monte Carlo pass and ensemble member, one batch after another.

    Sums are added up in the order of the batches, so that neither a resume nor the number of ranks changes a bit.

    Args:
        subject: Model and data.
        layers: Whose maps.
        passes: Monte Carlo passes over each batch; realisations come in the order of `Realisations`.
        begin: `begin(images)` makes the observation of a batch of so many images.
        stand: Where to go on from.
        world: The ranks that share the batches; rank 0 yields.
        progress: Called after each pass.
        part: What progress calls it.

    Yields:
        How far it is, after each batch.

    Raises:
        InputError: As `feature_maps`.
    """
    batch_of = _Batches(subject)
    count = len(subject.data.source)  # type: ignore[arg-type]
    done = 0 if stand is None else stand.batches

    def work(index: int) -> tuple[int, R]:
        first, (x, _) = batch_of(index)
        observed = begin(len(x))

        def receive(position: int, member: int, maps: Tensor) -> None:
            observed.add(position, _readable(maps))

        for number in range(passes):
            feature_maps(subject, layers, x, index, number, receive)
            progress(part, max(done, index) * passes + number + 1, count * passes, "")
        return len(x), observed.sums(first)

    progress(part, done * passes, count * passes, "")
    for index, (images, sums) in world.share_out_in_order(range(done, count), work):
        done = index + 1
        stand = Stand(done, images, sums) if stand is None else Stand(done, stand.images + images, stand.sums + sums)
        yield stand


class _Batches:
    """Batches by number, asked for in ascending order."""

    def __init__(self, subject: Subject):
        self._batches = subject.numbered_batches()

    def __call__(self, index: int) -> tuple[int, Batch]:
        return next((first, batch) for number, first, batch in self._batches if number == index)


def _readable(maps: Tensor) -> Tensor:
    """The maps contiguous, and in a dtype that has a Fourier transform on every device."""
    return (maps if maps.dtype in (torch.float32, torch.float64) else maps.float()).contiguous()


class Room:
    """Memory that is used again for the next batch: fresh memory costs more time than what is done in it."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor with whatever is left in it; what was last given under this name becomes invalid."""
        held, numbers = self._held.get(name), prod(shape)
        if held is None or len(held) < numbers or (held.dtype, held.device) != (dtype, device):
            held = self._held[name] = torch.empty(numbers, dtype=dtype, device=device)
        return held[:numbers].view(*shape)


def pieces(maps: Tensor) -> Iterator[slice]:
    """Images of (B, C, H, W) maps that are worked on together, so that intermediate results stay in the cache."""
    size = max(1, PIECE.get(maps.device.type, 2**24) // max(1, maps[0].numel()))
    for begin in range(0, len(maps), size):
        yield slice(begin, begin + size)


def squared_norm(maps: Tensor, dim: tuple[int, ...] = (1, 2, 3), out: Tensor | None = None) -> Tensor:
    """Sum of squares over some axes of (B, C, H, W) maps, in float64; the squares themselves go to `out`.

    `sum` adds up pairwise, so that even in float32 the error stays near 1e-7 for maps of any size. That of
    `vector_norm`, which does not, grows to 1e-6 at 224x224.
    """
    return torch.square(maps, out=out).sum(dim).double()


def side_by_side(columns: Sequence[Tensor]) -> np.ndarray:
    """(images, layers, values) of a (images, values) tensor for each layer, NaN where a layer has fewer values."""
    widest = max(column.shape[1] for column in columns)
    found = np.full((len(columns[0]), len(columns), widest), np.nan)
    for layer, column in enumerate(columns):
        found[:, layer, : column.shape[1]] = column.cpu().numpy()
    return found


def extent_of(subject: Subject, layers: Sequence[Layer], realisations: Realisations, stand: Stand) -> dict[str, Any]:
    """The fields of `LayeredResult`: which layers, and of how much they were measured."""
    names = ("kind", "subsampling", "channels", "height", "width")
    return {
        "layer": np.array([layer.name for layer in layers]),
        "depth": np.linspace(0.0, 1.0, len(layers)),
        **{name: np.array([getattr(layer, name) for layer in layers]) for name in names},
        "images": stand.images,
        "all_images": subject.data.images,
        "batches": stand.batches,
        "passes": realisations.passes,
        "members": realisations.members,
    }
