"""Augmentation is a pure function of (seed, epoch, index)."""

import numpy as np
import pytest
import torch
from scipy import stats

from data_cache import InputError, augment, normalize
from data_cache.augmentation import crops_and_flips


def random_images(count, channels=3, height=32, width=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def splitmix(z):
    """SplitMix64 in Python's unbounded integers."""
    mask = 2**64 - 1
    z = (z + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def reference(images, seed, epoch, indices, padding):
    """The same definition, image by image and pixel by pixel."""
    result = torch.zeros_like(images)
    _, _, height, width = images.shape
    for image, index, out in zip(images, indices, result, strict=True):
        key = 0x9E3779B97F4A7C15
        for counter in (seed, epoch, index):
            key = splitmix(key ^ (counter % 2**64))
        top, left = (((splitmix(key ^ i) >> 32) * (2 * padding + 1)) >> 32 for i in (0, 1))
        flip = splitmix(key ^ 2) >> 63
        for y in range(height):
            for x in range(width):
                source_y, source_x = y + top - padding, (width - 1 - x if flip else x) + left - padding
                if 0 <= source_y < height and 0 <= source_x < width:
                    out[:, y, x] = image[:, source_y, source_x]
    return result


def test_splitmix_reference_gives_the_published_sequence():
    # The first outputs of the public-domain splitmix64.c seeded with 1234567.
    assert splitmix(1234567) == 6457827717110365317
    assert splitmix(1234567 + 0x9E3779B97F4A7C15) == 3203168211198807973


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (1, 7), (11, 1)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_augment_equals_a_loop_over_pixels(size, channels, padding):
    images, indices = random_images(12, channels, *size), [3, 1, 4, 15, 9, 2, 6, 5, 35, 8, 97, 59_999]
    expected = reference(images, 7, 2, indices, padding)
    torch.testing.assert_close(augment(images, 7, 2, indices, padding), expected, rtol=0, atol=0)


def test_any_integer_is_a_seed():
    images = random_images(6, 1, 6, 6)
    for seed in (-1, 2**64 - 2, 2**70):
        expected = reference(images, seed, -3, range(6), 4)
        torch.testing.assert_close(augment(images, seed, -3, range(6)), expected, rtol=0, atol=0)


def test_augment_does_not_depend_on_the_batch_or_the_order():
    images, indices = random_images(50), np.arange(100, 150)
    whole = augment(images, 1, 5, indices)
    order = np.random.default_rng(0).permutation(50)
    shuffled = augment(images[order], 1, 5, indices[order])
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=0)
    pieces = [augment(images[i : i + 7], 1, 5, indices[i : i + 7]) for i in range(0, 50, 7)]
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=0, atol=0)


def test_augment_leaves_its_input_and_global_random_states_alone():
    images, before = random_images(8), random_images(8)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    augment(images, 0, 0, range(8))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


@pytest.mark.parametrize("changed", [(1, 0), (0, 1)])
def test_another_seed_or_epoch_is_another_version(changed):
    here, there = (crops_and_flips(*version, np.arange(9000), 4) for version in ((0, 0), changed))
    # Independent versions agree in all three for 1 image in 9 * 9 * 2 = 162: 56 of 9000, sigma 7.4.
    agree = np.logical_and.reduce([a == b for a, b in zip(here, there, strict=True)]).sum()
    assert 20 < agree < 92


def test_offsets_are_uniform_and_flips_are_half_and_all_independent():
    top, left, flip = crops_and_flips(0, 0, np.arange(50_000), 4)
    counts = np.bincount(top * 18 + left * 2 + flip, minlength=162)
    assert len(counts) == 162
    assert stats.chisquare(counts).pvalue > 0.01
    assert abs(flip.mean() - 0.5) < 4 * 0.5 / 50_000**0.5


def test_an_empty_batch_stays_empty():
    assert augment(random_images(0), 0, 0, []).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("images", "indices", "padding", "word"),
    [
        (torch.zeros(2, 3, 4, 4), [0, 1], 4, "float32"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), [0, 1, 2], 4, r"\(3, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0], 4, "2 images"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0, 1], -1, "-1"),
    ],
)
def test_bad_input_is_refused_with_what_was_given(images, indices, padding, word):
    with pytest.raises(InputError, match=word):
        augment(images, 0, 0, indices, padding)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_normalize_is_the_formula_rounded_once_for_narrow_types(dtype):
    images, mean, std = random_images(4), (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    exact = (images.numpy() / 255 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    result = normalize(images, mean, std, dtype)
    assert result.dtype == dtype
    # Half a unit in the last place of the result, and float32's own rounding: |x| < 8 here.
    tolerance = max(torch.finfo(dtype).eps / 2 * 8, 8 * 2e-7 if dtype != torch.float64 else 0)
    np.testing.assert_allclose(result.double().numpy(), exact, rtol=0, atol=tolerance)


def test_normalize_refuses_another_number_of_channels():
    with pytest.raises(InputError, match="1 means and 1 stds for 3 channels"):
        normalize(random_images(2), (0.5,), (0.5,))
