"""The density curve of a quadrature."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze.hessian.kernel import default_width, kernel_density


def quadrature(probes=4, steps=30, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(size=(probes, steps))
    return rng.normal(size=(probes, steps)), weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("relative_width", [None, 1e-4, 1e-2, 1.0, 100.0])
def test_density_integrates_to_one(relative_width):
    nodes, weights = quadrature()
    width = None if relative_width is None else relative_width * np.ptp(nodes)
    x, density = kernel_density(nodes, weights, width=width)
    # beyond 6 widths lie 2e-9; at 3 points a width the trapezoidal rule of a Gaussian is exact to rounding
    assert np.trapezoid(density, x) == pytest.approx(1, abs=1e-8)


def test_density_is_the_gaussian_of_each_node_averaged_over_probes():
    x = np.array([-1.0, 0.5, 2.0])
    density = kernel_density([[0.0, 1.0], [2.0, 2.0]], [[0.25, 0.75], [0.5, 0.5]], x=x, width=0.3)[1]

    def gaussian(at):
        return np.exp(-((x - at) ** 2) / (2 * 0.09)) / np.sqrt(2 * np.pi * 0.09)

    expected = (0.25 * gaussian(0) + 0.75 * gaussian(1) + gaussian(2)) / 2
    np.testing.assert_allclose(density, expected, rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1e-12, 1e12), sign=st.sampled_from([-1, 1]))
def test_density_scales_with_the_operator(scale, sign):
    nodes, weights = quadrature()
    x, density = kernel_density(nodes, weights)
    scaled_x, scaled = kernel_density(sign * scale * nodes, weights)
    np.testing.assert_allclose(scaled_x[::sign] / (sign * scale), x, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(scaled[::sign] * scale, density, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-12, 1e12])
def test_a_spectrum_of_one_value_has_one_peak_of_mass_one(value):
    x, density = kernel_density(np.full((3, 10), value), np.full((3, 10), 0.1))
    assert np.trapezoid(density, x) == pytest.approx(1, abs=1e-8)
    # the peak is between two grid points at most
    assert abs(x[density.argmax()] - value) <= x[1] - x[0]


def test_rounding_around_one_value_is_not_a_range():
    assert default_width(np.array([[1.0, 1 + 1e-7]]), np.array([[0.5, 0.5]])) == pytest.approx(0.01)


def test_nodes_without_weight_change_nothing():
    nodes, weights = quadrature(steps=5)
    padded_nodes = np.pad(nodes, ((0, 0), (0, 3)), constant_values=1e6)
    padded_weights = np.pad(weights, ((0, 0), (0, 3)))
    width = default_width(nodes, weights)
    for a, b in zip(
        kernel_density(nodes, weights, width=width),
        kernel_density(padded_nodes, padded_weights, width=width),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    # more steps were asked for, so the width is finer
    assert default_width(padded_nodes, padded_weights) == pytest.approx(width * 5 / 8)


@pytest.mark.parametrize(
    ("nodes", "weights", "options", "message"),
    [
        (np.zeros(3), np.ones(3), {}, r"\(probe, step\)"),
        (np.zeros((1, 3)), np.ones((1, 2)), {}, r"\(probe, step\)"),
        (np.zeros((1, 2)), np.zeros((1, 2)), {}, "some above 0"),
        (np.zeros((1, 2)), np.array([[1.5, -0.5]]), {}, "0 or more"),
        (np.zeros((1, 2)), np.array([[np.nan, 1]]), {}, "0 or more"),
        (np.array([[0.0, 1.0]]), np.ones((1, 2)) / 2, {"width": 0.0}, "positive"),
        (np.array([[0.0, 1.0]]), np.ones((1, 2)) / 2, {"width": 1e-9}, "larger width"),
    ],
)
def test_bad_input_says_what_was_expected(nodes, weights, options, message):
    with pytest.raises(ValueError, match=message):
        kernel_density(nodes, weights, **options)


def test_drawing_a_density_loads_no_torch():
    code = "import sys, analyze.hessian.kernel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_outliers_beyond_the_bounds_do_not_widen_the_kernel():
    bulk = np.linspace(-1, 1, 9)
    nodes = np.concatenate([bulk, [50.0]])[None]
    weights = np.full((1, 10), 0.1)
    assert default_width(nodes, weights) == pytest.approx(51 / 10)
    assert default_width(nodes, weights, high=49.5) == pytest.approx(2 / 10)
    assert default_width(nodes, weights, low=60.0) == pytest.approx(51 / 10)  # none between: all count
    x, density = kernel_density(nodes, weights, width=0.2)
    assert np.trapezoid(density, x) == pytest.approx(1, abs=1e-6)
