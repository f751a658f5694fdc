"""The landscape page shows surfaces and curves, numbers at a point, and makes an animation when asked to."""

import dataclasses

import numpy as np
import pytest
from run_files import WITH, WITHOUT
from streamlit.testing.v1 import AppTest
from surfaces import bowl, surface

import apps.views.landscape
from analyze.landscape.shown import LABELS

PATIENCE = 60
"""Seconds for a script; other work may share the machine."""


def page(root, keys):
    from pathlib import Path

    from apps.context import Context
    from apps.library import list_runs
    from apps.views.landscape import show

    runs = {run.key: run for run in list_runs(Path(root))}
    show(Context(Path(root), list(runs.values()), [runs[key] for key in keys]))


def opened(root, *keys, **state):
    app = AppTest.from_function(page, args=(str(root), keys), default_timeout=PATIENCE)
    for name, value in state.items():
        app.session_state[name] = value
    app.run()
    assert not app.exception
    return app


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Landscapes of formulas."""
    root = tmp_path_factory.mktemp("landscapes")

    def wall(frame, x, y):
        return np.where((x > 0.7) & (y > 0.5), np.inf, bowl(frame, x, y))

    whole = surface(points=(9, 9), name="begun")
    begun = np.ones((1, 9, 9), bool)
    begun[:, ::4, ::4] = False
    begun = dataclasses.replace(
        whole, status=np.where(begun, 0, whole.status), count=np.where(begun, 0, whole.count)
    ).of(whole.config, whole.subject)
    later = surface(points=(5, 5), frames=2, name="later")
    later = dataclasses.replace(later, frame=np.array([5, 6])).of(later.config, later.subject)
    for name, result in {
        "later": later,
        "moving": surface(points=(7, 5), frames=3, name="moving"),
        "still": surface(points=(5, 5), name="still"),
        "wall": surface(wall, points=(11, 9), name="wall"),
        "begun": begun,
        "curve": surface(points=(11, 1), frames=2, name="curve"),
    }.items():
        result.save(root / f"{name}.h5")
    return root


def numbers(app, quantity="NLL"):
    table = app.dataframe[0].value
    return table[table["quantity"] == quantity]["value"].tolist()


@pytest.mark.parametrize("keys", [(f"{WITH}.h5",), (f"{WITHOUT}.h5", f"{WITH}.h5")])
def test_computed_runs_are_shown(made, keys):
    app = opened(made, *keys)
    assert len(app.get("plotly_chart")) == 3
    assert not app.info


@pytest.mark.parametrize("name", ["moving", "still", "wall", "begun"])
def test_a_surface_has_slices_and_calibration(folder, name):
    app = opened(folder, f"{name}.h5")
    assert len(app.get("plotly_chart")) == 3
    assert len(app.dataframe) == 1
    assert [each.key for each in app.number_input] == ["landscape_x", "landscape_y"]


@pytest.mark.parametrize("metric", ["accuracy", "ece", "l2", "loss"])
def test_every_metric_is_shown_and_only_unbounded_ones_are_cut(folder, metric):
    app = opened(folder, "moving.h5", "wall.h5", landscape_metric=metric)
    assert len(app.get("plotly_chart")) == 3
    assert ("landscape_clip" in [each.key for each in app.slider]) == (metric == "loss")


@pytest.mark.parametrize(
    ("state", "keys", "paper"),
    [
        ({}, ["moving.h5"], ""),
        ({}, ["moving.h5", "wall.h5"], "compare"),
        ({"landscape_metric": "ece"}, ["moving.h5"], "metrics"),
        ({"landscape_metric": "loss"}, ["moving.h5"], "metrics"),
        ({"landscape_metric": "l2"}, ["moving.h5"], None),
        ({"landscape_metric": "ece"}, ["moving.h5", "wall.h5"], None),
        ({"landscape_pass": "1"}, ["moving.h5"], None),
        ({"landscape_metric": "accuracy"}, ["curve.h5"], "metrics"),
        ({"landscape_pass": "1"}, ["curve.h5"], ""),
    ],
)
def test_the_paper_figure_is_of_what_the_page_shows(folder, monkeypatch, state, keys, paper):
    found = {}

    def shown(figure, chosen, key, *, paper="", **options):
        found[key] = paper

    monkeypatch.setattr(apps.views.landscape, "show_chart", shown)
    opened(folder, *keys, **state)
    assert next(iter(found.values())) == paper


def test_the_norm_is_called_squared_wherever_it_is(folder):
    app = opened(folder, "still.h5")
    assert numbers(app, "Squared L2 norm") == pytest.approx([40.0])
    assert "Squared L2 norm" in app.get("button_group")[0].proto.SerializeToString().decode(errors="ignore")
    assert "squared L2 norm" in LABELS["l2"]


def test_passes_of_other_numbers_can_be_picked(folder):
    app = opened(folder, "moving.h5", "later.h5")
    assert app.selectbox(key="landscape_pass").options == ["mean of all", "0", "1", "2", "5", "6"]
    app.selectbox(key="landscape_pass").select("5").run()
    moving, later = surface(points=(7, 5), frames=3), surface(points=(5, 5), frames=2)
    assert numbers(app) == pytest.approx([moving.nll[:, 2, 3].mean(), later.nll[0, 2, 2]])


def test_a_curve_has_no_slices(folder):
    app = opened(folder, "curve.h5")
    assert len(app.get("plotly_chart")) == 2
    assert [each.key for each in app.number_input] == ["landscape_curve_x"]


def test_curves_and_surfaces_share_a_page(folder):
    app = opened(folder, "curve.h5", "moving.h5", "still.h5")
    assert len(app.get("plotly_chart")) == 5


def test_numbers_are_those_of_the_nearest_grid_point(folder):
    app = opened(folder, "moving.h5", landscape_x=0.6, landscape_y=-0.9)
    result = surface(points=(7, 5), frames=3)
    assert numbers(app) == pytest.approx([result.nll[:, 0, 5].mean()])
    app.selectbox(key="landscape_pass").select("2").run()
    assert numbers(app) == pytest.approx([result.nll[2, 0, 5]])


def test_a_point_beyond_the_grid_is_its_edge(folder):
    app = opened(folder, "still.h5", landscape_x=70.0, landscape_y=-70.0)
    assert numbers(app) == pytest.approx([surface(points=(5, 5)).nll[0, 0, 4]])


def test_a_click_moves_the_point(folder):
    def clicked(root):
        import streamlit as st

        from apps.views.landscape import _take_click

        class Selection:
            points = ({"x": 0.25, "y": -0.5, "curve_number": 7},)

        _take_click(Selection())
        st.number_input("x", value=0.0, key="landscape_x")
        st.number_input("y", value=0.0, key="landscape_y")

    app = AppTest.from_function(clicked, args=(str(folder),), default_timeout=PATIENCE).run()
    assert [each.value for each in app.number_input] == [0.25, -0.5]
    # the same selection comes again with each run, and must not undo what was typed since
    app.number_input(key="landscape_x").set_value(0.5).run()
    assert [each.value for each in app.number_input] == [0.5, -0.5]


def test_an_animation_is_made_and_offered(folder):
    app = opened(folder, "moving.h5", landscape_gif_size=300, landscape_gif_tween=1)
    assert not app.get("download_button") or "landscape_gif_download" not in str(app.get("download_button"))
    app.button(key="landscape_gif_make").click().run()
    assert not app.exception
    made, content = app.session_state["landscape_gif"]
    assert content[:6] in (b"GIF87a", b"GIF89a")
    assert made[1]["tween"] == 1


def test_what_does_not_move_is_a_sentence(folder):
    app = opened(folder, "still.h5", landscape_gif_size=300)
    app.button(key="landscape_gif_make").click().run()
    assert not app.exception
    assert len(app.error) == 1
    assert "landscape_gif" not in app.session_state


def test_no_run_is_a_sentence(folder):
    app = opened(folder)
    assert len(app.info) == 1
    assert not app.get("plotly_chart")


@pytest.mark.parametrize("points", [(1, 1), (1, 5)])
def test_a_grid_of_one_point_along_an_axis_is_drawn(tmp_path, points):
    surface(points=points, name="one").save(tmp_path / "one.h5")
    app = AppTest.from_function(page, args=(str(tmp_path), ["one.h5"]), default_timeout=60).run()
    assert not app.exception and not app.error and app.get("plotly_chart")
