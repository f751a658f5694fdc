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
    # beyond 8 widths lie 1e-15; at 3 points a width the trapezoidal rule of a Gaussian is exact to rounding
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
        (np.array([[0.0, 1.0]]), np.ones((1, 2)) / 2, {"width": 1e-15}, "lost in the rounding"),
        (np.zeros((1, 2)), np.ones((1, 2)) / 2, {"outliers": [[1.0]]}, r"\(outlier,\)"),
    ],
)
def test_bad_input_says_what_was_expected(nodes, weights, options, message):
    with pytest.raises(ValueError, match=message):
        kernel_density(nodes, weights, **options)


def test_drawing_a_density_loads_no_torch():
    code = "import sys, analyze.hessian.kernel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_outliers_share_what_the_weights_leave_of_one():
    x = np.array([-1.0, 0.5, 3.0, 20.0])
    density = kernel_density([[0.0, 1.0], [2.0, 2.0]], [[0.2, 0.6], [0.4, 0.4]], [3.0, 20.0], x=x, width=0.3)[1]

    def gaussian(at):
        return np.exp(-((x - at) ** 2) / (2 * 0.09)) / np.sqrt(2 * np.pi * 0.09)

    expected = (0.2 * gaussian(0) + 0.6 * gaussian(1) + 0.8 * gaussian(2)) / 2 + 0.1 * gaussian(3) + 0.1 * gaussian(20)
    np.testing.assert_allclose(density, expected, rtol=1e-12)


@pytest.mark.parametrize("far", [30.0, 3e3, 1e6])
def test_far_outliers_neither_widen_the_kernel_nor_swell_the_grid(far):
    nodes, weights = quadrature()
    outliers = [far, 1.01 * far, -2 * far]
    assert default_width(nodes, 0.9 * weights, outliers) == pytest.approx(max(np.ptp(nodes) / 30, 2e-6 * far))
    x, density = kernel_density(nodes, 0.9 * weights, outliers)
    assert len(x) < 3000
    assert (np.diff(x) > 0).all()
    assert np.trapezoid(density, x) == pytest.approx(1, abs=1e-8)
    high = x > 0.9 * far
    assert np.trapezoid(density[high], x[high]) == pytest.approx(2 * 0.1 / 3, rel=1e-6)


def test_the_grid_leaves_out_only_where_the_density_is_nothing():
    nodes, weights = quadrature(steps=8)
    width = 0.01
    x, density = kernel_density(nodes, 0.9 * weights, [40.0], width=width)
    everywhere = np.linspace(x[0], x[-1], 40 * len(x))
    filled = kernel_density(nodes, 0.9 * weights, [40.0], width=width, x=everywhere)[1]
    # linear between points a third of a width apart: h^2 / 8 of the curvature, which is at most 0.45 / width^2 a peak
    assert np.abs(np.interp(everywhere, x, density) - filled).max() < (1 / 9) / 8 * 1.1 * density.max()
    gaps = np.interp(everywhere, x, np.gradient(x)) > width
    assert gaps.any()
    assert filled[gaps].max() < 1e-12 * density.max()


def test_rounding_of_the_outliers_bounds_the_width_from_below():
    # after deflating 100, a float32 bulk of zeros is noise of 1e-7 * 100
    noise = 1e-6 * np.random.default_rng(0).normal(size=(2, 10))
    assert default_width(noise, np.full((2, 10), 0.09), [100.0]) == pytest.approx(1e-4)
    assert default_width(np.zeros((1, 3)), np.full((1, 3), 0.3), [100.0]) == pytest.approx(1.0)
