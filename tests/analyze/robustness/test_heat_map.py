"""The Fourier heat map: waves of exactly one frequency and strength, and networks whose response is known."""

import numpy as np
import pytest
import torch
from torch import nn

from analyze import Subject
from analyze.distributed import World
from analyze.results import GROUPS
from analyze.robustness import heat_map
from analyze.robustness.heat_map import basis_image, grid
from analyze.robustness.predictions import Predictor
from analyze.robustness.spec import Config, HeatMap
from data_cache import ImageData

SIZES = [(8, 8), (7, 9), (6, 5), (4, 11), (1, 6), (5, 1)]


class Identity(nn.Module):
    """One class for each pixel, whose logit the pixel is."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return x.flatten(1)


def predictor(model: nn.Module, shape: tuple[int, int, int], n: int = 12, classes: int = 2, **options) -> Predictor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, classes, (n,), generator=generator)
    data = ImageData.from_arrays(pixels, labels, name="noise", classes=[str(c) for c in range(classes)])
    images = options.pop("images", None)
    return Predictor(Subject(model, data, **{"batch_size": 5} | options), 1, images)


def linear(shape: tuple[int, int, int], classes: int = 2, scale: float = 6.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = nn.Linear(int(np.prod(shape)), classes).double()
        layer.weight.data *= scale
    return nn.Sequential(nn.Flatten(), layer)


def whole_map(each: Predictor, done: HeatMap | None = None, **options) -> HeatMap:
    return list(heat_map.grow(each, Config(**options), done))[-1]


@pytest.mark.parametrize("size", SIZES)
def test_a_basis_image_has_one_frequency_its_mirror_image_and_unit_strength(size):
    height, width = size
    for y in range(height):
        for x in range(width):
            wave = basis_image(height, width, y, x)
            assert np.isclose((wave**2).mean(), 1, rtol=1e-12)
            power = np.abs(np.fft.fft2(wave) / (height * width)) ** 2
            assert np.isclose(
                power[y, x] + (power[-y % height, -x % width] if (2 * y % height or 2 * x % width) else 0), 1
            )
            assert np.isclose(power.sum(), 1)


@pytest.mark.parametrize(("size", "count"), [((32, 32), 514), ((28, 28), 394), ((8, 8), 34), ((7, 9), 32), ((1, 1), 1)])
def test_one_of_each_pair_of_mirror_images_is_computed(size, count):
    waves = grid(*size, 100)
    pairs = [(row, column) for row, columns in waves.rows for column in columns]
    assert len(pairs) == count
    mirrored = {(int(waves.mirror_y[row]), int(waves.mirror_x[column])) for row, column in pairs}
    assert set(pairs) | mirrored == {(row, column) for row in range(size[0]) for column in range(size[1])}
    for row, column in pairs:
        y, x = waves.cycles_y[row], waves.cycles_x[column]
        mirror_y, mirror_x = waves.cycles_y[waves.mirror_y[row]], waves.cycles_x[waves.mirror_x[column]]
        assert (y + mirror_y) % size[0] == 0 and (x + mirror_x) % size[1] == 0


def test_axes_are_true_frequencies_with_the_origin_in_the_middle():
    found = whole_map(predictor(linear((1, 6, 5)), (1, 6, 5)))
    assert np.allclose(found.frequency_y, [-4 / 6, -2 / 6, 0, 2 / 6, 4 / 6, 1])
    assert np.allclose(found.frequency_x, [-4 / 5, -2 / 5, 0, 2 / 5, 4 / 5])
    found = whole_map(predictor(linear((1, 6, 5)), (1, 6, 5)), heat_map_cycles=1)
    assert np.allclose(found.frequency_y, [-2 / 6, 0, 2 / 6])
    assert found.error.shape == (3, 3) and found.ring_bins.sum() == 9


@pytest.mark.parametrize("size", SIZES)
def test_a_linear_network_s_map_is_the_fourier_transform_of_its_weights(size):
    """<w, cos(k x + pi/4)> = Re(exp(i pi/4) conj(FFT(w)_k)), for weights without their mean over classes."""
    model = linear((1, *size), classes=3)
    found = whole_map(predictor(model, (1, *size), classes=3), heat_map_sigma=0.2)
    weight = model[1].weight.detach().numpy().reshape(3, *size)
    spectrum = np.fft.fft2(weight - weight.mean(axis=0))
    waves = grid(*size, 16)
    for row, columns in waves.rows:
        for column in columns:
            y, x = waves.cycles_y[row], waves.cycles_x[column]
            change = np.sqrt(2) * 0.2 * np.real(np.exp(0.25j * np.pi) * spectrum[:, y, x].conj())
            assert np.isclose(found.logit_change[row, column], np.linalg.norm(change), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_of_even_weights_it_is_the_modulus_of_their_transform(size):
    model = linear((1, *size), classes=2)
    weight = model[1].weight.detach().reshape(2, *size)
    mirrored = torch.roll(weight.flip(1, 2), (1, 1), (1, 2))
    model[1].weight.data = (weight + mirrored).reshape(2, -1)
    found = whole_map(predictor(model, (1, *size)), heat_map_sigma=0.3)
    even = (weight + mirrored).numpy()
    modulus = np.linalg.norm(np.abs(np.fft.fft2(even - even.mean(axis=0))), axis=0)
    waves = grid(*size, 16)
    expected = 0.3 * modulus[np.ix_(waves.cycles_y, waves.cycles_x)]
    assert np.allclose(found.logit_change, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_a_box_blur_passes_cos_times_cos(size):
    class Blurred(Identity):
        def forward(self, x):
            rows = (x + torch.roll(x, 1, 2)) / 2
            return ((rows + torch.roll(rows, 1, 3)) / 2).flatten(1)

    pixels = int(np.prod(size))
    found = whole_map(predictor(Blurred(), (1, *size), classes=pixels), heat_map_sigma=0.25)
    y, x = np.meshgrid(found.frequency_y * np.pi / 2, found.frequency_x * np.pi / 2, indexing="ij")
    expected = 0.25 * np.sqrt(pixels) * np.abs(np.cos(y) * np.cos(x))
    expected[found.frequency_y == 0, found.frequency_x == 0] = 0  # a constant moves no probability
    assert np.allclose(found.logit_change, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_a_network_behind_a_low_pass_is_unmoved_by_high_frequencies(size):
    y, x = (torch.fft.fftfreq(n).abs() * 2 for n in size)
    seen = torch.maximum(y[:, None], x[None]) < 0.5 - 1e-6
    network = linear((2, *size))

    class LowPass(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(torch.fft.ifft2(torch.fft.fft2(x) * seen).real)

    found = whole_map(predictor(LowPass(), (2, *size)), heat_map_sigma=2.0)
    high = np.maximum(np.abs(found.frequency_y)[:, None], np.abs(found.frequency_x)) >= 0.5 - 1e-6
    assert np.all(found.error[high] == found.clean_error)
    assert np.all(found.flip_rate[high] == 0)
    assert np.all(found.logit_change[high] < 1e-12)
    assert found.flip_rate[~high].max() > 0.3


@pytest.mark.parametrize("size", [(6, 6), (5, 8)])
def test_errors_and_flips_are_those_of_waves_added_by_hand(size):
    """A linear network of two channels, by NumPy: margins plus the signed response of each channel."""
    model = linear((2, *size))
    each = predictor(model, (2, *size), n=11)
    found = whole_map(each, heat_map_sigma=0.3)
    weight, bias = (p.detach().numpy() for p in model[1].parameters())
    weight = weight.reshape(2, 2, *size)
    pictures = list(each.pictures())
    signs = np.concatenate([heat_map.signs(each, batch).numpy() for batch in pictures])[:, :, 0, 0]
    assert set(np.unique(signs)) == {-1, 1} and len(np.unique(signs, axis=0)) == 4
    pixels = np.concatenate([batch.pixels.numpy() for batch in pictures])
    labels = np.concatenate([batch.labels.numpy() for batch in pictures])
    clean = np.einsum("ncyx,kcyx->nk", pixels, weight) + bias
    assert np.isclose(found.clean_error, (clean.argmax(1) != labels).mean())
    centred = clean - clean.mean(axis=1, keepdims=True)
    assert np.isclose(found.clean_logit_norm, np.linalg.norm(centred, axis=1).mean())
    waves = grid(*size, 16)
    rings = np.zeros((11, 2))
    for row, columns in waves.rows:
        for column in columns:
            y, x = waves.cycles_y[row], waves.cycles_x[column]
            angle = 2 * np.pi * (y * np.arange(size[0])[:, None] / size[0] + x * np.arange(size[1]) / size[1])
            wave = 0.3 * np.sqrt(2) * np.cos(angle + np.pi / 4)
            z = clean + np.einsum("nc,kc->nk", signs, np.einsum("kcyx,yx->kc", weight, wave))
            error, flips = (z.argmax(1) != labels).mean(), (z.argmax(1) != clean.argmax(1)).mean()
            places = {(row, column), (waves.mirror_y[row], waves.mirror_x[column])}
            for place in places:
                assert found.error[place] == error and np.isclose(found.flip_rate[place], flips)
                assert np.isclose(found.error_stderr[place], np.sqrt(error * (1 - error) / 11))
            far = max(abs(found.frequency_y[row]), abs(found.frequency_x[column]))
            ring = 0 if far == 0 else 1 + min(int(far * 10 + 1e-9), 9)
            rings[ring] += len(places) * 11 * np.array([error, flips])
    assert np.allclose(found.group_errors.sum(axis=1), rings[:, 0])
    assert np.allclose(found.group_flips.sum(axis=1), rings[:, 1])
    assert found.group_images.sum() == 11 and found.group_images.shape == (GROUPS,)


class Backwards(World):
    def share_out(self, items, work):
        yield from [(item, work(item)) for item in reversed(items)]


def same(a: HeatMap, b: HeatMap) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for name in vars(a))


def test_neither_order_nor_resume_changes_a_bit():
    def fresh() -> Predictor:
        return predictor(linear((2, 6, 7)).float(), (2, 6, 7))

    config = Config(heat_map_sigma=0.3)
    steps = list(heat_map.grow(fresh(), config))
    assert [heat_map.is_complete(step) for step in steps] == [False] * (len(steps) - 1) + [True]
    assert same(whole_map(fresh(), steps[1], heat_map_sigma=0.3), steps[-1])
    assert same(list(heat_map.grow(fresh(), config, world=Backwards()))[-1], steps[-1])
    assert list(heat_map.grow(fresh(), config, steps[-1])) == []


def test_batch_size_changes_rounding_only():
    a, b = (whole_map(predictor(linear((2, 6, 7)), (2, 6, 7), batch_size=size)) for size in (12, 5))
    assert np.array_equal(a.error, b.error) and np.array_equal(a.group_flips, b.group_flips)
    assert np.allclose(a.logit_change, b.logit_change, rtol=1e-12)


def test_some_images_are_evenly_spaced_ones():
    each = predictor(linear((1, 4, 4)), (1, 4, 4), n=12, images=5)
    numbers = np.concatenate([pictures.numbers for pictures in each.pictures()])
    assert numbers.tolist() == [0, 2, 4, 7, 9]
    every = torch.cat([pictures.pixels for pictures in predictor(linear((1, 4, 4)), (1, 4, 4)).pictures()])
    assert torch.equal(torch.cat([pictures.pixels for pictures in each.pictures()]), every[numbers])
    found = whole_map(each)
    assert found.images == 5 and found.group_images.tolist()[:6] == [1, 1, 1, 1, 1, 0]
