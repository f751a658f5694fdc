"""Noise of one band: real, of exactly the strength asked for, and what a network makes of it against plain NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from analyze import Subject
from analyze.distributed import ALONE, World
from analyze.results import GROUPS
from analyze.robustness import frequency_noise, sigma_half
from analyze.robustness.compute import clean_of
from analyze.robustness.frequency_noise import Noise, masks, windows
from analyze.robustness.predictions import Predictor
from analyze.robustness.spec import Clean, Config, FrequencyNoise, Result
from data_cache import ImageData, InputError
from models.layers import MCDropout

CLASSES = 4
SIZES = [(8, 8), (7, 9), (12, 5), (16, 17), (3, 8), (1, 6)]


def images(n: int = 20, shape: tuple[int, int, int] = (2, 8, 8), **options) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    return ImageData.from_arrays(pixels, labels, name="noise", classes=[str(c) for c in range(CLASSES)], **options)


def linear(shape: tuple[int, int, int] = (2, 8, 8), classes: int = CLASSES, scale: float = 3.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = nn.Linear(int(np.prod(shape)), classes)
        layer.weight.data *= scale
    return nn.Sequential(nn.Flatten(), layer)


def subject(
    shape: tuple[int, int, int] = (2, 8, 8), n: int = 20, model: nn.Module | None = None, dtype=torch.float64, **options
) -> Subject:
    options = {"batch_size": 8} | options
    data = images(n, shape, mean=[0.4] * shape[0], std=[0.3] * shape[0])
    return Subject((model or linear(shape)).to(dtype), data, **options)


def predictor(*arguments, passes: int = 1, **options) -> Predictor:
    return Predictor(subject(*arguments, **options), passes)


def found(predictor: Predictor, config: Config, done: FrequencyNoise | None = None, world: World = ALONE):
    return list(frequency_noise.grow(predictor, config, done, clean=clean_of(predictor), world=world))


def same(a: FrequencyNoise, b: FrequencyNoise) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for name in vars(a))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rings", ["square", "radial"])
def test_each_bins_mask_is_one_of_a_partition(size, rings):
    held = masks(*size, Config(rings=rings, dc=True))
    assert np.array_equal(held.sum(axis=0), np.ones((size[0], size[1] // 2 + 1)))
    without = masks(*size, Config(rings=rings))
    assert not without[:, 0, 0].any() and np.array_equal(without, held[1:])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("size", SIZES)
def test_noise_is_real_has_the_strength_asked_for_and_no_energy_out_of_its_band(size, dtype, bound):
    config = Config()
    each = predictor((3, *size), 5, dtype=dtype)
    noise = Noise(each, config)
    for pictures in each.pictures():
        for band in np.flatnonzero(masks(*size, config).any(axis=(1, 2))):
            unit, square = noise.unit(pictures, band)
            assert unit.dtype == dtype and unit.shape == pictures.pixels.shape
            values = unit.double().numpy()
            assert np.allclose(np.sqrt((values**2).mean(axis=(1, 2, 3))), 1, rtol=0, atol=bound)
            assert np.allclose(square, 1, rtol=0, atol=2 * bound)
            power = np.abs(np.fft.fft2(values)) ** 2
            y, x = (np.abs(np.fft.fftfreq(n)) * 2 for n in size)
            far = np.maximum(y[:, None], x[None])
            inside = (far >= band / 10 - 1e-9) & ((far < (band + 1) / 10 - 1e-9) | (band == 9)) & (far > 0)
            share = power[..., ~inside].sum() / power.sum()
            assert share < (1e-24 if dtype == torch.float64 else 1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_all_bands_are_cut_from_one_field(size):
    each = predictor((2, *size), 3)
    config = Config(norm="psd", dc=True)
    noise = Noise(each, config)
    (pictures,) = each.pictures()
    total = sum(noise.unit(pictures, band)[0] for band in range(11))
    assert torch.allclose(total, noise.white(pictures), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_the_field_of_an_image_is_a_function_of_seed_and_number(kind):
    whole = predictor(n=20)
    parts = predictor(n=20, batch_size=3)
    config = Config(noise=kind)
    fields = [
        torch.cat([Noise(each, config).white(pictures) for pictures in each.pictures()]) for each in (whole, parts)
    ]
    assert torch.equal(*fields)
    some = Predictor(whole.subject, 1, 4)  # images 0, 5, 10, 15
    chosen = Noise(some, config).white(next(iter(some.pictures())))
    assert torch.equal(chosen, fields[0][::5])
    other = predictor(n=20, seed=1)
    assert not torch.equal(Noise(other, config).white(next(iter(other.pictures()))), fields[0][:8])
    if kind == "rademacher":
        assert set(fields[0].unique().tolist()) == {-1.0, 1.0}
    # 2560 values: the mean and the mean square are known to 1/sqrt(2560) = 2 % and 2.8 %
    assert abs(fields[0].mean()) < 0.08 and abs((fields[0] ** 2).mean() - 1) < 0.11


def test_psd_gives_each_bin_the_fields_own_power():
    each = predictor((2, 7, 9), 4)
    noise = Noise(each, Config(norm="psd"))
    (pictures,) = each.pictures()
    white = np.fft.fft2(noise.white(pictures).numpy())
    for band in range(10):
        unit, square = noise.unit(pictures, band)
        values = unit.numpy()
        assert np.allclose(square, (values**2).mean(axis=(1, 2, 3)), rtol=1e-12)
        spectrum = np.fft.fft2(values)
        held = np.abs(spectrum) > 1e-9
        assert np.allclose(spectrum[held], white[held], rtol=1e-9)


def expected(each: Predictor, noise: Noise, sigma: float, band: int, config: Config) -> dict[str, np.ndarray]:
    """What a linear network makes of the noise, by NumPy alone, with the full Fourier plane."""
    weight, bias = (p.detach().numpy() for p in each.subject.model.parameters())
    rows = {name: [] for name in ("accuracy", "nll", "flip_rate", "kl")}
    for pictures in each.pictures():
        pixels, labels = pictures.pixels.numpy(), pictures.labels.numpy()
        y, x = (np.abs(np.fft.fftfreq(n)) * 2 for n in pixels.shape[2:])
        far = np.maximum(y[:, None], x[None]) if config.rings == "square" else np.hypot(y[:, None], x[None])
        mask = (far >= band / 10 - 1e-9) & (far < (band + 1) / 10 - 1e-9) | (
            (band == 9) & (far == 1) & (config.rings == "square")
        )
        mask[0, 0] = False
        added = np.fft.ifft2(np.fft.fft2(noise.white(pictures).numpy()) * mask)
        assert np.abs(added.imag).max() < 1e-12
        added = added.real
        if config.norm == "rms":
            added /= np.sqrt((added**2).mean(axis=(1, 2, 3), keepdims=True))
        logs = []
        for images_ in (pixels, pixels + sigma * added):
            z = ((images_ - 0.4) / 0.3).reshape(len(pixels), -1) @ weight.T + bias
            logs.append(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))
        clean, noisy = logs
        rows["accuracy"].append(noisy.argmax(1) == labels)
        rows["nll"].append(-noisy[np.arange(len(labels)), labels])
        rows["flip_rate"].append(noisy.argmax(1) != clean.argmax(1))
        rows["kl"].append((np.exp(clean) * (clean - noisy)).sum(1))
    return {name: np.concatenate(values).astype(float) for name, values in rows.items()}


@pytest.mark.parametrize("options", [{}, {"norm": "psd"}, {"rings": "radial"}, {"noise": "rademacher"}])
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_scores_of_a_linear_network_are_numpys(options, size):
    config = Config(sigmas=(0.05, 0.4), **options)
    each = predictor((2, *size), 20)
    noise, last = Noise(each, config), found(each, config)[-1]
    for strength, sigma in enumerate(config.sigmas):
        for band in np.flatnonzero(last.bins[:10]):
            values = expected(each, noise, sigma, int(band), config)
            for name, per_image in values.items():
                assert np.isclose(getattr(last, name)[strength, band], per_image.mean(), rtol=1e-9, atol=1e-12), name
            for name, error in (("nll", values["nll"].std(ddof=1) / 20**0.5), ("flip_rate", None)):
                share = values[name].mean()
                error = np.sqrt(share * (1 - share) / 20) if error is None else error
                assert np.isclose(getattr(last, f"{name}_stderr")[strength, band], error, rtol=1e-6)
            places = np.arange(20) % GROUPS
            assert np.array_equal(last.group_correct[strength, band], np.bincount(places, values["accuracy"], GROUPS))
            assert np.array_equal(last.group_flips[strength, band], np.bincount(places, values["flip_rate"], GROUPS))
            assert np.allclose(last.group_nll[strength, band], np.bincount(places, values["nll"], GROUPS))


class LowPass(nn.Module):
    """A linear network that sees no square frequency from half of Nyquist's on."""

    def __init__(self, shape):
        super().__init__()
        self.network = linear(shape)
        y, x = (torch.fft.fftfreq(n).abs() * 2 for n in shape[1:])
        self.mask = torch.maximum(y[:, None], x[None]) < 0.5 - 1e-6

    def forward(self, x):
        return self.network(torch.fft.ifft2(torch.fft.fft2(x) * self.mask).real)


@pytest.mark.parametrize("size", [(8, 8), (9, 12)])
def test_a_network_behind_a_low_pass_is_unmoved_by_high_bands(size):
    each = predictor(model=LowPass((2, *size)), shape=(2, *size), n=20)
    last = found(each, Config(sigmas=(0.4, 3.0)))[-1]
    clean = clean_of(each)
    high = np.flatnonzero((last.band_low >= 0.5) & (last.bins > 0))
    assert len(high) >= 2
    assert np.all(last.accuracy[:, high] == clean.accuracy)
    assert np.all(last.flip_rate[:, high] == 0)
    assert np.all(np.abs(last.kl[:, high]) < 1e-12)
    low = np.flatnonzero((last.band_high <= 0.5) & (last.bins > 0))
    assert np.all(last.flip_rate[1, low] > 0.3)  # and it is moved by what it sees


def test_bands_without_a_frequency_are_missing_and_not_zero():
    config = Config(sigmas=(0.1,))
    each = predictor((2, 4, 4))
    last = found(each, config)[-1]
    assert last.bins.tolist() == [0, 0, 0, 0, 0, 8, 0, 0, 0, 7]
    assert np.array_equal(np.isnan(last.accuracy[0]), last.bins == 0)
    assert np.array_equal(np.isnan(last.kl[0]), last.bins == 0)
    assert frequency_noise.is_complete(last, config)
    pixel = found(predictor((2, 1, 1)), config)
    assert len(pixel) == 1 and np.isnan(pixel[-1].accuracy).all() and frequency_noise.is_complete(pixel[-1], config)


def test_the_frequency_zero_alone_shifts_each_channel():
    config = Config(sigmas=(0.1,), dc=True)
    each = predictor()
    unit, _ = Noise(each, config).unit(next(iter(each.pictures())), 0)
    assert torch.allclose(unit, unit[:, :, :1, :1].expand_as(unit), rtol=0, atol=1e-12)
    last = found(each, config)[-1]
    assert (last.band_low[0], last.band_high[0], last.bins[0]) == (0, 0, 1)
    assert last.bins.sum() == 64


def test_clipped_noise_stays_in_range_and_says_what_it_lost():
    config = Config(sigmas=(0.4,), clip=True)
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = linear()

        def forward(self, x):
            seen.append(x.detach() * 0.3 + 0.4)
            return self.network(x)

    each = predictor(model=Watching())
    before = torch.cat([pictures.pixels for pictures in each.pictures()])
    clean = clean_of(each)
    seen.clear()
    last = next(iter(frequency_noise.grow(each, config, clean=clean)))
    band = int(np.flatnonzero(~np.isnan(last.accuracy[0]))[0])
    noisy = torch.cat(seen).numpy()
    assert noisy.min() >= -1e-12 and noisy.max() <= 1 + 1e-12
    added = noisy - before.numpy()
    raw = torch.cat([Noise(each, config).unit(pictures, band)[0] for pictures in each.pictures()]).numpy() * 0.4
    assert np.isclose(last.clipped[0, band], ((before.numpy() + raw < 0) | (before.numpy() + raw > 1)).mean())
    assert np.isclose(last.rms[0, band], np.sqrt((added**2).mean()), rtol=1e-9)
    power = np.abs(np.fft.fft2(added)) ** 2
    y, x = (np.abs(np.fft.fftfreq(8)) * 2 for _ in range(2))
    far = np.maximum(y[:, None], x[None])
    inside = (far >= band / 10 - 1e-9) & (far < (band + 1) / 10 - 1e-9)
    assert np.isclose(last.in_band[0, band], power[..., inside].sum() / power.sum(), rtol=1e-9)
    assert 0 < last.in_band[0, band] < 1 and 0 < last.clipped[0, band] < 1


def test_unclipped_noise_is_all_in_its_band():
    last = found(predictor(), Config(sigmas=(0.1, 0.3)))[-1]
    here = last.bins > 0
    assert np.allclose(last.rms[:, here], [[0.1], [0.3]], rtol=1e-12)
    assert np.all(last.in_band[:, here] == 1) and np.all(last.clipped[:, here] == 0)


def test_park2022_is_rademacher_noise_of_equal_power_around_multiples_of_tenths_in_normalised_images():
    config = Config(definition="park2022", sigmas=(0.7,))
    limits = windows(config)
    assert len(limits) == 11
    for place, (low, high) in enumerate(limits):
        assert np.isclose(low * np.pi, max(0, place * np.pi / 10 - 0.2))
        assert np.isclose(high * np.pi, min(np.pi, place * np.pi / 10 + 0.2))
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = linear((2, 16, 16))

        def forward(self, x):
            seen.append(x.detach().clone())
            return self.network(x)

    each = predictor((2, 16, 16), model=Watching())
    clean = clean_of(each)
    before = torch.cat([x for x, _ in each.subject.data])
    seen.clear()
    steps = list(frequency_noise.grow(each, config, clean=clean))
    white = torch.cat([Noise(each, config).white(pictures) for pictures in each.pictures()]).numpy()
    assert set(np.unique(white)) == {-1.0, 1.0}
    y, x = (np.abs(np.fft.fftfreq(16)) * 2 * np.pi for _ in range(2))
    far = np.maximum(y[:, None], x[None])
    done = [int(band) for band in np.flatnonzero(steps[-1].bins)]
    assert done == list(range(11))
    for place, band in enumerate(done):
        mask = (far >= band * np.pi / 10 - 0.2) & (far < band * np.pi / 10 + 0.2)
        added = torch.cat(seen[3 * place : 3 * place + 3]) - before
        filtered = np.fft.ifft2(np.fft.fft2(white) * mask).real
        assert np.allclose(added, 0.7 * filtered, rtol=0, atol=1e-12)
        assert np.isclose(steps[-1].rms[0, band], 0.7 * np.sqrt((filtered**2).mean()), rtol=1e-9)


class Backwards(World):
    """As if ranks finished their work in the opposite order."""

    def share_out(self, items, work):
        done = [(item, work(item)) for item in reversed(items)]
        yield from done


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neither_order_nor_resume_nor_memory_changes_a_bit(dtype, monkeypatch):
    config = Config(sigmas=(0.1, 0.4))

    def fresh() -> Predictor:
        return predictor(dtype=dtype)

    steps = found(fresh(), config)
    assert len(steps) == 2 * np.count_nonzero(steps[-1].bins)
    assert [int((~np.isnan(step.accuracy)).sum()) for step in steps] == list(range(1, len(steps) + 1))
    assert not frequency_noise.is_complete(steps[-2], config) and frequency_noise.is_complete(steps[-1], config)
    for stop in (1, 5):
        assert same(found(fresh(), config, steps[stop - 1])[-1], steps[-1])
    assert same(found(fresh(), config, world=Backwards())[-1], steps[-1])
    monkeypatch.setattr(frequency_noise, "KEEP_BYTES", 0)
    assert same(found(fresh(), config)[-1], steps[-1])


def test_strengths_added_later_give_the_same_bits():
    at_once = found(predictor(), Config(sigmas=(0.05, 0.1, 0.4)))[-1]
    first = found(predictor(), Config(sigmas=(0.4, 0.05)))[-1]
    later = found(predictor(), Config(sigmas=(0.1, 0.05, 0.4)), first)[-1]
    assert same(at_once, later)
    assert first.sigma.tolist() == [0.05, 0.4]
    assert not frequency_noise.is_complete(first, Config(sigmas=(0.1,)))
    assert frequency_noise.is_complete(later, Config(sigmas=(0.1,)))


def test_batch_size_changes_rounding_only():
    config = Config(sigmas=(0.2,))
    a, b = (found(predictor(batch_size=size), config)[-1] for size in (20, 3))
    here = a.bins > 0
    for name in ("accuracy", "flip_rate", "group_correct", "group_flips"):
        assert np.array_equal(getattr(a, name)[:, here], getattr(b, name)[:, here])
    for name in ("nll", "kl", "ece", "group_nll"):
        assert np.allclose(getattr(a, name)[:, here], getattr(b, name)[:, here], rtol=1e-9, atol=1e-12)


def test_a_deterministic_network_takes_one_pass_and_a_random_one_the_same_masks_with_and_without_noise():
    counts = []

    class Counting(nn.Module):
        def __init__(self, rate):
            super().__init__()
            self.dropout, self.network = MCDropout(rate), linear()

        def forward(self, x):
            counts.append(len(x))
            return self.network(self.dropout(x))

    still = predictor(model=Counting(0.0), passes=5)
    assert still.passes == 1
    random = predictor(model=Counting(0.5), passes=5)
    assert random.passes == 5
    clean = clean_of(random)
    counts.clear()
    # noise far below what float64 logits tell apart: any flip would be of other masks
    steps = list(frequency_noise.grow(random, Config(sigmas=(1e-13,)), clean=clean))
    assert np.nanmax(steps[-1].flip_rate) == 0 and np.nanmax(steps[-1].kl) < 1e-12
    assert sum(counts) == len(steps) * 5 * 20


def test_passes_are_averaged_as_probabilities():
    each = predictor(model=nn.Sequential(MCDropout(0.5), linear()), passes=3)
    pictures = next(iter(each.pictures()))
    x = next(iter(each.subject.data))[0]
    logits = [each.subject.outputs(x, 0, number).numpy() for number in range(3)]
    mean = np.mean([np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in logits], axis=0)
    assert np.allclose(each.log_probability(pictures, pictures.pixels).exp(), mean, rtol=1e-9)


def curve(accuracy: list[list[float]], sigma: list[float], clean: float = 0.9, classes: int = 10) -> tuple:
    values = np.array(accuracy, dtype=float)
    return sigma_half.crossing(np.array(sigma), values, np.full(values.shape[1:], clean), 1 / classes)


def test_sigma_half_is_interpolated_in_the_logarithm():
    # half-way from 0.9 to 0.1 is 0.5: a quarter of the way from 0.6 to 0.2
    value, side = curve([[0.9], [0.6], [0.2]], [0.01, 0.1, 0.4])
    assert np.isclose(value[0], 0.1 * 4**0.25) and side[0] == 0
    value, side = curve([[0.8], [0.5], [0.2]], [0.01, 0.1, 0.4])
    assert np.isclose(value[0], 0.1) and side[0] == 0
    # the first crossing counts
    value, _ = curve([[0.9], [0.1], [0.8], [0.1]], [0.1, 0.2, 0.4, 0.8])
    assert np.isclose(value[0], 0.1 * 2**0.5)


def test_sigma_half_beyond_the_strengths_is_missing_on_the_side_it_lies():
    value, side = curve([[0.4, 0.8, np.nan], [0.3, 0.6, 0.2]], [0.1, 0.2])
    assert np.isnan(value).all() and side.tolist() == [-1, 1, -1]
    for accuracy, expected_side in ((0.3, -1), (0.8, 1)):
        value, side = curve([[accuracy]], [0.1])
        assert np.isnan(value[0]) and side[0] == expected_side
    value, side = curve([[0.1], [0.05]], [0.1, 0.2], clean=0.08)  # not above chance
    assert np.isnan(value[0]) and side[0] == 0


def test_strengths_that_were_not_measured_do_not_count():
    accuracy = [[0.9, np.nan, 0.9, np.nan], [np.nan, 0.6, 0.6, np.nan], [0.2, 0.2, np.nan, np.nan]]
    value, side = curve(accuracy, [0.1, 0.2, 0.4])
    assert np.allclose(value, [0.1 * 4 ** (4 / 7), 0.2 * 2**0.25, np.nan, np.nan], equal_nan=True)
    assert side.tolist() == [0, 0, 1, 0]


def test_a_strength_that_was_begun_and_left_takes_no_band_its_sigma_half():
    model, x = linear().double(), torch.rand(40, 2, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    each = Predictor(Subject(model, [(x, model(x).argmax(1))]), 1)
    whole = found(each, Config(sigmas=(0.01, 4.0)))[-1]
    left = found(each, Config(sigmas=(0.01, 1.0, 4.0)), whole)[0]
    assert np.isfinite(whole.sigma_half[whole.bins > 0]).any()
    others = np.arange(len(whole.bins)) != np.flatnonzero(whole.bins)[0]
    assert np.isnan(left.accuracy[1, others]).all()
    for name in ("sigma_half", "sigma_half_stderr", "sigma_half_side"):
        assert np.array_equal(getattr(left, name)[others], getattr(whole, name)[others], equal_nan=True)
    assert np.isfinite(left.sigma_half_stderr[others & np.isfinite(left.sigma_half)]).all()
    strengths = [row.quantity for row in Result(frequency_noise=left).rows() if "noise of" in row.quantity]
    assert strengths == ["accuracy, noise of 0.01", "accuracy, noise of 4"]


def noise_of(correct: np.ndarray, sigma: np.ndarray, images_: np.ndarray) -> FrequencyNoise:
    """(S, bands, groups) right answers, and nothing else."""
    accuracy = correct.sum(-1) / images_.sum()
    shape = accuracy.shape
    values = {name: np.zeros(shape) for name in ("nll", "nll_stderr", "ece", "kl", "rms", "clipped", "in_band")}
    values |= {name: np.zeros(shape) for name in ("accuracy_stderr", "flip_rate", "flip_rate_stderr")}
    bands = {name: np.zeros(shape[1]) for name in ("band_low", "band_high", "bins")}
    halves = {name: np.zeros(shape[1]) for name in ("sigma_half", "sigma_half_stderr", "sigma_half_side")}
    return FrequencyNoise(
        sigma=sigma, accuracy=accuracy, group_correct=correct, group_nll=correct, group_flips=correct,
        **values, **bands, **halves,
    )  # fmt: skip


def test_sigma_half_s_error_is_the_jackknife_over_groups():
    generator = np.random.default_rng(0)
    images_ = np.array([4, 4, 3, 3, 0, 3])
    rates = np.array([0.95, 0.7, 0.2])
    correct = np.stack([[generator.binomial(images_, rate) for _ in range(2)] for rate in rates]).astype(float)
    clean_correct = images_.copy()
    sigma = np.array([0.1, 0.2, 0.4])
    clean = Clean(
        images=17, classes=10, passes=1, accuracy=1.0, accuracy_stderr=0.0, nll=0.0, nll_stderr=0.0, ece=0.0,
        group_images=images_, group_correct=clean_correct, group_nll=np.zeros(6),
    )  # fmt: skip
    result = sigma_half.with_sigma_half(noise_of(correct, sigma, images_), clean)
    for band in range(2):
        without = []
        for group in (0, 1, 2, 3, 5):
            kept = [g for g in range(6) if g != group]
            accuracy = correct[:, band, kept].sum(-1) / images_[kept].sum()
            without.append(curve(accuracy[:, None].tolist(), sigma.tolist(), clean=1.0)[0][0])
        error = np.sqrt(4 / 5 * ((without - np.mean(without)) ** 2).sum())
        assert np.isclose(result.sigma_half_stderr[band], error, rtol=1e-9)
    pseudo = sigma_half.pseudo_values(result, clean)
    assert np.allclose(pseudo.mean(1), result.sigma_half)


def test_data_that_can_not_be_judged_are_refused_in_a_sentence():
    x = torch.rand(4, 6, dtype=torch.float64)
    flat = Subject(nn.Linear(6, 3).double(), [(x, torch.zeros(4, dtype=torch.int64))])
    with pytest.raises(InputError, match="no images"):
        Predictor(flat, 1)
    pictures = x.reshape(4, 1, 2, 3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
    with pytest.raises(InputError, match="class number"):
        Predictor(Subject(network, [(pictures, torch.rand(4, 3))], loss=nn.functional.mse_loss), 1)
    with pytest.raises(InputError, match="not 0 to 1: tell Subject the normalization"):
        clean_of(Predictor(Subject(network, [(pictures - 0.5, torch.zeros(4).long())]), 1))
    with pytest.raises(InputError, match="labels go from 0 to 7"):
        clean_of(Predictor(Subject(network, [(pictures, torch.tensor([0, 1, 2, 7]))]), 1))
