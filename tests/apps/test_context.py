"""What pages get."""

from __future__ import annotations

import pytest
from run_files import WITH, WITHOUT, half_written
from streamlit.testing.v1 import AppTest

from analyze.drawing import MODELS
from apps.context import COLORS, colors, escape


def test_colors_are_those_of_the_paper_figures_in_order_without_black():
    assert colors(6) == list(MODELS[:6])
    assert "#000000" not in COLORS
    assert colors(9)[7:] == colors(2)


@pytest.mark.parametrize(
    "text",
    [
        "**b** _i_ `c` ~~s~~",
        "# heading",
        "- item",
        "1. item",
        "[a](b)",
        "![a](b)",
        "<b>b</b>",
        "$x$",
        ":red[r]",
        "a | b",
    ],
)
def test_every_sign_of_markup_is_escaped(text):
    escaped = escape(text)
    assert escaped.replace("\\", "").replace("\u2060", "") == text
    for place, sign in enumerate(escaped):
        if sign in "*_`~#[]<>$|!":
            assert escaped[place - 1] == "\\"


@pytest.mark.parametrize("text", [":material/home:", "https://evil.com", "www.evil.com", "a@b.de", ":smile:"])
def test_links_and_icons_are_broken_by_what_cannot_be_seen(text):
    assert "\u2060" in escape(text)
    assert escape(text).replace("\\", "").replace("\u2060", "") == text


def test_escaped_text_stays_on_one_line():
    assert escape("a\n# b\r\n\tc") == "a \\# b c"


def page(root, keys, analysis):
    from pathlib import Path

    import streamlit as st

    from apps.context import Context
    from apps.library import list_runs

    runs = list_runs(Path(root))
    context = Context(Path(root), runs, [run for key in keys for run in runs if run.key == key])
    for each in context.results(analysis):
        st.text(f"{each.name} {each.color} {each.drawn().name} {each.drawn().color} {each.result.subject['model']}")


def shown(*arguments) -> AppTest:
    app = AppTest.from_function(page, args=arguments, default_timeout=60).run()
    assert not app.exception
    return app


def test_results_are_of_the_chosen_runs_that_hold_them_each_in_its_colour(runs):
    half_written(runs / f"{WITH}.h5", runs / "half.h5")
    keys = [f"{WITHOUT}.h5", "half.h5", f"{WITH}.h5"]
    texts = [text.value for text in shown(str(runs), keys, "hessian").text]
    assert texts == [
        f"{WITHOUT} {MODELS[0]} {WITHOUT} {MODELS[0]} resnet_dnn_18",
        f"{WITH} {MODELS[2]} {WITH} {MODELS[2]} resnet_mcdo_smoothing_18",
    ]
    assert len(shown(str(runs), keys, "variance").text) == 3


def test_result_that_cannot_be_read_is_a_sentence_beside_the_others(runs):
    import h5py

    with h5py.File(runs / f"{WITH}.h5", "r+") as file:
        del file["variance/layer"]
    app = shown(str(runs), [f"{WITH}.h5", f"{WITHOUT}.h5"], "variance")
    assert len(app.text) == 1 and len(app.error) == 1
    assert "layer" in app.error[0].value and "\n" not in app.error[0].value
