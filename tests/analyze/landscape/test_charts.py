"""The landscape's charts show the stored grids: means and frames, errors, marks of what is missing, and calibration."""

import dataclasses

import matplotlib
import numpy as np
import pytest
from surfaces import bowl, surface

from analyze.charting import Drawn, long_table
from analyze.landscape import charts, profiles
from analyze.landscape.panel import PLANE_SYMBOLS, contour_lines, palette
from analyze.landscape.shown import COLORS, levels_of, limits
from analyze.landscape.spec import Trajectory

METRICS = ["nll", "accuracy", "ece", "l2", "loss"]
NAME = "<b>bold</b> & net"


def drawn(*results, name="net"):
    colors = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
    return [Drawn(result, f"{name} {number}", colors[number]) for number, result in enumerate(results)]


def of_type(traces, kind):
    return [trace for trace in traces if trace.type == kind]


def heights(traces):
    return [np.asarray(trace.z) for trace in of_type(traces, "surface")]


def maps(traces):
    return [np.asarray(trace.z) for trace in of_type(traces, "heatmap") if trace.zsmooth]


def wall(frame, x, y):
    return np.where((x > 0.7) & (y > 0.5), np.inf, bowl(frame, x, y))


def masked(result, where):
    """The same with points that were not computed."""
    status = np.where(where, 0, result.status)
    count = np.where(where, 0, result.count)
    return dataclasses.replace(result, status=status, count=count).of(result.config, result.subject)


# Surfaces


@pytest.mark.parametrize("metric", METRICS)
def test_first_picture_is_the_mean_over_frames(metric):
    result = surface(points=(7, 5), frames=3)
    figure = charts.surfaces(drawn(result), metric)
    expected = result.metric(metric) if metric == "l2" else result.metric(metric).mean(axis=0)
    for shown in (*heights(figure.data), *maps(figure.data)):
        assert shown.dtype == np.float32
        np.testing.assert_allclose(
            shown, np.broadcast_to(expected, (3, 5, 7))[0] if metric == "l2" else expected, rtol=1e-6
        )


def test_frames_are_the_mean_and_each_pass():
    result = surface(points=(7, 5), frames=3)
    figure = charts.surfaces(drawn(result))
    assert [frame.name for frame in figure.frames] == ["mean", "0", "1", "2"]
    shown = [heights(frame.data)[0] for frame in figure.frames]
    for picture, expected in zip(shown, [result.nll.mean(axis=0), *result.nll], strict=True):
        np.testing.assert_allclose(picture, expected, rtol=1e-6)
    assert not np.array_equal(shown[1], shown[2])
    for frame in figure.frames:
        (place,) = [at for at, trace in enumerate(figure.data) if trace.type == "heatmap" and trace.zsmooth]
        np.testing.assert_array_equal(frame.data[frame.traces.index(place)].z, heights(frame.data)[0])
        assert [change.type for change in frame.data] == [figure.data[at].type for at in frame.traces]


def test_the_chart_can_begin_with_a_pass():
    result = surface(points=(7, 5), frames=3)
    figure = charts.surfaces(drawn(result), start=1)
    np.testing.assert_allclose(heights(figure.data)[0], result.nll[1], rtol=1e-6)
    assert figure.layout.sliders[0].active == 2


def test_one_frame_has_no_controls():
    figure = charts.surfaces(drawn(surface(points=(5, 5))))
    assert not figure.frames
    assert not figure.layout.sliders
    assert not figure.layout.updatemenus


def test_play_and_slider_name_frames_that_are_there():
    figure = charts.surfaces(drawn(surface(points=(5, 5), frames=2), surface(points=(5, 5), frames=4)))
    names = {frame.name for frame in figure.frames}
    play = figure.layout.updatemenus[0].buttons[0]
    assert set(play.args[0]) == names - {"mean"} == {"0", "1", "2", "3"}
    assert [step.args[0][0] for step in figure.layout.sliders[0].steps] == [frame.name for frame in figure.frames]


def later(result, *numbers):
    """The same with other numbers of its passes."""
    return dataclasses.replace(result, frame=np.array(numbers)).of(result.config, result.subject)


def test_passes_are_matched_by_their_numbers_and_a_mean_stands_in_for_those_a_model_lacks():
    one, other = surface(points=(5, 5), frames=3), later(surface(points=(5, 5), frames=2), 2, 5)
    figure = charts.surfaces(drawn(one, other), start=5)
    assert [frame.name for frame in figure.frames] == ["mean", "0", "1", "2", "5"]
    assert figure.layout.sliders[0].active == 4
    means = one.nll.mean(axis=0), other.nll.mean(axis=0)
    expected = [means, (one.nll[0], means[1]), (one.nll[1], means[1]), (one.nll[2], other.nll[0])]
    expected.append((means[0], other.nll[1]))
    for pictures, frame in zip(expected, figure.frames, strict=True):
        for shown, picture in zip(heights(frame.data), pictures, strict=True):
            np.testing.assert_allclose(shown, picture, rtol=1e-6)
    for shown, picture in zip(heights(figure.data), expected[-1], strict=True):
        np.testing.assert_allclose(shown, picture, rtol=1e-6)
    note = charts.notes(drawn(one, other))
    assert "net 0 has passes 0 to 2 alone: its mean stands in for others" in note
    assert "net 1 has passes 2, 5 alone" in note
    lines = profiles.slices(drawn(one, other), number=2).data
    for name, result, place in (("net 0", one, 2), ("net 1", other, 0)):
        line = next(trace for trace in lines if trace.name == name)
        np.testing.assert_allclose(line.y, result.nll[place, 2])
        np.testing.assert_allclose(line.error_y.array, result.nll_stderr[place, 2])


def test_a_network_whose_passes_are_all_the_same_lacks_none():
    note = charts.notes(drawn(surface(points=(5, 5)), surface(points=(5, 5), frames=3)))
    assert "stands in" not in note


def test_axes_that_are_not_the_same_are_told_for_each_model():
    random, towards = surface(points=(5, 5)), surface(points=(5, 5), kind="towards b")
    borrowed = towards.of({**towards.config, "same_directions": "/runs/first.h5"}, towards.subject)
    assert "axes" not in charts.notes(drawn(random)) + charts.notes(drawn(random, random))
    assert "X: random direction, filter norm" in charts.notes(drawn(random, random)).replace("x: ", "X: ")
    note = charts.notes(drawn(random, borrowed))
    assert "axes: x: random direction, filter norm, y: random direction, filter norm (net 0)" in note
    assert "x: towards b from another checkpoint, as in first" in note
    curve = surface(points=(5, 1), kind="b.safetensors")
    figure = profiles.curves(both := drawn(surface(points=(5, 1)), curve))
    assert "x: 0 this checkpoint, 1 b (net 1)" in profiles.notes(figure, both)


def test_rectangular_grids_have_x_to_the_right_and_y_up():
    result = surface(lambda frame, x, y: x + 10 * y, points=(7, 4))
    figure = charts.surfaces(drawn(result))
    solid, (flat, *_) = of_type(figure.data, "surface")[0], of_type(figure.data, "heatmap")
    for trace in (solid, flat):
        x, y = np.meshgrid(trace.x, trace.y)
        assert np.asarray(trace.z).shape == (4, 7)
        np.testing.assert_allclose(trace.z, x + 10 * y, atol=1e-5)
    assert figure.layout.yaxis.range == (-1, 1)
    points = of_type(figure.data, "scattergl")[0]
    np.testing.assert_allclose(points.customdata[:, 0], points.x + 10 * points.y, atol=1e-5)


def test_limits_levels_and_colours_are_shared_by_all_models_and_frames():
    low, high = surface(points=(9, 9), frames=2), surface(lambda *at: 3 * bowl(*at), points=(9, 7))
    figure = charts.surfaces(drawn(low, high))
    everything = [low.nll.mean(axis=0), *low.nll, high.nll[0]]
    expected = limits(everything)
    for trace in of_type(figure.data, "surface"):
        assert (trace.cmin, trace.cmax) == pytest.approx(expected[:2])
    assert {tuple(figure.layout[scene].zaxis.range) for scene in ("scene", "scene2")} == {expected[:2]}
    assert len({trace.colorscale for trace in of_type(figure.data, "heatmap") if trace.zsmooth}) == 1


@pytest.mark.parametrize("percentile", [60, 95, 100])
def test_the_cut_is_where_it_was_asked_for(percentile):
    result = surface(points=(21, 21))
    figure = charts.surfaces(drawn(result), percentile=percentile)
    _, high, clipped = limits([result.nll], percentile)
    assert figure.layout.scene.zaxis.range[1] == pytest.approx(high)
    assert (f"cut at {high:.3g}" in charts.notes(drawn(result), percentile=percentile).lower()) == clipped
    assert clipped == (percentile < 100)


@pytest.mark.parametrize("metric", METRICS)
def test_classes_of_colour_meet_at_the_levels(metric):
    values = [surface(points=(9, 9)).metric(metric)]
    shared = palette(metric, values, 100)
    np.testing.assert_allclose(shared.levels[[0, -1]], [np.min(values), np.max(values)])
    assert len(shared.colors) == len(shared.levels) - (levels_of(metric, values)[1] != "max")
    figure = charts.surfaces(drawn(surface(points=(9, 9))), metric, percentile=100)
    flat = next(trace for trace in of_type(figure.data, "heatmap") if trace.zsmooth)
    edges = sorted({flat.zmin + share * (flat.zmax - flat.zmin) for share, _ in flat.colorscale})
    np.testing.assert_allclose(edges[: len(shared.levels)], shared.levels, rtol=1e-6)


def test_missing_points_are_holes_and_grey():
    whole = surface(points=(9, 7), frames=2)
    gone = np.zeros((2, 7, 9), bool)
    gone[:, 2, 3] = True
    result = dataclasses.replace(whole, status=np.where(gone, 3, whole.status))
    figure = charts.surfaces(drawn(result))
    assert np.argwhere(np.isnan(heights(figure.data)[0])).tolist() == [[2, 3]]
    gaps = np.asarray(of_type(figure.data, "heatmap")[1].z)
    assert np.argwhere(gaps == 0).tolist() == [[2, 3]]
    assert "grey: not computed" in charts.notes(drawn(result))


def test_marks_that_only_passes_have_are_told():
    whole = surface(lambda frame, x, y: x**2 + y**2 + frame * x, points=(5, 5), frames=2)
    gone = np.stack([np.zeros((5, 5), bool), np.ones((5, 5), bool)])
    assert "grey: not computed" in charts.notes(drawn(masked(whole, gone)))
    swing = surface(lambda frame, x, y: x**2 + y**2 + (2 * frame - 1) * x, points=(5, 5), frames=2)
    assert swing.nll.mean(axis=0).argmin() == 12
    assert "green triangle" in charts.notes(drawn(swing))
    assert "in 3-D a diamond" in charts.notes(drawn(swing))


def test_low_is_dark_for_every_metric_but_accuracy_as_on_paper():
    for metric in METRICS:
        first, last = (sum(map(int, color[4:-1].split(","))) for color in np.array(
            palette(metric, [np.arange(9.0)]).colors)[[0, -1]])  # fmt: skip
        paper = matplotlib.colormaps[COLORS[metric]]([0.0, 1.0])[:, :3].sum(axis=1)
        assert (first < last) == (paper[0] < paper[1]) == (metric != "accuracy")


def test_points_that_are_not_finite_are_red_crosses():
    result = surface(wall, points=(11, 9))
    figure = charts.surfaces(drawn(result))
    bad = ~np.isfinite(result.nll[0])
    assert bad.any()
    np.testing.assert_array_equal(np.isnan(heights(figure.data)[0]), bad)
    marks = next(trace for trace in of_type(figure.data, "scatter") if trace.mode == "markers" and trace.text)
    crosses = [at for at, symbol in enumerate(marks.marker.symbol) if symbol == PLANE_SYMBOLS[2]]
    expected = {(result.x[column], result.y[row]) for row, column in np.argwhere(bad)}
    assert {(marks.x[at], marks.y[at]) for at in crosses} == expected
    assert {marks.marker.line.color[at] for at in crosses} == {"#c1121f"}
    high = figure.layout.scene.zaxis.range[1]
    lines = next(trace for trace in of_type(figure.data, "scatter3d") if trace.mode == "lines")
    assert len(lines.x) == 6 * bad.sum()
    assert max(lines.z) <= high
    assert "red crosses: not finite" in charts.notes(drawn(result))


def test_a_run_that_has_just_begun_is_drawn_coarsely():
    whole = surface(points=(9, 9))
    todo = np.ones((1, 9, 9), bool)
    todo[:, ::4, ::4] = False
    figure = charts.surfaces(drawn(masked(whole, todo)))
    np.testing.assert_allclose(heights(figure.data)[0], whole.nll[0, ::4, ::4], rtol=1e-6)
    np.testing.assert_array_equal(of_type(figure.data, "surface")[0].x, whole.x[::4])
    assert figure.layout.scene.xaxis.range == (-1, 1)
    assert len(of_type(figure.data, "scattergl")[0].x) == 9


def test_nothing_computed_yet_is_drawn_empty():
    figure = charts.surfaces(drawn(masked(surface(points=(5, 5), frames=2), True)))
    assert np.isnan(heights(figure.data)[0]).all()


def test_checkpoint_and_lowest_point_are_marked_where_they_are():
    result = surface(lambda frame, x, y: (x - 0.5) ** 2 + (y + 0.5) ** 2, points=(9, 5))
    figure = charts.surfaces(drawn(result))
    for kind in ("scatter", "scatter3d"):
        marks = next(trace for trace in of_type(figure.data, kind) if trace.mode == "markers" and trace.text)
        assert [told.split(":")[0] for told in marks.text] == ["this checkpoint", "lowest point"]
        assert list(zip(marks.x, marks.y, strict=True)) == [(0, 0), (0.5, -0.5)]
    np.testing.assert_allclose(marks.z, [0.5, 0])
    assert "triangle" in charts.notes(drawn(result))
    assert "triangle" not in charts.notes(drawn(surface(lambda frame, x, y: x**2 + y**2, points=(9, 5))))


def test_of_accuracy_the_highest_point_is_marked():
    result = surface(lambda frame, x, y: (x - 0.5) ** 2 + (y + 0.5) ** 2, points=(9, 5))
    figure = charts.surfaces(drawn(result), "accuracy")
    marks = next(trace for trace in of_type(figure.data, "scatter") if trace.mode == "markers" and trace.text)
    assert marks.text[1].startswith("highest point")
    best = result.accuracy[0].max()
    assert result.accuracy[0][profiles.nearest(result, marks.x[1], marks.y[1])] == best
    assert "highest point" in charts.notes(drawn(result), "accuracy")


def test_points_to_click_are_the_grid_with_values_and_errors():
    result = surface(points=(7, 5), frames=2)
    figure = charts.surfaces(drawn(result))
    points = of_type(figure.data, "scattergl")[0]
    x, y = np.meshgrid(result.x, result.y)
    np.testing.assert_allclose(points.x, x.ravel(), rtol=1e-6)
    np.testing.assert_allclose(points.y, y.ravel(), rtol=1e-6)
    np.testing.assert_allclose(points.customdata[:, 0], result.nll.mean(axis=0).ravel(), rtol=1e-6)
    np.testing.assert_allclose(points.customdata[:, 1], result.nll_stderr.mean(axis=0).ravel(), rtol=1e-6)
    assert points.hoverinfo is None  # else a click would select nothing


def test_a_series_is_projected_with_names_as_text():
    path = Trajectory(np.array(["a<b>.pt", "b.pt"]), np.array([-0.5, 0.0]), np.array([0.5, 0.0]), np.array([2.0, 0.0]),
                      np.array([1.5, 0.4]))  # fmt: skip
    figure = charts.surfaces(drawn(surface(points=(5, 5), trajectory=path, kind="pca:1", explained=0.8)))
    line = next(trace for trace in figure.data if (trace.name or "").startswith("series"))
    np.testing.assert_array_equal(line.x, path.x)
    np.testing.assert_array_equal(line.y, path.y)
    assert line.text[0].startswith("a&lt;b&gt;.pt")


def test_contour_lines_are_at_their_levels():
    x, y = np.linspace(-1, 1, 41), np.linspace(-1, 1, 21)
    value = np.add.outer(y**2, x**2)
    line_x, line_y = contour_lines(x, y, value, np.array([0.0, 0.25]))
    there = np.isfinite(line_x)
    assert np.hypot(np.diff(line_x), np.diff(line_y))[there[1:] & there[:-1]].max() < 0.15
    assert there.sum() > 20
    # chords of a parabola lie above it by h^2 / 8 times its curvature, at most once for each axis
    np.testing.assert_allclose(np.hypot(line_x, line_y)[there] ** 2, 0.25, atol=0.1**2 / 4 + 0.05**2 / 4)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_model_has_a_scene_and_a_plane(count):
    results = [surface(points=(5, 5), frames=2) for _ in range(count)]
    figure = charts.surfaces(drawn(*results, name=NAME))
    surfaces, flats = of_type(figure.data, "surface"), [t for t in of_type(figure.data, "heatmap") if t.zsmooth]
    assert len({trace.scene for trace in surfaces}) == len({trace.xaxis for trace in flats}) == count
    assert "<b>" not in figure.to_json().replace("\\u003c", "<")
    titles = [note.text for note in figure.layout.annotations if note.text]
    assert len(titles) == (count if count > 1 else 0)


def test_the_table_holds_each_grid_once_and_no_marks():
    result = surface(points=(4, 3), frames=2)
    rows = long_table(charts.surfaces(drawn(result)))[1:]
    assert len(rows) == 4 * 3 * 3  # the frames mean, 0 and 1
    for number, frame in enumerate(("0", "1")):
        found = {(row[4], row[7]): row[9] for row in rows if row[1] == frame}
        for row, y in enumerate(result.y):
            for column, x in enumerate(result.x):
                assert found[x, y] == pytest.approx(result.nll[number, row, column], rel=1e-6)


def test_a_large_surface_takes_few_megabytes():
    figure = charts.surfaces(drawn(surface(points=(101, 101), frames=6)))
    assert len(figure.to_json()) < 5e6


def test_a_curve_is_no_surface():
    with pytest.raises(ValueError, match="curve"):
        charts.surfaces(drawn(surface(points=(5, 1))))


# Curves, slices and calibration


def shown_line(figure, name, axis="y"):
    return next(trace for trace in figure.data if trace.name == name and (trace.yaxis or "y") == axis)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("place", [None, 1])
def test_slices_are_a_row_and_a_column_with_errors(metric, place):
    result = surface(points=(9, 5), frames=3)
    figure = profiles.slices(drawn(result), metric, x=0.27, y=-0.4, number=place)
    values = np.broadcast_to(result.metric(metric), (3, 5, 9))
    values = values.mean(axis=0) if place is None else values[place]
    row, column = 1, 5  # y = -0.5 of -1, -0.5, ...; x = 0.25 of -1, -0.75, ...
    along, across = (trace for trace in figure.data if trace.name == "net 0")
    np.testing.assert_allclose(along.y, values[row])
    np.testing.assert_allclose(across.y, values[:, column])
    np.testing.assert_array_equal(along.x, result.x)
    np.testing.assert_array_equal(across.x, result.y)
    if metric in ("nll", "loss"):
        error = result.nll_stderr.mean(axis=0) if place is None else result.nll_stderr[place]
        np.testing.assert_allclose(along.error_y.array, error[row])
    elif metric == "accuracy":
        p = result.accuracy if place is None else result.accuracy[[place]]
        np.testing.assert_allclose(along.error_y.array, np.sqrt(p * (1 - p) / 512).mean(axis=0)[row])
    else:
        assert along.error_y.array is None


def test_bands_are_as_wide_as_the_errors():
    result = surface(points=(9, 5))
    band, line, *_ = profiles.slices(drawn(result)).data
    half = np.asarray(band.y)[:9] - np.asarray(line.y)
    np.testing.assert_allclose(half, result.nll_stderr[0, 2])


def test_slices_through_a_wall_have_crosses_and_a_gap():
    result = surface(wall, points=(11, 9))
    figure = profiles.slices(drawn(result), x=0.8, y=0.75)
    along = shown_line(figure, "net 0")
    bad = ~np.isfinite(result.nll[0, 7])
    np.testing.assert_array_equal(np.isnan(along.y), bad)
    crosses = next(trace for trace in figure.data if trace.mode == "markers" and (trace.xaxis or "x") == "x")
    np.testing.assert_array_equal(crosses.x, result.x[bad])


def test_slices_of_other_grids_say_where_each_is_cut():
    even, odd = surface(points=(4, 4)), surface(points=(5, 5))
    figure = profiles.slices(drawn(odd, even), x=0.4, y=0.4)
    assert figure.layout.xaxis.title.text == "x, at y = 0.3333 or 0.5, the nearest of each grid"
    assert figure.layout.xaxis2.title.text == "y, at x = 0.3333 or 0.5, the nearest of each grid"
    assert sorted(line.x0 for line in figure.layout.shapes) == pytest.approx([1 / 3, 1 / 3, 0.5, 0.5])
    assert profiles.slices(drawn(odd, odd)).layout.xaxis.title.text == "x, at y = 0"


def test_notes_of_lines_are_of_what_is_drawn():
    axes = np.linspace(-1, 1, 9), np.zeros(1)
    whole = surface(lambda frame, x, y: np.where(x > 0.9, np.inf, 1 + x**2), axes=axes, frames=2)
    todo = np.zeros((2, 1, 9), bool)
    todo[:, 0, 3] = True
    result = masked(whole, todo)
    note = profiles.notes(profiles.curves(drawn(result)), drawn(result))
    assert note.startswith("Band: standard error over images; thin lines: single MC passes; red crosses: not finite; ")
    assert "2 of 18 points still to come; 2 of 18 points not finite" in note
    both = drawn(surface(points=(5, 5)))
    assert profiles.notes(profiles.slices(both), both) == "Band: standard error over images."
    assert profiles.notes(profiles.slices(both, "ece"), both) == ""


def test_curves_show_the_mean_its_error_and_each_pass():
    result = surface(points=(11, 1), frames=3)
    figure = profiles.curves(drawn(result))
    line = shown_line(figure, "net 0")
    np.testing.assert_allclose(line.y, result.nll.mean(axis=0)[0])
    np.testing.assert_allclose(line.error_y.array, result.nll_stderr.mean(axis=0)[0])
    np.testing.assert_allclose(shown_line(figure, "net 0", "y2").y, result.accuracy.mean(axis=0)[0])
    for number in range(3):
        np.testing.assert_allclose(shown_line(figure, f"net 0, pass {number}").y, result.nll[number, 0])


def test_barrier_stands_on_the_line_between_both_networks():
    axes = np.linspace(0, 1, 11), np.zeros(1)
    result = surface(lambda frame, x, y: 1 + x + 4 * x * (1 - x), axes=axes, kind="B.safetensors")
    line, height = (trace for trace in profiles.curves(drawn(result)).data if "barrier" in (trace.name or ""))
    np.testing.assert_allclose(line.y, [1, 2])
    assert height.y[1] - height.y[0] == pytest.approx(1.0)
    assert height.x[0] == pytest.approx(0.5)
    np.testing.assert_allclose(height.y[0], 1.5)


@pytest.mark.parametrize("place", [None, 0, 1])
def test_reliability_is_of_the_stored_bins(place):
    whole = surface(points=(5, 3), frames=2)
    rng = np.random.default_rng(0)
    count = rng.multinomial(512, np.full(15, 1 / 15), size=(2, 3, 5)).astype(float)
    count[..., 3] = 0
    count[..., 4] += 1
    confidence = count * (np.arange(15) + 0.5) / 15
    correct = np.floor(count * rng.uniform(0, 1, size=count.shape))
    correct[..., 5], correct[..., 6] = 0, count[..., 6]
    result = dataclasses.replace(whole, bin_count=count, bin_confidence=confidence, bin_correct=correct)
    figure = profiles.reliability(drawn(result), x=0.5, y=1.0, number=place)
    frames = [0, 1] if place is None else [place]
    n, sure, right = (each[frames, 2, 3].sum(axis=0) for each in (count, confidence, correct))
    line = next(trace for trace in figure.data if (trace.name or "").startswith("net 0"))
    assert len(line.x) == 14
    held = n > 0
    np.testing.assert_allclose(line.x, (sure / np.where(held, n, 1))[held])
    share = (right / np.where(held, n, 1))[held]
    np.testing.assert_allclose(line.y, share)
    images = n[held] / len(frames)
    known = (share > 0) & (share < 1)
    np.testing.assert_allclose(line.error_y.array, np.where(known, np.sqrt(share * (1 - share) / images), np.nan))
    assert line.marker.symbol.tolist() == np.where(known, "circle", "circle-open").tolist()
    bars = next(trace for trace in figure.data if trace.type == "bar")
    np.testing.assert_allclose(bars.y, images)
    ece = np.mean([np.abs(correct[f, 2, 3] - confidence[f, 2, 3]).sum() / 512 for f in frames])
    assert line.name == f"net 0: ECE {ece:.3g}" + ", mean of passes" * (place is None)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_bars_of_models_stand_beside_each_other_in_their_bin(count):
    rng = np.random.default_rng(0)
    results = []
    for _ in range(count):
        whole = surface(points=(3, 3))
        held = np.full((1, 3, 3, 15), 30.0)
        confidence = held * (np.arange(15) + rng.uniform(0.1, 0.9, 15)) / 15
        results.append(dataclasses.replace(whole, bin_count=held, bin_confidence=confidence, bin_correct=held / 2))
    bars = of_type(profiles.reliability(drawn(*results)).data, "bar")
    ends = [np.asarray(bar.x) + bar.offset for bar in bars] + [
        np.asarray(bars[-1].x) + bars[-1].offset + bars[-1].width
    ]
    for bar, left, right in zip(bars, ends[:-1], ends[1:], strict=True):
        np.testing.assert_allclose(right - left, bar.width)
    assert ((ends[0] > np.arange(15) / 15) & (ends[-1] < np.arange(1, 16) / 15)).all()


def test_calibration_where_nothing_was_computed_says_so():
    figure = profiles.reliability(drawn(masked(surface(points=(5, 3)), True)))
    line = next(trace for trace in figure.data if (trace.name or "").startswith("net 0"))
    assert len(line.x) == 0
    assert "no confidences" in line.name


@pytest.mark.parametrize("draw", [profiles.slices, profiles.reliability])
def test_names_are_text(draw):
    figure = draw([Drawn(surface(points=(5, 5)), NAME, "#0072B2")])
    assert "<b>" not in figure.to_json().replace("\\u003c", "<")
    assert any("&lt;b&gt;bold" in (trace.name or "") for trace in figure.data)
