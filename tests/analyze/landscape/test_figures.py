"""What the figures of a landscape show."""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from surfaces import bowl, surface

from analyze.landscape.contours import INFINITE, MISSING, draw_contours
from analyze.landscape.figures import draw_surface, figures
from analyze.landscape.grid import coarse_to_fine
from analyze.landscape.shown import even_levels, limits, log_levels, mean_over_frames, spread_over_frames
from analyze.landscape.spec import Trajectory


def steep(frame, x, y):
    return 3 * bowl(frame, x, y) + 1


def with_holes(frame, x, y):
    values = bowl(frame, x, y).copy()
    values[3:5, 4], values[15, 10:13] = np.inf, np.nan
    return values


def contour_sets(fig, cls=QuadContourSet):
    sets = [item for axes in fig.axes for item in axes.collections if isinstance(item, cls)]
    return [item for item in sets if getattr(item, "filled", True)]


def texts(fig):
    return " ".join(item.get_text() for item in fig.findobj(Text))


def hatches(fig):
    return {item.get_hatch() for item in fig.findobj(lambda item: isinstance(item, Rectangle | PolyCollection))}


def series():
    t = np.linspace(0, 1, 12)
    names = np.array([f"epoch{number}" for number in range(12)])
    return Trajectory(names, 1.2 * (1 - t) ** 1.5, 0.7 * np.sin(3 * t) * (1 - t), 0.3 * (1 - t), 2 - 1.7 * t)


def barrier(frame, x, y):
    return 0.3 + 0.2 * x + 4 * x * (1 - x)


def curve(**options):
    axes = np.linspace(0, 1, 21), np.zeros(1)
    return surface(barrier, axes=axes, kind="other.safetensors", **options)


def preview():
    status = np.zeros((1, 17, 25), np.uint8)
    status[:, ::4, ::4] = 1
    status[:, :3:2, ::2] = 1
    return surface(points=(25, 17), status=status)


def failed():
    status = surface(with_holes).status.copy()
    status[0, 8, 16:19] = 3
    return surface(with_holes, status=status)


# Levels and limits


def test_levels_rise_by_a_constant_factor_from_the_smallest_value():
    values = np.linspace(2.0, 7.0, 1001)
    levels = log_levels([values])
    assert levels[0] == 2.0
    np.testing.assert_allclose(levels[-1], 6.5)  # the 90th percentile
    factors = (levels[2:] - 2) / (levels[1:-1] - 2)
    np.testing.assert_allclose(factors, 50 ** (1 / 8))


def test_limits_are_cut_at_the_percentile_only_where_values_are_far_above():
    assert limits([np.linspace(0, 1, 101)]) == (0, 1, False)
    assert limits([np.r_[np.linspace(0, 1, 100), 50]])[1:] == (pytest.approx(0.96, abs=0.01), True)


@pytest.mark.parametrize("make", [log_levels, even_levels])
@pytest.mark.parametrize("values", [[1.0, 1.0], [0.0], [np.nan, np.inf], [-3.0, 1e9], [1e-12, 2e-12]])
def test_levels_always_increase(make, values):
    levels = make([np.array(values)])
    assert np.isfinite(levels).all() and (np.diff(levels) > 0).all()


def test_frames_are_averaged_where_they_are_done():
    status = np.ones((3, 4, 5), np.uint8)
    status[0, 1, 2], status[:, 3, 3] = 0, 3
    shown = mean_over_frames(surface(lambda f, x, y: 1 + f + x, points=(5, 4), frames=3, status=status), "nll")
    assert shown.value[1, 2] == pytest.approx(2.5 + 0.0)  # x is 0 there
    assert shown.value[0, 0] == pytest.approx(2 - 1)
    assert shown.missing.sum() == 1 and np.isnan(shown.value[3, 3])


def test_a_mean_with_an_infinite_frame_is_not_finite_and_not_missing():
    shown = mean_over_frames(
        surface(lambda f, x, y: np.where((x < 0) & (f > 0), np.inf, x), frames=2, points=(4, 4)), "nll"
    )
    assert shown.nonfinite[:, :2].all() and not shown.nonfinite[:, 2:].any() and not shown.missing.any()


def test_the_spread_is_the_sample_standard_deviation():
    shown = spread_over_frames(surface(lambda f, x, y: 1 + f**2 + 0 * x, frames=3, points=(3, 3)), "nll")
    np.testing.assert_allclose(shown.value, np.std([1, 2, 5], ddof=1))


def test_a_preview_is_the_complete_coarse_grid():
    coarse = mean_over_frames(preview(), "nll").coarse()
    assert coarse.shape == (6, 7) and not coarse.missing.any()
    np.testing.assert_allclose(coarse.value, bowl(0, *np.meshgrid(coarse.x, coarse.y)))


@pytest.mark.parametrize("points", [(21, 21), (9, 14)])
def test_a_preview_shows_the_whole_range_as_soon_as_its_corners_are_there(points):
    result, order = surface(points=points), coarse_to_fine(points[1], points[0])
    status = np.zeros((1, points[1], points[0]), np.uint8)
    for number, place in enumerate(order):
        status[(0, *place)] = 1
        coarse = mean_over_frames(replace(result, status=status), "nll").coarse()
        if number >= 3:
            assert not coarse.todo.any()
            for axis in "xy":
                assert getattr(coarse, axis)[[0, -1]].tolist() == getattr(result, axis)[[0, -1]].tolist()
    assert coarse.shape == points[::-1]


def test_failed_points_are_never_dropped_for_a_coarse_grid():
    status = np.ones((1, 5, 5), np.uint8)
    status[0, 2] = 3
    assert mean_over_frames(surface(points=(5, 5), status=status), "nll").coarse().shape == (5, 5)


# Pictures


def test_models_side_by_side_share_levels_limits_and_camera():
    drawn = figures(surface(), [surface(steep, name="b"), surface(name="c", points=(15, 9))])["compare"]
    levels = [item.levels for item in contour_sets(drawn)]
    assert len(levels) == 3 and all(np.array_equal(levels[0], each) for each in levels)
    norms = [item.norm.boundaries for item in contour_sets(drawn)]
    assert all(np.array_equal(norms[0], each) for each in norms)
    solid = [axes for axes in drawn.axes if axes.name == "3d"]
    assert len({(axes.get_zlim(), axes.azim, axes.elev) for axes in solid}) == 1 and len(solid) == 3


def test_the_top_class_is_open_and_labelled():
    drawn = figures(surface())[""]
    (filled,) = contour_sets(drawn)
    assert filled.extend == "max"
    assert f"> {filled.levels[-1]:.3g}" in texts(drawn)
    above = int(np.sum(surface().nll > filled.levels[-1]))
    assert above and f"{above} points in the open top class" in texts(drawn).replace("\n", " ")


def test_missing_and_non_finite_points_are_hatched_differently():
    assert not hatches(figures(surface())[""]) & {MISSING, INFINITE}
    assert hatches(figures(surface(with_holes))[""]) >= {INFINITE}
    drawn = figures(failed())[""]
    assert hatches(drawn) >= {MISSING, INFINITE}
    assert "3 of 441 points failed" in texts(drawn).replace("\n", " ")
    assert "5 of 441 points not finite" in texts(drawn).replace("\n", " ")


def pixels(fig, axes, *places):
    """Colours at places in data coordinates."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)
    spots = axes.transData.transform(places).astype(int)
    return [image[row, column] for column, row in spots]


def test_a_rectangular_grid_is_the_right_way_round():
    def corner(frame, x, y):  # high only for large x and small y
        return 1.0 + 5 * ((x > 0.5) & (y < -0.5))

    shown = mean_over_frames(surface(corner, points=(31, 11)), "nll")
    fig = Figure()
    axes = fig.subplots()
    draw_contours(axes, shown, np.array([0.9, 2, 3, 4]), "nll", extend="max")
    others = [(-0.9, -0.9), (-0.9, 0.9), (0.9, 0.9)]
    high, *low = pixels(fig, axes, (0.9, -0.9), *others)
    assert high.sum() - high[2] > 400 and all(each.sum() < high.sum() for each in low)  # plasma's yellow
    assert all(np.array_equal(low[0], each) for each in low)


def test_the_surface_has_the_values_at_its_corners():
    shown = mean_over_frames(surface(lambda f, x, y: 3 + x + 0.5 * y, points=(7, 4)), "nll")
    axes = Figure().add_subplot(projection="3d")
    draw_surface(axes, shown, limits([shown.value]), "nll")
    (solid,) = (item for item in axes.collections if isinstance(item, Poly3DCollection))
    corners = np.asarray(solid._faces).reshape(-1, 3)
    for x, y in itertools.product((-1, 1), (-1, 1)):
        (height,) = {round(z, 12) for a, b, z in corners if (a, b) == (x, y)}
        assert height == pytest.approx(3 + x + 0.5 * y)


def test_what_is_cut_off_a_surface_is_said():
    drawn = figures(surface())["surface"]
    high = drawn.axes[0].get_zlim()[1]
    above = int(np.sum(surface().nll > high))
    assert above and f"{above} points are above, the highest at {surface().nll.max():.3g}" in texts(drawn)


def test_a_trajectory_is_drawn_with_the_variance_its_axes_explain():
    drawn = figures(surface(kind="pca:1", explained=0.8, trajectory=series()))[""]
    (line,) = (line for line in drawn.axes[0].lines if len(line.get_xdata()) == 12)
    np.testing.assert_array_equal(line.get_xydata(), np.stack([series().x, series().y], axis=1))
    assert "principal component 1 (80% of the series)" in drawn.axes[0].get_xlabel()
    assert "principal component 2 (20% of the series)" in drawn.axes[0].get_ylabel()
    assert "2 of 12 outside this picture" in texts(drawn).replace("\n", " ")
    assert drawn.axes[0].get_xlim() == (-1, 1)


def test_a_curve_has_its_error_band_accuracy_and_barrier():
    drawn = figures(curve())[""]
    left, right = drawn.axes
    (line,) = (line for line in left.lines if line.get_label() == "NLL")
    x = np.linspace(0, 1, 21)
    np.testing.assert_allclose(line.get_ydata(), barrier(0, x, 0))
    band = left.collections[0].get_paths()[0].vertices
    error = np.sqrt(0.8 / 511)  # the variance over images is 0.8 everywhere
    at_half = band[np.isclose(band[:, 0], 0.5), 1]
    np.testing.assert_allclose(sorted(set(at_half.round(9))), [1.4 - error, 1.4 + error], atol=1e-8)
    np.testing.assert_array_equal(right.lines[0].get_ydata(), curve().accuracy[0, 0])
    assert "barrier 1 nats at x = 0.5" in texts(drawn)


def test_metrics_that_are_not_known_are_left_out():
    drawn = figures(surface())["metrics"]
    assert len(contour_sets(drawn)) == 4
    assert len(contour_sets(figures(surface(lambda f, x, y: np.full(x.shape, np.inf)))["metrics"])) < 4


CASES = {
    "plain": lambda: (surface(), [surface(steep, name="a_rather_long_name_of_a_network_18"), surface(name="third")]),
    "frames": lambda: (surface(frames=3), []),
    "curve": lambda: (curve(frames=3), [surface(points=(9, 1), name="other"), surface()]),
    "trajectory": lambda: (surface(kind="pca:1", explained=0.8, trajectory=series()), []),
    "preview": lambda: (preview(), []),
    "holes": lambda: (failed(), [surface(with_holes, name="other")]),
    "empty": lambda: (surface(status=np.zeros((1, 21, 21), np.uint8)), []),
    "empty curve": lambda: (surface(points=(5, 1), status=np.zeros((1, 1, 5), np.uint8)), []),
    "infinite": lambda: (surface(lambda f, x, y: np.full(x.shape, np.inf)), []),
    "constant": lambda: (surface(lambda f, x, y: np.ones(x.shape)), []),
    "smallest": lambda: (surface(points=(2, 2), frames=2), []),
    "huge": lambda: (surface(lambda f, x, y: 1e30 * (1 + x**2)), []),
    "one row": lambda: (surface(axes=(np.linspace(-1, 1, 5), np.array([0.0, 1.0]))), []),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("error")
def test_everything_can_be_drawn_in_legible_type_without_overlap(case, tmp_path):
    for name, fig in figures(*CASES[case]()).items():
        fig.savefig(tmp_path / f"{name}.png", dpi=100)
        canvas = FigureCanvasAgg(fig)
        canvas.draw()
        visible = [item for item in fig.findobj(Text) if item.get_text().strip() and item.get_visible()]
        assert min(item.get_fontsize() for item in visible) >= 8
        page = fig.bbox
        titles = [item for item in (fig._suptitle, fig._supxlabel, *fig.legends) if item is not None]
        boxes = [item.get_window_extent(canvas.renderer) for item in titles]
        boxes += [axes.get_tightbbox(canvas.renderer) for axes in fig.axes if axes.get_visible() and axes.name != "3d"]
        for index, box in enumerate(boxes[: len(titles)]):
            assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1
            assert not any(box.overlaps(other) for other in boxes[index + 1 :]), (name, index)


def test_drawing_needs_neither_torch_nor_pyplot():
    program = (
        "import sys; sys.path.insert(0, 'tests/shared'); from surfaces import surface\n"
        "from analyze.landscape.figures import figures; import analyze.landscape.animation, analyze.landscape.export\n"
        "figures(surface(points=(3, 3)))\n"
        "print(sorted({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stderr


def test_pictures_of_models_on_different_images_say_so(tmp_path):
    first, second = surface(), surface()
    second = second.of(second.config, {**second.subject, "images": 77})
    figure = figures(first, [second])["compare"]
    assert "77" not in figure._suptitle.get_text() and "images" not in figure._suptitle.get_text()
    titles = [axes.get_title() for axes in figure.axes]
    assert any("77 images" in title for title in titles)
    assert any(f"{first.subject['images']} images" in title for title in titles)
