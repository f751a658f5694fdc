"""The page of an analysis that has none of its own."""

from __future__ import annotations

import pytest
from run_files import WITH, WITHOUT
from streamlit.testing.v1 import AppTest

from analyze import analyses
from apps.library import list_runs, load


def page(root, analysis, count):
    from pathlib import Path

    from apps.context import Context
    from apps.library import list_runs
    from apps.views import generic

    runs = list_runs(Path(root))
    generic.show(Context(Path(root), runs, runs[:count]), analysis)


@pytest.mark.parametrize(("analysis", "count"), [*((name, 1) for name in analyses()), ("variance", 2), ("hessian", 2)])
def test_page_has_all_figures_and_the_table_of_each_run(runs, analysis, count):
    from apps.chart import figure_names

    app = AppTest.from_function(page, args=(str(runs), analysis, count), default_timeout=120).run()
    assert not app.exception and not app.error
    results = [load(run, analysis) for run in list_runs(runs)[:count]]
    assert len(app.get("image")) == len(figure_names(results)) > 0
    assert [tab.label for tab in app.tabs] == [name.replace("_", "\\_") for name in (WITH, WITHOUT)[:count]]
    for table, result in zip(app.dataframe, results, strict=True):
        assert list(table.value["quantity"]) == [row.quantity for row in result.rows()]
        assert list(table.value["value"]) == pytest.approx([float(row.value) for row in result.rows()], nan_ok=True)


def test_page_without_a_chosen_run_is_empty(runs):
    app = AppTest.from_function(page, args=(str(runs), "variance", 0), default_timeout=60).run()
    assert not app.exception and not app.get("image")
