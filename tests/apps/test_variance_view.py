"""The page of the variance analysis, without a browser."""

import h5py
import numpy as np
import pytest
from pages import charts, names, page, sentences
from run_files import WITH, WITHOUT, truncated, without


def test_two_models_are_overlaid_in_two_panels(made):
    test = page("variance", made, [WITHOUT, WITH])
    assert not test.exception
    (figure,) = charts(test)
    assert names(figure) == [WITHOUT, WITH] * 2
    assert [sentence.replace("\\", "") for sentence in sentences(test)] == [
        f"{WITHOUT} gives the same at every pass: no model variance."
    ]
    assert test.dataframe[0].value["model"].unique().tolist() == [WITHOUT, WITH]


def test_of_a_deterministic_network_alone_only_data_variance_is_drawn(made):
    test = page("variance", made, [WITHOUT])
    (figure,) = charts(test)
    assert names(figure) == [WITHOUT] and "data variance" in str(figure["layout"]["yaxis"]["title"])
    test = page("variance", made, [WITHOUT], variance_source="model")
    assert not test.exception and not charts(test) and len(sentences(test)) == 1


@pytest.mark.parametrize(("source", "spread", "title"), [
    ("model", "variance", "model variance"), ("data", "standard deviation", "data standard deviation"),
])  # fmt: skip
def test_what_is_shown_can_be_chosen(made, source, spread, title):
    settings = {"variance_source": source, "variance_spread": spread, "variance_log": False}
    (figure,) = charts(page("variance", made, [WITH], **settings))
    axis = figure["layout"]["yaxis"]
    assert axis["title"]["text"] == title and axis["type"] == "linear"
    (figure,) = charts(page("variance", made, [WITH], **settings, variance_ratio=True))
    assert figure["layout"]["yaxis"]["title"]["text"] == f"{title},<br>times the layer's before"


def test_layers_are_picked_by_name_and_by_kind(made):
    test = page("variance", made, [WITHOUT, WITH])
    test.multiselect(key="variance_layers").select(("kind", "smoothing")).select(("layer", "layer1.1")).run()
    (figure,) = charts(test)
    assert figure["layout"]["xaxis"]["ticktext"] == ["layer1.1", "smooth1.0", "smooth2.0", "smooth3.0", "smooth4.0"]
    assert test.dataframe[0].value["layer"].tolist()[:2] == ["layer1.1", "layer1.1"]


def test_nothing_to_show_is_a_sentence(made, runs):
    assert len(sentences(page("variance", made, []))) == 1
    without(runs / f"{WITH}.h5", runs / "less.h5", "variance")
    truncated(runs / f"{WITH}.h5", runs / "broken.h5")
    for names_ in (["less"], ["broken"], ["less", "broken"]):
        test = page("variance", runs, names_)
        assert not test.exception and not charts(test) and sentences(test)
    assert names(charts(page("variance", runs, ["less", WITH]))[0]) == [WITH] * 2


def test_one_pass_does_not_tell_model_variance(runs):
    with h5py.File(runs / f"{WITH}.h5", "r+") as file:
        for name in ("model_variance", "model_variance_stderr", "model_std", "model_std_stderr"):
            file["variance"][name][:] = np.nan
    test = page("variance", runs, [WITH])
    assert not test.exception and len(charts(test)[0]["data"]) == 1
    assert "one pass does not tell the model variance" in sentences(test)[0]
