"""The page of the robustness analysis, without a browser."""

import json

import h5py
import pytest
from pages import charts, names, page, sentences
from run_files import WITH, WITHOUT, truncated, without

TABS = ["Noise by frequency", "Fourier heat map", "Attacks", "Corruptions"]


@pytest.mark.parametrize(("tab", "count"), list(zip(TABS, (2, 2, 1, 2), strict=True)))
def test_each_part_has_a_tab(made, tab, count):
    test = page("robustness", made, [WITHOUT, WITH], robustness_part=tab)
    assert not test.exception and not sentences(test)
    assert [each.label for each in test.tabs] == TABS
    assert len(charts(test)) == count
    assert all(trace for figure in charts(test) for trace in figure["data"])


def test_a_strength_is_chosen_with_the_slider(made):
    test = page("robustness", made, [WITHOUT, WITH], robustness_noise_value="nll")
    slider = test.select_slider(key="robustness_sigma")
    assert list(slider.options) == ["0.1", "0.4"]
    shown = []
    for sigma in (0.1, 0.4):
        slider.set_value(sigma).run()
        shown.append(charts(test)[0]["data"][0]["y"])
        assert not test.exception
    assert shown[0] != shown[1]


def test_bands_over_strengths_and_all_strengths(made):
    settings = {"robustness_manner": "over strengths", "robustness_band": "0.5-0.75 pi"}
    figure = charts(page("robustness", made, [WITHOUT, WITH], **settings))[0]
    assert figure["layout"]["xaxis"]["type"] == "log" and WITH in names(figure)
    figure = charts(page("robustness", made, [WITHOUT, WITH], robustness_manner="all strengths"))[0]
    assert "sigma 0.4" in names(figure)


def test_the_difference_of_two_heat_maps_can_be_turned_round(made):
    test = page("robustness", made, [WITHOUT, WITH], robustness_part="Fourier heat map")
    assert names(charts(test)[1]) == [f"{WITH} − {WITHOUT}"]
    test.selectbox(key="robustness_second").set_value(0)
    test.selectbox(key="robustness_first").set_value(1).run()
    assert names(charts(test)[1]) == [f"{WITHOUT} − {WITH}"]
    assert len(charts(page("robustness", made, [WITH], robustness_part="Fourier heat map"))) == 1


def test_only_parts_that_are_there_have_tabs(runs):
    without(runs / f"{WITH}.h5", runs / "less.h5", "robustness/heat_map", "robustness/adversarial")
    test = page("robustness", runs, ["less"])
    assert not test.exception and [tab.label for tab in test.tabs] == ["Noise by frequency", "Corruptions"]
    without(runs / f"{WITH}.h5", runs / "unclean.h5", "robustness/clean")
    for tab in TABS:
        assert not page("robustness", runs, ["unclean", WITHOUT], robustness_part=tab).exception
    parts = ("clean", "frequency_noise", "heat_map", "adversarial", "corruptions")
    without(runs / f"{WITH}.h5", runs / "none.h5", *(f"robustness/{part}" for part in parts))
    test = page("robustness", runs, ["none"])
    assert not test.exception and not test.tabs and len(sentences(test)) == 1


def test_other_options_are_named_and_left_out(runs):
    without(runs / f"{WITH}.h5", runs / "other.h5")
    with h5py.File(runs / "other.h5", "r+") as file:
        config = json.loads(file["robustness"].attrs["config"]) | {"norm": "psd"}
        file["robustness"].attrs["config"] = json.dumps(config)
    test = page("robustness", runs, [WITH, "other"])
    assert not test.exception and "norm differ" in sentences(test)[0]
    assert "other" not in names(charts(test)[0])


def test_corruptions_at_a_severity_with_their_table(made):
    test = page("robustness", made, [WITHOUT, WITH], robustness_part="Corruptions", robustness_severity=3)
    bars, curve = charts(test)
    assert {trace["type"] for trace in bars["data"]} == {"bar"} and names(curve) == [WITHOUT, WITH]
    table = test.dataframe[0].value
    assert f"corruption error (% of {WITHOUT}'s)" in table.columns and len(table) == 4


def test_nothing_to_show_is_a_sentence(made, runs):
    assert len(sentences(page("robustness", made, []))) == 1
    truncated(runs / f"{WITH}.h5", runs / "broken.h5")
    test = page("robustness", runs, ["broken"])
    assert not test.exception and not charts(test) and sentences(test)
