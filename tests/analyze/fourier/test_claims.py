"""What the papers say of randomness in feature maps, on the shipped networks with MC dropout."""

from typing import NamedTuple

import numpy as np
import pytest

from analyze import Subject, fourier, variance


class Found(NamedTuple):
    variance: variance.Result
    fourier: fourier.Result


def found(name: str) -> Found:
    subject = Subject.load(name, split="test", limit=96, batch_size=48, device="cpu")
    return Found(
        variance.compute(subject, variance.Config(passes=4)), fourier.compute(subject, fourier.Config(passes=4))
    )


@pytest.fixture(scope="module")
def plain() -> Found:
    return found("resnet_mcdo_18")


@pytest.fixture(scope="module")
def smooth() -> Found:
    return found("resnet_mcdo_smoothing_18")


def test_model_and_data_variance_drop_across_each_smoothing_layer(smooth):
    result = smooth.variance
    assert len(result.steps) == 4
    for before, after in result.steps:
        for name in ("model_variance", "data_variance"):
            value, error = getattr(result, name), getattr(result, f"{name}_stderr")
            assert value[after] + 5 * error[after] < value[before] - 5 * error[before]


def test_model_variance_grows_over_the_blocks_of_each_stage(plain):
    """Up to where a stage begins, which subsamples."""
    value = dict(zip(plain.variance.layer.tolist(), plain.variance.model_variance, strict=True))
    assert all(value[f"layer{stage}.1"] > value[f"layer{stage}.0"] for stage in (1, 2, 3, 4))


def test_dropout_adds_variance_mostly_at_high_frequency(plain):
    """More than half of it from 0.5 pi up, and more of it than of the signal."""
    result = plain.fourier
    noise, signal = result.high_share(result.model_noise_power), result.high_share(result.power)
    several = (result.height > 4) & (result.model_noise_power[:, 0] > 0)  # 4x4 maps have no lower frequency
    assert several.sum() == 6
    assert (noise[several] > 0.6).all() and (noise[several] > signal[several] + 0.1).all()


def test_smoothing_lowers_the_noise_at_high_frequency_most(smooth):
    result = smooth.fourier
    share = result.high_share(result.model_noise_power)
    for before, after in result.steps:
        assert share[after] < 0.5 * share[before]
        assert result.high_noise[:, after].sum() < 0.25 * result.high_noise[:, before].sum()


def test_smoothing_lowers_high_frequency_amplitudes(smooth):
    """Each smoothing layer, by more than a nat at 0.8 pi."""
    result = smooth.fourier
    drop = [
        result.high_frequency_amplitude[after] - result.high_frequency_amplitude[before]
        for before, after in result.steps
    ]
    assert np.all(np.array(drop) < -1)
