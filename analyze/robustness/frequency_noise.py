"""Accuracy under noise of one frequency band at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analyze.distributed import ALONE, World
from analyze.frequencies import band_mask, edges, half_plane_weight, ring_index
from analyze.results import Progress, silent
from analyze.robustness.predictions import SCORES, Outcome, Pictures, Predictor, no_scores
from analyze.robustness.sigma_half import with_sigma_half
from analyze.robustness.spec import Clean, Config, FrequencyNoise, band_name

KEEP_BYTES = 512 * 2**20
"""Noise of all images is kept in memory up to this size, and its spectrum once more; beyond it is made anew."""
ADDED = ("rms", "clipped", "in_band")
"""Fields of the result that tell what was added to the images."""
_TAG = 42


def windows(config: Config) -> list[tuple[float, float]]:
    """(low, high) of each band in units of pi; (0, 0) is the frequency 0 alone."""
    if config.definition == "park2022":
        centres = np.arange(config.bands + 1) / config.bands
        return [(max(0.0, centre - 0.2 / np.pi), min(1.0, centre + 0.2 / np.pi)) for centre in centres.tolist()]
    limits = edges(config.rings, config.bands).tolist()
    return [(0.0, 0.0)] * config.dc + list(zip(limits[:-1], limits[1:], strict=True))


@lru_cache(maxsize=8)
def masks(height: int, width: int, config: Config) -> np.ndarray:
    """Which bins of an `rfft2` each band holds, bool (bands, height, width // 2 + 1).

    The published windows may overlap, and that around 0 holds the frequency 0; our bands share no bin.
    """
    if config.definition == "park2022":
        return np.stack([band_mask(height, width, low, high, "square", half=True) for low, high in windows(config)])
    ring = ring_index(height, width, config.rings, config.bands, half=True)
    first = -1 if config.dc else 0
    return np.stack([ring == band for band in range(first, len(edges(config.rings, config.bands)) - 1)])


class Noise:
    r"""Band-limited noise of unit strength, the same for all strengths, and from one white field for all bands.

    .. math:: n = \mathrm{irfft2}\left( M_\mathrm{band} \cdot \mathrm{rfft2}(\delta) \right), \qquad
              \delta \sim N(0, 1)

    with :math:`\delta` of an image a function of (seed, image number) alone. `rms` divides n by its root mean square
    over the image and its channels; `psd` leaves it. M depends on the distance from the origin alone, so that n is
    exactly real. (Park & Kim, "Blurs Behave Like Ensembles", ICML 2022; Shao et al. 2021.)
    """

    def __init__(self, predictor: Predictor, config: Config):
        self.predictor, self.config = predictor, config
        published = config.definition == "park2022"
        self._kind = "rademacher" if published else config.noise
        self._norm = "psd" if published else config.norm
        subject = predictor.subject
        self._dtype = torch.promote_types(subject.dtype, torch.float32)
        self._device = subject.device
        held = predictor.images * int(np.prod(predictor.shape)) * torch.finfo(self._dtype).bits // 8
        self._keeps = held <= KEEP_BYTES
        self._spectra: dict[int, Tensor] = {}
        self._band = -1
        self._units: dict[int, tuple[Tensor, Tensor]] = {}

    def unit(self, pictures: Pictures, band: int) -> tuple[Tensor, Tensor]:
        """Noise (B, C, H, W) for one band, and the mean square (B,) of it in float64."""
        if band != self._band:
            self._units.clear()
            self._band = band
        if pictures.index in self._units:
            return self._units[pictures.index]
        height, width = pictures.pixels.shape[2:]
        mask = torch.from_numpy(masks(height, width, self.config)[band]).to(self._device)
        noise = torch.fft.irfft2(self._spectrum(pictures) * mask, s=(height, width))
        square = _mean_square(noise)
        if self._norm == "rms":
            noise /= square.sqrt().to(noise.dtype)[:, None, None, None]
            square = _mean_square(noise)
        if self._keeps:
            self._units[pictures.index] = noise, square
        return noise, square

    def white(self, pictures: Pictures) -> Tensor:
        """The white fields (B, C, H, W) that all bands are cut from."""
        shape = tuple(pictures.pixels.shape[1:])
        drawn = np.empty((len(pictures.numbers), *shape))
        for place, number in enumerate(pictures.numbers):
            generator = np.random.default_rng((self.predictor.subject.seed, _TAG, int(number)))
            if self._kind == "normal":
                generator.standard_normal(out=drawn[place])
            else:
                drawn[place] = 2.0 * generator.integers(0, 2, shape) - 1
        return torch.from_numpy(drawn).to(self._dtype).to(self._device)

    def _spectrum(self, pictures: Pictures) -> Tensor:
        spectrum = self._spectra.get(pictures.index)
        if spectrum is None:
            spectrum = torch.fft.rfft2(self.white(pictures))
            if self._keeps:
                self._spectra[pictures.index] = spectrum
        return spectrum


class Measured(NamedTuple):
    """Sums over all images for one strength and band."""

    outcome: Outcome
    energy: float
    """Of what was added: sum over images of its mean square."""
    in_band: float
    """The part of that in the band."""
    clipped: int
    """Pixel values cut."""


def grow(
    predictor: Predictor,
    config: Config,
    done: FrequencyNoise | None = None,
    *,
    clean: Clean,
    world: World = ALONE,
    progress: Progress = silent,
) -> Iterator[FrequencyNoise]:
    """The results so far, with one more pair of strength and band at a time; ranks take them from a shared queue.

    Args:
        predictor: Of all of the subject's images.
        config: Strengths, bands, noise.
        done: What is there already, of the same images and options.
        clean: How the network does without noise.
        world: The ranks that share the work; rank 0 yields.
        progress: Called after each pair.
    """
    found = _with_strengths(_nothing(predictor, config) if done is None else done, config.sigmas)
    sigma = found.sigma
    strengths = np.searchsorted(sigma, sorted(config.sigmas)).tolist()
    pairs = [(strength, band) for band in np.flatnonzero(found.bins).tolist() for strength in strengths]
    todo = [pair for pair in pairs if np.isnan(found.accuracy[pair])]
    noise = Noise(predictor, config)
    count = len(pairs) - len(todo)
    progress("frequency noise", count, len(pairs), "")
    for pair, measured in world.share_out(todo, lambda pair: _measure(noise, sigma[pair[0]], pair[1])):
        found = with_sigma_half(_with(found, pair, measured, predictor), clean)
        count += 1
        note = f"accuracy {found.accuracy[pair]:.3f} at sigma {sigma[pair[0]]:g}, {band_name(found, pair[1])}"
        progress("frequency noise", count, len(pairs), note)
        yield found
    if done is None and not todo:
        yield found


def is_complete(done: FrequencyNoise | None, config: Config) -> bool:
    """Whether each strength was tried in each band that holds a frequency."""
    if done is None or not set(config.sigmas) <= set(done.sigma.tolist()):
        return False
    asked = np.isin(done.sigma, config.sigmas)
    return not np.isnan(done.accuracy[asked][:, done.bins > 0]).any()


def _nothing(predictor: Predictor, config: Config) -> FrequencyNoise:
    """Of no strength yet."""
    height, width = predictor.shape[1:]
    bins = (masks(height, width, config) * half_plane_weight(width)).sum(axis=(1, 2))
    low, high = (np.array(limits) for limits in zip(*windows(config), strict=True))
    return FrequencyNoise(
        sigma=np.zeros(0),
        band_low=low,
        band_high=high,
        bins=bins,
        sigma_half=np.full(len(bins), np.nan),
        sigma_half_stderr=np.full(len(bins), np.nan),
        sigma_half_side=np.zeros(len(bins), dtype=np.int64),
        **no_scores(0, len(bins)),
        **{name: np.zeros((0, len(bins))) for name in ADDED},
    )


def _with_strengths(found: FrequencyNoise, sigmas: tuple[float, ...]) -> FrequencyNoise:
    """The same with room for these strengths, too."""
    sigma = np.union1d(found.sigma, sigmas)
    places = np.searchsorted(sigma, found.sigma)
    columns = {}
    for name in (*SCORES, *ADDED):
        old = getattr(found, name)
        columns[name] = np.full((len(sigma), *old.shape[1:]), np.nan)
        columns[name][places] = old
    return replace(found, sigma=sigma, **columns)


def _with(found: FrequencyNoise, pair: tuple[int, int], measured: Measured, predictor: Predictor) -> FrequencyNoise:
    """The same with one pair of strength and band more."""
    values = predictor.images * int(np.prod(predictor.shape))
    scores = measured.outcome.scores() | {
        "rms": np.sqrt(measured.energy / predictor.images),
        "clipped": measured.clipped / values,
        "in_band": measured.in_band / measured.energy if measured.energy else np.nan,
    }
    columns = {name: getattr(found, name).copy() for name in scores}
    for name, value in scores.items():
        columns[name][pair] = value
    return replace(found, **columns)


def _measure(noise: Noise, sigma: float, band: int) -> Measured:
    measured = [_measure_batch(noise, pictures, sigma, band) for pictures in noise.predictor.pictures()]
    return Measured(*(sum(column[1:], column[0]) for column in zip(*measured, strict=True)))


def _measure_batch(noise: Noise, pictures: Pictures, sigma: float, band: int) -> Measured:
    predictor, config = noise.predictor, noise.config
    unit, square = noise.unit(pictures, band)
    if config.definition == "park2022":
        unit = unit * predictor.subject.normalization[1]
    noisy = torch.add(pictures.pixels, unit, alpha=sigma)
    energy = in_band = sigma**2 * float(square.sum())
    clipped = 0
    if config.clip:
        clipped = int(((noisy < 0) | (noisy > 1)).sum())
        noisy = noisy.clamp_(0, 1)
        added = noisy - pictures.pixels
        if config.definition == "park2022":
            added = added / predictor.subject.normalization[1]
        energy = float(_mean_square(added).sum())
        in_band = _energy_in(added, masks(*added.shape[2:], config)[band])
    return Measured(predictor.outcome(pictures, noisy), energy, in_band, clipped)


def _mean_square(images: Tensor) -> Tensor:
    """(B,) in float64."""
    return torch.linalg.vector_norm(images, dim=(1, 2, 3), dtype=torch.float64) ** 2 / images[0].numel()


def _energy_in(images: Tensor, mask: np.ndarray) -> float:
    """Sum over images of their mean square within a mask of `rfft2`, by Parseval."""
    channels, height, width = images.shape[1:]
    weight = torch.from_numpy(mask * half_plane_weight(width)).to(images.device)
    power = torch.fft.rfft2(images.double(), norm="forward").abs() ** 2
    return float((power * weight).sum()) / channels
