"""Runs side by side."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from run_files import WITH, WITHOUT, half_written
from streamlit.testing.v1 import AppTest

from analyze import analyses
from analyze.compare import compare
from apps import differences
from apps.library import find, list_runs


def page(root, chosen, analysis=None, margins=None):
    from pathlib import Path

    import streamlit as st

    from apps.context import Context
    from apps.library import find, list_runs
    from apps.views import compare as view

    if analysis and "compare_analysis" not in st.session_state:
        st.session_state["compare_analysis"] = analysis
        st.session_state["compare_margins"] = bool(margins)
    runs = list_runs(Path(root))
    view.show(Context(Path(root), runs, [find(runs, each) for each in chosen]))


def shown(root, chosen, analysis=None, margins=None) -> AppTest:
    app = AppTest.from_function(page, args=(str(root), chosen, analysis, margins), default_timeout=120).run()
    assert not app.exception and not app.error
    return app


@pytest.fixture
def both(runs):
    """The analysis's comparison of both runs."""
    listed = list_runs(runs)
    chosen = tuple(find(listed, name) for name in (WITHOUT, WITH))
    return lambda analysis: differences.side_by_side(analysis, chosen)


@pytest.mark.parametrize("analysis", analyses())
def test_numbers_are_those_of_the_command(runs, both, analysis):
    (expected,) = compare([runs / f"{WITHOUT}.h5", runs / f"{WITH}.h5"], [analysis])
    found = both(analysis)
    assert both(analysis) is found
    assert found.paired == expected.paired == [True]
    assert [line.name for line in found.lines] == [line.name for line in expected.lines]
    for line, other in zip(found.lines, expected.lines, strict=True):
        assert [quantity and quantity.value for quantity in line.found] == pytest.approx(
            [quantity and quantity.value for quantity in other.found], nan_ok=True
        )
        pairs = zip(line.differences, other.differences, strict=True)
        for ours, theirs in pairs:
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert (ours.value, ours.error) == pytest.approx((theirs.value, theirs.error), nan_ok=True)


def test_table_has_values_differences_errors_and_marks(both):
    comparison = both("robustness")
    rows, headings = differences.table(comparison, comparison.lines)
    assert headings["value 0"] == WITHOUT and headings["difference 1"] == f"{WITH}: difference"
    assert [row["quantity"] for row in rows] == [line.name for line in comparison.lines]
    for row, line in zip(rows, comparison.lines, strict=True):
        a, b = (None if quantity is None else quantity.value for quantity in line.found)
        shown = (math.nan if row[key] is None else row[key] for key in ("value 0", "value 1"))
        assert tuple(shown) == pytest.approx(tuple(math.nan if each is None else each for each in (a, b)), nan_ok=True)
        if a is not None and b is not None and math.isfinite(a - b):
            assert row["difference 1"] == pytest.approx(b - a, rel=1e-6, abs=1e-12)
            assert row.get("star 1", "") == "*" * line.differences[0].is_marked
    assert any(row["difference error 1"] for row in rows)


def test_bound_of_an_eigenvalue_is_in_the_table_and_its_difference_has_no_mark(both):
    comparison = both("hessian")
    rows, headings = differences.table(comparison, comparison.lines)
    largest = next(row for row in rows if row["quantity"] == "largest eigenvalues: 1")
    line = next(line for line in comparison.lines if line.name == "largest eigenvalues: 1")
    assert largest["bound 1"] == line.found[1].bound and headings["bound 1"] == f"{WITH}: residual"
    assert largest["error 1"] is largest["difference error 1"] is None and largest["star 1"] == ""
    rows, headings = differences.table(comparison, [line])
    assert rows[0].keys() == {"quantity"} | headings.keys()
    assert "error 1" not in headings and "star 1" not in headings  # nothing would stand there


def test_headings_come_with_the_most_telling_first_and_lose_no_line(both):
    comparison = both("variance")
    headings = differences.by_heading(comparison.lines)
    assert sorted(line.name for lines in headings.values() for line in lines) == sorted(
        line.name for line in comparison.lines
    )
    ratios = [max(line.ratio for line in lines) for lines in headings.values()]
    assert ratios == sorted(ratios, reverse=True)


@pytest.mark.parametrize("in_margins", [False, True])
def test_chart_shows_differences_with_errors_sorted_by_how_telling_they_are(both, in_margins):
    comparison = both("robustness")
    headings = differences.by_heading(comparison.lines)
    heading = next(name for name in headings if name.startswith("accuracy under noise"))
    lines = differences.drawable(headings[heading], in_margins)
    assert [line.ratio for line in lines] == sorted((line.ratio for line in lines), reverse=True)
    figure = differences.chart(comparison, lines, ["#000001", "#000002"], in_margins=in_margins, of="<b>")
    (trace,) = figure.data
    found = [line.differences[0] for line in lines]
    scale = [each.margin if in_margins else 1.0 for each in found]
    np.testing.assert_allclose(trace.x, [each.value / by for each, by in zip(found, scale, strict=True)])
    np.testing.assert_allclose(trace.error_x.array, [each.error / by for each, by in zip(found, scale, strict=True)])
    assert list(trace.marker.symbol) == ["circle" if each.is_marked else "circle-open" for each in found]
    assert trace.marker.color == "#000002" and trace.name == f"{WITH} - {WITHOUT}"
    assert list(figure.layout.yaxis.ticktext) == [line.name.partition(": ")[2] for line in lines]
    assert "&lt;b&gt;" in figure.layout.xaxis.title.text
    edges = sorted(shape.x0 for shape in figure.layout.shapes)
    assert edges == ([-1, 0, 1] if in_margins else [0])


def test_several_runs_do_not_hide_each_other(runs):
    (runs / "again.h5").write_bytes((runs / f"{WITH}.h5").read_bytes())
    listed = list_runs(runs)
    comparison = differences.side_by_side("variance", tuple(find(listed, name) for name in (WITHOUT, WITH, "again")))
    lines = differences.drawable(comparison.lines, False)
    figure = differences.chart(comparison, lines, ["#000001", "#000002", "#000003"])
    first, second = figure.data
    assert list(first.x) == list(second.x) and min(np.abs(np.subtract(first.y, second.y))) > 0.1
    assert max(np.abs(np.concatenate([first.y, second.y]) - np.tile(np.arange(len(lines)), 2))) < 0.5


def test_what_has_no_error_is_not_drawn_in_margins(both):
    lines = both("hessian").lines
    bare = [line for line in lines if line.found[0] and line.found[0].bound is not None]
    assert bare and not differences.drawable(bare, True)
    assert differences.drawable(bare, False)


def test_what_is_not_drawn_is_counted_by_why(both):
    lines = differences.by_heading(both("hessian").lines)[""]
    held = differences.drawable(lines, True)
    without = len(lines) - len(held)
    assert without > 1 and len(held) > 0
    assert differences.left_out(lines, held) == f"{without} without a difference or its standard error are not drawn."
    many = held[:1] * (differences.MOST + 3)
    assert differences.left_out(many, many) == "The 20 of 23 that differ most for their errors."
    assert differences.left_out(held, held) == ""


def test_corruption_errors_are_said_to_be_relative_already(both):
    headings = differences.by_heading(both("robustness").lines)
    assert not differences.drawable(headings["corruption error (%)"], False)
    assert "relative to the first run already" in differences.why_no_chart(headings["corruption error (%)"])
    bare = [line for line in both("hessian").lines if line.found[0] and line.found[0].bound is not None]
    assert "no standard errors" in differences.why_no_chart(bare)


@pytest.mark.parametrize("analysis", analyses())
@pytest.mark.parametrize("margins", [False, True])
def test_page_of_each_analysis(runs, analysis, margins):
    app = shown(runs, [WITHOUT, WITH], analysis, margins)
    assert len(app.dataframe) == 1 and len(app.get("plotly_chart")) + len(app.info) == 1
    assert f"Differences are to {WITHOUT}".replace("_", "\\_") in app.caption[0].value
    assert "the same images" in app.caption[0].value
    assert set(app.dataframe[0].value.columns) >= {"quantity", "value 0", "value 1", "difference 1"}


def test_every_heading_can_be_shown(runs):
    app = shown(runs, [WITHOUT, WITH], "hessian")
    count = len(app.selectbox[0].options)
    assert count > 2
    for place in range(count):
        app.selectbox[0].select_index(place).run()
        assert not app.exception and len(app.dataframe) == 1 and len(app.dataframe[0].value)


def test_runs_that_share_nothing_are_told(runs):
    half_written(runs / f"{WITH}.h5", runs / "half.h5")
    half_written(runs / f"{WITH}.h5", runs / "other.h5", "hessian")
    for chosen in ([], [WITH], ["half", "other"]):
        app = shown(runs, chosen)
        assert len(app.info) == 1 and "share an analysis" in app.info[0].value and not app.dataframe


def test_only_what_several_hold_is_offered(runs):
    half_written(runs / f"{WITH}.h5", runs / "half.h5")
    app = shown(runs, ["half", WITH])
    assert app.get("button_group")[0].options == ["Variance"]
    assert len(app.dataframe) == 1


def test_numbers_of_a_run_whose_name_ends_like_a_mark_stay_numbers(runs):
    (runs / f"{WITH}.h5").rename(runs / "x*.h5")
    columns = json.loads(shown(runs, [WITHOUT, "x*"], "variance").dataframe[0].proto.columns)
    assert columns["value 1"]["label"] == "x*" and columns["value 1"]["type_config"]["type"] == "number"
