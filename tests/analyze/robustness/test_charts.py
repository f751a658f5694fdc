"""The interactive charts show the numbers of the results, and names as text."""

from dataclasses import replace

import numpy as np
import pytest
from robustness_cases import TINY, network, subject

from analyze import robustness
from analyze.charting import Drawn, long_table
from analyze.robustness import attack_charts, charts, corruption_charts, heat_map_charts
from analyze.robustness.figures import figures
from analyze.robustness.spec import Config, Result

NAME = "a <b>bold</b> %{y} name"
COLORS = ("#0072B2", "#D55E00")


@pytest.fixture(scope="module")
def drawn() -> list[Drawn[Result]]:
    results = [robustness.compute(subject(network(seed)), Config(**TINY)) for seed in (0, 1)]
    return [Drawn(result, name, color) for result, name, color in zip(results, ("plain", NAME), COLORS, strict=True)]


def curves(figure) -> list:
    """Traces that are not levels."""
    return [trace for trace in figure.data if trace.mode == "lines+markers"]


@pytest.mark.parametrize("value", charts.NOISE)
def test_models_are_overlaid_at_one_strength(drawn, value):
    for trace, each in zip(curves(charts.over_bands(drawn, value, 0.4)), drawn, strict=True):
        noise = each.result.frequency_noise
        assert np.allclose(trace.x, [0.125, 0.375, 0.625, 0.875]) and trace.line.color == each.color
        assert np.array_equal(trace.y, getattr(noise, value)[1], equal_nan=True)
        errors = getattr(noise, f"{value}_stderr", np.full_like(noise.accuracy, np.nan))
        assert np.array_equal(trace.error_y.array, errors[1], equal_nan=True)
        assert list(trace.text) == ["0-0.25 pi", "0.25-0.5 pi", "0.5-0.75 pi", "0.75-1 pi"]


@pytest.mark.parametrize("value", ["accuracy", "nll", "ece"])
def test_levels_without_noise_are_dashed(drawn, value):
    for figure in (charts.over_bands(drawn, value, 0.4), charts.over_strengths(drawn, "0-0.25 pi", value)):
        levels = [trace for trace in figure.data if trace.mode == "lines"]
        assert all(trace.line.dash == "dash" for trace in levels)
        for trace, each in zip(levels, drawn, strict=True):
            assert list(trace.y) == [getattr(each.result.clean, value)] * 2
    assert not [trace for trace in charts.over_bands(drawn, "flip_rate", 0.4).data if trace.mode == "lines"]


def test_chance_is_marked_where_accuracy_is_shown(drawn):
    (line,) = charts.over_bands(drawn, "accuracy", 0.4).layout.shapes
    assert line.y0 == line.y1 == 0.25
    assert not charts.over_bands(drawn, "nll", 0.4).layout.shapes


def test_all_strengths_stand_in_a_panel_for_each_model(drawn):
    figure = charts.over_bands(drawn, "nll")
    found = curves(figure)
    assert [trace.name for trace in found] == ["sigma 0.1", "sigma 0.4"] * 2
    for place, trace in enumerate(found):
        noise = drawn[place // 2].result.frequency_noise
        assert np.array_equal(trace.y, noise.nll[place % 2])
        assert np.array_equal(trace.error_y.array, noise.nll_stderr[place % 2])
    assert figure.layout.yaxis.range[1] > max(np.nanmax(each.result.frequency_noise.nll) for each in drawn)
    assert figure.layout.xaxis2.matches == "x" and figure.layout.yaxis2.matches == "y"


def test_a_band_over_strengths(drawn):
    figure = charts.over_strengths(drawn, charts.band_names(drawn)[2], "flip_rate")
    for trace, each in zip(curves(figure), drawn, strict=True):
        noise = each.result.frequency_noise
        assert np.array_equal(trace.x, [0.1, 0.4]) and np.array_equal(trace.y, noise.flip_rate[:, 2])
        assert np.array_equal(trace.error_y.array, noise.flip_rate_stderr[:, 2])
    assert figure.layout.xaxis.type == "log"


def test_half_strengths_beyond_those_tried_are_triangles(drawn):
    noise = replace(
        drawn[0].result.frequency_noise,
        sigma_half=np.array([0.2, np.nan, np.nan, np.nan]),
        sigma_half_stderr=np.array([0.01, np.nan, np.nan, np.nan]),
        sigma_half_side=np.array([0, -1, 1, 0]),
    )
    each = drawn[0]._replace(result=replace(drawn[0].result, frequency_noise=noise))
    line, below, above = charts.half_strengths([each]).data
    assert np.array_equal(line.y, noise.sigma_half, equal_nan=True) and line.error_y.array[0] == 0.01
    assert (list(below.x), below.marker.symbol, below.y[0] < 0.1) == ([0.375], "triangle-down", True)
    assert (list(above.x), above.marker.symbol, above.y[0] > 0.4) == ([0.625], "triangle-up", True)
    both = charts.half_strengths([each, each])
    first, second = (trace.y[0] for trace in both.data if trace.marker.symbol == "triangle-up")
    assert first < second < 10 ** both.layout.yaxis.range[1]  # neither hides the other


def test_triangles_stand_beyond_the_strengths_tried_in_their_own_band(drawn):
    accuracy = drawn[0].result.frequency_noise.accuracy.copy()
    accuracy[1, 2] = np.nan  # not computed yet
    noise = replace(
        drawn[0].result.frequency_noise,
        accuracy=accuracy,
        sigma_half=np.full(4, np.nan),
        sigma_half_stderr=np.full(4, np.nan),
        sigma_half_side=np.array([0, 1, 1, 0]),
    )
    each = drawn[0]._replace(result=replace(drawn[0].result, frequency_noise=noise))
    _, above = charts.half_strengths([each]).data
    assert list(above.text) == ["0.25-0.5 pi: above 0.4", "0.5-0.75 pi: above 0.1"]
    assert np.allclose(above.y, [0.5, 0.125])
    (bottom,) = [axes for axes in figures(each.result)[""].axes if axes.get_yscale() == "log"]
    arrows = next(line for line in bottom.lines if line.get_marker() == "^")
    assert np.allclose(arrows.get_ydata(), [0.5, 0.125])


def test_the_strength_that_tells_bands_apart(drawn):
    spread = np.ptp(drawn[0].result.frequency_noise.accuracy, axis=1)
    assert charts.telling_strength(drawn) == (0.1, 0.4)[int(np.argmax(spread))]
    only = replace(drawn[1].result.frequency_noise, sigma=np.array([0.1, 0.3]))
    other = drawn[1]._replace(result=replace(drawn[1].result, frequency_noise=only))
    assert charts.telling_strength([drawn[0], other]) == 0.1
    assert charts.strengths([drawn[0], other]) == [0.1, 0.3, 0.4]


@pytest.mark.parametrize("value", heat_map_charts.WAVES)
def test_heat_maps_share_one_scale_and_true_frequencies(drawn, value):
    figure = heat_map_charts.heat_maps(drawn, value)
    for trace, each in zip(figure.data, drawn, strict=True):
        found = each.result.heat_map
        assert np.array_equal(trace.z, getattr(found, value))
        assert np.array_equal(trace.x, found.frequency_x) and np.array_equal(trace.y, found.frequency_y)
        assert trace.coloraxis == "coloraxis"
    assert figure.layout.coloraxis.cmin == 0
    assert figure.layout.coloraxis.cmax >= max(getattr(each.result.heat_map, value).max() for each in drawn)


def test_the_difference_is_of_the_second_and_its_scale_even(drawn):
    figure = heat_map_charts.heat_map_difference(*drawn)
    first, second = (each.result.heat_map.error for each in drawn)
    assert np.array_equal(figure.data[0].z, second - first)
    scale = figure.layout.coloraxis
    assert -scale.cmin == scale.cmax == max(0.05, np.abs(second - first).max())
    found = drawn[1].result.heat_map
    fewer = replace(found, frequency_x=found.frequency_x[1:], error=found.error[:, 1:])
    other = drawn[1]._replace(result=replace(drawn[1].result, heat_map=fewer))
    assert heat_map_charts.heat_map_difference(drawn[0], other) is None


def test_no_colour_is_one_that_streamlit_replaces(drawn):
    """Its theme puts its own colours in place of #000001 and so on."""
    for figure in (heat_map_charts.heat_maps(drawn), heat_map_charts.heat_map_difference(*drawn)):
        assert all("#00000" not in color for _, color in figure.layout.coloraxis.colorscale)


def test_cells_not_computed_yet_are_gaps(drawn):
    found = drawn[0].result.heat_map
    part = replace(found, error=np.where(np.arange(found.error.size).reshape(found.error.shape) < 3, 0.5, np.nan))
    each = drawn[0]._replace(result=replace(drawn[0].result, heat_map=part))
    assert np.isnan(heat_map_charts.heat_maps([each]).data[0].z).sum() == found.error.size - 3
    nothing = replace(found, logit_change=np.full_like(found.logit_change, np.nan))
    each = drawn[0]._replace(result=replace(drawn[0].result, heat_map=nothing))
    assert np.isnan(heat_map_charts.heat_maps([each], "logit_change").data[0].z).all()


def test_attacks_start_without_any(drawn):
    figure = attack_charts.attacks(drawn)
    assert len(figure.data) == 4
    for place, trace in enumerate(figure.data):
        found, row = drawn[place % 2].result.adversarial, place // 2
        assert np.allclose(trace.x, [0, (4, 0.5)[row]])
        assert np.array_equal(trace.y, [found.clean_accuracy, found.accuracy[row]])
        assert np.array_equal(trace.error_y.array, [found.clean_accuracy_stderr, found.accuracy_stderr[row]])
    for value in attack_charts.ATTACKS:
        last = [trace.y[-1] for trace in attack_charts.attacks(drawn, value).data]
        stored = [getattr(each.result.adversarial, value)[row] for row in (0, 1) for each in drawn]
        assert np.array_equal(last, stored, equal_nan=True)


def test_no_attack_is_no_chart(drawn):
    found = drawn[0].result.adversarial
    rows = {
        name: array[:0]
        for name, array in vars(found).items()
        if isinstance(array, np.ndarray) and name not in ("group_images", "group_clean_correct")
    }
    each = drawn[0]._replace(result=replace(drawn[0].result, adversarial=replace(found, **rows)))
    assert attack_charts.attacks([each]) is None


def test_corruptions_are_bars_of_each_model(drawn):
    figure = corruption_charts.corruptions(drawn, "nll", 3)
    for trace, each in zip(figure.data, drawn, strict=True):
        found = each.result.corruptions
        assert np.array_equal(trace.y, found.nll[:, 1]) and np.array_equal(trace.error_y.array, found.nll_stderr[:, 1])
    figure = corruption_charts.corruptions(drawn)
    for trace, each in zip(figure.data, drawn, strict=True):
        found = each.result.corruptions
        assert trace.y[0] == pytest.approx(found.accuracy.mean())
        shares = (found.group_correct / found.group_images.clip(1)).mean(axis=(0, 1))[found.group_images > 0]
        assert trace.error_y.array[0] == pytest.approx(shares.std(ddof=1) / np.sqrt(len(shares)))
    assert [line.y0 for line in figure.layout.shapes] == [each.result.corruptions.clean_accuracy for each in drawn]
    assert not corruption_charts.corruptions(drawn, severity=5).data[0].x


def at_first_severity(each):
    """The same network, of which the first severity alone was asked for."""
    found = each.result.corruptions
    cut = corruption_charts.at_severities(found, [1])
    assert np.array_equal(cut.severity, [1]) and np.array_equal(cut.nll, found.nll[:, :1])
    assert np.array_equal(cut.group_flips, found.group_flips[:, :1])
    return each._replace(result=replace(each.result, corruptions=cut))


def test_means_are_over_the_severities_that_all_have(drawn):
    whole, less = drawn[0], at_first_severity(drawn[0])
    figure = corruption_charts.corruptions([whole, less], "nll")
    stored = whole.result.corruptions.nll[:, 0]
    assert [list(trace.y) for trace in figure.data] == [list(stored)] * 2
    assert figure.layout.yaxis.title.text.endswith("mean of severities 1")
    table = corruption_charts.corruption_table([whole, less], "nll")
    assert table["mean of severities 1"] == [*stored, *stored] and "severity 3" in table
    assert table["corruption error (% of plain's)"][1] == pytest.approx(100)
    other = corruption_charts.at_severities(whole.result.corruptions, [3])
    other = whole._replace(result=replace(whole.result, corruptions=other))
    figure = corruption_charts.corruptions([less, other])
    assert not any(len(trace.y) for trace in figure.data)
    assert "no severity in common" in figure.layout.yaxis.title.text
    assert all(np.isnan(corruption_charts.corruption_table([less, other])["no severity in common"]))


@pytest.mark.parametrize(("value", "sums"), [("nll", "group_nll"), ("flip_rate", "group_flips")])
def test_means_over_severities_have_the_errors_of_their_groups(drawn, value, sums):
    found = drawn[0].result.corruptions
    (trace, _) = corruption_charts.corruptions(drawn, value).data
    held = found.group_images > 0
    shares = (getattr(found, sums)[0].mean(axis=0) / found.group_images.clip(1))[held]  # one image in each
    assert trace.y[0] == pytest.approx(shares.mean())
    assert trace.error_y.array[0] == pytest.approx(shares.std(ddof=1) / np.sqrt(len(shares)))


def test_a_corruption_over_severities(drawn):
    for trace, each in zip(corruption_charts.over_severities(drawn, "contrast").data, drawn, strict=True):
        assert np.array_equal(trace.x, [1, 3]) and np.array_equal(trace.y, each.result.corruptions.accuracy[0])
    assert not corruption_charts.over_severities(drawn, "fog").data


def test_results_under_other_options_are_left_out_and_named(drawn):
    other = drawn[1]._replace(result=drawn[1].result.of({**TINY, "norm": "psd", "bands": 3}, {}))
    kept, sentences = charts.comparable("frequency_noise", [drawn[0], other])
    assert kept == [drawn[0]]
    assert sentences == [f"{NAME} is not shown here: its bands, norm differ from plain's."]
    assert charts.comparable("heat_map", [drawn[0], other]) == ([drawn[0], other], [])
    without = drawn[0]._replace(result=replace(drawn[0].result, heat_map=None))
    assert charts.comparable("heat_map", [without, other]) == ([other], [])


def test_tables_hold_the_stored_numbers(drawn):
    table = charts.noise_table(drawn, "nll")
    rows = list(zip(*table.values(), strict=True))
    noise = drawn[1].result.frequency_noise
    assert rows[-1] == (NAME, 0.4, "0.75-1 pi", noise.nll[1, 3], noise.nll_stderr[1, 3]) and len(rows) == 2 * 2 * 4
    table = attack_charts.attack_table(drawn)
    assert table["bound"] == ["4/255", "0.5"] * 2
    assert table["accuracy"] == [value for each in drawn for value in each.result.adversarial.accuracy]
    table = corruption_charts.corruption_table(drawn)
    assert table["severity 3"] == [each.result.corruptions.accuracy[0, 1] for each in drawn]
    errors = drawn[1].result.corruptions.relative_to(drawn[0].result.corruptions, paired=True)
    relative, error = list(table.values())[-2:]
    assert np.isnan(relative[0]) and relative[1] == errors.error[0] and error[1] == errors.error_stderr[0]
    assert len(corruption_charts.corruption_table(drawn[:1])) == len(table) - 2


def test_names_are_text_wherever_they_stand(drawn):
    drawings = [
        charts.over_bands(drawn, "accuracy", 0.4), charts.over_bands(drawn), charts.half_strengths(drawn),
        charts.over_strengths(drawn, "0-0.25 pi"), heat_map_charts.heat_maps(drawn), attack_charts.attacks(drawn),
        heat_map_charts.heat_map_difference(*drawn), corruption_charts.corruptions(drawn),
        corruption_charts.over_severities(drawn, "contrast"),
    ]  # fmt: skip
    for figure in drawings:
        assert "<b>bold" not in figure.to_json()
        assert not any("bold" in (trace.hovertemplate or "") for trace in figure.data)
    assert any(NAME in row[0] for row in long_table(drawings[0]))
