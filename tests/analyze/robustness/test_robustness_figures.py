"""The figures show the numbers of the result, and can be drawn of whatever a run file holds."""

import numpy as np
import pytest
from robustness_cases import TINY, network, subject

from analyze import robustness
from analyze.robustness.figures import figures
from analyze.robustness.spec import Config, Result


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return [robustness.compute(subject(network(seed)), Config(**TINY)) for seed in (0, 1, 2)]


def lines(axes) -> dict[str, np.ndarray]:
    """Curves with error bars by label."""
    return {bars.get_label(): bars.lines[0].get_xydata() for bars in axes.containers if hasattr(bars, "lines")}


def test_a_curve_for_each_strength_at_the_centres_of_the_bands(results):
    noise = results[0].frequency_noise
    drawn = lines(figures(results[0])[""].axes[0])
    assert set(drawn) == {"0.1", "0.4"}
    assert np.allclose(drawn["0.4"][:, 0], [0.125, 0.375, 0.625, 0.875])
    assert np.array_equal(drawn["0.4"][:, 1], noise.accuracy[1])


def test_networks_are_overlaid_at_the_strength_that_tells_bands_apart(results):
    top, bottom = figures(results[0], results[1:])[""].axes
    drawn = lines(top)
    assert len(drawn) == 1 or len(top.containers) == 3  # the same name, thrice
    spread = np.ptp(results[0].frequency_noise.accuracy, axis=1)
    strength = int(np.argmax(spread))
    for bars, result in zip(top.containers, results, strict=True):
        assert np.array_equal(bars.lines[0].get_ydata(), result.frequency_noise.accuracy[strength])
    assert bottom.get_yscale() == "log"


def test_the_heat_map_has_the_origin_in_the_middle_and_true_frequencies(results):
    found = results[0].heat_map
    error, flips, *_ = figures(results[0])["heat_map"].axes
    mesh = error.collections[0]
    assert np.array_equal(np.ma.getdata(mesh.get_array()).reshape(found.error.shape), found.error)
    corners = mesh.get_coordinates()
    centres = (corners[:-1, :-1] + corners[1:, 1:]) / 2
    assert np.allclose(centres[0, :, 0], found.frequency_x) and np.allclose(centres[:, 0, 1], found.frequency_y)
    assert flips.get_title() == "flip rate"


def test_two_heat_maps_come_with_their_difference(results):
    panels = [axes for axes in figures(results[0], results[1:2])["heat_map"].axes if axes.get_title()]
    shown = [np.ma.getdata(axes.collections[0].get_array()) for axes in panels]
    assert len(shown) == 3
    assert np.array_equal(shown[2], shown[1] - shown[0])
    low, high = panels[2].collections[0].get_clim()
    assert low == -high


def test_attacks_start_at_the_clean_accuracy(results):
    found = results[0].adversarial
    linf, l2 = figures(results[0])["attacks"].axes
    (curve,) = lines(linf).values()
    assert np.allclose(curve, [[0, found.clean_accuracy], [4, found.accuracy[0]]])
    (curve,) = lines(l2).values()
    assert np.allclose(curve, [[0, found.clean_accuracy], [0.5, found.accuracy[1]]])


def test_corruptions_show_each_severity_or_each_network(results):
    (axes,) = figures(results[0])["corruptions"].axes
    found = results[0].corruptions
    dots = {line.get_label(): line.get_xdata() for line in axes.lines if line.get_label() in ("1", "3")}
    assert np.array_equal(dots["1"], found.accuracy[:, 0]) and np.array_equal(dots["3"], found.accuracy[:, 1])
    (axes,) = figures(results[0], results[1:])["corruptions"].axes
    means = [bars.lines[0].get_xdata()[0] for bars in axes.containers]
    assert np.allclose(means, [result.corruptions.accuracy.mean() for result in results])


def test_networks_under_other_noise_are_not_drawn_together(results):
    other = robustness.compute(subject(), Config(**TINY | {"norm": "psd"}, parts=("frequency-noise",)))
    top = figures(results[0], [other])[""].axes[0]
    assert set(lines(top)) == {"0.1", "0.4"}


def test_whatever_a_run_file_holds_can_be_drawn(results, tmp_path):
    steps = []
    robustness.compute(subject(), Config(**TINY), save=steps.append)
    for step in (steps[0], steps[4], steps[-3]):
        for name, figure in figures(step, results[1:]).items():
            figure.savefig(tmp_path / f"{name}.png", dpi=40)
    assert figures(Result()) == {}
    files = results[0].plot(tmp_path / "figure.png")
    assert [file.name for file in files] == [
        "figure.png", "figure_heat_map.png", "figure_attacks.png", "figure_corruptions.png",
    ]  # fmt: skip
