"""Whole grids: closed forms, order, frames, what fails, what merges, and what the table says."""

import dataclasses
import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, dense_hessian, mlp
from torch import nn

from analyze import Subject, landscape
from analyze.distributed import World
from analyze.landscape.compute import is_complete
from analyze.landscape.merge import main as merge_command
from analyze.landscape.merge import merge
from analyze.landscape.prescan import places, prescan
from analyze.landscape.spec import DONE, FAILED, NOT_FINITE, SUMS, TODO, Config, Result
from data_cache import InputError
from models import get_model, save_checkpoint
from models.layers import MCDropout

module = importlib.import_module("analyze.landscape.compute")  # not the function of that name
QUICK = {"prescan": False}


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def regression(dtype=torch.float64, **options):
    """Linear regression with three targets, in uneven batches."""
    model = seeded(lambda: nn.Linear(6, 3)).to(dtype)
    data = seeded(lambda: [(torch.randn(n, 6), torch.randn(n, 3)) for n in (8, 8, 3)])
    return Subject(model, data, F.mse_loss, **options)


def dropout_net():
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), MCDropout(0.3), nn.Linear(20, 3))


def stochastic(sizes=(6, 5), seed=0, **options):
    model = seeded(dropout_net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1 + seed)
        data = [(torch.randn(n, 6), torch.randint(0, 3, (n,))) for n in sizes]
    return Subject(model, data, weight_decay=0.1, **options)


def assert_same(a: Result, b: Result, apart: tuple[str, ...] = ("config", "subject")) -> None:
    """All fields to the last bit, also those within others; NaN equals NaN."""
    p, q = (
        {f.name: plain(getattr(r, f.name)) for f in dataclasses.fields(Result) if f.name not in apart} for r in (a, b)
    )
    np.testing.assert_equal(p, q)


def plain(value):
    """Dataclasses as dictionaries, which `assert_equal` looks into."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("points", [(5,), (4, 3)])
def test_linear_regression_is_its_quadratic(points, dtype):
    """|R0 + x Dx + y Dy|^2 / n with the residuals of the checkpoint and of both directions, in float64."""
    subject = regression(dtype, weight_decay=0.3)
    config = Config(points=points, span=(2.0, 0.5), prescan=False)
    result = landscape.compute(subject, config)
    x, y = (torch.cat(parts).double() for parts in zip(*subject.data, strict=True))
    weights = {name: p.detach().double() for name, p in subject.parameters.items()}

    def output(held):
        held = {name: torch.as_tensor(values).double() for name, values in held.items()}
        return x @ held.get("weight", torch.zeros(3, 6)).double().T + held.get("bias", torch.zeros(3)).double()

    parts = [output(weights) - y, output(result.direction_x), output(result.direction_y)]
    gram = np.array([[(a * b).mean().item() for b in parts] for a in parts])
    norms = [weights, result.direction_x, result.direction_y]
    flat = [
        np.concatenate(
            [np.asarray(each.get(name, np.zeros(w.shape)), dtype=float).ravel() for name, w in weights.items()]
        )
        for each in norms
    ]
    l2 = np.array([[a @ b for b in flat] for a in flat])
    columns, rows = np.meshgrid(result.x, result.y)
    point = np.stack([np.ones_like(columns), columns, rows])
    bound = 1e-10 if dtype == torch.float64 else 1e-5
    expected = np.einsum("iyx,ij,jyx->yx", point, gram, point)
    np.testing.assert_allclose(result.nll[0], expected, rtol=bound, atol=bound)
    expected_l2 = np.einsum("iyx,ij,jyx->yx", point, l2, point)
    np.testing.assert_allclose(result.l2, expected_l2, rtol=1e-10)
    np.testing.assert_allclose(result.metric("loss")[0], expected + 0.15 * expected_l2, rtol=10 * bound, atol=bound)
    assert np.isnan(result.accuracy).all() and np.isnan(result.ece).all() and np.isnan(result.nll_stderr).all()
    assert (result.status == DONE).all() and (result.count == 19).all()
    assert not any(math.isnan(row.value) for row in result.rows())


@pytest.mark.parametrize("name", ["mlp", "attention", "mlp_mse", "unused_parameters"])
def test_eigenvector_axes_have_the_eigenvalues_as_curvature(name):
    """Second differences at 2e-3, whose own error is of order h^2, against the dense Hessian's eigenvalues."""
    case = next(case for case in CASES if case.name == name)
    subject = case.build(weight_decay=0.01)
    config = Config(points=(3,), span=(2e-3,), direction_x="eigen:1", direction_y="eigen:2", prescan=False)
    result = landscape.compute(subject, config)
    loss = result.metric("loss")[0]
    truth = torch.linalg.eigvalsh(dense_hessian(subject)).numpy()[::-1]
    for number, line in enumerate((loss[1], loss[:, 1])):
        curvature = (line[0] - 2 * line[1] + line[2]) / 2e-3**2
        np.testing.assert_allclose(curvature, truth[number], rtol=1e-3)
    mixed = (loss[2, 2] - loss[2, 0] - loss[0, 2] + loss[0, 0]) / (4 * 2e-3**2)
    assert abs(mixed) < 1e-3 * truth[0]
    assert math.isclose(result.info_x.eigenvalue, truth[0], rel_tol=1e-3)


def test_rectangular_grids_lie_as_they_say():
    """[frame, y, x], each point where its own subject puts it."""
    subject = stochastic()
    result = landscape.compute(subject, Config(points=(5, 3), span=(1.0, 0.2), frames=2, **QUICK))
    assert result.nll.shape == (2, 3, 5) and result.l2.shape == (3, 5)
    assert (result.x.tolist(), result.y.tolist()) == ([-1, -0.5, 0, 0.5, 1], [-0.2, 0, 0.2])
    assert result.center == (1, 2)
    for row, column in ((0, 4), (2, 0), (1, 3)):
        weights = {}
        for name, p in subject.parameters.items():
            step = [getattr(result, f"direction_{axis}").get(name, np.zeros(p.shape, np.float32)) for axis in "xy"]
            weights[name] = p.detach() + float(result.x[column]) * torch.from_numpy(step[0])
            weights[name] = weights[name] + float(result.y[row]) * torch.from_numpy(step[1])
        for frame in range(2):
            loss = sum(
                subject.batch_loss(weights, batch, index, frame).item() * len(batch[1])
                for index, batch in enumerate(subject.data)
            )
            np.testing.assert_allclose(result.nll[frame, row, column], loss / 11, rtol=1e-5)


@pytest.mark.parametrize("noise", ["frame", "point"])
def test_order_and_resume_do_not_change_a_bit(monkeypatch, noise):
    config = Config(points=(4, 3), frames=2, noise=noise)
    whole = landscape.compute(stochastic(), config)
    monkeypatch.setattr(
        module, "coarse_to_fine", lambda rows, columns: [(r, c) for c in range(columns) for r in range(rows)]
    )
    assert_same(landscape.compute(stochastic(), config), whole)
    monkeypatch.undo()

    monkeypatch.setattr(module, "OFFER_SECONDS", 0.0)
    monkeypatch.setattr(module, "SHARE", 0)
    for stop in (1, 2, 5, 12):
        kept = []

        def save(result, kept=kept, stop=stop):
            kept.append(result)
            if (result.status != TODO).sum() >= 2 * stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            landscape.compute(stochastic(), config, save=save)
        assert 2 * stop <= (kept[-1].status == DONE).sum() and not is_complete(kept[0], config)
        assert_same(landscape.compute(stochastic(), config, previous=kept[-1]), whole)


@pytest.mark.parametrize("asked", [1, 2])
def test_fewer_frames_than_an_interrupted_run_had_are_no_more_work(monkeypatch, asked):
    kept, evaluated = [], []

    def save(result):
        kept.append(result)
        if (result.status == DONE).any():
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "OFFER_SECONDS", 0.0)
    monkeypatch.setattr(module, "SHARE", 0)
    with pytest.raises(KeyboardInterrupt):
        landscape.compute(stochastic(), Config(points=(3, 2), frames=4, **QUICK), save=save)
    monkeypatch.undo()
    evaluate = module.Evaluator.evaluate
    monkeypatch.setattr(
        module.Evaluator, "evaluate", lambda self, *given: evaluated.append(given[2]) or evaluate(self, *given)
    )
    config = Config(points=(3, 2), frames=asked, **QUICK)
    result = landscape.compute(stochastic(), config, previous=kept[-1])
    assert evaluated == [list(range(asked))] * 5
    assert is_complete(result, config) and not is_complete(result, Config(points=(3, 2), frames=4, **QUICK))
    assert (result.status == DONE).sum(axis=(1, 2)).tolist() == [6] * asked + [1] * (4 - asked)


@pytest.mark.parametrize(("frames", "expected"), [(1, [0, 5, 6]), (2, [0, 1, 5, 6]), (6, [0, 1, 2, 3, 4, 5, 6])])
def test_frames_are_added_between_those_that_were_merged(frames, expected):
    subject = stochastic()
    options = {"points": (3, 2), **QUICK}
    parts = [(Config(first_frame=0, **options)), Config(first_frame=5, frames=2, **options)]
    merged = merge([landscape.compute(subject, part) for part in parts])
    config = Config(frames=frames, **options)
    assert is_complete(merged, config) == (frames == 1)
    result = landscape.compute(subject, config, previous=merged)
    assert result.frame.tolist() == expected and is_complete(result, config)
    seven = landscape.compute(subject, Config(frames=7, **options))
    np.testing.assert_array_equal(result.nll, seven.nll[expected])


def test_frames_can_be_added_and_fewer_leave_what_is_there():
    few, many = (Config(points=(3, 2), frames=frames) for frames in (2, 5))
    subject = stochastic()
    two, five = landscape.compute(subject, few), landscape.compute(subject, many)
    assert not is_complete(two, many) and is_complete(five, few) and is_complete(five, many)
    assert_same(landscape.compute(subject, many, previous=two), five)
    assert_same(landscape.compute(subject, few, previous=five), five)
    assert len({float(value) for value in five.nll[:, 1, 1]}) == 5


def test_deterministic_network_takes_one_frame():
    subject = CASES[0].build(torch.float32)
    config = Config(points=(3,), frames=6, **QUICK)
    result = landscape.compute(subject, config)
    assert result.frame.tolist() == [0] and not result.stochastic and is_complete(result, config)


def test_first_frame_is_a_pass_by_number():
    subject = stochastic()
    all_of_them = landscape.compute(subject, Config(points=(3,), frames=4, **QUICK))
    last = landscape.compute(subject, Config(points=(3,), first_frame=2, frames=2, **QUICK))
    np.testing.assert_array_equal(last.nll, all_of_them.nll[2:])
    assert last.frame.tolist() == [2, 3]


def test_points_that_are_not_finite_are_marked_and_kept():
    """Weights times 1e30 overflow float32; their neighbours don't."""
    subject = stochastic()
    result = landscape.compute(subject, Config(points=(3, 3), span=(1e30, 1.0), **QUICK))
    far = np.abs(result.x) > 0
    assert (result.status[0][:, far] == NOT_FINITE).all() and (result.status[0][:, ~far] == DONE).all()
    assert np.isnan(result.nll[0][:, far]).all() and np.isfinite(result.nll[0][:, ~far]).all()
    for values in (result.accuracy, result.ece):  # NaN is no class, and no image is right by it
        assert np.isnan(values[0][:, far]).all() and np.isfinite(values[0][:, ~far]).all()
    assert is_complete(result, Config(points=(3, 3), span=(1e30, 1.0), **QUICK))
    assert any("not finite" in row.remark for row in result.rows())


class Fragile(nn.Module):
    """It fails where its weight is over 1.2."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.level = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.level.weight)

    def forward(self, x):
        if self.level.weight.item() > 1.2:
            raise RuntimeError("too high")
        return self.layer(x) * self.level.weight


def fragile(model=Fragile):
    return Subject(seeded(model), seeded(lambda: [(torch.randn(5, 6), torch.randint(0, 3, (5,)))]))


class EndsFirst(World):
    """It begins with the last point, as one of several ranks may."""

    def share_out(self, items, work):
        return super().share_out(items[::-1], work)


@pytest.mark.parametrize("world", [World(), EndsFirst()], ids=lambda world: type(world).__name__)
@pytest.mark.parametrize("precision", ["full", "bfloat16"])
def test_points_that_fail_are_marked_and_tried_again(precision, world):
    """Also those of the pre-scan, and where the arithmetic is compared; whoever computes the checkpoint."""
    config = Config(points=(5,), one_dimensional=True, precision=precision)
    broken = fragile()
    result = landscape.compute(broken, config, world=world)
    failed = result.status[0, 0] == FAILED
    assert failed.tolist() == (1 + result.x * result.direction_x["level.weight"].item() > 1.2).tolist()
    assert 1 <= failed.sum() <= 4 and np.isnan(result.nll[0, 0, failed]).all()
    assert np.isnan(result.prescan.nll).any() and np.isfinite(result.prescan.nll[0])
    assert np.isfinite(result.deviation) == (precision != "full")
    assert not is_complete(result, config) and any("failed" in row.remark for row in result.rows())
    tried = []
    landscape.compute(broken, config, previous=result, progress=lambda part, done, *_: tried.append((part, done)))
    assert tried[-1] == ("grid", 5)


@pytest.mark.parametrize("world", [World(), EndsFirst()], ids=lambda world: type(world).__name__)
@pytest.mark.parametrize("prescan", [True, False])
def test_network_that_fails_at_the_checkpoint_is_refused(prescan, world):
    """Here on its second batch, which no trial looks at."""

    class Broken(Fragile):
        def forward(self, x):
            if len(x) == 4:
                raise RuntimeError("nothing works")
            return super().forward(x)

    data = seeded(lambda: [(torch.randn(n, 6), torch.randint(0, 3, (n,))) for n in (5, 4)])
    config = Config(points=(5,), one_dimensional=True, prescan=prescan)
    with pytest.raises(InputError, match="nothing works"):
        landscape.compute(Subject(seeded(Broken), data), config, world=world)


def test_barrier_is_the_height_above_the_line_between_checkpoints(tmp_path):
    other = tmp_path / "other.safetensors"
    model = get_model("resnet_dnn_18", 3, width=2)
    save_checkpoint(
        other, model, {"model": "resnet_dnn_18", "kwargs": {"num_classes": 3, "width": 2}, "classes": list("abc")}
    )
    data = seeded(lambda: [(torch.randn(9, 3, 8, 8), torch.randint(0, 3, (9,)))])
    subject = Subject(seeded(lambda: get_model("resnet_dnn_18", 3, width=2)), data)
    for span, points in (((), 5), ((0.5,), 9)):
        config = Config(points=(points,), span=span, one_dimensional=True, direction_x=str(other))
        result = landscape.compute(subject, config)
        assert "BatchNorm recomputed" in result.arithmetic and result.prescan is None
        inside = (result.x >= 0) & (result.x <= 1)
        x, loss = result.x[inside], result.nll[0, 0, inside]
        height = [value - (1 - a) * loss[0] - a * loss[-1] for a, value in zip(x, loss, strict=True)]
        assert result.barrier == max(height) and result.barrier_x == x[int(np.argmax(height))]
    assert any(row.quantity == "barrier" for row in result.rows())
    outside = Config(points=(4,), span=(0.3,), one_dimensional=True, direction_x=str(other))
    assert np.isnan(landscape.compute(subject, outside).barrier)  # neither end is on the grid


def test_series_is_traced_once_and_may_not_change(tmp_path):
    """Each checkpoint's own NLL, also where it is no number."""
    about = {"model": "resnet_dnn_18", "kwargs": {"num_classes": 3, "width": 2}, "classes": list("abc")}
    files, networks = [], []
    for step in range(3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step)
            networks.append(get_model("resnet_dnn_18", 3, width=2).eval())
        with torch.no_grad():
            networks[step].layer0[1].running_mean += step
            if step == 1:
                networks[step].layer0[0].weight *= 1e38
                networks[step].classifier[0].dense.weight *= 1e30
        files.append(str(tmp_path / f"step{step}.safetensors"))
        save_checkpoint(files[step], networks[step], about)
    data = seeded(lambda: [(torch.randn(n, 3, 8, 8), torch.randint(0, 3, (n,))) for n in (5, 2)])
    subject = Subject(networks[2], data)
    config = Config(points=(2,), direction_x="pca:1", series=tuple(files), **QUICK)
    result = landscape.compute(subject, config)
    assert result.trajectory.name.tolist() == ["step0", "step1", "step2"]
    for step in (0, 2):
        with torch.no_grad():
            losses = [F.cross_entropy(networks[step](x).double(), y, reduction="sum").item() for x, y in data]
        np.testing.assert_allclose(result.trajectory.nll[step], sum(losses) / 7, rtol=1e-5)
    assert np.isfinite(result.trajectory.nll).tolist() == [True, False, True] and is_complete(result, config)

    parts = []
    again = landscape.compute(subject, config, previous=result, progress=lambda part, *_: parts.append(part))
    assert "trajectory" not in parts
    np.testing.assert_array_equal(again.trajectory.nll, result.trajectory.nll)
    save_checkpoint(files[0], networks[2], about)
    with pytest.raises(InputError, match="a checkpoint of --series is not what it was"):
        landscape.compute(subject, config, previous=result)


KINDS = {"random": "other numbers", "eigen:1": "other rounding"}


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_directions_that_come_out_otherwise_are_refused(kind, kept):
    subject = stochastic()
    config = Config(points=(2,), direction_x=kind, keep_directions=kept, **QUICK)
    result = landscape.compute(subject, config)
    assert bool(result.direction_x) == bool(result.direction_y) == kept and not result.one_dimensional
    other = dataclasses.replace(result.info_x, sha256=result.info_x.sha256[::-1])
    with pytest.raises(InputError, match=f"(is damaged|{KINDS[kind]}).*--restart.*\\.$") as told:
        landscape.compute(subject, config, previous=dataclasses.replace(result, info_x=other))
    assert ("is damaged" in str(told.value)) == kept


@pytest.mark.parametrize("kept", [True, False])
def test_eigenvectors_in_the_run_file_are_not_searched_again(kept, monkeypatch, tmp_path):
    directions = importlib.import_module("analyze.landscape.directions")
    search, searched = directions.extreme_eigenpairs, []
    monkeypatch.setattr(directions, "extreme_eigenpairs", lambda *a, **k: searched.append(a) or search(*a, **k))
    one, two = (
        Config(points=(3, 2), frames=frames, direction_y="eigen:1", keep_directions=kept, **QUICK) for frames in (1, 2)
    )
    landscape.compute(stochastic(), one).save(tmp_path / "A.h5")
    resumed = landscape.compute(stochastic(), two, previous=Result.read(tmp_path / "A.h5"))
    assert len(searched) == 2 - kept
    assert_same(resumed, landscape.compute(stochastic(), two))


def test_directions_of_half_precision_are_stored_and_taken_up_again(tmp_path):
    subject = stochastic()
    half = Subject(subject.model, list(subject.data), dtype=torch.bfloat16)
    config = Config(points=(3,), **QUICK)
    landscape.compute(half, config).save(tmp_path / "A.h5")
    stored = Result.read(tmp_path / "A.h5")
    more = dataclasses.replace(config, frames=2)
    resumed, whole = landscape.compute(half, more, previous=stored), landscape.compute(half, more)
    assert_same(resumed, whole)
    assert resumed.info_x.sha256 == whole.info_x.sha256


def test_prescan_finds_the_radius_of_a_known_bowl():
    def bowl(x, y):
        return 0.1 + 2 * math.hypot(x, y) ** 2

    line = prescan(lambda x, y: 0.1 + 2 * x**2, 1.0, math.log(10), one_dimensional=True)
    assert line.target == math.log(10) and not line.y.any() and (np.diff(line.radius) > 0).all()
    truth = math.sqrt((math.log(10) - 0.1) / 2)  # 1.05: the interpolation is within a radius that doubles
    assert truth / 1.2 < line.span < truth * 1.2
    plane = prescan(bowl, 1.0, math.log(10))
    assert len(plane.radius) == 9 and truth / 1.6 < plane.span < truth * 1.2
    assert np.isnan(prescan(bowl, 0.01, math.log(10)).span)
    assert prescan(lambda x, y: 0.0 if x == y == 0 else np.inf, 1.0, math.log(10)).span == 1 / 64
    assert prescan(lambda x, y: 1 + x**2, 1.0, np.nan, one_dimensional=True).target == 2
    assert places(1.0, one_dimensional=False).shape == (9, 2)


def test_prescan_is_reported_and_changes_nothing():
    with_it, without = (
        landscape.compute(stochastic(), Config(points=(3,), prescan=prescan)) for prescan in (True, False)
    )
    np.testing.assert_array_equal(with_it.nll, without.nll)
    assert with_it.prescan is not None and without.prescan is None
    assert any(row.quantity in ("suggested --span", "highest NLL") for row in with_it.rows())


def test_result_round_trips_through_the_run_file(tmp_path):
    result = landscape.compute(stochastic(), Config(points=(3, 2), frames=2))
    result.save(tmp_path / "A.h5")
    read = Result.read(tmp_path / "A.h5")
    assert read.prescan is not None and read.direction_y and read.info_y is not None
    assert_same(read, result)
    assert [row.quantity for row in read.rows()] == [row.quantity for row in result.rows()]


def test_sums_over_disjoint_images_add_up_to_those_of_all():
    config = Config(points=(3, 2), **QUICK)
    model = seeded(mlp)
    data = seeded(lambda: [(torch.randn(n, 6), torch.randint(0, 3, (n,))) for n in (6, 5, 4)])
    parts = [landscape.compute(Subject(model, batches), config) for batches in (data[:1], data[1:2], data[2:])]
    whole = landscape.compute(Subject(model, data), config)
    merged = merge(parts)
    for name in (*SUMS, "nll", "nll_stderr", "ece"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-12, err_msg=name)
    assert merged.subject["images"] == 15
    with pytest.raises(InputError, match="in common"):
        merge([merged, parts[0]])


def test_frames_of_several_runs_are_those_of_one():
    subject = stochastic()
    first, second = (Config(points=(3, 2), first_frame=2 * k, frames=2, **QUICK) for k in (0, 1))
    parts = [landscape.compute(subject, config) for config in (second, first)]
    whole = landscape.compute(subject, Config(points=(3, 2), frames=4, **QUICK))
    merged = merge(parts)
    assert_same(merged, whole)
    assert (merged.config["first_frame"], merged.config["frames"]) == (0, 4)
    with pytest.raises(InputError, match="frame 0"):
        merge([merged, parts[1]])


def test_merged_frames_have_the_pre_scan_of_the_first_and_the_paths_of_all():
    subject = stochastic()
    parts = [landscape.compute(subject, Config(points=(3, 2), first_frame=frame)) for frame in (0, 1)]
    for part, path in zip(parts, ("fused", "eager"), strict=True):
        part.subject["smoothing"] = path
    for order in (parts, parts[::-1]):
        merged = merge(order)
        np.testing.assert_array_equal(merged.prescan.nll, parts[0].prescan.nll)
        assert merged.subject["smoothing"] == "fused and eager"
    assert not np.array_equal(parts[0].prescan.nll, parts[1].prescan.nll)


REFUSED = {
    "grid": ({"points": (4, 2)}, {}, "points"),
    "norm": ({"norm": "layer"}, {}, "norm"),
    "seed": ({}, {"seed": 1}, "seed"),
    "decay": ({}, {"weight_decay": 0.2}, "weight_decay"),
    "frames": ({"frames": 3}, {"sizes": (4,)}, "same frames"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_with_a_sentence(case):
    options, about, word = REFUSED[case]
    about = {"sizes": (4,), "weight_decay": 0.1, "seed": 0, **about}
    model = seeded(dropout_net)

    def subject(sizes, seed_of_data, **options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of_data)
            data = [(torch.randn(n, 6), torch.randint(0, 3, (n,))) for n in sizes]
        return Subject(model, data, **options)

    base = {"points": (3, 2), "frames": 2, **QUICK}
    a = landscape.compute(subject((6,), 1, weight_decay=0.1), Config(**base))
    b = landscape.compute(subject(about.pop("sizes"), 2, **about), Config(**{**base, **options}))
    with pytest.raises(InputError, match=word):
        merge([a, b])


def test_merge_refuses_what_is_incomplete_and_is_a_command(tmp_path, capsys):
    subject = stochastic()
    kept = []
    landscape.compute(subject, Config(points=(3, 2), **QUICK), save=kept.append)
    with pytest.raises(InputError, match="incomplete"):
        merge([kept[0], kept[-1]])
    for k in (0, 1):
        config = Config(points=(3, 2), first_frame=k, **QUICK)
        landscape.compute(subject, config).save(tmp_path / f"{k}.h5")
    files = [str(tmp_path / f"{k}.h5") for k in (0, 1)]
    merge_command([*files, "--out", str(tmp_path / "both.h5")])
    assert "2 frames" in capsys.readouterr().out
    assert Result.read(tmp_path / "both.h5").frame.tolist() == [0, 1]
    with pytest.raises(SystemExit):
        merge_command([*files, "--out", str(tmp_path / "both.h5")])
    assert "exists" in capsys.readouterr().err


MISTAKES = {
    "points": {"points": (1,)},
    "curve": {"points": (3, 4), "one_dimensional": True},
    "span": {"span": (-1.0,)},
    "span is one": {"span": (1.0, 2.0), "one_dimensional": True},
    "frames": {"frames": 0},
    "eigen": {"direction_x": "eigen:0"},
    "pca": {"direction_y": "pca:3"},
    "series": {"direction_y": "pca:1"},
    "plane": {"direction_x": "eigen:1", "direction_y": "eigen:1"},
    "an animation is a .gif or an .mp4": {"gif": Path("a.png")},
    "shows surfaces": {"gif": Path("a.gif"), "one_dimensional": True},
    "only surfaces": {"gif": Path("a.gif"), "gif_orbit": True, "gif_style": "contour"},
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_options_are_sentences(name):
    with pytest.raises(InputError, match=rf"{name}.*\.$"):
        Config(**MISTAKES[name])


def test_a_film_that_this_machine_cannot_write_is_refused_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = Config(points=(3,), gif=tmp_path / "a.mp4")  # what another machine can, run files may say
    with pytest.raises(InputError, match="needs the program ffmpeg"):
        landscape.compute(stochastic(), config, progress=lambda *_: pytest.fail("it has begun"))


@pytest.mark.parametrize(
    "options", [{"points": (3_000_000,)}, {"points": (10**13,), "one_dimensional": True}, {"frames": 10**13}]
)
def test_more_than_any_memory_holds_is_refused_before_the_work(options):
    with pytest.raises(InputError, match=r"points in \d+ frames are over 2 million.*\.$"):
        landscape.compute(stochastic(), Config(**options))


def test_axes_are_nested_and_centred():
    x, y = Config(points=(21, 11), span=(0.7, 0.3)).axes()
    assert x[10] == 0 and y[5] == 0 and (x[0], x[-1]) == (-0.7, 0.7) and (x == -x[::-1]).all()
    assert (Config(points=(41,), span=(0.7,)).axes()[0][::2] == x).all()
    assert Config(points=(3,), direction_x="other.pt").axes()[0].tolist() == [0, 0.5, 1]
