"""Thirteen corruptions of pictures at five severities, computed in memory with NumPy, SciPy and Pillow.

The kinds of corruption, and their strengths for pictures of 32 x 32 pixels, are those of Hendrycks & Dietterich,
"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR 2019), except where a
docstring says otherwise. The pictures are not those of its published data sets: the random draws differ, results
are rounded to the nearest level, and lengths, in pixels, grow with the shorter side of the picture over 32.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage, signal, sparse, stats

from data_cache.errors import InputError

SEVERITIES = (1, 2, 3, 4, 5)
NOMINAL_SIZE = 32
"""Length of the shorter side, in pixels, that lengths are stated for."""
_TAG = 41
_SUPERSAMPLING = 32


def corrupt(pictures: np.ndarray, name: str, severity: int, numbers: Sequence[int], seed: int = 0) -> np.ndarray:
    """Pictures with one corruption.

    The random draws of a picture are a function of (seed, its number, name): the same at all severities, which
    are so paired, and whatever batch it comes in.

    Args:
        pictures: uint8 (B,C,H,W), of any size; every number of channels, 1 and 3 included.
        name: One of `CORRUPTIONS`.
        severity: 1 (weakest) to 5.
        numbers: The B numbers of the pictures, from 0.
        seed: From 0.

    Returns:
        uint8 (B,C,H,W).
    """
    kind, strengths = CORRUPTIONS[name]
    generators = [np.random.default_rng([seed, _TAG, zlib.crc32(name.encode()), number]) for number in numbers]
    corrupted = kind(pictures, strengths[severity - 1], generators)
    return np.rint(np.clip(corrupted, 0, 255)).astype(np.uint8)


def check_range(lowest: float, highest: float) -> None:
    """Refuse pixels that are not in [0, 1], but for rounding.

    Raises:
        InputError: They go further.
    """
    if not -0.01 <= lowest <= highest <= 1.01:
        raise InputError(
            f"pixels go from {lowest:.3g} to {highest:.3g}, not 0 to 1: tell Subject the normalization of its data."
        )


def gaussian_noise(pictures: np.ndarray, sigma: float, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Noise of one strength everywhere: x + sigma z with z ~ N(0,1) for each pixel and channel, x in [0,1]."""
    return pictures + 255 * sigma * _normal(generators, pictures.shape)


def shot_noise(pictures: np.ndarray, photons: float, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Poisson(photons * x) / photons: what a sensor counts that gets `photons` where x is 1.

    Drawn by inversion, the smallest k with P(Poisson <= k) >= u, so that all severities share their u.
    """
    table = _poisson_table(photons)
    levels = pictures.astype(np.int64)
    places = np.searchsorted(table.ravel(), levels + _uniform(generators, pictures.shape))
    return 255 * np.maximum(places - levels * table.shape[1], 0) / photons


def impulse_noise(pictures: np.ndarray, share: float, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Salt and pepper: of all pixels and channels, share / 2 become 0 and share / 2 become 1."""
    draws = _uniform(generators, pictures.shape)
    return np.where(draws < share / 2, 0, np.where(draws >= 1 - share / 2, 255, pictures))


def speckle_noise(pictures: np.ndarray, sigma: float, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Noise that grows with the light: x + x sigma z with z ~ N(0,1) for each pixel and channel."""
    return pictures * (1 + sigma * _normal(generators, pictures.shape))


def gaussian_blur(pictures: np.ndarray, sigma: float, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Gaussian blur of standard deviation sigma pixels, cut off at 4 of them; the border is continued."""
    sigma *= _scale(pictures)
    return ndimage.gaussian_filter(pictures.astype(np.float64), sigma, mode="nearest", axes=(2, 3))


def defocus_blur(pictures: np.ndarray, radius: float, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Blur by a disc of so many pixels radius, each pixel weighing by its area inside; the border is continued.

    The radii are our own: the source's discs, made of whole pixels and then blurred, have about the same standard
    deviation at 32 pixels but none at other sizes.
    """
    kernel = disc(radius * _scale(pictures))
    margin = len(kernel) // 2
    padded = np.pad(pictures.astype(np.float32), ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="edge")
    return signal.fftconvolve(padded, kernel[None, None].astype(np.float32), mode="valid", axes=(2, 3))


def zoom_blur(pictures: np.ndarray, largest: float, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Mean of the picture magnified 1, 1.01, 1.02, ... `largest` times about its centre, bilinearly."""
    height, width = pictures.shape[2:]
    flat = pictures.reshape(-1, height * width).T.astype(np.float32)
    return (_mean_zoom(height, width, largest) @ flat).T.reshape(pictures.shape)


def brightness(pictures: np.ndarray, shift: float, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """HSV's value V, the largest channel, raised by `shift`, with hue and saturation kept: x min(V + shift, 1) / V."""
    value = pictures.max(axis=1, keepdims=True).astype(np.float64)
    raised = np.minimum(value + 255 * shift, 255)
    return np.where(value > 0, pictures * raised / np.maximum(value, 1), raised)


def contrast(pictures: np.ndarray, factor: float, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Contrast taken away: m + factor (x - m), with m the mean of each channel of a picture."""
    mean = pictures.mean(axis=(2, 3), keepdims=True)
    return mean + factor * (pictures - mean)


def saturate(
    pictures: np.ndarray, change: tuple[float, float], generators: Sequence[np.random.Generator]
) -> np.ndarray:
    """HSV's saturation S = 1 - min/max over channels becomes min(factor S + shift, 1), with hue and value kept.

    Severities 1 and 2 take colour away, 3 to 5 add it. Grey pixels have no hue and stay grey (the source makes
    them red), so that grey pictures do not change.
    """
    factor, shift = change
    highest = pictures.max(axis=1, keepdims=True).astype(np.float64)
    depth = highest - pictures.min(axis=1, keepdims=True)
    saturation = depth / np.maximum(highest, 1)
    target = np.minimum(factor * saturation + shift, 1)
    return np.where(depth > 0, highest - (highest - pictures) * target / np.where(depth > 0, saturation, 1), pictures)


def pixelate(pictures: np.ndarray, share: float, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Shrunk to this share of the height and of the width (rounded down) by a box filter, and blown up again."""
    height, width = pictures.shape[2:]
    small = max(1, int(width * share)), max(1, int(height * share))
    box = Image.Resampling.BOX
    return _each(pictures, lambda image: image.resize(small, box).resize((width, height), box))


def jpeg_compression(pictures: np.ndarray, quality: int, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Written as JPEG of this quality and read again; without 3 channels, each as a grey picture."""

    def work(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(pictures, work)


def fog(pictures: np.ndarray, thickness: tuple[float, float], generators: Sequence[np.random.Generator]) -> np.ndarray:
    """(x + a f) max(x) / (max(x) + a), with f in [0,1] a cloud whose detail shrinks `decay`^2-fold each octave."""
    amount, decay = thickness
    height, width = pictures.shape[2:]
    size = max(2, 1 << (max(height, width) - 1).bit_length())
    clouds = plasma(2 * _uniform(generators, (len(pictures), size, size)) - 1, decay**-2)[:, None, :height, :width]
    brightest = pictures.max(axis=(1, 2, 3), keepdims=True) / 255
    return (pictures + 255 * amount * clouds) * brightest / (brightest + amount)


def disc(radius: float) -> np.ndarray:
    """Each pixel's share of a disc around the middle one, by area; (K,K) with K odd, sum 1."""
    margin = int(np.ceil(radius - 0.5)) if radius > 0.5 else 0
    offsets = (np.arange(_SUPERSAMPLING) + 0.5) / _SUPERSAMPLING - 0.5
    line = (np.arange(-margin, margin + 1)[:, None] + offsets).ravel()
    inside = line[:, None] ** 2 + line**2 <= radius**2
    pixels = 2 * margin + 1
    area = inside.reshape(pixels, _SUPERSAMPLING, pixels, _SUPERSAMPLING).sum(axis=(1, 3), dtype=np.float64)
    return area / area.sum() if area.any() else np.ones((1, 1))


def plasma(draws: np.ndarray, decay: float) -> np.ndarray:
    """Periodic cloud pictures by the diamond-square algorithm, each scaled to fill [0,1].

    Midpoints of a grid get the mean of their four neighbours plus an independent draw; then the grid is halved
    and draws weigh `decay` times as much (Fournier, Fussell & Carpenter 1982).

    Args:
        draws: (B,n,n) in [-1,1], n a power of two: what each point adds when its turn comes.
        decay: Below 1; smaller is smoother.
    """
    size, weight = draws.shape[1], 1.0
    heights = np.zeros(draws.shape)
    step = size
    while step >= 2:
        half = step // 2
        near, far = slice(0, None, step), slice(half, None, step)
        corners = heights[:, near, near]
        across, down = np.roll(corners, -1, 2), np.roll(corners, -1, 1)
        middles = (corners + across + down + np.roll(down, -1, 2)) / 4 + weight * draws[:, far, far]
        heights[:, far, far] = middles
        heights[:, near, far] = (corners + across + middles + np.roll(middles, 1, 1)) / 4 + weight * draws[:, near, far]
        heights[:, far, near] = (corners + down + middles + np.roll(middles, 1, 2)) / 4 + weight * draws[:, far, near]
        step, weight = half, weight * decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    return heights / heights.max(axis=(1, 2), keepdims=True)


class Corruption(NamedTuple):
    """A kind of corruption, and how strong it is at each severity."""

    kind: Callable[[np.ndarray, Any, Sequence[np.random.Generator]], np.ndarray]
    """(uint8 pictures, strength, generators) to levels 0..255, not yet rounded or clipped."""
    strengths: tuple[Any, Any, Any, Any, Any]


CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": Corruption(speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": Corruption(defocus_blur, (0.6, 0.75, 0.9, 1.0, 1.6)),
    "zoom_blur": Corruption(zoom_blur, (1.05, 1.10, 1.15, 1.20, 1.25)),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": Corruption(saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(jpeg_compression, (80, 65, 58, 50, 40)),
    "fog": Corruption(fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
}


def _normal(generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> np.ndarray:
    return np.stack([generator.standard_normal(shape[1:]) for generator in generators])


def _uniform(generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> np.ndarray:
    return np.stack([generator.random(shape[1:]) for generator in generators])


@cache
def _poisson_table(photons: float) -> np.ndarray:
    """(256, K) level v plus P(Poisson(photons * v / 255) <= k): all of it ascending, for one search for all levels."""
    most = int(photons + 12 * np.sqrt(photons) + 12)
    levels = np.arange(256)[:, None]
    table = levels + stats.poisson.cdf(np.arange(most), photons * levels / 255)
    table[:, -1] = levels[:, 0] + 1
    return table


def _scale(pictures: np.ndarray) -> float:
    return min(pictures.shape[2:]) / NOMINAL_SIZE


@lru_cache(maxsize=8)
def _mean_zoom(height: int, width: int, largest: float) -> sparse.csr_array:
    """The mean magnification as a matrix over the pixels of a picture, row by row."""
    factors = 1 + np.arange(round((largest - 1) * 100) + 1) / 100
    zooms = (sparse.kron(_zoom(height, factor), _zoom(width, factor), "csr") for factor in factors)
    return (sum(zooms, sparse.csr_array((height * width, height * width))) / len(factors)).astype(np.float32)


def _zoom(size: int, factor: float) -> sparse.csr_array:
    """Magnification about the centre of one axis, with linear interpolation, as a matrix (size, size)."""
    centre = (size - 1) / 2
    position = centre + (np.arange(size) - centre) / factor
    low = np.floor(position).astype(np.int64)
    weight = position - low
    columns = np.concatenate([low, np.minimum(low + 1, size - 1)])
    return sparse.csr_array((np.concatenate([1 - weight, weight]), (np.tile(np.arange(size), 2), columns)), (size,) * 2)


def _each(pictures: np.ndarray, work: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Work done on each picture of 3 channels, else on each channel."""
    if pictures.shape[1] == 3:
        coloured = pictures.transpose(0, 2, 3, 1)
        done = np.stack([np.asarray(work(Image.fromarray(picture))) for picture in coloured])
        return done.transpose(0, 3, 1, 2)
    channels = pictures.reshape(-1, *pictures.shape[2:])
    return np.stack([np.asarray(work(Image.fromarray(channel))) for channel in channels]).reshape(pictures.shape)
