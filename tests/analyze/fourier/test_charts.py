"""The interactive charts show the numbers of the results, and names as text."""

from dataclasses import replace

import numpy as np
import pytest
from maps import noise_subject, zoo_net

from analyze import fourier
from analyze.charting import Drawn, long_table
from analyze.fourier.charts import (
    AMPLITUDES,
    DEPTHS,
    POWERS,
    amplitude_spectra,
    below_axis,
    comparable,
    depth_values,
    layer_table,
    over_depth,
    planes,
    power_spectra,
)
from analyze.fourier.spec import HALF, Config, Result

NAME = "a <b>bold</b> %{y} name"


def drawn(network: str, name: str, **options) -> Drawn[Result]:
    subject = noise_subject(zoo_net(network), shape=(3, 32, 32))
    return Drawn(fourier.compute(subject, Config(passes=2, **options)), name, "#0072B2")


@pytest.fixture(scope="module")
def plain() -> Drawn[Result]:
    return drawn("resnet_mcdo_18", "plain", spectra=("layer1.0", "layer3.0"))


@pytest.fixture(scope="module")
def smooth() -> Drawn[Result]:
    return drawn("resnet_mcdo_smoothing_18", NAME, spectra=("layer1.0", "smooth1.0"))


def panel(figure, number: int) -> list:
    return [trace for trace in figure.data if (trace.xaxis or "x") == ("x" if number == 0 else f"x{number + 1}")]


@pytest.mark.parametrize("value", AMPLITUDES)
def test_a_panel_for_each_model_and_a_line_for_each_layer(plain, smooth, value):
    figure = amplitude_spectra([plain, smooth], value)
    for number, each in enumerate((plain, smooth)):
        traces, result = panel(figure, number), each.result
        assert [trace.name for trace in traces] == result.layer.tolist()
        for place, trace in enumerate(traces):
            there = ~np.isnan(result.frequency[place])
            assert np.array_equal(trace.x, result.frequency[place, there])
            stored = getattr(result, value)[place, there]
            assert np.array_equal(trace.y, np.where(np.isfinite(stored), stored, np.nan), equal_nan=True)
            errors = getattr(result, f"{value}_stderr")[place, there]
            assert np.array_equal(trace.error_y.array, errors, equal_nan=True)
            assert set(trace.marker.color) == {place / (len(result.layer) - 1)}
    assert figure.layout.xaxis2.matches == "x" and figure.layout.yaxis2.matches == "y"
    assert [note.text for note in figure.layout.annotations] == ["plain", "a &lt;b&gt;bold&lt;/b&gt; %{y} name"]


def test_what_a_blur_removes_at_nyquist_does_not_set_the_scale(smooth):
    low, high = amplitude_spectra([smooth]).layout.yaxis.range
    below = smooth.result.relative_log_amplitude[smooth.result.frequency < 1]
    spread = below.max() - below.min()
    assert low == pytest.approx(below.min() - 0.1 * spread) and high == pytest.approx(below.max() + 0.05 * spread)


@pytest.mark.parametrize("value", POWERS)
def test_power_is_that_of_each_ring_but_the_origin(plain, smooth, value):
    figure = power_spectra([plain, smooth], value, log_frequency=True)
    for number, each in enumerate((plain, smooth)):
        for place, trace in enumerate(panel(figure, number)):
            stored = getattr(each.result, value)[place, 1:]
            assert np.array_equal(trace.x, each.result.radial_frequency[1:])
            assert np.array_equal(trace.y, np.where(stored > 0, stored, np.nan), equal_nan=True)
            errors = getattr(each.result, f"{value}_stderr")[place, 1:]
            assert np.array_equal(trace.error_y.array, errors, equal_nan=True)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert power_spectra([plain], value).layout.xaxis.type is None


def test_small_powers_are_on_the_axis_and_what_rounding_left_is_counted(plain):
    power = np.full_like(plain.result.power, 1e-3)
    power[1, 3], power[2, 3:5] = 3e-9, 1e-17  # a soft blur leaves little, a box blur nothing
    power[np.isnan(plain.result.power)] = np.nan
    figure = power_spectra([plain._replace(result=replace(plain.result, power=power))])
    low, high = figure.layout.yaxis.range
    assert 10**low < 3e-9 and 10**low > 1e-10 and 10**high > 1e-3
    assert below_axis(figure) == "2 points lie below the axis."
    assert below_axis(power_spectra([plain])) == ""


def test_results_with_other_rings_are_left_out_and_named(plain, smooth):
    square = smooth._replace(result=replace(smooth.result, radial_frequency=smooth.result.radial_frequency / 2))
    kept, sentences = comparable([plain, square, plain])
    assert [each.name for each in kept] == ["plain", "plain"]
    assert sentences == [f"{NAME} is not shown here: its rings are square, plain's radial."]


def test_a_few_picked_layers_have_colours_and_a_legend_of_their_own(plain, smooth):
    figure = amplitude_spectra([plain, smooth], layers=["layer1.0", "smooth1.0", "layer4.1"])
    assert [trace.name for trace in panel(figure, 0)] == ["layer1.0", "layer4.1"]
    assert [trace.name for trace in panel(figure, 1)] == ["layer1.0", "smooth1.0", "layer4.1"]
    colors = {}
    for trace in figure.data:
        colors.setdefault(trace.name, set()).add(trace.line.color)
    assert all(len(each) == 1 for each in colors.values()) and len(set.union(*colors.values())) == 3
    assert sorted(trace.name for trace in figure.data if trace.showlegend) == ["layer1.0", "layer4.1", "smooth1.0"]
    assert all(trace.error_y.visible for trace in figure.data)


def test_many_models_wrap_and_no_panel_is_empty(plain):
    figure = amplitude_spectra([plain] * 5)
    used = {trace.xaxis or "x" for trace in figure.data}
    assert len(used) == 5 == len(list(figure.select_xaxes()))


def test_shares_over_depth_are_the_results_with_a_jackknifes_errors(smooth):
    result = smooth.result
    values, errors = depth_values(result, "noise_share")
    assert np.allclose(values, result.high_share(result.model_noise_power), rtol=1e-12, equal_nan=True)
    high = (result.ring_low >= HALF) & (result.ring_bins > 0)
    place = result.layer.tolist().index("smooth1.0")
    totals = result.sums.noise.total[:13, place]  # an image in each group
    part, whole = totals[:, high[place]].sum(axis=1), totals[:, 1:][:, result.ring_bins[place, 1:] > 0].sum(axis=1)
    left = (part.sum() - part) / (whole.sum() - whole)
    jackknife = np.sqrt(12 / 13 * ((left - left.mean()) ** 2).sum())
    assert errors[place] == pytest.approx(jackknife, rel=0.15)  # the influence is the jackknife's first order


@pytest.mark.parametrize("value", DEPTHS)
def test_each_quantity_over_depth_is_drawn_as_it_is(plain, smooth, value):
    figure = over_depth([plain, smooth], value)
    assert len(figure.data) == 2
    for trace, each in zip(figure.data, (plain, smooth), strict=True):
        values, errors = depth_values(each.result, value)
        positive = figure.layout.yaxis.type == "log"
        expected = np.where(values > 0, values, np.nan) if positive else values
        assert np.array_equal(trace.y, expected, equal_nan=True)
        assert errors is None or np.array_equal(trace.error_y.array, errors, equal_nan=True)
    powers = depth_values(smooth.result, "power")[0]
    variance = smooth.result.total(smooth.result.power) - smooth.result.power[:, 0]
    assert np.array_equal(powers, variance)


def test_the_plane_is_relative_to_the_origin_and_at_true_frequencies(plain, smooth):
    figure = planes([plain, smooth], "layer1.0")
    for trace, each in zip(figure.data, (plain, smooth), strict=True):
        stored = each.result.spectra["layer1.0"]
        size = len(stored)
        assert trace.z.shape == stored.shape and trace.z[size // 2, size // 2] == 0
        assert np.allclose(trace.z, stored - stored[size // 2, size // 2], rtol=0, atol=1e-12)
        assert np.allclose(trace.x, np.sort(np.fft.fftfreq(size) * 2)) and np.array_equal(trace.x, trace.y)
    assert len(planes([plain, smooth], "smooth1.0").data) == 1
    assert planes([plain, smooth], "layer2.0") is None


def test_frequencies_of_odd_planes_are_true(smooth):
    (trace,) = planes([smooth], "smooth1.0").data
    assert trace.z.shape == (33, 33) and np.allclose(trace.x, np.sort(np.fft.fftfreq(33) * 2))


def test_numbers_that_are_none_leave_gaps(plain):
    broken = replace(
        plain.result,
        relative_log_amplitude=np.full_like(plain.result.relative_log_amplitude, -np.inf),
        model_noise_power=np.full_like(plain.result.model_noise_power, np.nan),
        spectra={"layer1.0": np.full((32, 32), np.nan)},
    )
    each = plain._replace(result=broken)
    assert all(np.isnan(trace.y).all() for trace in amplitude_spectra([each]).data)
    assert all(np.isnan(trace.y).all() for trace in power_spectra([each], "model_noise_power").data)
    assert np.isnan(planes([each], "layer1.0").data[0].z).all()


def test_names_are_text_wherever_they_stand(smooth):
    for figure in (amplitude_spectra([smooth]), power_spectra([smooth]), over_depth([smooth])):
        assert all("bold" not in trace.hovertemplate for trace in figure.data)
        assert "<b>bold" not in figure.to_json()
    assert {row[2] for row in long_table(amplitude_spectra([smooth]))[1:]} == {NAME}


def test_the_table_holds_what_is_drawn_over_depth(plain, smooth):
    table = layer_table([plain, smooth], ["smooth1.0", "layer4.1"])
    assert list(zip(table["model"], table["layer"], strict=True)) == [
        ("plain", "layer4.1"), (NAME, "smooth1.0"), (NAME, "layer4.1"),
    ]  # fmt: skip
    place = smooth.result.layer.tolist().index("smooth1.0")
    for value, label in DEPTHS.items():
        assert table[label][1] == pytest.approx(depth_values(smooth.result, value)[0][place], nan_ok=True)


def test_a_model_of_one_layer_beside_one_of_many(plain):
    one = drawn("resnet_mcdo_18", "one", layers=("layer1.0",))
    (line,) = panel(amplitude_spectra([one, plain]), 0)
    assert line.name == "layer1.0" and set(line.marker.color) == {0.0}
