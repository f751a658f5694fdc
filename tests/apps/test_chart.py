"""Charts on a page and their downloads."""

from __future__ import annotations

import csv
import io
import shlex

import plotly.graph_objects as go
import pytest
from run_files import WITH, WITHOUT
from streamlit.testing.v1 import AppTest

from apps import chart
from apps.context import Chosen
from apps.library import list_runs, load
from data_cache import InputError


@pytest.fixture
def chosen(runs):
    return [
        Chosen(run, load(run, "variance"), color)
        for run, color in zip(list_runs(runs), ("#111111", "#222222"), strict=True)
    ]


def figure() -> go.Figure:
    return go.Figure(go.Scatter(x=[1.0, 2.0], y=[3.0, 4.0], name="=cmd|' /C calc'!A0", text=["a", "+b"]))


@pytest.mark.parametrize(("kind", "head"), [("png", b"\x89PNG\r\n\x1a\n"), ("pdf", b"%PDF-"), ("svg", b"<?xml")])
def test_paper_figure_is_a_file_of_its_kind_and_is_drawn_once(chosen, kind, head):
    results = [each.result for each in chosen]
    content = chart.paper_figure(results, "", kind)
    assert content.startswith(head) and len(content) > 1000
    assert chart.paper_figure(list(results), "", kind) is content
    assert chart.paper_figure(results[:1], "", kind) != content


def test_figure_that_is_not_there_is_one_sentence(chosen):
    with pytest.raises(InputError, match="no figure 'nothing'"):
        chart.paper_figure([chosen[0].result], "nothing", "png")
    assert chart.figure_names([chosen[0].result]) == [""]


def test_web_page_holds_all_that_it_needs():
    page = chart.interactive(figure()).decode()
    assert page.count("<html>") == 1 and "Plotly.newPlot" in page and len(page) > 1_000_000
    assert 'src="http' not in page and "src='http" not in page


def test_csv_has_the_numbers_and_no_formulas():
    rows = list(csv.DictReader(io.StringIO(chart.table(figure()).decode())))
    assert [(float(row["x"]), float(row["y"])) for row in rows] == [(1.0, 3.0), (2.0, 4.0)]
    assert [row["text"] for row in rows] == ["a", "'+b"]
    assert {row["series"] for row in rows} == {"'=cmd|' /C calc'!A0"}


def test_commands_are_those_of_the_files_and_the_comparison(chosen):
    *made, compared = chart.commands(chosen)
    assert made == [each.run.analyses["variance"].command for each in chosen][:1]  # made by one process: the same twice
    words = shlex.split(compared)
    assert words[:3] == ["python", "-m", "analyze.compare"] and words[-2:] == ["--only", "variance"]
    assert words[3:5] == [str(each.run.path) for each in chosen]
    assert chart.commands(chosen[:1]) == made and chart.commands([]) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b\\c:d*e?", "<img src=x>", "", "ü" * 300, "x\ny", "-rf", "."])
def test_file_names_are_plain(name):
    stem = chart.file_stem([name, name], "key")
    assert stem and len(stem) <= 120 and stem[0] not in ".-"
    assert all(sign.isascii() and (sign.isalnum() or sign in "._-") for sign in stem)


def page(root):
    from pathlib import Path

    import plotly.graph_objects as go

    from apps.chart import show_chart
    from apps.context import Context
    from apps.library import list_runs

    runs = list_runs(Path(root))
    chosen = Context(Path(root), runs, runs).results("variance")
    drawn = go.Figure(go.Scatter(x=[1, 2], y=[3, 4]))
    assert show_chart(drawn, chosen, "first", note="*of* <b>these</b>") is None
    assert show_chart(drawn, chosen, "second", paper=None, on_select=True) is not None
    show_chart(drawn, [], "third")


def test_page_with_charts_has_their_downloads(runs):
    app = AppTest.from_function(page, args=(str(runs),), default_timeout=60).run()
    assert not app.exception
    assert len(app.get("plotly_chart")) == 3
    labels = [button.label for button in app.get("download_button")]
    assert labels == ["PNG", "SVG", "PDF", "HTML", "CSV", "HTML", "CSV", "HTML", "CSV"]
    assert len(app.code) == 2 and "analyze.compare" in app.code[0].value
    assert app.caption[0].value == "\\*of\\* \\<b\\>these\\<\\/b\\>"
    assert WITH in app.code[0].value and WITHOUT in app.code[0].value
