"""The Fourier analysis: subject in, result out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from analyze.distributed import ALONE, World
from analyze.features import Room, Stand, channel_norm, extent_of, pieces, side_by_side, walk
from analyze.fourier.bins import diagonal, interpolation, ring_matrix, whole_plane
from analyze.fourier.spec import MOMENTS, Config, Result, Sums
from analyze.frequencies import edges
from analyze.layers import Layer, find_layers
from analyze.moments import Moments
from analyze.results import Progress, silent
from analyze.scratch import Scratch
from analyze.subject import Subject
from data_cache import InputError


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
    """Spectra of the feature maps of each layer; `Result` has the formulas.

    Memory does not grow with images or passes: of each layer the first realisation's transform of a batch is held, and
    the sum of the others' differences from it.

    Args:
        subject: Model and data.
        config: What to compute; the defaults of `Config` if None.
        previous: A result of the same subject and config, perhaps incomplete, to go on from.
        save: Called with the result so far after each batch.
        progress: Called after each pass.
        world: The ranks that share the batches; each calls `compute` with the same arguments. Rank 0's result counts.
        scratch: Not needed.

    Raises:
        InputError: No layers, none that `spectra` matches, layers whose maps change size, or a model that fails on the
            images.
    """
    config = config or Config()
    about, layers = subject.describe(), find_layers(subject, config.layers)
    passes = subject.passes(config.passes)
    realisations = passes * len(subject.members)
    known = realisations > 1 or not subject.stochastic
    plans = [_Plan(layer, config, realisations, known, subject.device) for layer in layers]
    for pattern in config.spectra:
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            raise InputError(f"spectra: no layer matches {pattern!r}; there are {', '.join(x.name for x in layers)}.")
    observed, result = _Observed(plans), previous
    for stand in walk(
        subject,
        layers,
        passes,
        observed.begin,
        stand=None if previous is None else Stand(previous.batches, previous.images, previous.sums),
        world=world,
        progress=progress,
        part="fourier",
    ):
        result = _result(plans, config, stand.sums, extent_of(subject, layers, passes, stand)).of(config, about)
        save(result)
    return result.of(config, about) if result else result  # type: ignore[return-value]


def is_complete(result: Result, config: Config) -> bool:
    """Whether the result holds all images."""
    return result.images == result.all_images


DIRECT = 100
"""Positions up to which a transform is a matrix product."""


class _Plan:
    """What is taken from the transform of one layer's maps."""

    def __init__(self, layer: Layer, config: Config, realisations: int, known: bool, device: torch.device):
        self.layer, self.realisations, self.known = layer, realisations, known
        self.positions = layer.height * layer.width
        self.diagonal = diagonal(layer.height, layer.width)
        self.interpolation = interpolation(self.diagonal.frequency)
        self.rings = ring_matrix(layer.height, layer.width, config.rings)
        self.plane = any(fnmatchcase(layer.name, pattern) for pattern in config.spectra)
        self._device = device

    @cached_property
    def bins(self) -> Tensor:
        """Where the half diagonal is in a transform whose rows are put one after another."""
        rows, columns, _ = self.diagonal
        return torch.from_numpy(rows * (self.layer.width // 2 + 1) + columns).to(self._device)

    @cached_property
    def ring_matrix(self) -> Tensor:
        """Turns sums over channels of the squares of the real and imaginary parts of F into the power of each ring."""
        power = self.rings / (self.positions**2 * self.layer.channels)
        return torch.from_numpy(power.repeat(2, axis=0)).to(self._device)

    def transform(self, maps: Tensor) -> Tensor:
        """`rfft2` of maps (B, C, H, W); of small ones as one matrix product, several times faster on a CPU."""
        if self.positions > DIRECT:
            return torch.fft.rfft2(maps)
        parts = (maps.flatten(2) @ self._direct.to(maps.dtype)).unflatten(2, (self.layer.height, -1, 2))
        return torch.view_as_complex(parts)

    @cached_property
    def _direct(self) -> Tensor:
        """(positions, 2 * bins) real and imaginary parts of the transform of each position's unit, in turn."""
        units = torch.eye(self.positions, dtype=torch.float64).unflatten(1, (self.layer.height, self.layer.width))
        return torch.view_as_real(torch.fft.rfft2(units)).flatten(1).to(self._device)


class _Observed:
    """Spectra of all layers on one batch after another."""

    def __init__(self, plans: Sequence[_Plan]):
        self._layers = [_Spectrum(plan) for plan in plans]

    def begin(self, images: int) -> _Observed:
        """Forget the last batch."""
        for layer in self._layers:
            layer.begin(images)
        return self

    def add(self, position: int, maps: Tensor) -> None:
        self._layers[position].add(maps)

    def sums(self, first: int) -> Sums:
        """What the batch adds."""
        found = [layer.values() for layer in self._layers]
        columns = {name: side_by_side([values[name] for values in found]) for name in MOMENTS}
        alive = columns["dead"][..., 0] < 1
        needs = {"amplitude": alive, "relative": alive, "high": alive}
        return Sums(
            **{name: Moments.of(values, first, needs.get(name)) for name, values in columns.items()},
            plane={layer.plan.layer.name: layer.plane.cpu().numpy() for layer in self._layers if layer.plan.plane},
        )


class _Spectrum:
    """Sums over realisations and channels of one layer's transforms, image by image."""

    def __init__(self, plan: _Plan):
        self.plan, self._room = plan, Room()

    def begin(self, images: int) -> None:
        """Forget the last batch."""
        self._images, self._seen = images, 0

    def add(self, maps: Tensor) -> None:
        """One more realisation."""
        if self._seen == 0:
            self._clear(maps)
        self._seen += 1
        norm = channel_norm(maps)
        alive = norm != 0  # not "> 0": what is no number shall be seen
        # by Parseval the norm is the rms of |F|; a dead channel's amplitude is set to 1, of which the logarithm is 0
        least = torch.where(alive, torch.finfo(maps.dtype).eps * norm, 1.0).to(maps.dtype)[..., None]
        lines = []
        for images in pieces(maps):
            spectrum = self.plan.transform(maps[images])
            self._power[images] += _over_channels(torch.view_as_real(spectrum).square())
            lines.append(spectrum.flatten(2).index_select(2, self.plan.bins))
            if self.plan.plane:
                self._planes[images] += _logarithms(spectrum.flatten(2), least[images])
            if self._seen > 1:
                difference = spectrum.sub_(self._first[images])
                self._drift[images] += difference
                self._noise[images] += _over_channels(torch.view_as_real(difference).square_())
            elif self.plan.realisations > 1:
                self._first[images] = spectrum
        self._alive += alive.sum(1, keepdim=True)
        self._line += _logarithms(torch.cat(lines), least)

    def _clear(self, maps: Tensor) -> None:
        """Set all sums to 0."""
        half = (maps.shape[2], maps.shape[3] // 2 + 1)

        def zeros(name: str, values: int) -> Tensor:
            return self._room(name, (self._images, values), torch.float64, maps.device).zero_()

        self._power = zeros("power", 2 * half[0] * half[1])
        self._line, self._alive = zeros("line", len(self.plan.diagonal.frequency)), zeros("alive", 1)
        if self.plan.plane:
            self._planes = zeros("plane", half[0] * half[1])
        if self.plan.realisations > 1:
            shape, dtype = (*maps.shape[:2], *half), maps.dtype.to_complex()
            self._first, self._drift = (self._room(name, shape, dtype, maps.device) for name in ("first", "drift"))
            self._drift.zero_()
            self._noise = zeros("noise", 2 * half[0] * half[1])

    def values(self) -> dict[str, Tensor]:
        """The values of each image, (B, values), as `Sums` has them."""
        plan, realisations = self.plan, self.plan.realisations
        amplitude = self._line / self._alive
        relative = amplitude - amplitude[:, :1]
        weights = torch.from_numpy(plan.interpolation).to(relative.device)
        empty = torch.from_numpy(plan.rings.sum(0) == 0).to(relative.device)
        found = {
            "amplitude": amplitude,
            "relative": relative,
            "high": torch.logsumexp(relative + weights.log(), dim=1, keepdim=True),
            "dead": 1 - self._alive / (realisations * plan.layer.channels),
            "power": self._power @ self.plan.ring_matrix / realisations,
            "noise": self._noise_power(),
        }
        return found | {name: found[name].masked_fill(empty, np.nan) for name in ("power", "noise")}

    def _noise_power(self) -> Tensor:
        """Unbiased variance over realisations from differences to the first of them."""
        realisations = self.plan.realisations
        if realisations == 1:
            return self._power.new_full((self._images, self.plan.rings.shape[1]), 0.0 if self.plan.known else np.nan)
        drift = torch.view_as_real(self._drift)
        rest = torch.cat([_over_channels(drift[images].square_()) for images in pieces(self._drift)])
        spread = ((self._noise - rest / realisations) / (realisations - 1)).clamp(min=0.0)
        return spread @ self.plan.ring_matrix

    @property
    def plane(self) -> Tensor:
        """Sum over images with any channel alive of the log amplitude over the half plane."""
        means = torch.where(self._alive > 0, self._planes / self._alive, 0.0)
        return means.sum(0).view(self.plan.layer.height, -1)


def _over_channels(parts: Tensor) -> Tensor:
    """(B, 2 * bins) sums over channels of what is there for the real and the imaginary part of each bin, in turn."""
    return parts.sum(1).flatten(1)


def _logarithms(spectrum: Tensor, least: Tensor) -> Tensor:
    """(B, bins) sums over channels of log |F|, or of the logarithm of `least` (B, C, 1) where that is more."""
    return torch.maximum(spectrum.abs(), least).log_().sum(1, dtype=torch.float64)


def _result(plans: Sequence[_Plan], config: Config, sums: Sums, extent: dict) -> Result:
    limits = edges(config.rings)
    widest = max(len(plan.diagonal.frequency) for plan in plans)
    frequency = np.full((len(plans), widest), np.nan)
    for row, plan in zip(frequency, plans, strict=True):
        row[: len(plan.diagonal.frequency)] = plan.diagonal.frequency
    return Result(
        **extent,
        frequency=frequency,
        log_amplitude=sums.amplitude.mean,
        log_amplitude_stderr=sums.amplitude.stderr,
        relative_log_amplitude=sums.relative.mean,
        relative_log_amplitude_stderr=sums.relative.stderr,
        high_frequency_amplitude=sums.high.mean[:, 0],
        high_frequency_amplitude_stderr=sums.high.stderr[:, 0],
        dead_share=sums.dead.mean[:, 0],
        radial_frequency=np.concatenate([[0.0], (limits[:-1] + limits[1:]) / 2]),
        ring_low=np.concatenate([[0.0], limits[:-1]]),
        ring_bins=np.stack([plan.rings.sum(0).astype(np.int64) for plan in plans]),
        power=sums.power.mean,
        power_stderr=sums.power.stderr,
        model_noise_power=sums.noise.mean,
        model_noise_power_stderr=sums.noise.stderr,
        spectra=_spectra(extent, sums),
        sums=sums,
    )


def _spectra(extent: dict, sums: Sums) -> dict[str, np.ndarray]:
    """Mean log amplitudes over the whole plane."""
    layers = zip(extent["layer"].tolist(), extent["width"].tolist(), sums.amplitude.count.tolist(), strict=True)
    return {
        name: whole_plane(sums.plane[name] / count if count else np.full_like(sums.plane[name], np.nan), width)
        for name, width, count in layers
        if name in sums.plane
    }
