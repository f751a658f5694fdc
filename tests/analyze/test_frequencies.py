"""Frequencies and bands against NumPy's own, and as a partition of the plane at every size."""

import math
from fractions import Fraction

import numpy as np
import pytest

from analyze.frequencies import band_mask, edges, half_plane_weight, magnitude, ring_index, signed

SIZES = [(1, 1), (1, 2), (2, 2), (3, 4), (4, 3), (7, 5), (8, 8), (9, 16), (16, 17), (20, 20), (28, 32), (33, 30)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 31, 32])
def test_signed_frequencies_are_numpys_with_nyquist_positive(n):
    expected = 2 * np.fft.fftfreq(n)
    expected[expected == -1] = 1
    assert np.allclose(signed(n), expected, rtol=1e-15, atol=0)
    assert signed(n).max() <= 1 and signed(n).min() > -1


@pytest.mark.parametrize("n", [5, 8, 20])
def test_a_cosine_of_a_signed_frequency_lies_in_its_bin(n):
    for k, frequency in enumerate(signed(n)):
        wave = np.exp(1j * np.pi * frequency * np.arange(n))
        spectrum = np.fft.fft(wave) / n
        assert np.isclose(spectrum[k], 1) and np.isclose(np.abs(spectrum).sum(), 1)


@pytest.mark.parametrize("size", SIZES)
def test_magnitudes_are_those_of_the_signed_frequencies(size):
    y, x = np.meshgrid(*map(signed, size), indexing="ij")
    assert np.allclose(magnitude(*size), np.hypot(y, x), rtol=1e-15, atol=0)
    assert np.allclose(magnitude(*size, "square"), np.maximum(abs(y), abs(x)), rtol=1e-15, atol=0)


@pytest.mark.parametrize("rings", ["square", "radial"])
@pytest.mark.parametrize("bands", [1, 3, 10])
@pytest.mark.parametrize("size", SIZES)
def test_bands_partition_the_plane_without_the_origin(size, bands, rings):
    index, limits = ring_index(*size, rings, bands), edges(rings, bands)
    assert index[0, 0] == -1
    assert np.count_nonzero(index == -1) == 1
    assert index.max(initial=0) < len(limits) - 1
    masks = np.stack([index == band for band in range(len(limits) - 1)])
    assert np.array_equal(masks.sum(axis=0), np.arange(index.size).reshape(size) > 0)


@pytest.mark.parametrize("rings", ["square", "radial"])
@pytest.mark.parametrize("size", SIZES)
def test_each_bin_lies_between_the_edges_of_its_band_exactly(size, rings):
    """In rational arithmetic, so that a frequency on an edge falls the same way at every size."""
    bands = 10
    index = ring_index(*size, rings, bands)
    height, width = size
    for row in range(height):
        for column in range(width):
            y, x = (Fraction(2 * min(k, n - k), n) for k, n in ((row, height), (column, width)))
            if (row, column) == (0, 0):
                continue
            if rings == "square":
                band = min(math.floor(bands * max(y, x)), bands - 1)
            else:
                band = math.isqrt(math.floor(bands**2 * (y * y + x * x)))
            assert index[row, column] == band


@pytest.mark.parametrize("rings", ["square", "radial"])
@pytest.mark.parametrize("size", SIZES)
def test_bands_are_hermitian(size, rings):
    index = ring_index(*size, rings)
    mirrored = np.roll(index[::-1, ::-1], (1, 1), axis=(0, 1))
    assert np.array_equal(index, mirrored)


@pytest.mark.parametrize("rings", ["square", "radial"])
@pytest.mark.parametrize("size", SIZES)
def test_the_half_plane_is_the_left_half_and_counts_as_the_whole(size, rings):
    height, width = size
    whole, half = (ring_index(*size, rings, half=half) for half in (False, True))
    assert np.array_equal(half, whole[:, : width // 2 + 1])
    assert np.array_equal(magnitude(*size, rings, half=True), magnitude(*size, rings)[:, : width // 2 + 1])
    weight = np.broadcast_to(half_plane_weight(width), half.shape)
    assert weight.sum() == height * width
    counts = [np.bincount(index.ravel() + 1, w.ravel()) for index, w in ((whole, np.ones(size)), (half, weight))]
    assert np.array_equal(*counts)


def test_the_half_plane_s_power_is_the_whole_plane_s():
    image = np.random.default_rng(0).standard_normal((9, 14))
    half = (np.abs(np.fft.rfft2(image)) ** 2 * half_plane_weight(14)).sum()
    assert np.isclose(half, (np.abs(np.fft.fft2(image)) ** 2).sum(), rtol=1e-13)


def test_edges_are_tenths_up_to_nyquist_or_past_the_corner():
    assert np.array_equal(edges("square"), [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
    assert len(edges("radial")) == 16
    for bands in range(1, 50):
        limits = edges("radial", bands)
        assert limits[-2] <= math.sqrt(2) < limits[-1]


@pytest.mark.parametrize("size", SIZES)
def test_a_mask_between_edges_is_the_band_with_these_edges(size):
    for rings in ("square", "radial"):
        index, limits = ring_index(*size, rings), edges(rings)
        for band, (low, high) in enumerate(zip(limits[:-1], limits[1:], strict=True)):
            mask = band_mask(*size, low, high, rings)
            assert mask[0, 0] == (low == 0)
            mask[0, 0] = False
            assert np.array_equal(mask, index == band)


def test_masks_hold_the_nyquist_frequency_only_in_the_last_square_band():
    mask = band_mask(8, 8, 0.5, 1.0, "square")
    assert mask[4, 0] and mask[2, 0] and not mask[1, 0]
    assert not band_mask(8, 8, 0.5, 1.0, "radial")[4, 0]
    assert not band_mask(8, 8, 0.25, 0.5, "square")[2, 0]
