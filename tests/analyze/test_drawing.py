"""How models are named in figures, and that drawing leaves matplotlib's global state alone."""

import subprocess
import sys

import pytest

from analyze.drawing import MODELS, in_order, model_name, new_figure, title
from analyze.robustness.spec import Result

SUBJECT = {
    "checkpoint": "/folder/resnet.v2.safetensors",
    "model": "resnet_dnn_18",
    "images": 1234,
    "data": "mnist:test",
}


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ({}, ""),
        ({"checkpoint": "/folder/resnet.v2.safetensors"}, "resnet.v2"),
        ({"checkpoint": "(from Python)"}, "resnet_dnn_18"),
        ({"checkpoint": "a.1+b.2", "members": ["", ""]}, "a.1+b.2"),
    ],
)
def test_models_are_named_by_their_checkpoint(subject, name):
    assert model_name(Result().of({}, SUBJECT | subject if subject else {})) == name


def test_titles_say_which_images():
    assert title(Result().of({}, SUBJECT)) == "resnet.v2: 1,234 images of mnist:test"
    assert title(Result()) == ""


def test_colours_in_order_get_lighter():
    red, green, blue, _ = zip(*in_order(7), strict=True)
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in zip(red, green, blue, strict=True)]
    assert light == sorted(light) and len(set(MODELS)) == len(MODELS)


def test_figures_belong_to_no_window():
    assert new_figure(2.0).get_size_inches().tolist() == [6.4, 2.0]
    code = "import sys, analyze.drawing as d; d.new_figure(1.0); sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
