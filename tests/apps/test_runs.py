"""The page of all run files."""

from __future__ import annotations

import math

import h5py
import pytest
from run_files import WITH, WITHOUT, empty, half_written, truncated
from streamlit.testing.v1 import AppTest

from apps.context import colors
from apps.library import KeyNumber, key_numbers, list_runs
from apps.views.runs import PANELS, at_a_glance, data_sets, row, written


def page(root):
    from pathlib import Path

    import streamlit as st

    from apps.context import Context
    from apps.library import list_runs
    from apps.views import runs as view

    runs = list_runs(Path(root))
    chosen = [run for key in st.session_state.get("run", []) for run in runs if run.key == key]
    view.show(Context(Path(root), runs, chosen))


def shown(root) -> AppTest:
    app = AppTest.from_function(page, args=(str(root),), default_timeout=60)
    app.session_state["run"] = [f"{WITHOUT}.h5"]
    app.run()
    assert not app.exception
    return app


def test_table_has_a_row_for_each_file_with_its_numbers(runs):
    half_written(runs / f"{WITH}.h5", runs / "half.h5")
    table = shown(runs).dataframe[0].value
    assert list(table["run"]) == ["half", WITH, WITHOUT]
    assert list(table["analyses"])[:2] == ["variance (partly)", "variance, fourier, robustness, hessian, landscape"]
    assert list(table["data"]) == ["fashion_mnist"] * 3
    with h5py.File(runs / f"{WITH}.h5", locking=False) as file:
        line = table.iloc[1]
        assert line["accuracy"] == file["robustness/clean/accuracy"][()]
        assert line["eigenvalue"] == file["hessian/extremes/largest"][0]
        assert line["model"] == "resnet_mcdo_smoothing_18"
        assert line["time"] == pytest.approx(sum(file[name].attrs["seconds"] for name in file) / 60)
    assert math.isnan(table.iloc[0]["accuracy"]) and math.isnan(table.iloc[0]["trace"])


def test_row_of_a_file_without_results_is_empty(runs):
    with h5py.File(runs / f"{WITH}.h5", "r+") as file:
        for name in list(file):
            del file[name]
    run = list_runs(runs)[0]
    found = row(run, key_numbers(run))
    assert found["analyses"] == "none yet" and found["time"] is None and found["accuracy"] is None
    assert data_sets(run) == [] and not run.problem


def test_ticked_rows_are_the_chosen_runs_and_follow_them(runs):
    app = shown(runs)
    assert app.session_state["runs_table"]["selection"]["rows"] == [1]
    app.session_state["run"] = [f"{WITHOUT}.h5", f"{WITH}.h5"]
    app.run()
    assert sorted(app.session_state["runs_table"]["selection"]["rows"]) == [0, 1]


@pytest.mark.parametrize(
    ("rows", "before", "after"),
    [
        ([0], ["a"], ["a"]),
        ([0, 2], ["c"], ["c", "a"]),
        ([], ["c", "a"], []),
        ([1, 0], ["b", "x"], ["b", "x", "a"]),
        ([0, 99], [], ["a"]),
    ],
)
def test_new_ticks_come_last_and_colours_stay(monkeypatch, rows, before, after):
    import streamlit as st

    from apps.views import runs as view

    state = {"runs_table": {"selection": {"rows": rows}}}
    monkeypatch.setattr(st, "session_state", state)
    view._ticked(["a", "b", "c"], before)
    assert state["run"] == after


def test_glance_shows_the_key_numbers_of_the_chosen_runs_with_errors(runs):
    listed = list_runs(runs)[::-1]
    numbers = [key_numbers(run) for run in listed]
    figure = at_a_glance(listed, numbers)
    shown = {(trace.name, trace.xaxis or "x"): (trace.x[0], trace.error_x.array[0]) for trace in figure.data}
    assert shown == {
        (run.name, "x" if place == 0 else f"x{place + 1}"): tuple(found[name])
        for run, found in zip(listed, numbers, strict=True)
        for place, name in enumerate(PANELS)
    }
    assert [trace.marker.color for trace in figure.data] == [colors(2)[0]] * 4 + [colors(2)[1]] * 4
    assert list(figure.layout.yaxis.ticktext) == [WITHOUT, WITH]
    only_one = at_a_glance(listed, [{}, {"trace": numbers[1]["trace"]}])
    assert [trace.name for trace in only_one.data] == [WITH]
    assert at_a_glance(listed, [{}, {}]) is None and at_a_glance([], []) is None


def test_bad_files_have_their_sentence(runs):
    truncated(runs / f"{WITH}.h5", runs / "cut.h5")
    empty(runs / "<b>empty.h5")
    app = shown(runs)
    assert len(app.dataframe[0].value) == 2
    told = app.markdown[-1].value
    assert "damaged" in told and told.count("\n- ") + told.startswith("- ") == 2
    assert "<b>" not in told.replace("\\<", "")


def test_empty_folder_says_what_to_do(tmp_path):
    app = shown(tmp_path)
    assert len(app.info) == 1 and "python -m analyze" in app.info[0].value and not app.dataframe


def test_numbers_that_are_still_to_be_read_are_announced_and_then_come(runs, monkeypatch):
    from apps.views import runs as view

    class Slow(view.Numbers):
        delays = [2, 0, 0, 0]
        left = property(lambda self: self.delays[0])

        def of(self, run):
            return None if self.delays[0] else super().of(run)

    monkeypatch.setattr(view, "Numbers", Slow)
    app = shown(runs)
    assert any("2 to go" in caption.value for caption in app.caption)
    table = app.dataframe[0].value
    assert table["accuracy"].isna().all() and table["analyses"].isna().all() and table["size"].notna().all()
    Slow.delays.pop(0)
    app.run()
    assert not any("to go" in caption.value for caption in app.caption)
    assert app.dataframe[0].value["accuracy"].notna().all()


def test_time_of_writing_is_the_files_own(runs):
    with h5py.File(runs / f"{WITH}.h5", "r+") as file:
        file.attrs["modified"] = "2026-01-02T03:04:05+00:00"
    with h5py.File(runs / f"{WITHOUT}.h5", "r+") as file:
        file.attrs["modified"] = "soon"
    known, unknown = list_runs(runs)
    assert written(known).timestamp() == 1767323045
    assert written(unknown).timestamp() == pytest.approx(unknown.modified, abs=1e-3)


def test_axis_shows_all_errors_and_is_not_drawn_from_rounding(runs):
    listed = list_runs(runs)
    numbers = [{"eigenvalue": KeyNumber(100.0, 1e-6)}, {"accuracy": KeyNumber(0.5, 0.2)}]
    axes = at_a_glance(listed, numbers).layout
    assert list(axes.xaxis.range) == pytest.approx([0.28, 0.72])
    assert list(axes.xaxis2.range) == pytest.approx([95, 105], abs=1e-5)
    zero = at_a_glance(listed, [{"trace": KeyNumber(0.0, math.nan)}, {"nll": KeyNumber(math.nan, 1.0)}]).layout
    assert zero.xaxis.range is None and zero.xaxis2.range is None
