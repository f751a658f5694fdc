"""The variance analysis: subject in, result out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from analyze.distributed import ALONE, World
from analyze.features import Room, Stand, channel_norm, extent_of, pieces, side_by_side, squared_norm, walk
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
    the others' differences from it.

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
    passes = subject.passes(config.passes)
    realisations = passes * len(subject.members)
    known = realisations > 1 or not subject.stochastic
    observed, result = _Observed(layers, realisations, known), previous
    for stand in walk(
        subject,
        layers,
        passes,
        observed.begin,
        stand=None if previous is None else Stand(previous.batches, previous.images, previous.sums),
        world=world,
        progress=progress,
        part="variance",
    ):
        columns = {name: stand.sums.mean[:, value] for value, name in enumerate(VALUES)}
        errors = {f"{name}_stderr": stand.sums.stderr[:, value] for value, name in enumerate(VALUES)}
        extent = extent_of(subject, layers, passes, stand)
        result = Result(**extent, **columns, **errors, sums=stand.sums).of(config, about)
        save(result)
    return result.of(config, about) if result else result


def is_complete(result: Result, config: Config) -> bool:
    """Whether the result holds all images."""
    return result.images == result.all_images


class _Observed:
    """Variances of all layers on one batch after another."""

    def __init__(self, layers: Sequence[Layer], realisations: int, known: bool):
        self._layers = [_Spread(layer, realisations, known) for layer in layers]

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
    r"""Variances of one layer's maps.

    With the differences :math:`d_s = x_s - x_0`, in which no digits are lost to a large mean,

    .. math:: \sum_s \|x_s - \bar x\|^2 = \sum_s \|d_s\|^2 - \frac{1}{S} \Big\| \sum_s d_s \Big\|^2.
    """

    def __init__(self, layer: Layer, realisations: int, known: bool):
        self._numbers = layer.channels * layer.height * layer.width
        self._realisations, self._known = realisations, known
        self._room = Room()

    def begin(self, images: int) -> None:
        """Forget the last batch."""
        self._images, self._seen = images, 0

    def add(self, maps: Tensor) -> None:
        """One more realisation."""
        if self._seen == 0:
            self._within, self._squares = torch.zeros(2, self._images, dtype=torch.float64, device=maps.device)
            if self._realisations > 1:
                self._first, self._drift = (
                    self._room(name, maps.shape, maps.dtype, maps.device) for name in ("first", "drift")
                )
                self._first.copy_(maps)
                self._drift.zero_()
        self._seen += 1
        for images in pieces(maps):
            part = maps[images]
            spare = self._room("piece", part.shape, part.dtype, part.device)
            self._within[images] += _variance_over_positions(part, spare)
            if self._seen > 1:
                difference = torch.sub(part, self._first[images], out=spare)
                self._squares[images] += squared_norm(difference)
                self._drift[images] += difference

    def values(self) -> Tensor:
        """`VALUES` of each image, (B, 4)."""
        if not self._known:
            model = torch.full_like(self._squares, np.nan)
        elif self._realisations == 1:
            model = torch.zeros_like(self._squares)
        else:
            rest = torch.cat([squared_norm(self._drift[images]) for images in pieces(self._drift)])
            model = (self._squares - rest / self._realisations) / ((self._realisations - 1) * self._numbers)
            model = model.clamp(min=0.0)
        data = self._within / self._realisations
        return torch.stack([model, data, model.sqrt(), data.sqrt()], dim=1)


def _variance_over_positions(maps: Tensor, spare: Tensor) -> Tensor:
    """Mean over channels of the unbiased variance over positions of (B, C, H, W) maps, (B,); NaN for one position.

    `spare` is as large as the maps, and is overwritten.
    """
    positions = maps.shape[2] * maps.shape[3]
    centred = torch.sub(maps, maps.mean((2, 3), keepdim=True), out=spare)
    squares = channel_norm(centred).square().mean(1)
    return squares / (positions - 1) if positions > 1 else torch.full_like(squares, np.nan)
