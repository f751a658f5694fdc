"""The page of the Fourier analysis, without a browser."""

import h5py
import pytest
from pages import charts, names, page, sentences
from run_files import WITH, WITHOUT, truncated, without

from analyze.fourier.charts import DEPTHS


def test_spectra_stand_side_by_side(made):
    test = page("fourier", made, [WITHOUT, WITH])
    assert not test.exception
    (figure,) = charts(test)
    assert [note["text"] for note in figure["layout"]["annotations"]] == [WITHOUT, WITH]
    assert names(figure).count("layer1.0") == 2 and names(figure).count("smooth1.0") == 1


def test_layers_are_picked_by_kind(made):
    test = page("fourier", made, [WITHOUT, WITH])
    test.multiselect(key="fourier_layers").select(("kind", "smoothing")).run()
    (figure,) = charts(test)
    assert names(figure) == ["smooth1.0", "smooth2.0", "smooth3.0", "smooth4.0"]


def test_noise_is_drawn_of_networks_that_have_any(made):
    settings = {"fourier_part": "Power", "fourier_power": "model_noise_power"}
    test = page("fourier", made, [WITHOUT, WITH], **settings)
    (figure,) = charts(test)
    assert [note["text"] for note in figure["layout"]["annotations"]] == [WITH]
    assert "no Monte Carlo noise" in sentences(test)[0] and "without" in sentences(test)[0]
    test = page("fourier", made, [WITHOUT], **settings)
    assert not test.exception and not charts(test) and sentences(test)
    (figure,) = charts(page("fourier", made, [WITHOUT], fourier_part="Power", fourier_log_frequency=True))
    assert figure["layout"]["xaxis"]["type"] == "log"


@pytest.mark.parametrize("value", DEPTHS)
def test_each_quantity_can_be_seen_over_depth(made, value):
    test = page("fourier", made, [WITHOUT, WITH], fourier_part="Over depth", fourier_depth=value)
    assert not test.exception
    (figure,) = charts(test)
    assert figure["layout"]["yaxis"]["title"]["text"] == DEPTHS[value]
    noise = value.startswith("noise")
    assert names(figure) == ([WITH] if noise else [WITHOUT, WITH])
    assert [sentence.replace("\\", "") for sentence in sentences(test)] == [
        f"{WITHOUT} gives the same at every pass: no Monte Carlo noise."
    ] * noise


def other_rings(runs):
    """A copy of a run whose rings are square, by name."""
    without(runs / f"{WITH}.h5", runs / "square.h5")
    with h5py.File(runs / "square.h5", "r+") as file:
        file["fourier/radial_frequency"][-1] = 0.95
    return "square"


@pytest.mark.parametrize("settings", [
    {"fourier_part": "Power"}, {"fourier_part": "Over depth", "fourier_depth": "power_share"},
])  # fmt: skip
def test_other_rings_are_named_and_left_out(runs, settings):
    test = page("fourier", runs, [WITH, other_rings(runs)], **settings)
    assert not test.exception and "rings are square" in sentences(test)[0]
    assert "square" not in str([note.get("text") for note in charts(test)[0]["layout"].get("annotations", [])])
    assert "square" not in names(charts(test)[0])
    table = page("fourier", runs, [WITH, "square"], fourier_part="Numbers").dataframe[0].value
    assert set(table["rings"]) == {"radial", "square"}


def test_planes_are_shown_where_there_are_any(made, runs):
    test = page("fourier", made, [WITHOUT, WITH], fourier_part="Frequency plane", fourier_plane="layer1.1")
    (figure,) = charts(test)
    assert names(figure) == [WITHOUT, WITH] and {trace["type"] for trace in figure["data"]} == {"heatmap"}
    without(runs / f"{WITH}.h5", runs / "none.h5", *(f"fourier/spectra/layer1.{block}" for block in (0, 1)))
    labels = [tab.label for tab in page("fourier", runs, ["none"]).tabs]
    assert labels == ["Amplitude", "Power", "Over depth", "Numbers"]


def test_numbers_are_a_table(made):
    test = page("fourier", made, [WITHOUT, WITH], fourier_part="Numbers")
    assert not test.exception and set(DEPTHS.values()) <= set(test.dataframe[0].value.columns)


def test_nothing_to_show_is_a_sentence(made, runs):
    assert len(sentences(page("fourier", made, []))) == 1
    without(runs / f"{WITH}.h5", runs / "less.h5", "fourier")
    truncated(runs / f"{WITH}.h5", runs / "broken.h5")
    for chosen in (["less"], ["broken"]):
        test = page("fourier", runs, chosen)
        assert not test.exception and not charts(test) and sentences(test)
