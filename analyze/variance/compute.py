"""The variance analysis: subject in, result out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from analyze.distributed import ALONE, World
from analyze.features import Realisations, Room, Stand, extent_of, pieces, side_by_side, squared_norm, walk
from analyze.layers import Layer, find_layers
from analyze.moments import Moments
from analyze.results import Progress, silent
from analyze.scratch import Scratch
from analyze.subject import Subject
from analyze.variance.spec import VALUES, Config, Result


def compute(
    subject: Subject,
    config: Config | None = None,
    *,
    previous: Result | None = None,
    save: Callable[[Result], None] = lambda result: None,
    progress: Progress = silent,
    world: World = ALONE,
    scratch: Scratch | None = None,
) -> Result:
    """Model and data variance of the feature maps of each layer; `Result` has the formulas.

    Memory does not grow with images or passes: of each layer the first realisation of a batch is held, and the sum of
    the others' differences from it, for each member of an ensemble if they are random.

    Args:
        subject: Model and data.
        config: What to compute; the defaults of `Config` if None.
        previous: A result of the same subject and config, perhaps incomplete, to go on from.
        save: Called with the result so far after each batch.
        progress: Called after each pass.
        world: The ranks that share the batches; each calls `compute` with the same arguments. Rank 0's result counts.
        scratch: Not needed.

    Raises:
        InputError: No layers, layers whose maps change size, or a model that fails on the images.
    """
    config = config or Config()
    about, layers = subject.describe(), find_layers(subject, config.layers)
    realisations = Realisations.of(subject, layers, config.passes)
    observed, result = _Observed(layers, realisations), previous
    for stand in walk(
        subject,
        layers,
        realisations.passes,
        observed.begin,
        stand=None if previous is None else Stand(previous.batches, previous.images, previous.sums),
        world=world,
        progress=progress,
        part="variance",
    ):
        columns = {name: stand.sums.mean[:, value] for value, name in enumerate(VALUES)}
        errors = {f"{name}_stderr": stand.sums.stderr[:, value] for value, name in enumerate(VALUES)}
        extent = extent_of(subject, layers, realisations, stand)
        result = Result(**extent, **columns, **errors, sums=stand.sums).of(config, about)
        save(result)
    return result.of(config, about) if result else result


def is_complete(result: Result, config: Config) -> bool:
    """Whether the result holds all images."""
    return result.images == result.all_images


class _Observed:
    """Variances of all layers on one batch after another."""

    def __init__(self, layers: Sequence[Layer], realisations: Realisations):
        self._layers = [_Spread(layer, realisations) for layer in layers]

    def begin(self, images: int) -> _Observed:
        """Forget the last batch."""
        for layer in self._layers:
            layer.begin(images)
        return self

    def add(self, position: int, maps: Tensor) -> None:
        self._layers[position].add(maps)

    def sums(self, first: int) -> Moments:
        """Of `VALUES`."""
        return Moments.of(side_by_side([layer.values() for layer in self._layers]), first)


class _Spread:
    """Variances of one layer's maps."""

    def __init__(self, layer: Layer, realisations: Realisations):
        self._numbers = layer.channels * layer.height * layer.width
        self._realisations = realisations
        self._room = Room()

    def begin(self, images: int) -> None:
        """Forget the last batch."""
        self._images, self._seen = images, 0

    def add(self, maps: Tensor) -> None:
        """One more realisation."""
        if self._seen == 0:
            self._within, self._squares = torch.zeros(2, self._images, dtype=torch.float64, device=maps.device)
            if self._realisations.count > 1:
                groups = (self._realisations.groups, *maps.shape)
                self._first = self._room("first", maps.shape, maps.dtype, maps.device).copy_(maps)
                self._drifts = self._room("drifts", groups, maps.dtype, maps.device).zero_()
        group = self._seen % self._realisations.groups
        self._seen += 1
        for images in pieces(maps):
            part = maps[images]
            spare = self._room("piece", part.shape, part.dtype, part.device)
            self._within[images] += _variance_over_positions(part, spare)
            if self._seen > 1:
                difference = torch.sub(part, self._first[images], out=spare)
                self._drifts[group, images] += difference
                self._squares[images] += squared_norm(difference, out=spare)

    def values(self) -> Tensor:
        """`VALUES` of each image, (B, 4)."""
        realisations = self._realisations
        if realisations.count == 1:
            model = torch.full_like(self._squares, 0.0 if realisations.known else np.nan)
        else:
            spread = [
                realisations.variance(self._squares[images], self._drifts[:, images], squared_norm)
                for images in pieces(self._first)
            ]
            model = torch.cat(spread) / self._numbers
        data = self._within / realisations.count
        return torch.stack([model, data, model.sqrt(), data.sqrt()], dim=1)


def _variance_over_positions(maps: Tensor, spare: Tensor) -> Tensor:
    """Mean over channels of the unbiased variance over positions of (B, C, H, W) maps, (B,); NaN for one position.

    `spare` is as large as the maps, and is overwritten.
    """
    positions = maps.shape[2] * maps.shape[3]
    centred = torch.sub(maps, maps.mean((2, 3), keepdim=True), out=spare)
    squares = squared_norm(centred, out=spare) / maps.shape[1]
    return squares / (positions - 1) if positions > 1 else torch.full_like(squares, np.nan)
