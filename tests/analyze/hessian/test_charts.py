"""The Hessian's charts show the stored numbers, with their errors, and blur the stored nodes as NumPy does."""

import dataclasses

import numpy as np
import pytest

from analyze.charting import Drawn, long_table
from analyze.hessian import charts
from analyze.hessian.kernel import kernel_density
from analyze.hessian.spec import Blocks, Density, Extremes, MaxSpectrum, Quantization, Result, Trace

PARAMETERS = 1000
NAME = "<b>bold</b> & net"
SHOWN = "&lt;b&gt;bold&lt;/b&gt; &amp; net"


def density():
    rng = np.random.default_rng(0)
    node = np.sort(rng.normal(size=(2, 8)), axis=1)
    outlier = np.array([-4.0, 9.0])
    weight = rng.uniform(0.1, 1, size=(2, 8))
    weight *= (1 - len(outlier) / PARAMETERS) / weight.sum(axis=1, keepdims=True)
    width = 0.4
    x, curve = kernel_density(node, weight, outlier, width=width)
    return Density(node, weight, outlier, np.array([0.1, 0.2]), width, x, curve)


def blocks():
    return Blocks(
        block=np.array(["stem", "layer<1>", "head"]),
        size=np.array([10, 100, 50]),
        trace=np.array([5.0, 40.0, -1.0]),
        trace_stderr=np.array([0.5, 3.0, 0.4]),
        largest=np.array([2.0, 7.0, np.nan]),
        largest_residual=np.array([0.01, 0.3, np.nan]),
        products=np.array([5, 6, 0]),
        converged=np.array([True, False, False]),
        samples=np.ones((2, 3)),
        own_samples=np.full((2, 3), np.nan),
    )


def max_spectrum():
    largest = np.array([[5.0, 3.0], [6.0, -1.0], [7.0, 2.0]])
    return MaxSpectrum(
        batch=np.arange(3),
        images=np.full(3, 8),
        loss=np.ones(3),
        largest=largest,
        largest_residual=0.01 * np.abs(largest),
        smallest=np.array([-2.0, -3.0, -1.0]),
        smallest_residual=np.full(3, 0.02),
        hvps=np.full(3, 9),
        converged=np.array([True, False, True]),
        data="train (augmented)",
        share_below_zero=1 / 6,
        mean_positive=4.6,
    )


def quantization():
    return Quantization(
        layer=np.array(["stem", "head"]),
        bits=np.array([2, 4, 8]),
        size=np.array([10, 50]),
        error=np.ones((2, 3)),
        omega=np.array([[0.3, 0.2, 0.1], [0.6, 0.5, 0.4]]),
        first_order=np.zeros((2, 3)),
        direct=np.array([[3.0, 2.0, 1.0], [6.0, 5.0, 4.0]]),
        coupling=np.eye(6),
        mean_bits=4.0,
        allocation=np.array([[2, 8], [4, 4]]),
        criterion=np.array(["omega", "direct"]),
        chosen_bits=np.array([4.0, 4.0]),
        predicted=np.array([0.1, 0.2]),
        measured=np.array([0.1, 0.2]),
    )


@pytest.fixture
def result():
    return Result(
        parameters=PARAMETERS,
        loss=0.3,
        gradient_norm=0.1,
        noise_floor=1e-7,
        engine="double backward",
        choice="recomputed",
        extremes=Extremes(np.array([9.0, 4.0]), np.array([0.2, 0.1]), np.array([-4.0]), np.array([0.3]), 20, True),
        trace=Trace(100.0, 10.0, 0.0, np.array([90.0, 110.0])),
        density=density(),
        max_spectrum=max_spectrum(),
        blocks=blocks(),
        quantization=quantization(),
    )


def drawn(result, name="net"):
    return Drawn(result, name, "#0072B2")


def named(figure, start):
    return [trace for trace in figure.data if (trace.name or "").startswith(start)]


@pytest.mark.parametrize("width", [0.25, 1.0, 3.0])
def test_density_is_the_gaussian_mixture_of_nodes_and_outliers(result, width):
    curve = named(charts.spectrum([drawn(result)], width), "net")[0]
    x, shown = np.asarray(curve.x), np.asarray(curve.y, dtype=float)
    found, sigma = result.density, 0.4 * width
    there = np.isfinite(shown)

    def gauss(center):
        return np.exp(-0.5 * ((x - center) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))

    probes = [sum(w * gauss(n) for n, w in zip(found.node[p], found.weight[p], strict=True)) for p in range(2)]
    expected = np.mean(probes, axis=0) + sum(gauss(outlier) for outlier in found.outlier) / PARAMETERS
    assert there.sum() > 100
    np.testing.assert_allclose(shown[there], expected[there], rtol=1e-9)
    np.testing.assert_allclose(np.trapezoid(np.nan_to_num(shown), x), 1, atol=2e-3)


def test_density_below_a_thousandth_of_an_eigenvalue_is_not_drawn(result):
    shown = np.asarray(named(charts.spectrum([drawn(result)]), "net")[0].y)
    assert np.nanmin(shown) >= 1e-3 / (PARAMETERS * 0.4)
    assert np.isnan(shown).any()


def test_extremes_have_their_residuals_as_whiskers(result):
    largest, smallest = (named(charts.spectrum([drawn(result)]), f"net, {end}")[0] for end in ("largest", "smallest"))
    np.testing.assert_array_equal(largest.x, [9, 4])
    np.testing.assert_array_equal(largest.error_x.array, [0.2, 0.1])
    np.testing.assert_array_equal(largest.y, [1, 2])
    np.testing.assert_array_equal(smallest.error_x.array, [0.3])
    assert charts.NOT_CONVERGED not in "".join(largest.text)


def test_extremes_that_have_not_converged_are_marked(result):
    missed = dataclasses.replace(result, extremes=dataclasses.replace(result.extremes, converged=False))
    largest = named(charts.spectrum([drawn(missed)]), "net, largest")[0]
    assert all(charts.NOT_CONVERGED in told for told in largest.text)
    assert set(largest.marker.symbol) == {"circle-x-open"}


@pytest.mark.parametrize("without", ["density", "extremes"])
def test_a_spectrum_of_one_part_has_one_panel(result, without):
    figure = charts.spectrum([drawn(dataclasses.replace(result, **{without: None}))])
    assert {trace.yaxis or "y" for trace in figure.data} == {"y"}


def test_trace_and_mean_eigenvalue_have_their_standard_error(result):
    for mean, scale in ((False, 1.0), (True, PARAMETERS)):
        figure = charts.traces([drawn(result)], mean)
        estimate, samples = named(figure, "net")[1], named(figure, "net, samples")[0]
        np.testing.assert_allclose(estimate.x, [100 / scale])
        np.testing.assert_allclose(estimate.error_x.array, [10 / scale])
        np.testing.assert_allclose(samples.x, np.array([90, 110]) / scale)


def test_one_probe_tells_no_standard_error(result):
    once = dataclasses.replace(result, trace=Trace(90.0, np.nan, 0.0, np.array([90.0])))
    told = named(charts.traces([drawn(once)]), "net")[1].hovertemplate
    assert "nan" not in told and "one probe" in told
    assert "± 10<br>standard error over 2 probes" in named(charts.traces([drawn(result)]), "net")[1].hovertemplate


def test_eigenvalues_of_mini_batches_are_named_by_their_order(result):
    by_magnitude = result.of({"which": "magnitude"}, {})

    def label(results, **options):
        return charts.max_spectrum([drawn(each) for each in results], **options).layout.xaxis2.title.text

    assert label([result]) == "eigenvalues of mini-batches' Hessians, top 2 of each (nats)"
    assert label([by_magnitude]) == "eigenvalues of mini-batches' Hessians, top 2 by magnitude of each (nats)"
    assert "top 2 by magnitude or value of each" in label([result, by_magnitude])
    assert label([result], which="smallest").startswith("smallest eigenvalues")


@pytest.mark.parametrize("logarithmic", [False, True])
def test_max_spectrum_shows_each_value_and_a_density_of_mass_one(result, logarithmic):
    curve, rug = charts.max_spectrum([drawn(result)], logarithmic=logarithmic).data
    values = result.max_spectrum.largest.ravel()
    np.testing.assert_array_equal(rug.x, values[values > 0] if logarithmic else values)
    x = np.log10(curve.x) if logarithmic else np.asarray(curve.x)
    assert np.trapezoid(curve.y, x) == pytest.approx(1, abs=5e-3)
    assert ("1 not above 0 left out" in curve.name) == logarithmic
    marked = [charts.NOT_CONVERGED in told for told in rug.text]
    assert marked == [told.startswith("batch 1:") for told in rug.text]


def test_max_spectrum_of_the_smallest(result):
    rug = charts.max_spectrum([drawn(result)], which="smallest").data[1]
    np.testing.assert_array_equal(rug.x, result.max_spectrum.smallest)


def test_max_spectrum_without_smallest_draws_nothing(result):
    nothing = dataclasses.replace(result.max_spectrum, smallest=np.full(3, np.nan))
    figure = charts.max_spectrum([drawn(dataclasses.replace(result, max_spectrum=nothing))], which="smallest")
    assert not figure.data


def test_blocks_have_values_and_errors_by_layer(result):
    figure = charts.blocks([drawn(result)], logarithmic=False)
    mean, largest = figure.data
    np.testing.assert_allclose(mean.y, [0.5, 0.4, -0.02])
    np.testing.assert_allclose(mean.error_y.array, [0.05, 0.03, 0.008])
    np.testing.assert_allclose(largest.y, [2, 7])
    np.testing.assert_allclose(largest.error_y.array, [0.01, 0.3])
    assert list(largest.marker.symbol) == ["circle", "circle-x-open"]
    assert charts.NOT_CONVERGED in largest.text[1]
    assert list(figure.layout.xaxis2.ticktext) == ["stem", "layer&lt;1&gt;", "head"]


def test_negative_traces_stay_visible_on_a_log_axis(result):
    below = [trace for trace in charts.blocks([drawn(result)]).data if "below zero" in trace.name]
    assert len(below) == 1
    np.testing.assert_allclose(below[0].y, [0.02])
    assert "-0.02" in below[0].text[0]


def test_bits_are_the_allocation_and_their_cost_is_of_its_criterion(result):
    omega, direct = charts.bits([drawn(result)]).data
    np.testing.assert_array_equal(omega.y, [2, 8])
    np.testing.assert_array_equal(direct.y, [4, 4])
    assert "0.3 nats" in omega.text[0]
    assert "2 nats" in direct.text[0]


@pytest.mark.parametrize("draw", [charts.spectrum, charts.traces, charts.max_spectrum, charts.blocks, charts.bits])
def test_names_are_text_and_models_are_told_apart(result, draw):
    figure = draw([drawn(result, NAME), Drawn(result, "other", "#D55E00")])
    everything = figure.to_json()
    assert "<b>" not in everything.replace("\\u003c", "<")
    assert any((trace.name or "").startswith(SHOWN) for trace in figure.data)
    assert any((trace.name or "").startswith("other") for trace in figure.data)
    table = long_table(figure)
    assert any(row[0].startswith(NAME) for row in table[1:])
