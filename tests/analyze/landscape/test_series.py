"""Principal axes against NumPy's singular value decomposition, and projections against geometry."""

import numpy as np
import pytest
import torch

from analyze.landscape import series
from analyze.landscape.series import cosine, inner, length, principal_axes, project
from data_cache import InputError

SHAPES = {"conv": (3, 2, 2), "dense": (4, 5), "bias": (7,), "scale": ()}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())


def as_tensors(vector, dtype=torch.float64):
    parts = np.split(np.asarray(vector), np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])[:-1])
    return {n: torch.from_numpy(p).reshape(s).to(dtype) for (n, s), p in zip(SHAPES.items(), parts, strict=True)}


def flat(tensors):
    return np.concatenate([tensors[name].double().numpy().ravel() for name in SHAPES])


def walk(steps, seed=0):
    """A random walk that ends at the origin, as training ends at the checkpoint."""
    path = np.random.default_rng(seed).normal(size=(steps, SIZE)).cumsum(axis=0)
    return path - path[-1]


@pytest.mark.parametrize("steps", [2, 3, 5, 60])
@pytest.mark.parametrize("count", [1, 2])
def test_axes_are_the_right_singular_vectors(steps, count):
    matrix = np.random.default_rng(1).normal(size=(steps, SIZE)) * np.arange(1, SIZE + 1)
    axes, shares = principal_axes([as_tensors(row) for row in matrix], count)
    _, singular, right = np.linalg.svd(matrix, full_matrices=False)
    assert np.allclose(shares, singular[:count] ** 2 / (singular**2).sum(), rtol=1e-12)
    found = np.stack([flat(axis) for axis in axes])
    unit = np.linalg.norm(found, axis=1)
    assert np.allclose(unit, unit[0], rtol=1e-12)  # one length: angles in the plane are true
    assert np.allclose(np.abs((found / unit[:, None] * right[:count]).sum(axis=1)), 1, rtol=0, atol=1e-10)
    coordinates = matrix @ found.T / unit[0] ** 2
    assert np.abs(coordinates).max() == pytest.approx(0.9, rel=1e-12)
    farthest = coordinates[np.abs(coordinates).argmax(axis=0), range(count)]
    assert (farthest > 0).all()


def test_axes_do_not_depend_on_how_they_are_summed(monkeypatch):
    steps = [as_tensors(row) for row in walk(9)]
    whole, shares = principal_axes(steps)
    monkeypatch.setattr(series, "_CHUNK", 5)
    parts, same = principal_axes(steps)
    assert np.allclose(shares, same, rtol=1e-12)
    assert all(np.allclose(flat(a), flat(b), rtol=0, atol=1e-10 * length(a)) for a, b in zip(whole, parts, strict=True))


def test_the_origin_itself_in_a_series_changes_nothing():
    path = walk(8)
    with_end, shares = principal_axes([as_tensors(row) for row in path])
    without, same = principal_axes([as_tensors(row) for row in path[:-1]])
    assert np.allclose(shares, same, rtol=1e-12)
    assert all(np.allclose(flat(a), flat(b), rtol=0, atol=1e-10) for a, b in zip(with_end, without, strict=True))


def test_float32_weights_are_summed_in_float64():
    path = walk(12)
    double, shares = principal_axes([as_tensors(row) for row in path])
    single, same = principal_axes([as_tensors(row, torch.float32) for row in path])
    assert all(tensor.dtype == torch.float32 for axis in single for tensor in axis.values())
    assert np.allclose(shares, same, rtol=1e-6)
    # rounding of the weights turns the axes by eps times the ratio of the singular values, here below 10
    assert all(np.linalg.norm(flat(a) - flat(b)) < 1e-5 * length(a) for a, b in zip(double, single, strict=True))


@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_on_a_line_span_no_plane(scale, dtype):
    line = np.random.default_rng(2).normal(size=SIZE)
    steps = [as_tensors(scale * t * line, dtype) for t in (1.0, 0.3, 0.7, 0.0)]
    with pytest.raises(InputError, match="span no plane"):
        principal_axes(steps)
    assert principal_axes(steps, 1)[1] == pytest.approx(1)
    with pytest.raises(InputError, match="span no line"):
        principal_axes([as_tensors(np.zeros(SIZE), dtype)], 1)


@pytest.mark.parametrize("angle", [np.pi / 2, 0.3, 0.01])
@pytest.mark.parametrize("lengths", [(1, 1), (1e-3, 50)])
def test_point_in_the_plane_is_found_exactly(angle, lengths):
    basis = np.linalg.qr(np.random.default_rng(3).normal(size=(SIZE, 3)))[0].T
    a = lengths[0] * basis[0]
    b = lengths[1] * (np.cos(angle) * basis[0] + np.sin(angle) * basis[1])
    axes, point = [as_tensors(a), as_tensors(b)], (0.7, -1.3)
    inside = point[0] * a + point[1] * b
    coordinates, distance = project(as_tensors(inside), axes)
    condition = 4 / np.sin(angle) ** 2
    largest = np.abs(point) * lengths
    assert (np.abs(coordinates - point) * lengths <= 1e-15 * condition * largest.max()).all()
    assert distance <= 1e-15 * condition * np.linalg.norm(inside)
    coordinates, distance = project(as_tensors(inside + 2.5 * basis[2]), axes)
    assert distance == pytest.approx(2.5, rel=1e-12)
    assert (np.abs(coordinates - point) * lengths <= 1e-15 * condition * (largest.max() + 2.5)).all()


def test_projection_equals_numpys_least_squares():
    rng = np.random.default_rng(4)
    axes, point = rng.normal(size=(2, SIZE)), rng.normal(size=SIZE)
    exact, squared, _, _ = np.linalg.lstsq(axes.T, point, rcond=None)
    coordinates, distance = project(as_tensors(point), [as_tensors(axis) for axis in axes])
    assert np.allclose(coordinates, exact, rtol=1e-12)
    assert distance == pytest.approx(np.sqrt(squared[0]), rel=1e-12)


def test_parameters_that_no_axis_moves_count_for_the_distance():
    axis = {"dense": torch.tensor([[2.0, 0.0]])}
    step = {"dense": torch.tensor([[3.0, 4.0]]), "bias": torch.tensor([12.0])}
    coordinates, distance = project(step, [axis])
    assert coordinates.tolist() == [1.5]
    assert distance == pytest.approx(np.hypot(4, 12), rel=1e-15)


def test_inner_products_and_angles(monkeypatch):
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, SIZE))
    for chunk in (3, 1 << 20):
        monkeypatch.setattr(series, "_CHUNK", chunk)
        assert inner(as_tensors(a), as_tensors(b)) == pytest.approx(a @ b, rel=1e-12)
    assert length(as_tensors(a)) == pytest.approx(np.linalg.norm(a), rel=1e-14)
    assert cosine(as_tensors(a), as_tensors(b)) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert cosine(as_tensors(a), {}) != cosine(as_tensors(a), {})  # NaN
    many = {str(number): torch.tensor([number]) for number in 1e3 ** np.linspace(-3, 3, 40)}
    total = 0.0
    for tensor in many.values():  # in this order, whatever the strings' hashes are today
        total += tensor.item() ** 2
    assert inner(many, dict(reversed(many.items()))) == total
    half = {"dense": as_tensors(b)["dense"]}
    assert inner(as_tensors(a), half) == pytest.approx((as_tensors(a)["dense"] * half["dense"]).sum().item())
