"""The Fourier analysis: subject in, result out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from analyze.distributed import ALONE, World
from analyze.features import Realisations, Room, Stand, extent_of, pieces, side_by_side, squared_norm, walk
from analyze.fourier.bins import diagonal, interpolation, ring_matrix, shorter_axis, whole_plane
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
    the sum of the others' differences from it, for each member of an ensemble if they are random.

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
    for pattern in config.spectra:
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            raise InputError(f"spectra: no layer matches {pattern!r}; there are {', '.join(x.name for x in layers)}.")
    realisations = Realisations.of(subject, layers, config.passes)
    plans = [_Plan(layer, config, realisations, subject.device) for layer in layers]
    observed, result = _Observed(plans), previous
    for stand in walk(
        subject,
        layers,
        realisations.passes,
        observed.begin,
        stand=None if previous is None else Stand(previous.batches, previous.images, previous.sums),
        world=world,
        progress=progress,
        part="fourier",
    ):
        extent = extent_of(subject, layers, realisations, stand)
        result = _result(plans, config, stand.sums, extent).of(config, about)
        save(result)
    return result.of(config, about) if result else result  # type: ignore[return-value]


def is_complete(result: Result, config: Config) -> bool:
    """Whether the result holds all images."""
    return result.images == result.all_images


DIRECT = 64
"""Positions up to which a transform is a matrix product."""


class _Plan:
    """What is taken from the transform of one layer's maps."""

    def __init__(self, layer: Layer, config: Config, realisations: Realisations, device: torch.device):
        self.layer, self.realisations = layer, realisations
        self.positions = layer.height * layer.width
        self.diagonal = diagonal(layer.height, layer.width)
        self.interpolation = interpolation(shorter_axis(layer.height, layer.width))
        self.rings = ring_matrix(layer.height, layer.width, config.rings)
        self.plane = any(fnmatchcase(layer.name, pattern) for pattern in config.spectra)
        self._device = device

    @cached_property
    def bins(self) -> Tensor:
        """Where the half diagonal is in a transform whose columns are put one after another."""
        rows, columns, _ = self.diagonal
        return torch.from_numpy(columns * self.layer.height + rows).to(self._device)

    @cached_property
    def ring_matrix(self) -> Tensor:
        """Turns sums over channels of the squares of the real and imaginary parts of F into the power of each ring."""
        power = self.rings / (self.positions**2 * self.layer.channels)
        power = power.reshape(self.layer.height, -1, power.shape[1]).swapaxes(0, 1).reshape(power.shape)
        return torch.from_numpy(power.repeat(2, axis=0)).to(self._device)

    def transform(self, maps: Tensor) -> Tensor:
        """`rfft2` of maps (B, C, H, W), columns first: (B, C, W // 2 + 1, H).

        Axis by axis, as `rfft2` spends up to half of its time on putting rows first again; and of small maps as one
        matrix product.
        """
        if self.positions > DIRECT:
            return torch.fft.fft(torch.fft.rfft(maps), dim=2).transpose(2, 3).contiguous()
        parts = (maps.flatten(2) @ self._direct.to(maps.dtype)).unflatten(2, (-1, self.layer.height, 2))
        return torch.view_as_complex(parts)

    @cached_property
    def _direct(self) -> Tensor:
        """(positions, 2 * bins) real and imaginary parts of the transform of each position's unit, in turn."""
        units = torch.eye(self.positions, dtype=torch.float64).unflatten(1, (self.layer.height, self.layer.width))
        spectra = torch.fft.rfft2(units).transpose(1, 2).contiguous()
        return torch.view_as_real(spectra).flatten(1).to(self._device)


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
        group = self._seen % self.plan.realisations.groups
        self._seen += 1
        lines, norms = [], []
        for images in pieces(maps):
            part = maps[images]
            spare = self._room("piece", part.shape, part.dtype, part.device)
            norms.append(squared_norm(part, (2, 3), out=spare).sqrt())
            spectrum = self.plan.transform(part)
            lines.append(spectrum.flatten(2).index_select(2, self.plan.bins))
            if self.plan.plane:
                self._planes[images] += _logarithms(spectrum.flatten(2), _least(norms[-1], maps.dtype))
            if self._seen > 1:
                difference = spectrum.sub_(self._first[images])
                self._drifts[group, images] += difference
                self._noise[images] += _over_channels(torch.view_as_real(difference).square_())
            else:
                if self.plan.realisations.count > 1:
                    self._first[images] = spectrum
                self._power[images] += _over_channels(torch.view_as_real(spectrum).square_())
        norm = torch.cat(norms)
        self._alive += (norm != 0).sum(1, keepdim=True)
        self._line += _logarithms(torch.cat(lines), _least(norm, maps.dtype))

    def _clear(self, maps: Tensor) -> None:
        """Set all sums to 0."""
        half = (maps.shape[3] // 2 + 1, maps.shape[2])

        def zeros(name: str, values: int) -> Tensor:
            return self._room(name, (self._images, values), torch.float64, maps.device).zero_()

        self._power = zeros("power", 2 * half[0] * half[1])
        self._line, self._alive = zeros("line", len(self.plan.diagonal.frequency)), zeros("alive", 1)
        if self.plan.plane:
            self._planes = zeros("plane", half[0] * half[1])
        if self.plan.realisations.count > 1:
            shape, dtype, groups = (*maps.shape[:2], *half), maps.dtype.to_complex(), self.plan.realisations.groups
            self._first = self._room("first", shape, dtype, maps.device)
            self._drifts = self._room("drifts", (groups, *shape), dtype, maps.device).zero_()
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
            "dead": 1 - self._alive / (realisations.count * plan.layer.channels),
            "power": self._signal() @ plan.ring_matrix / realisations.count,
            "noise": self._noise_power(),
        }
        return found | {name: found[name].masked_fill(empty, np.nan) for name in ("power", "noise")}

    def _noise_power(self) -> Tensor:
        """Variance over realisations in each ring."""
        realisations = self.plan.realisations
        if realisations.count == 1:
            unknown = 0.0 if realisations.known else np.nan
            return self._power.new_full((self._images, self.plan.rings.shape[1]), unknown)
        drifts = torch.view_as_real(self._drifts)
        spread = [
            realisations.variance(
                self._noise[images], drifts[:, images], lambda drift: _over_channels(drift.square()).double()
            )
            for images in pieces(self._first)
        ]
        return torch.cat(spread) @ self.plan.ring_matrix

    def _signal(self) -> Tensor:
        r"""Sum over realisations of squares, by :math:`|F_s|^2 = |F_0|^2 + 2 \mathrm{Re}\, \bar F_0 d_s + |d_s|^2`."""
        if self.plan.realisations.count == 1:
            return self._power
        first, drifts = torch.view_as_real(self._first), torch.view_as_real(self._drifts)
        both = [_over_channels(first[images] * drifts[:, images].sum(0)) for images in pieces(self._first)]
        # what is at most rounding may come out below 0
        return (self.plan.realisations.count * self._power + 2 * torch.cat(both) + self._noise).clamp(min=0.0)

    @property
    def plane(self) -> Tensor:
        """Sum over images with any channel alive of the log amplitude over the half plane."""
        means = torch.where(self._alive > 0, self._planes / self._alive, 0.0)
        return means.sum(0).view(-1, self.plan.layer.height).T


def _over_channels(parts: Tensor) -> Tensor:
    """(B, 2 * bins) sums over channels of what is there for the real and the imaginary part of each bin, in turn."""
    return parts.sum(1).flatten(1)  # pairwise: exact to rounding in float32, too


def _logarithms(spectrum: Tensor, least: Tensor) -> Tensor:
    """(B, bins) sums over channels of log |F|, or of the logarithm of `least` (B, C, 1) where that is more."""
    return torch.maximum(spectrum.abs(), least).log_().sum(1, dtype=torch.float64)


def _least(norm: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest amplitudes that count (B, C, 1), from the norms of the maps: by Parseval these are the rms of |F|.

    A dead channel's is 1, of which the logarithm is 0. What is no number isn't dead.
    """
    return torch.where(norm != 0, torch.finfo(dtype).eps * norm, 1.0).to(dtype)[..., None]


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
