"""What the tables say of a landscape, and of two beside each other."""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import mlp
from surfaces import IMAGES, bowl, surface

from analyze import Subject, compare, landscape
from analyze.landscape.prescan import prescan
from analyze.landscape.shown import error_over_images, heading
from analyze.landscape.spec import DONE, FAILED, NOT_FINITE, SUMS, TODO, Config
from analyze.landscape.tables import quantities, rows
from data_cache import InputError
from models.metrics import Metrics

# the variance of surfaces' NLL over images is 0.8 at each point
STDERR = math.sqrt(0.8 / (IMAGES - 1))


def named(result):
    return {row.quantity: row for row in rows(result)}


def interpolation(x=None, **options):
    axes = np.linspace(0, 1, 21) if x is None else x, np.zeros(1)
    return surface(lambda f, x, y: 0.3 + 0.2 * x + 4 * x * (1 - x), axes=axes, kind="b.safetensors", **options)


def test_rows_are_those_of_the_formula():
    result = surface(frames=3)
    x, y = np.meshgrid(result.x, result.y)
    mean = np.mean([bowl(f, x, y) for f in range(3)], axis=0)
    found, rise = named(result), mean - mean[10, 10]
    rim = (np.abs(x) == 1) | (np.abs(y) == 1)
    assert found["NLL"][1:3] == pytest.approx((mean[10, 10], STDERR))
    accuracy = result.accuracy[:, 10, 10]
    stderr = np.sqrt(accuracy * (1 - accuracy) / IMAGES).mean()
    assert found["accuracy"][1:3] == pytest.approx((accuracy.mean(), stderr))
    right = [0.9 * np.exp(-0.4 * bowl(f, 0, 0)) for f in range(3)]  # of one bin with the confidence 0.83
    assert found["ECE"][1] == pytest.approx(np.abs(np.array(right) - 0.83).mean())
    assert found["lowest NLL"][1:3] == pytest.approx((mean.min(), STDERR))
    assert found["rise over the grid"][1:3] == pytest.approx((rise.mean(), 2 * STDERR))
    assert found["rise at the rim"][1:3] == pytest.approx((rise[rim].mean(), 2 * STDERR))
    assert found["direction x"].remark == "||d|| / ||w||: random, norm filter"


def test_the_error_of_a_rise_is_no_smaller_than_that_over_images():
    """Each image alone: the standard deviation of its own rise, over the root of their number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x, y = mlp(), torch.randn(20, 6), torch.randint(0, 3, (20,))
    config = Config(points=(3,), prescan=False)
    alone = [landscape.compute(Subject(model, [(x[i : i + 1], y[i : i + 1])]), config).nll[0] for i in range(20)]
    found = named(landscape.compute(Subject(model, [(x, y)]), config))
    rises = np.array([(nll - nll[1, 1]).mean() for nll in alone])
    rims = np.array([np.delete(nll, 4).mean() - nll[1, 1] for nll in alone])
    for name, each in (("rise over the grid", rises), ("rise at the rim", rims)):
        exact = each.std(ddof=1) / math.sqrt(20)
        assert found[name].value == pytest.approx(each.mean(), rel=1e-5)
        assert exact <= found[name].error < 10 * exact


@pytest.mark.parametrize("height", [1.0, 100.0])
def test_a_loss_that_stays_low_suggests_no_span(height):
    scan = prescan(lambda x, y: 0.1 + height * math.hypot(x, y) / 10, 1.0, guessing=math.log(10))
    found = named(dataclasses.replace(surface(), prescan=scan))
    assert all(math.isfinite(row.value) for row in found.values())
    assert ("suggested --span" in found) == (height == 100)
    if height == 1:
        assert found["highest NLL"].value == scan.nll.max()
        assert found["highest NLL"].remark == "of nine points within 2; as it is below 2.3, no span is suggested"


def test_the_barriers_error_is_that_of_the_points_it_is_made_of():
    found = named(interpolation())
    assert found["barrier"][1:3] == pytest.approx((1.0, 2 * STDERR))
    assert "at x = 0.5" in found["barrier"].remark
    assert not any("rise" in name for name in found)  # the way to another checkpoint has no rim


def test_the_accuracys_error_is_that_of_the_charts_and_of_the_evaluation():
    result = surface(frames=3)
    one = Metrics(*(getattr(result, name)[0, 10, 10] for name in SUMS))
    assert error_over_images(result, "accuracy", 0)[10, 10] == pytest.approx(one.accuracy_stderr, rel=1e-12)
    assert named(result)["accuracy"].error == error_over_images(result, "accuracy")[10, 10]


def test_a_barrier_that_the_grid_cannot_show_says_what_it_needs():
    line = Config(points=(5,), span=(0.3,), one_dimensional=True, direction_x="b.safetensors").axes()
    found = named(surface(lambda f, x, y: 1 + 0 * x, axes=line, kind="b.safetensors"))
    assert found["direction x"].remark.endswith("; the barrier needs x = 0 and x = 1 on the grid, leave out --span")
    assert "barrier" not in found and "barrier" not in named(interpolation())["direction x"].remark
    assert "barrier" not in named(surface()) and named(interpolation())["barrier"].remark.startswith("at x = 0.5")


def test_recomputed_batchnorm_is_said_where_it_happens():
    """By default along a checkpoint; where it is asked for and impossible, it is refused."""
    result = interpolation()
    recomputed = dataclasses.replace(result, arithmetic="float32, as it is, BatchNorm recomputed")
    asked = dataclasses.asdict(Config(bn="recompute"))
    for each, told in ((recomputed.of(Config(), result.subject), True), (result.of(asked, result.subject), False)):
        assert ("BatchNorm recomputed" in heading(each)) == told
        for name in ("NLL", "accuracy", "ECE"):
            assert named(each)[name].remark.endswith(", BatchNorm recomputed") == told
    subject = Subject(mlp(), [(torch.randn(4, 6), torch.zeros(4, dtype=torch.long))], mode="train")
    with pytest.raises(InputError, match="leave out --bn recompute"):
        landscape.compute(subject, Config(points=(3,), bn="recompute"))


def test_stored_axes_that_begin_at_minus_zero_begin_at_zero():
    assert heading(interpolation(x=-np.linspace(0.0, -1.0, 5))).endswith("x from 0 to 1")


def test_unfinished_points_are_counted():
    status = np.full((1, 5, 5), DONE, np.uint8)
    status[0, 0], status[0, 1, :2], status[0, 2, 0] = TODO, FAILED, NOT_FINITE
    result = surface(points=(5, 5), status=status)
    told = {row.remark.split(";")[0].split(",")[0]: row.value for row in rows(result) if row.quantity == "points"}
    assert told == {"to do": 5, "failed": 2, "not finite": 1}
    assert "rise over the grid" not in named(result)


def test_grids_without_the_checkpoint_say_nothing_of_it():
    found = named(surface(points=(4, 5)))
    assert "NLL" not in found and "rise at the rim" not in found and "lowest NLL" in found


# Comparison


def saved(folder: Path, **results) -> list[Path]:
    files = []
    for name, result in results.items():
        about = {**result.subject, "data_sha256": "d", "batch_size": 128, "model_args": {}}
        files.append(folder / f"{name}.h5")
        result.of(dataclasses.asdict(Config()), about).save(files[-1])
    return files


def test_landscapes_are_compared_in_what_means_the_same(tmp_path):
    a, b = surface(frames=2), surface(lambda f, x, y: 3 * bowl(f, x, y) + 1, frames=2, name="b")
    [comparison] = compare.compare(saved(tmp_path, a=a, b=b))
    lines = {line.name: line for line in comparison.lines}
    rise = lines["NLL rise at the rim, x and y from -1 to 1"]
    one, two = (quantity.value for quantity in rise.found)
    assert two == pytest.approx(3 * one)
    [difference] = rise.differences
    assert difference.value == pytest.approx(two - one) and difference.is_marked
    assert difference.error == pytest.approx(math.hypot(2 * STDERR, 2 * STDERR))
    assert comparison.paired == [True]
    assert not any(quantity.samples is not None for quantity in quantities(a))  # grid points are no samples


def test_rises_over_other_ranges_are_not_set_beside_each_other(tmp_path):
    [comparison] = compare.compare(saved(tmp_path, a=surface(), b=surface(span=0.5, name="b")))
    assert {line.name for line in comparison.lines} == {
        f"{name} at the checkpoint" for name in ("NLL", "accuracy", "ECE")
    }


def test_an_eigenvalues_residual_is_a_bound_and_no_standard_error():
    result = surface()
    info = dataclasses.replace(result.info_x, kind="eigen:2", eigenvalue=7.0, residual=0.25)
    found = [each for each in quantities(dataclasses.replace(result, info_x=info)) if each.bound is not None]
    assert [(each.name, each.value, each.error, each.bound) for each in found] == [
        ("eigenvalue 2 along an axis", 7.0, None, 0.25)
    ]


def test_a_residual_is_called_so():
    result = surface()
    info = dataclasses.replace(result.info_x, kind="eigen:1", eigenvalue=31.55, residual=0.0123)
    remark = named(dataclasses.replace(result, info_x=info))["direction x"].remark
    assert "eigenvalue 31.55, residual 0.01" in remark and "±" not in remark


def test_the_comparison_prints_and_draws_and_writes_no_animation(tmp_path, capsys):
    files = saved(tmp_path, a=surface(frames=2), b=surface(name="b"))
    secret = tmp_path / "elsewhere" / "a.gif"
    stranger = landscape.Result.read(files[0])
    stranger.of({**stranger.config, "gif": str(secret)}, stranger.subject).save(files[0])
    compare.main([str(file) for file in files])
    told = capsys.readouterr().out
    assert "NLL rise over the grid, x and y from -1 to 1" in told and "NLL at the checkpoint" in told
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {f"a_vs_b_landscape{name}.png" for name in ("", "_surface", "_metrics", "_compare")}
    assert not secret.parent.exists()
    curve = saved(tmp_path, c=interpolation(name="c"))
    compare.main([str(files[0]), str(curve[0]), "--out", str(tmp_path / "mixed")])
    assert not list(tmp_path.glob("mixed*compare*"))  # a curve is not drawn beside a surface


def test_a_result_compared_with_itself_differs_in_nothing(tmp_path):
    a = surface()
    [comparison] = compare.compare(saved(tmp_path, a=a, b=copy.copy(a)))
    assert all(each.value == 0 for line in comparison.lines for each in line.differences)
