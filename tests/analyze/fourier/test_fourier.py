"""Spectra against NumPy's transform of all maps at once, and where they are known in closed form."""

import gc
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from maps import all_maps, noise_subject, spread, zoo_net
from ranks import run_ranks
from torch import nn

from analyze import Subject, fourier, variance
from analyze.distributed import joined
from analyze.fourier.bins import diagonal, interpolation, ring_matrix, whole_plane
from analyze.fourier.compute import is_complete
from analyze.fourier.spec import Config, Result
from data_cache import InputError
from models.ensemble import Ensemble
from models.layers import MCDropout

EPS = float(np.finfo(np.float32).eps)
NUMBERS = [
    f"{name}{suffix}"
    for name in ("log_amplitude", "relative_log_amplitude", "high_frequency_amplitude", "power", "model_noise_power")
    for suffix in ("", "_stderr")
]


def signed_frequencies(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each bin of `fft2`, in units of pi, by NumPy's own numbering."""
    return np.broadcast_arrays(2 * np.fft.fftfreq(height)[:, None], 2 * np.fft.fftfreq(width)[None])


def in_rings(power: np.ndarray, rings: str = "radial") -> np.ndarray:
    """Sums of (..., H, W) over the origin and rings of 0.1 pi; exact fractions decide on the edges."""
    height, width = power.shape[-2:]
    rows, columns = (np.rint(np.fft.fftfreq(n) * n).astype(int) for n in (height, width))
    squares = 100 * 4 * (rows[:, None] ** 2 * width**2 + columns[None] ** 2 * height**2)
    if rings == "square":
        squares = 100 * 4 * np.maximum(rows[:, None] ** 2 * width**2, columns[None] ** 2 * height**2)
    index = np.array([[int(np.sqrt(s // (height * width) ** 2)) for s in line] for line in squares.tolist()]) + 1
    index = np.minimum(index, 15 if rings == "radial" else 10)
    index[0, 0] = 0
    count = 16 if rings == "radial" else 11
    return np.stack([power[..., index == ring].sum(-1) for ring in range(count)], axis=-1)


def expected(maps: np.ndarray, rings: str = "radial", eps: float = EPS, members: int = 1) -> dict[str, np.ndarray]:
    """From (S, B, C, H, W) maps of square size with no dead channel, straight from the definition."""
    height, width = maps.shape[-2:]
    assert height == width
    transform = np.fft.fft2(maps)
    rms = np.sqrt((np.abs(transform) ** 2).mean(axis=(-2, -1), keepdims=True))
    logarithm = np.log(np.maximum(np.abs(transform), eps * rms))
    line = np.diagonal(logarithm, axis1=-2, axis2=-1)[..., : height // 2 + 1].mean(axis=(0, 2))
    relative = line - line[:, :1]
    frequency = 2 * np.arange(height // 2 + 1) / height
    high = np.log([np.interp(0.8, frequency, np.exp(image)) for image in relative])
    power = in_rings((np.abs(transform) ** 2).mean(axis=(0, 2)) / (height * width) ** 2, rings)
    noise = in_rings(spread(transform, members).mean(1) / (height * width) ** 2, rings)
    each = dict(zip(NUMBERS[::2], (line, relative, high, power, noise), strict=True))
    count = len(line)
    return {name: value.mean(0) for name, value in each.items()} | {
        f"{name}_stderr": value.std(0, ddof=1) / np.sqrt(count) for name, value in each.items()
    }


def assert_is_numpys(result: Result, maps: dict[str, np.ndarray], rtol: float, **options) -> None:
    for place, name in enumerate(result.layer):
        numbers = expected(maps[name], **options)
        sure = numbers["log_amplitude"] > np.log(1e4 * options.get("eps", EPS))  # what is more than rounding
        assert sure[:-1].all()
        for key, value in numbers.items():
            found = getattr(result, key)[place]
            if value.ndim and "power" not in key:
                assert np.isnan(found[len(value) :]).all()
                found, value = found[: len(value)][sure], value[sure]
            if "power" in key:
                there = result.ring_bins[place] > 0
                assert np.isnan(found[~there]).all() and (value[~there] == 0).all()
                found, value = found[there], value[there]
            scale = np.abs(value).max() if "power" in key else 1.0
            assert np.allclose(found, value, rtol=rtol, atol=rtol * scale), (name, key)


def with_live_channels(name: str) -> nn.Module:
    """No activation is zero everywhere: ReLU is leaky here."""
    model = zoo_net(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 1.0)
    return model


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("rings", ["radial", "square"])
def test_all_numbers_are_numpys(size, rings):
    subject = noise_subject(with_live_channels("resnet_mcdo_smoothing_18").double(), shape=(3, size, size))
    layers = ("layer1.0", "smooth1.0", "layer2.0", "smooth2.0", "smooth3.0")
    result = fourier.compute(subject, Config(passes=3, rings=rings, layers=layers))
    assert (result.dead_share == 0).all()
    assert_is_numpys(result, all_maps(subject, layers, 3), rtol=1e-9, rings=rings, eps=float(np.finfo(float).eps))


def test_in_single_precision_they_are_numpys_to_rounding():
    subject = noise_subject(with_live_channels("resnet_mcdo_18"))
    layers = ("layer1.0", "layer1.1", "layer2.0")
    result = fourier.compute(subject, Config(passes=3, layers=layers))
    assert_is_numpys(result, all_maps(subject, layers, 3), rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 17, 22), (3, 31, 20)])
@pytest.mark.parametrize("rings", ["radial", "square"])
def test_rings_resolve_the_variances_of_the_variance_analysis(shape, rings):
    """Parseval: power outside of the origin is data variance (of 1/N), all noise power is model variance."""
    subject = noise_subject(zoo_net("resnet_mcdo_smoothing_18"), shape=shape)
    spectra = fourier.compute(subject, Config(passes=3, rings=rings))
    spread = variance.compute(subject, variance.Config(passes=3))
    assert spectra.layer.tolist() == spread.layer.tolist()
    positions = spread.height * spread.width
    # float32 sums over up to 34 * 34 positions and 32 channels
    signal = spectra.total(spectra.power) - spectra.power[:, 0]
    assert np.allclose(signal, spread.data_variance * (positions - 1) / positions, rtol=2e-6)
    assert np.allclose(spectra.total(spectra.model_noise_power), spread.model_variance, rtol=2e-6)
    assert (spectra.ring_bins.sum(axis=1) == positions).all()


def through(first: nn.Module, *others: nn.Module, images: torch.Tensor, **options) -> Result:
    """Of the modules one after another; the last layer is there only because networks have weights."""
    with torch.no_grad():
        outputs = nn.Sequential(first, *others, nn.Flatten())(images).shape[1]
    model = nn.Sequential(first, *others, nn.Flatten(), nn.Linear(outputs, 2)).to(images.dtype)
    layers = tuple(str(place) for place in range(1 + len(others)))
    batches = [(images, torch.zeros(len(images), dtype=torch.int64))]
    return fourier.compute(Subject(model, batches), Config(**{"layers": layers, "passes": 3, **options}))


def unchanged(channels: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, 1, groups=channels, bias=False).double()
    nn.init.ones_(conv.weight)
    return conv


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (7, 12)])
def test_a_delta_has_a_flat_spectrum(size):
    images = torch.zeros(2, 1, *size, dtype=torch.float64)
    images[:, 0, 2, 3] = 3.0
    result = through(unchanged(), images=images, spectra=("*",))
    count = np.isfinite(result.frequency[0]).sum()
    assert count == min(size) // 2 + 1
    assert np.allclose(result.log_amplitude[0, :count], np.log(3), atol=1e-14)
    assert np.allclose(result.spectra["0"], np.log(3), atol=1e-14)
    density = result.power[0] / np.maximum(result.ring_bins[0], 1)
    assert np.allclose(density[result.ring_bins[0] > 0], 9 / (size[0] * size[1]) ** 2)


@pytest.mark.parametrize(
    ("size", "bin_"), [((8, 8), (2, 1)), ((9, 15), (3, 7)), ((16, 16), (8, 0)), ((16, 10), (5, 5))]
)
def test_a_cosine_has_its_power_in_one_ring(size, bin_):
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    wave = torch.cos(2 * torch.pi * (bin_[0] * rows / size[0] + bin_[1] * columns / size[1]))
    result = through(unchanged(), images=5 + 2 * wave.expand(2, 1, *size))
    own = bin_[0] * 2 % size[0] == 0 and bin_[1] * 2 % size[1] == 0  # its own mirror image
    frequency = np.hypot(*(2 * k / n for k, n in zip(bin_, size, strict=True)))
    ring = 1 + int(np.floor(10 * frequency + 1e-9))
    power = np.where(result.ring_bins[0] > 0, result.power[0], 0)
    assert power[0] == pytest.approx(25) and power[ring] == pytest.approx(4 if own else 2)
    power[[0, ring]] = 0
    assert power.max() < 1e-28


@pytest.mark.parametrize("size", [15, 16])
def test_a_box_blur_multiplies_by_the_cosine_of_half_the_frequency_on_both_axes(size):
    blur = nn.Conv2d(1, 1, 2, bias=False, padding=1, padding_mode="circular").double()
    nn.init.constant_(blur.weight, 0.25)
    # circular padding on both sides gives size + 1, whose last row and column repeat the first
    crop = nn.AvgPool2d(1)
    crop.forward = lambda maps: maps[..., :size, :size].contiguous()
    images = torch.randn(4, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = through(unchanged(), blur, crop, images=images, layers=("0", "2"))
    frequency = result.frequency[0]
    below = frequency < 1
    change = (result.log_amplitude[1] - result.log_amplitude[0])[below]
    assert np.allclose(change, np.log(np.cos(np.pi * frequency[below] / 2) ** 2), atol=1e-10)
    if size % 2 == 0:  # nothing is left at the Nyquist frequency but rounding
        assert result.log_amplitude[1, -1] < -30


def test_a_smoothing_layer_of_the_zoo_is_a_circular_blur_of_the_zero_padded_map():
    """So its output, one larger, has no power at all at the Nyquist frequency where its size is even."""
    subject = noise_subject(zoo_net("resnet_dnn_smoothing_18"), shape=(3, 17, 17))
    result = fourier.compute(subject, Config(layers=("smooth1.0",)))
    assert result.height[0] == 18 and result.frequency[0, -1] == 1
    assert result.relative_log_amplitude[0, -1] < -12 < result.relative_log_amplitude[0, -2]


def test_frequencies_are_true_where_sizes_are_odd_and_even_side_by_side():
    subject = noise_subject(zoo_net("resnet_dnn_smoothing_18"), sizes=(2,), shape=(3, 16, 16))
    result = fourier.compute(subject, Config(layers=("layer1.1", "smooth1.0", "layer4.1")))
    assert result.height.tolist() == [16, 17, 3]
    assert np.array_equal(result.frequency[0], np.arange(9) / 8)
    assert np.array_equal(result.frequency[1], 2 * np.arange(9) / 17)
    assert np.array_equal(result.frequency[2], [0, 2 / 3, *[np.nan] * 7], equal_nan=True)
    assert np.isnan(result.high_frequency_amplitude[2]) and np.isfinite(result.high_frequency_amplitude[:2]).all()


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (12, 7), (7, 12), (16, 17), (1, 5), (1, 1), (2, 64)])
def test_the_diagonal_has_nearly_one_frequency_on_both_axes(size):
    height, width = size
    rows, columns, frequency = diagonal(height, width)
    assert len(rows) == min(size) // 2 + 1 and rows[0] == columns[0] == 0
    assert (rows <= height // 2).all() and (columns <= width // 2).all()
    shorter, longer = (rows, columns) if height <= width else (columns, rows)
    assert np.array_equal(shorter, np.arange(len(shorter)))
    target = 2 * shorter / min(size)
    reachable = np.minimum(target, 2 * (max(size) // 2) / max(size))
    assert (np.abs(2 * longer / max(size) - reachable) <= 1 / max(size) + 1e-12).all()
    assert np.allclose(frequency, (2 * rows / height + 2 * columns / width) / 2)


def test_interpolation_is_linear_and_does_not_leave_the_frequencies():
    frequency = np.array([0.0, 0.5, 1.0])
    assert np.allclose(interpolation(frequency, 0.8), [0, 0.4, 0.6])
    assert np.allclose(interpolation(frequency, 0.5), [0, 1, 0])
    assert np.isnan(interpolation(frequency[:2], 0.8)).all()


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (5, 8), (8, 5), (1, 1), (2, 3)])
@pytest.mark.parametrize("rings", ["radial", "square"])
def test_rings_of_the_half_plane_are_those_of_the_whole(size, rings):
    power = np.abs(np.fft.fft2(np.random.default_rng(0).normal(size=size))) ** 2
    half = power[:, : size[1] // 2 + 1]
    assert np.allclose(half.reshape(-1) @ ring_matrix(*size, rings), in_rings(power, rings))
    assert np.allclose(whole_plane(half, size[1]), np.fft.fftshift(power))


def test_the_plane_of_a_layer_is_numpys():
    subject = noise_subject(with_live_channels("resnet_dnn_18").double(), shape=(3, 15, 12))
    result = fourier.compute(subject, Config(layers=("layer1.*", "layer2.0"), spectra=("layer1.1", "layer2.*")))
    assert list(result.spectra) == ["layer1.1", "layer2.0"]
    for name, maps in all_maps(subject, result.spectra, 1).items():
        logarithm = np.log(np.abs(np.fft.fft2(maps))).mean(axis=(0, 1, 2))
        assert np.allclose(result.spectra[name], np.fft.fftshift(logarithm), atol=1e-9)


def test_scale_moves_log_amplitudes_and_nothing_else():
    images = torch.rand(4, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    large, small = (through(unchanged(2).float(), images=images * scale) for scale in (1.0, 2.0**-50))
    assert np.allclose(large.log_amplitude - small.log_amplitude, 50 * np.log(2), atol=1e-5, equal_nan=True)
    assert np.allclose(large.relative_log_amplitude, small.relative_log_amplitude, atol=1e-5, equal_nan=True)
    assert np.allclose(large.power, small.power * 4.0**50, rtol=1e-6, equal_nan=True)


def test_dead_channels_are_counted_and_left_out():
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images[:, 1] = 0  # one channel of all images
    images[2, 2] = 0  # two of one
    images[3] = 0  # all of one
    result = through(unchanged(3), images=images, spectra=("0",))
    assert result.dead_share[0] == pytest.approx((1 + 1 + 2 + 3) / 12)
    lines = [
        np.mean([np.log(np.abs(np.fft.fft2(images[b, c].numpy()))).diagonal()[:5] for c in live], axis=0)
        for b, live in ((0, (0, 2)), (1, (0, 2)), (2, (0,)))
    ]
    assert np.allclose(result.log_amplitude[0], np.mean(lines, axis=0))
    assert np.allclose(result.log_amplitude_stderr[0], np.std(lines, axis=0, ddof=1) / np.sqrt(3))
    power = np.abs(np.fft.fft2(images.numpy())) ** 2 / 64**2
    assert np.allclose(result.total(result.power), power.mean(axis=(0, 1)).sum())  # where dead ones count
    assert np.isfinite(result.spectra["0"]).all()


def test_a_layer_that_is_dead_everywhere_has_no_amplitude():
    result = through(unchanged(), images=torch.zeros(3, 1, 8, 8, dtype=torch.float64), spectra=("0",))
    assert result.dead_share[0] == 1 and np.isnan(result.log_amplitude).all() and np.isnan(result.spectra["0"]).all()
    assert result.total(result.power)[0] == 0


def test_a_constant_map_ends_at_rounding():
    result = through(unchanged().float(), images=torch.full((2, 1, 16, 16), 3.0))
    # below machine epsilon times the rms of |F|, which is |F(0)| / 16
    assert np.allclose(result.relative_log_amplitude[0, 1:], np.log(EPS / 16), atol=1e-5)


def test_activations_that_are_no_number_are_seen():
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    images[1, 0, 0, 0] = torch.nan
    result = through(unchanged(), images=images)
    assert np.isnan(result.log_amplitude).all() and np.isnan(result.power[result.ring_bins > 0]).all()


def test_a_deterministic_network_has_exactly_no_noise():
    result = fourier.compute(noise_subject(zoo_net("resnet_dnn_18")), Config(passes=4))
    assert (result.model_noise_power[result.ring_bins > 0] == 0).all() and result.passes == 1


def test_one_pass_of_a_random_network_says_nothing_of_its_noise():
    result = fourier.compute(noise_subject(zoo_net("resnet_mcdo_18")), Config(passes=1))
    assert np.isnan(result.model_noise_power).all()
    assert (
        np.isnan(result.total(result.model_noise_power)).all()
        and np.isnan(result.high_share(result.model_noise_power)).all()
    )


def test_dropout_of_a_constant_is_white_noise():
    images = torch.ones(40, 1, 32, 32)
    result = through(unchanged().float(), MCDropout(0.5), images=images, passes=4)
    density = result.model_noise_power[1] / result.ring_bins[1] * 32 * 32
    error = result.model_noise_power_stderr[1] / result.ring_bins[1] * 32 * 32
    assert (result.model_noise_power[0] == 0).all()
    assert (np.abs(density - 1) < 4.5 * error).all() and error.max() < 0.15


@pytest.mark.parametrize(("name", "passes"), [("resnet_dnn_18", 1), ("resnet_mcdo_18", 2)])
def test_members_of_an_ensemble_are_realisations(name, passes):
    subject = noise_subject(
        Ensemble([with_live_channels(name) for _ in range(1)] + [zoo_net(name, 1).double()]).double()
    )
    result = fourier.compute(subject, Config(passes=2, layers=("layer1.0",)))
    maps = all_maps(subject, ["layer1.0"], passes)["layer1.0"]
    assert len(maps) == 2 * passes
    there = result.ring_bins[0] > 0
    noise = expected(maps, members=2)["model_noise_power"]
    assert np.allclose(result.model_noise_power[0, there], noise[there], rtol=1e-9)
    power = expected(maps)["power"]
    assert np.allclose(result.power[0, there], power[there], rtol=1e-9)


def test_randomness_that_does_not_reach_the_outputs_is_seen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), MCDropout(0.5), nn.Flatten(), nn.Linear(4 * 14 * 14, 2), nn.Hardtanh())
    nn.init.constant_(model[3].bias, 1e4)
    result = fourier.compute(noise_subject(model), Config(passes=3, layers=("1",)))
    assert result.passes == 3 and result.total(result.model_noise_power)[0] > 0


def test_large_maps_lose_no_digits():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Softplus(), MCDropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    subject = noise_subject(model, sizes=(2,), shape=(3, 224, 224))
    result = fourier.compute(subject, Config(passes=2, layers=("2",)))
    maps = all_maps(subject, ["2"], 2)["2"]
    for name in ("power", "model_noise_power"):
        assert np.allclose(getattr(result, name)[0], expected(maps)[name], rtol=1e-6), name


def test_thousands_of_channels_lose_no_digits():
    model = nn.Sequential(nn.Conv2d(3, 2048, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    subject = noise_subject(model, sizes=(2,), shape=(3, 6, 6))
    result = fourier.compute(subject, Config(layers=("0",)))
    there = result.ring_bins[0] > 0
    assert np.allclose(result.power[0, there], expected(all_maps(subject, ["0"], 1)["0"])["power"][there], rtol=1e-6)


@pytest.mark.parametrize("size", [(5, 6), (6, 5), (4, 7), (5, 40), (7, 9)])
def test_maps_that_are_not_square_have_an_amplitude_at_high_frequency(size):
    """The frequency is the shorter axis's; of a delta the spectrum is flat."""
    images = torch.zeros(2, 1, *size, dtype=torch.float64)
    images[:, 0, 1, 2] = 3.0
    assert through(unchanged(), images=images).high_frequency_amplitude[0] == pytest.approx(0, abs=1e-13)


def test_the_table_tells_noise_and_its_share_apart_from_those_of_the_signal():
    result = fourier.compute(noise_subject(zoo_net("resnet_mcdo_18"), sizes=(3,)), Config(passes=2))
    head, *lines = (re.split(r"\s{2,}", line) for line in result.tables()[0].splitlines())
    assert len(set(head)) == len(head) == 7 and head[-2] == "noise power without origin"
    place = result.layer.tolist().index("layer2.0")
    noise, low = result.model_noise_power[place], result.ring_low
    assert float(lines[place][-2]) == pytest.approx(np.nansum(noise[1:]), rel=1e-3)
    assert float(lines[place][-1].strip(" %")) / 100 == pytest.approx(
        np.nansum(noise[low >= 0.5]) / np.nansum(noise[1:]), abs=1e-3
    )


def test_sums_of_other_layers_than_the_result_has_are_refused():
    result = fourier.compute(noise_subject(zoo_net("resnet_dnn_18"), sizes=(2,)))
    for name, other in (("noise", "high"), ("power", "amplitude"), ("high", "relative")):
        sums = replace(result.sums, **{name: getattr(result.sums, other)})
        with pytest.raises(InputError, match=f"holds {name} of shape"):
            replace(result, sums=sums)


def test_batch_size_changes_rounding_only():
    model = with_live_channels("resnet_dnn_smoothing_18")
    results = [
        fourier.compute(noise_subject(model, sizes=sizes), Config(layers=("layer*",)))
        for sizes in ([13], [5, 5, 3], [1] * 13)
    ]
    for other in results[1:]:
        for key in NUMBERS:
            assert np.allclose(getattr(other, key), getattr(results[0], key), rtol=1e-4, atol=1e-5, equal_nan=True), key


def test_a_resume_in_the_middle_changes_no_bit(tmp_path):
    subject, config = noise_subject(zoo_net("resnet_mcdo_18")), Config(passes=2, spectra=("layer1.0",))
    saved = []
    whole = fourier.compute(subject, config, save=saved.append)
    for result in saved[:-1]:
        result.save(tmp_path / "run.h5", complete=False)
        stored = Result.read(tmp_path / "run.h5")
        assert not is_complete(stored, config)
        later = fourier.compute(subject, config, previous=stored)
        for key in NUMBERS:
            assert np.array_equal(getattr(later, key), getattr(whole, key), equal_nan=True), key
        assert np.array_equal(later.spectra["layer1.0"], whole.spectra["layer1.0"])
    assert is_complete(whole, config)


def in_rank(path) -> None:
    with joined("cpu") as world:
        result = fourier.compute(noise_subject(zoo_net("resnet_mcdo_18")), Config(passes=2), world=world)
        if world.rank == 0:
            result.save(path)


def test_two_ranks_find_the_same_bits(tmp_path):
    ranks = run_ranks(2, in_rank, tmp_path / "run.h5")
    assert [rank.status for rank in ranks] == [0, 0], ranks
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have
    try:
        alone = fourier.compute(noise_subject(zoo_net("resnet_mcdo_18")), Config(passes=2))
    finally:
        torch.set_num_threads(threads)
    shared = Result.read(tmp_path / "run.h5")
    for key in NUMBERS:
        assert np.array_equal(getattr(shared, key), getattr(alone, key), equal_nan=True), key


def test_nothing_grows_with_images_or_passes():
    subject = noise_subject(zoo_net("resnet_mcdo_18"), sizes=[2] * 5)
    live = []

    def count(result) -> None:
        if result.batches in (2, 5):
            gc.collect()
            live.append(sum(type(found) is torch.Tensor for found in gc.get_objects()))

    for passes in (2, 4):
        fourier.compute(subject, Config(passes=passes, layers=("layer1.*",)), save=count)
    assert live[0] == live[1] == live[2] == live[3]


def test_impossible_options_are_refused():
    with pytest.raises(InputError, match="passes must be at least 1"):
        Config(passes=0)
    with pytest.raises(InputError, match="no layer matches 'layer9"):
        fourier.compute(noise_subject(zoo_net("resnet_dnn_18")), Config(spectra=("layer9*",)))


def test_rows_and_quantities_say_what_smoothing_does():
    result = fourier.compute(noise_subject(zoo_net("resnet_mcdo_smoothing_18"), shape=(3, 32, 32)), Config(passes=2))
    names = result.layer.tolist()
    rows = {row.quantity: row for row in result.rows()}
    place = names.index("smooth2.0")
    change = result.high_frequency_amplitude[place] - result.high_frequency_amplitude[place - 1]
    assert rows["log amplitude across smooth2.0"].value == pytest.approx(change)
    high = result.ring_low >= 0.5
    noise = np.nansum(result.model_noise_power[:, high], axis=1)
    assert rows["noise power across smooth2.0"].value == pytest.approx(noise[place] / noise[place - 1])
    assert all(rows[name].error > 0 for name in ("log amplitude across smooth2.0", "noise power across smooth2.0"))
    assert len(result.tables()[0].splitlines()) == 1 + len(names)
    quantities = {quantity.name: quantity.value for quantity in result.quantities()}
    assert quantities["noise power from 0.5 π (radial rings): smooth2.0"] == result.model_noise_power[place, 6]
    assert (
        quantities["relative log amplitude at 0.8 π: layer1.0"]
        == result.high_frequency_amplitude[names.index("layer1.0")]
    )


def test_results_with_other_rings_are_not_drawn_side_by_side():
    result = fourier.compute(noise_subject(zoo_net("resnet_dnn_18"), sizes=(2,)), Config(rings="square"))
    assert result.incomparable(Config()) == "its rings are square, not radial"
    assert result.incomparable(Config(rings="square")) == ""


def test_figures_have_a_line_for_each_layer_and_an_image_for_each_plane():
    from analyze.fourier.figures import figures

    dnn = fourier.compute(noise_subject(zoo_net("resnet_dnn_18"), sizes=(2,)), Config(spectra=("layer1.*",)))
    mcdo = fourier.compute(noise_subject(zoo_net("resnet_mcdo_smoothing_18"), sizes=(2,)), Config(passes=2))
    assert set(figures(dnn)) == {"", "spectra"}
    drawn = figures(dnn, [mcdo])
    assert set(drawn) == {"", "noise", "spectra"}
    tops = [axes for axes in drawn[""].axes if axes.get_xlabel() == "frequency on both axes (π)"]
    assert [len(axes.lines) for axes in tops] == [len(dnn.layer), len(mcdo.layer)]
    assert sum(len(axes.images) for axes in drawn["spectra"].axes) >= 2


def test_figures_of_several_networks_are_titled_by_their_images():
    from analyze.fourier.figures import figures

    mcdo = fourier.compute(noise_subject(zoo_net("resnet_mcdo_18"), sizes=(2,)), Config(passes=2))
    about = {"model": "a", "checkpoint": "a.safetensors", "images": 2, "data": "noise"}
    first, second = mcdo.of({}, about), mcdo.of({}, about | {"checkpoint": "b.safetensors", "images": 3})
    assert figures(first)["noise"].get_suptitle() == "a: 2 images of noise"
    for figure in figures(first, [second]).values():
        assert figure.get_suptitle() == "2 images of noise"
        named = [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().texts]
        assert named[:2] == ["a", "b (3 images of noise)"]


def test_the_command_writes_run_file_table_and_figures(command, tiny_checkpoint, tmp_path):
    out = tmp_path / "run.h5"
    arguments = [
        "--ckpt",
        tiny_checkpoint,
        "--limit",
        "20",
        "--batch-size",
        "8",
        "--passes",
        "2",
        "--quiet",
        "--out",
        out,
    ]
    first = command(*arguments, "--spectra", "smooth*", name="fourier")
    assert first.status == 0 and "log amplitude across smooth1.0" in first.out, first.err
    for suffix in ("", "_noise", "_spectra"):
        assert (tmp_path / f"run_fourier{suffix}.png").stat().st_size > 10_000
    assert list(Result.read(out).spectra) == [f"smooth{stage}.0" for stage in (1, 2, 3, 4)]


def test_results_can_be_read_and_drawn_without_torch():
    code = "import sys, analyze.fourier.spec, analyze.fourier.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
