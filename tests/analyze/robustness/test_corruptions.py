"""Corruptions of pictures by their closed forms, and what is made of them."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn

from analyze import Subject
from analyze.robustness import corruptions
from analyze.robustness.compute import clean_of
from analyze.robustness.corruption_errors import mean_accuracies
from analyze.robustness.pictures import CORRUPTIONS, SEVERITIES, corrupt, disc, plasma
from analyze.robustness.predictions import Predictor
from analyze.robustness.spec import CORRUPTION_NAMES, Config, Corruptions, Result
from data_cache import ImageData, InputError
from models.layers import MCDropout

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 17, 24), (2, 9, 5), (4, 40, 33)]


def natural(count: int = 8, shape=(3, 32, 32), seed: int = 0) -> np.ndarray:
    """Smooth random pictures: amplitude falls as 1/frequency, as in photographs."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.standard_normal((count, *shape)))
    far = np.hypot(np.fft.fftfreq(shape[1])[:, None], np.fft.rfftfreq(shape[2]))
    far[0, 0] = 1
    field = np.fft.irfft2(spectrum / far, s=shape[1:])
    field -= field.min((1, 2, 3), keepdims=True)
    return np.rint(255 * field / field.max((1, 2, 3), keepdims=True)).astype(np.uint8)


def flat(level: int, count: int = 20, shape=(3, 32, 32)) -> np.ndarray:
    return np.full((count, *shape), level, dtype=np.uint8)


def corrupted(pictures: np.ndarray, name: str, severity: int, **options) -> np.ndarray:
    return corrupt(pictures, name, severity, range(len(pictures)), **options)


def test_names_in_options_are_those_that_can_be_computed():
    assert tuple(CORRUPTIONS) == CORRUPTION_NAMES


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size_and_number_of_channels_keeps_its_shape_and_type(name, shape):
    pictures = natural(3, shape)
    before = pictures.copy()
    for severity in SEVERITIES:
        changed = corrupted(pictures, name, severity)
        assert changed.shape == pictures.shape
        assert changed.dtype == np.uint8
    assert np.array_equal(pictures, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_picture_is_a_function_of_seed_and_number_alone(name):
    pictures = natural(6)
    whole = corrupted(pictures, name, 3, seed=5)
    alone = np.concatenate([corrupt(pictures[i : i + 1], name, 3, [i], seed=5) for i in (4, 2)])
    assert np.array_equal(whole[[4, 2]], alone)
    random = name.endswith("noise") or name == "fog"
    assert np.array_equal(whole, corrupted(pictures, name, 3, seed=6)) != random
    assert np.array_equal(whole, corrupt(pictures, name, 3, range(1, 7), seed=5)) != random


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 48, 40)])
@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "saturate"])
def test_higher_severities_are_further_from_the_picture(name, shape):
    pictures = natural(16, shape).astype(np.float64)
    distance = [((corrupted(pictures.astype(np.uint8), name, s) - pictures) ** 2).mean() for s in SEVERITIES]
    assert distance[0] > 0
    assert np.all(np.diff(distance) > 0)


def test_saturate_takes_colour_away_and_then_adds_it():
    pictures = natural(16)

    def saturation(pictures: np.ndarray) -> float:
        high, low = pictures.max(1).astype(float), pictures.min(1).astype(float)
        return ((high - low) / np.maximum(high, 1)).mean()

    found = [saturation(corrupted(pictures, "saturate", s)) for s in SEVERITIES]
    assert found[1] < found[0] < saturation(pictures) < found[2] < found[3] < found[4]
    value = np.abs(corrupted(pictures, "saturate", 5).max(1).astype(int) - pictures.max(1)).max()
    assert value == 0
    grey = natural(4, (1, 32, 32)).repeat(3, axis=1)
    assert all(np.array_equal(corrupted(grey, "saturate", s), grey) for s in SEVERITIES)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(
    "name, level, deviation",
    [
        ("gaussian_noise", 128, lambda s: 255 * CORRUPTIONS["gaussian_noise"].strengths[s - 1]),
        ("speckle_noise", 128, lambda s: 128 * CORRUPTIONS["speckle_noise"].strengths[s - 1]),
        ("speckle_noise", 64, lambda s: 64 * CORRUPTIONS["speckle_noise"].strengths[s - 1]),
    ],
)
def test_noise_has_its_mean_and_variance(name, level, deviation, severity):
    change = corrupted(flat(level, 40), name, severity).astype(np.float64) - level
    variance = deviation(severity) ** 2 + 1 / 12  # of rounding
    # 40 pictures of 3072 values: relative error of a variance sqrt(2/n)
    n = change.size
    assert abs(change.mean()) < 5 * np.sqrt(variance / n)
    assert abs(change.var() - variance) < 6 * variance * np.sqrt(2 / n) + 0.01


@pytest.mark.parametrize("level", [51, 128, 230])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_has_the_moments_of_rounded_counts(level, severity):
    photons = CORRUPTIONS["shot_noise"].strengths[severity - 1]
    counts = np.arange(2000)
    levels, share = np.minimum(np.rint(255 * counts / photons), 255), stats.poisson.pmf(counts, photons * level / 255)
    mean = share @ levels
    second, fourth = (share @ (levels - mean) ** power for power in (2, 4))
    changed = corrupted(flat(level, 40), "shot_noise", severity).astype(np.float64)
    assert abs(changed.mean() - mean) < 5 * np.sqrt(second / changed.size)
    assert abs(changed.var() - second) < 5 * np.sqrt((fourth - second**2) / changed.size)


def test_shot_noise_is_poisson():
    counts = corrupted(flat(51, 40), "shot_noise", 5).ravel() / 255 * 50  # 50 photons at 1, so 10 here
    found = np.bincount(np.rint(counts).astype(int), minlength=40)
    expected = counts.size * stats.poisson.pmf(np.arange(len(found)), 10)
    common = expected > 20
    chi_square = ((found - expected)[common] ** 2 / expected[common]).sum()
    assert chi_square < stats.chi2.ppf(1 - 1e-6, common.sum())
    assert not corrupted(flat(0), "shot_noise", 5).any()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_is_salt_and_pepper_in_equal_parts(severity):
    share = CORRUPTIONS["impulse_noise"].strengths[severity - 1]
    changed = corrupted(flat(128, 40), "impulse_noise", severity)
    n = changed.size
    for level in (0, 255):
        assert abs((changed == level).mean() - share / 2) < 5 * np.sqrt(share / 2 / n)
    assert set(np.unique(changed)) == {0, 128, 255}


def test_severities_share_their_draws():
    pictures = flat(128, 4)
    noise = [corrupted(pictures, "gaussian_noise", s).astype(float) - 128 for s in (1, 5)]
    assert np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1] > 0.995
    hit = [corrupted(pictures, "impulse_noise", s) != 128 for s in (1, 5)]
    assert np.all(hit[1][hit[0]])
    shot = [corrupted(pictures, "shot_noise", s).astype(float) for s in (1, 5)]
    assert np.corrcoef(shot[0].ravel(), shot[1].ravel())[0, 1] > 0.98


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "zoom_blur", "pixelate", "contrast"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_picture_stays_as_it_is(name, shape):
    for level in (0, 77, 255):
        assert np.all(corrupted(flat(level, 2, shape), name, 5) == level)


def test_gaussian_blur_spreads_a_point_as_a_gaussian():
    picture = flat(0, 1, (1, 64, 64))
    picture[0, 0, 32, 32] = 255
    blurred = corrupted(picture, "gaussian_blur", 5)[0, 0].astype(float)
    x = np.arange(64) - 32
    line = np.exp(-(x**2) / 8) / np.exp(-(x**2) / 8).sum()  # sigma 1 at 32 pixels, 2 at 64
    assert np.abs(blurred - 255 * np.outer(line, line)).max() < 0.6  # rounding, and the cut at 4 sigma


@pytest.mark.parametrize("radius", [0.3, 0.6, 1.0, 1.6, 7.3])
def test_a_disc_sums_to_one_and_is_as_wide_as_it_should(radius):
    kernel = disc(radius)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    assert np.array_equal(kernel, kernel[::-1])
    assert np.array_equal(kernel, kernel.T)
    if radius > 5:  # a disc has the variance r^2 / 4 along each axis, a pixel 1/12
        x = np.arange(len(kernel)) - len(kernel) // 2
        assert (kernel.sum(0) * x**2).sum() == pytest.approx(radius**2 / 4 + 1 / 12, rel=5e-3)
    if radius <= 0.5:
        assert kernel.shape == (1, 1)


def test_zoom_blur_averages_magnified_pictures():
    x = np.arange(32) - 15.5
    ramp = np.rint(128 + 6 * x)[None, None, None].repeat(32, 2).astype(np.uint8)
    factors = 1 + np.arange(6) / 100
    slope = 6 * np.mean(1 / factors)
    assert np.abs(corrupted(ramp, "zoom_blur", 1)[0, 0, 3] - (128 + slope * x)).max() <= 0.5 + 0.5


def test_brightness_shifts_grey_and_keeps_hue():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    for severity, shift in zip(SEVERITIES, CORRUPTIONS["brightness"].strengths, strict=True):
        expected = np.minimum(np.arange(256) + 255 * shift, 255)
        assert np.abs(corrupted(grey, "brightness", severity).ravel() - expected).max() <= 0.5
    colour = np.array([40, 80, 160], np.uint8).reshape(1, 3, 1, 1)
    assert corrupted(colour, "brightness", 4).ravel().tolist() == [53, 106, 211]  # times (160 + 51) / 160
    pictures = natural()
    levels = [corrupted(pictures, "brightness", s).astype(int) for s in SEVERITIES]
    assert all(np.all(after >= before) for before, after in zip([pictures, *levels], levels, strict=False))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_keeps_the_mean_and_scales_the_spread(severity):
    pictures = natural(8)
    changed = corrupted(pictures, "contrast", severity)
    factor = CORRUPTIONS["contrast"].strengths[severity - 1]
    mean = pictures.mean((2, 3), keepdims=True)
    assert np.abs(changed - (mean + factor * (pictures - mean))).max() <= 0.5 + 1e-9  # rounding alone


def test_pixelate_is_constant_on_cells():
    changed = corrupted(natural(2, (3, 40, 40)), "pixelate", 5)  # to 26 x 26
    assert len(np.unique(changed[0, 0], axis=0)) <= 26
    assert len(np.unique(changed[0, 0], axis=1).T) <= 26
    box = Image.fromarray(natural(2)[1].transpose(1, 2, 0)).resize((20, 20), Image.Resampling.BOX)
    again = np.asarray(box.resize((32, 32), Image.Resampling.BOX)).transpose(2, 0, 1)
    assert np.array_equal(corrupted(natural(2), "pixelate", 5)[1], again)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_jpeg_compression_is_a_round_trip_of_pillow(channels):
    pictures = natural(2, (channels, 20, 31))
    changed = corrupted(pictures, "jpeg_compression", 4)

    def round_trip(array: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=50)
        return np.asarray(Image.open(file))

    for before, after in zip(pictures, changed, strict=True):
        if channels == 3:
            assert np.array_equal(after, round_trip(before.transpose(1, 2, 0)).transpose(2, 0, 1))
        else:
            assert all(np.array_equal(a, round_trip(b)) for b, a in zip(before, after, strict=True))


def test_fog_lifts_black_and_keeps_the_brightest_level():
    pictures = natural(8)
    for severity in SEVERITIES:
        changed = corrupted(pictures, "fog", severity)
        assert np.all(changed.max((1, 2, 3)) <= pictures.max((1, 2, 3)))
    amount, _ = CORRUPTIONS["fog"].strengths[4]
    thick = corrupted(pictures, "fog", 5)
    scale = pictures.max((1, 2, 3)) / 255
    cloud = (thick / 255 * ((scale + amount) / scale)[:, None, None, None] - pictures / 255) / amount
    assert np.abs(cloud - cloud[:, :1]).max() < 0.01  # the same for all channels, up to rounding
    assert cloud.min() > -0.01
    assert cloud.max() < 1.01


def test_plasma_fills_the_range_and_is_smoother_the_faster_it_decays():
    draws = np.random.default_rng(0).uniform(-1, 1, (20, 64, 64))
    rough, smooth = (plasma(draws, decay) for decay in (0.8, 0.2))
    for cloud in (rough, smooth):
        assert np.all(cloud.min((1, 2)) == 0)
        assert np.all(cloud.max((1, 2)) == 1)

    def roughness(cloud: np.ndarray) -> float:
        return ((cloud - np.roll(cloud, 1, 2)) ** 2).mean() / cloud.var()

    assert roughness(smooth) < roughness(rough) / 3
    flat_draws = np.zeros((1, 8, 8))
    flat_draws[0, 4, 4] = 1.0  # the first midpoint alone: the next ones are means of their neighbours
    assert plasma(flat_draws, 0.5)[0, :5:2, :5:2].tolist() == [[0, 0.375, 0.5], [0.375, 0.5, 0.625], [0.5, 0.625, 1]]


class Small(nn.Module):
    """A network with or without Monte Carlo dropout."""

    def __init__(self, rate: float = 0.0, channels: int = 3):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(channels, 6, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(4, bias=False)
            )
            self.dropout = MCDropout(rate) if rate else nn.Identity()

    def forward(self, x):
        return self.layers(self.dropout(x - 0.5))


def data(count: int = 20, shape=(3, 12, 10), name="noise") -> ImageData:
    pictures = natural(count, shape)
    return ImageData.from_arrays(pictures, np.arange(count) % 4, name=name, mean=[0.4] * shape[0], std=[0.3] * shape[0])


def predictor(images: int | None = None, rate: float = 0.0, found: ImageData | None = None, **options) -> Predictor:
    found = data() if found is None else found
    model = Small(rate, found.shape[0])
    model(torch.zeros(1, *found.shape))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for p in model.parameters():
            p.copy_(0.5 * torch.randn_like(p))
    return Predictor(Subject(model, found, **{"batch_size": 8, **options}), 3, images)


def run(found: Predictor, **options) -> Corruptions:
    return list(corruptions.grow(found, Config(**options)))[-1]


def test_results_are_those_of_the_network_on_the_corrupted_pictures():
    found = predictor()
    result = run(found, corruptions=("contrast", "gaussian_noise"), severities=(2, 5))
    assert result.corruption.tolist() == ["gaussian_noise", "contrast"]
    assert result.severity.tolist() == [2, 5]
    model, labels = found.subject.model, np.arange(20) % 4

    def logits(pictures: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model((torch.from_numpy(pictures).float() / 255 - 0.4) / 0.3).double().numpy()

    clean = logits(natural(20, (3, 12, 10))).argmax(1)
    for row, name in enumerate(result.corruption.tolist()):
        for column, severity in enumerate((2, 5)):
            changed = corrupt(natural(20, (3, 12, 10)), name, severity, range(20))
            z = logits(changed)
            assert result.accuracy[row, column] == np.mean(z.argmax(1) == labels)
            assert result.flip_rate[row, column] == np.mean(z.argmax(1) != clean)
            nll = np.log(np.exp(z).sum(1)) - z[np.arange(20), labels]
            assert result.nll[row, column] == pytest.approx(nll.mean(), rel=1e-5)  # float32 logits
            rms = np.sqrt(((changed / 255 - natural(20, (3, 12, 10)) / 255) ** 2).mean())
            assert result.rms[row, column] == pytest.approx(rms, rel=1e-12)
    assert result.source == "computed in memory"
    assert result.clean_accuracy == np.mean(clean == labels)


def test_more_corruptions_added_later_give_the_same_bits():
    options = {"corruptions": ("fog", "contrast", "shot_noise"), "severities": (1, 4)}
    config = Config(**options)
    whole = list(corruptions.grow(predictor(rate=0.3), config))
    first = run(predictor(rate=0.3), corruptions=("contrast",), severities=(4,))
    assert not corruptions.is_complete(first, config)
    resumed = list(corruptions.grow(predictor(rate=0.3), config, first))
    assert (len(whole), len(resumed)) == (6, 5)
    assert corruptions.is_complete(resumed[-1], config)
    for name in whole[-1].__dataclass_fields__:
        assert np.array_equal(getattr(whole[-1], name), getattr(resumed[-1], name)), name


def test_what_is_not_computed_yet_is_missing():
    part = next(iter(corruptions.grow(predictor(), Config(corruptions=("fog", "contrast"), severities=(1, 2)))))
    assert np.isnan(part.accuracy).sum() == part.accuracy.size - 1


def test_the_batch_size_changes_rounding_only():
    few, many = (run(predictor(batch_size=size), corruptions=("fog", "shot_noise")) for size in (3, 20))
    assert np.array_equal(few.accuracy, many.accuracy)
    assert np.array_equal(few.rms, many.rms)
    assert np.allclose(few.nll, many.nll, rtol=1e-6)


def test_all_corruptions_run_on_grey_pictures():
    result = run(predictor(found=data(6, (1, 11, 9))), severities=(5,))
    assert result.accuracy.shape == (13, 1)
    assert np.isfinite(result.nll).all()


def test_unknown_corruptions_and_severities_are_refused():
    with pytest.raises(InputError, match="there is no corruption 'frost': name some of gaussian_noise"):
        Config(corruptions=("fog", "frost"))
    with pytest.raises(InputError, match="severities are numbers from 1 to 5"):
        Config(severities=(0, 1))
    assert Config(corruptions=("frost",), cifar_c="folder").corruptions == ("frost",)


def test_images_that_were_normalised_unsaid_are_refused():
    subject = Subject(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), [(torch.randn(9, 3, 2, 2), torch.zeros(9).long())])
    with pytest.raises(InputError, match="not 0 to 1: tell Subject the normalization"):
        run(Predictor(subject, 1))


@pytest.fixture
def folder(tmp_path):
    """As CIFAR-10-C lies on disk, for a test set of 40 images of which the subject has all or 20."""
    pictures = natural(40, (3, 12, 10))
    np.save(tmp_path / "labels.npy", np.tile(np.arange(40) % 4, 5))
    for name in ("frost", "fog"):
        levels = [corrupt(pictures, "contrast" if name == "frost" else "fog", s, range(40)) for s in SEVERITIES]
        np.save(tmp_path / f"{name}.npy", np.concatenate(levels).transpose(0, 2, 3, 1))
    return tmp_path


@pytest.mark.parametrize("limit, images", [(None, None), (10, None), (None, 10), (20, 5)])
def test_files_of_cifar_10_c_are_taken_in_the_same_places(folder, limit, images):
    found = predictor(images, found=data(40), limit=limit)
    result = run(found, cifar_c=str(folder))
    assert result.corruption.tolist() == ["fog", "frost"]
    assert result.source == f"files in {folder.name}"
    computed = run(found, corruptions=("contrast",))
    for name in ("accuracy", "flip_rate", "rms", "nll", "group_correct"):
        assert np.array_equal(getattr(result, name)[1], getattr(computed, name)[0]), name
    assert corruptions.is_complete(result, Config(cifar_c=str(folder)))


def test_files_that_dont_fit_are_refused_with_a_sentence(folder):
    def refused(sentence, **options):
        with pytest.raises(InputError, match=sentence):
            run(predictor(found=data(40)), **{"cifar_c": str(folder), **options})

    refused("there is no file .*snow.npy", corruptions=("snow",))
    refused("there is no file .*labels.npy", cifar_c=str(folder / "none"))
    (folder / "bad.npy").write_bytes(b"nothing of the kind")
    refused("bad.npy is no NumPy file", corruptions=("bad",))
    np.save(folder / "bad.npy", np.array([{}], dtype=object))
    refused("bad.npy is no NumPy file", corruptions=("bad",))
    np.save(folder / "bad.npy", np.zeros((200, 12, 11, 3), np.uint8))
    refused(r"bad.npy holds uint8 \(200, 12, 11, 3\), not uint8 \(200, 12, 10, 3\)", corruptions=("bad",))
    np.save(folder / "labels.npy", np.tile(np.arange(40) % 3, 5))
    refused("the labels in .* are not those of noise: give --data cifar10:test")
    np.save(folder / "labels.npy", np.zeros(7))
    refused(r"labels.npy holds float64 \(7,\), not whole numbers")
    for path in folder.glob("*.npy"):
        path.unlink()
    np.save(folder / "labels.npy", np.tile(np.arange(40) % 4, 5))
    refused("there are no corruptions, NAME.npy, in the folder")


def made(error: np.ndarray, clean: float, groups: int = 8, images: int = 50, seed: int = 0) -> Corruptions:
    """A result with these error rates (C, S), and groups that scatter around them."""
    rng = np.random.default_rng(seed)
    wrong = rng.binomial(images, error[..., None].repeat(groups, -1))
    wrong_clean = rng.binomial(images, clean, groups)
    total = groups * images
    accuracy = 1 - wrong.sum(-1) / total
    other = ("accuracy_stderr", "nll", "nll_stderr", "ece", "flip_rate", "flip_rate_stderr", "kl", "rms")
    return Corruptions(
        corruption=np.array(list(CORRUPTION_NAMES)[: len(error)]),
        severity=np.arange(1, error.shape[1] + 1),
        source="computed in memory",
        images=total,
        clean_accuracy=1 - wrong_clean.sum() / total,
        clean_accuracy_stderr=0.0,
        accuracy=accuracy,
        group_images=np.full(groups, images),
        group_clean_correct=images - wrong_clean,
        group_correct=(images - wrong).astype(float),
        **dict.fromkeys(other, np.zeros_like(accuracy)),
        group_nll=np.zeros_like(wrong, dtype=float),
        group_flips=np.zeros_like(wrong, dtype=float),
    )


ERRORS = np.array([[0.2, 0.3, 0.5], [0.3, 0.4, 0.6]])


def test_mean_corruption_error_is_the_published_formula():
    ours, reference = made(ERRORS, 0.1), made(ERRORS + 0.2, 0.2, seed=1)
    found = ours.relative_to(reference, paired=True)
    error, wanted = 1 - ours.accuracy, 1 - reference.accuracy
    ce = 100 * error.sum(1) / wanted.sum(1)
    degraded = (error - (1 - ours.clean_accuracy)).sum(1) / (wanted - (1 - reference.clean_accuracy)).sum(1)
    assert np.allclose(found.error, ce, rtol=1e-12)
    assert np.allclose(found.relative, 100 * degraded, rtol=1e-12)
    assert found.mean_error == pytest.approx(ce.mean(), rel=1e-12)
    assert found.mean_relative == pytest.approx(100 * degraded.mean(), rel=1e-12)


def test_a_network_has_a_corruption_error_of_100_percent_of_itself():
    ours = made(ERRORS, 0.1)
    found = ours.relative_to(ours, paired=True)
    assert np.allclose(found.error, 100, rtol=1e-12)
    assert found.mean_relative == pytest.approx(100, abs=1e-9)
    assert found.mean_error_stderr == pytest.approx(0, abs=1e-9)
    assert ours.relative_to(ours, paired=False).mean_error_stderr > 1


def test_a_single_group_of_images_has_no_standard_error():
    ours = made(ERRORS, 0.1, groups=1)
    with np.errstate(all="raise"):
        found = ours.relative_to(ours, paired=True)
    assert np.allclose(found.error, 100, rtol=1e-12)
    assert np.isnan(found.error_stderr).all()


def test_names_of_mean_accuracies_say_which_corruptions_and_severities():
    def names(corruptions: Corruptions) -> list[str]:
        clean = clean_of(predictor())
        found = [q.name for q in Result(clean=clean, corruptions=corruptions).quantities() if "corrupted" in q.name]
        heading = f"accuracy on corrupted images, {corruptions.images} computed in memory, severities "
        assert all(name.startswith(heading) for name in found)
        return [name.removeprefix(heading) for name in found]

    ours = made(ERRORS, 0.1)
    gap = replace(ours, severity=np.array([1, 3, 5]))
    assert names(gap)[:2] == ["1 3 5: mean of gaussian_noise, shot_noise", "1 3 5: gaussian_noise"]
    assert names(made(np.full((13, 1), 0.3), 0.1))[0] == "1: mean of all 13"
    ours.accuracy[0, 1] = np.nan
    assert names(ours) == ["1 2 3: mean of shot_noise", "1 2 3: shot_noise"]
    assert {row.remark for row in Result(corruptions=ours).rows()} == {
        "mean over 1 kinds and 3 severities, 400 images", "lowest of all kinds, mean over severities",
    }  # fmt: skip
    ours.accuracy[1, 0] = np.nan
    assert mean_accuracies(ours) == [] and names(ours) == [] and Result(corruptions=ours).rows() == []


@pytest.mark.parametrize("paired", [True, False])
def test_the_standard_error_is_the_scatter_over_draws(paired):
    found = [
        made(ERRORS, 0.1, 32, seed=s).relative_to(made(ERRORS + 0.2, 0.2, 32, seed=10_000 + s), paired=paired)
        for s in range(300)
    ]
    for name in ("mean_error", "mean_relative"):
        scatter = np.std([getattr(each, name) for each in found])
        claimed = np.sqrt(np.mean([getattr(each, f"{name}_stderr") ** 2 for each in found]))
        # both of independent draws; 300 draws know a deviation to 1/sqrt(600) = 4 %, the jackknife to less
        assert claimed == pytest.approx(scatter, rel=0.2)


def test_corruptions_that_leave_the_reference_unhurt_dont_count():
    error = np.array([[0.0, 0.0], [0.3, 0.4]])
    found = made(ERRORS[:, :2], 0.1).relative_to(made(error, 0.1), paired=True)
    assert np.isnan(found.error[0])
    assert found.mean_error == found.error[1]
    assert np.isnan(found.relative[0])


def test_results_without_anything_in_common_are_refused():
    ours = made(ERRORS, 0.1)
    other = made(ERRORS, 0.1)
    object.__setattr__(other, "corruption", np.array(["frost", "snow"]))
    with pytest.raises(InputError, match="no corruption and severities in common"):
        ours.relative_to(other, paired=True)


def test_severities_and_kinds_in_common_are_compared():
    ours, reference = made(ERRORS, 0.1), made(ERRORS[:1, :2] + 0.2, 0.2)
    found = ours.relative_to(reference, paired=True)
    assert found.corruption.tolist() == ["gaussian_noise"]
    assert found.error[0] == pytest.approx(
        100 * (1 - ours.accuracy[0, :2]).sum() / (1 - reference.accuracy[0]).sum(), rel=1e-12
    )


def test_mean_accuracy_weighs_all_that_was_computed_alike():
    ours = made(ERRORS, 0.1)
    mean, first, second = mean_accuracies(ours)
    assert (mean.name, first.name) == ("mean accuracy", "accuracy under gaussian_noise")
    assert mean.value == pytest.approx(ours.accuracy.mean(), rel=1e-12)
    assert second.value == pytest.approx(ours.accuracy[1].mean(), rel=1e-12)
    assert np.average(mean.samples, weights=mean.weights) == pytest.approx(mean.value, rel=1e-12)
    assert mean.error == pytest.approx(np.std(mean.samples, ddof=1) / np.sqrt(8), rel=1e-12)
