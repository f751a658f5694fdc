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
        passes: Monte Carlo passes over each batch; of M members, realisation s is member s % M in pass s // M.
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


def squared_norm(maps: Tensor) -> Tensor:
    """Sum of squares of each image of (B, C, H, W) maps over all positions and channels, (B,) in float64."""
    return channel_norm(maps).square().sum(1)


def channel_norm(maps: Tensor) -> Tensor:
    """Euclidean norm of each channel of (B, C, H, W) maps, (B, C) in float64."""
    return torch.linalg.vector_norm(maps.flatten(2), dim=2).double()


def side_by_side(columns: Sequence[Tensor]) -> np.ndarray:
    """(images, layers, values) of a (images, values) tensor for each layer, NaN where a layer has fewer values."""
    widest = max(column.shape[1] for column in columns)
    found = np.full((len(columns[0]), len(columns), widest), np.nan)
    for layer, column in enumerate(columns):
        found[:, layer, : column.shape[1]] = column.cpu().numpy()
    return found


def extent_of(subject: Subject, layers: Sequence[Layer], passes: int, stand: Stand) -> dict[str, Any]:
    """The fields of `LayeredResult`: which layers, and of how much they were measured."""
    names = ("kind", "subsampling", "channels", "height", "width")
    return {
        "layer": np.array([layer.name for layer in layers]),
        "depth": np.linspace(0.0, 1.0, len(layers)),
        **{name: np.array([getattr(layer, name) for layer in layers]) for name in names},
        "images": stand.images,
        "all_images": subject.data.images,
        "batches": stand.batches,
        "passes": passes,
        "members": len(subject.members),
    }
