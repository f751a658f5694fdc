"""The Hessian page shows the parts that are there, and says what isn't."""

import pytest
from run_files import WITH, WITHOUT, without
from streamlit.testing.v1 import AppTest

PATIENCE = 60
"""Seconds for a script; other work may share the machine."""


def page(root, keys):
    from pathlib import Path

    from apps.context import Context
    from apps.library import list_runs
    from apps.views.hessian import show

    runs = {run.key: run for run in list_runs(Path(root))}
    show(Context(Path(root), list(runs.values()), [runs[key] for key in keys]))


def opened(root, *keys, **state):
    app = AppTest.from_function(page, args=(str(root), keys), default_timeout=PATIENCE)
    for name, value in state.items():
        app.session_state[name] = value
    app.run()
    assert not app.exception
    return app


def labels(app):
    return [tab.label for tab in app.tabs]


def keys(app):
    """Of the charts."""
    return [each.key for each in app.get("plotly_chart")]


CHARTS = {
    "Spectrum": ["hessian_spectrum"],
    "Trace": ["hessian_trace"],
    "Mini-batches": ["hessian_max_spectrum"],
    "Layers": ["hessian_blocks", "hessian_bits"],
}


@pytest.mark.parametrize("part", CHARTS)
@pytest.mark.parametrize("names", [(f"{WITH}.h5",), (f"{WITHOUT}.h5", f"{WITH}.h5")])
def test_each_part_has_its_charts(made, names, part):
    app = opened(made, *names, hessian_part=part)
    assert labels(app) == [*CHARTS, "Numbers"]
    assert keys(app) == CHARTS[part]


def test_only_the_open_tab_is_drawn(made):
    app = opened(made, f"{WITH}.h5", hessian_part="Numbers")
    assert not app.get("plotly_chart")
    assert "trace" in set(app.dataframe[0].value["quantity"])
    assert set(app.dataframe[0].value["model"]) == {WITH}


def test_kernel_width_changes_the_density(made):
    app = opened(made, f"{WITH}.h5")
    before = app.get("plotly_chart")[0].proto.spec
    slider = app.select_slider(key="hessian_width")
    assert slider.value == 1
    slider.set_value(0.2).run()
    assert not app.exception
    assert app.get("plotly_chart")[0].proto.spec != before


def test_smallest_and_logarithmic_settings_run(made):
    app = opened(made, f"{WITH}.h5", hessian_part="Mini-batches", hessian_which="smallest", hessian_spectrum_log=True)
    assert len(app.get("plotly_chart")) == 1
    opened(made, f"{WITH}.h5", hessian_part="Layers", hessian_blocks_log=False)


def test_parts_that_are_missing_have_no_tab(runs):
    without(runs / f"{WITH}.h5", runs / "less.h5", "hessian/max_spectrum", "hessian/blocks", "hessian/extremes")
    app = opened(runs, "less.h5")
    assert labels(app) == ["Spectrum", "Trace", "Numbers"]
    assert not app.info


def test_a_run_without_a_part_is_named_beside_one_with_it(runs):
    without(runs / f"{WITH}.h5", runs / "less.h5", "hessian/blocks")
    app = opened(runs, f"{WITH}.h5", "less.h5", hessian_part="Layers")
    assert [each.value for each in app.info] == ["Not computed for less."]
    assert keys(app) == CHARTS["Layers"]


def test_layers_whose_weights_were_not_rounded_have_no_bits(runs):
    without(runs / f"{WITH}.h5", runs / "less.h5", "hessian/quantization")
    assert keys(opened(runs, "less.h5", hessian_part="Layers")) == ["hessian_blocks"]


def test_no_run_is_a_sentence(made):
    app = opened(made)
    assert len(app.info) == 1
    assert not app.tabs
