"""Krylov spaces and what the solvers share, against dense linear algebra."""

import numpy as np
import pytest
import torch
from matrices import DTYPES, bulk, diagonal, rotated

from analyze.hessian.krylov import Deflated, KrylovSpace, NoMemoryError, allocate, dot, multiply


def normal(size, dtype=torch.float64, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def orthonormal(rows, size, dtype=torch.float64, seed=0):
    return torch.linalg.qr(normal((size, rows), seed=seed))[0].T.contiguous().to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_vectors_go_through_matmat_and_one_through_matvec(dtype):
    operator = rotated(bulk(60), dtype)
    vectors = normal((3, 60), dtype)
    expected = vectors.double() @ operator.matrix.double()
    # a sum of 60 products, each rounded
    close = {"rtol": 0, "atol": 60 * torch.finfo(dtype).eps}
    torch.testing.assert_close(multiply(operator, vectors).double(), expected, **close)
    torch.testing.assert_close(multiply(operator, vectors[:1]).double(), expected[:1], **close)
    torch.testing.assert_close(multiply(operator, vectors[0]).double(), expected[0], **close)
    assert operator.calls == [3, 1, 1]


@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 5)])
def test_products_of_the_wrong_shape_say_so(shape):
    operator = diagonal(bulk(5))
    operator.matvec = operator.matmat = lambda v: v[..., :1]
    with pytest.raises(ValueError, match=r"A product of the operator has shape"):
        multiply(operator, torch.ones(shape, dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("deflated", [0, 1, 7])
def test_deflation_projects_both_sides(dtype, deflated):
    operator, basis = rotated(bulk(80), dtype), orthonormal(deflated, 80, dtype)
    keep = torch.eye(80, dtype=torch.float64) - basis.double().T @ basis.double()
    dense = keep @ operator.matrix.double() @ keep
    vectors = normal((4, 80), dtype)
    before = vectors.clone()
    smaller = Deflated(operator, basis)
    expected = vectors.double() @ dense
    # vectors of norm 9 through sums of 80 terms
    close = {"rtol": 0, "atol": 200 * torch.finfo(dtype).eps}
    torch.testing.assert_close(smaller.matmat(vectors).double(), expected, **close)
    torch.testing.assert_close(smaller.matvec(vectors[1]).double(), expected[1], **close)
    assert torch.equal(vectors, before)


def test_rounding_does_not_bring_a_deflated_eigenvalue_back():
    # float32: what is left of the vector of 1e4 is an eps of each vector, and would grow a thousandfold at each step
    spectrum = np.r_[bulk(500), 1e4]
    basis = torch.zeros(1, 501)
    basis[0, -1] = 1
    operator = Deflated(diagonal(spectrum, torch.float32), basis)
    space = KrylovSpace(operator, 60, operator.project(normal((1, 501), torch.float32))[0])
    while space.count < 60:
        space.step()
    assert space.ritz()[0].max() <= spectrum[:-1].max() * (1 + 1e-5)


def space_of(operator, capacity=12, seed=0):
    return KrylovSpace(operator, capacity, normal(operator.size, operator.dtype, seed))


def assert_growth(space, spectrum, start):
    """`log_growth` against the vectors themselves: along axis i, p(H) z has p(lambda_i) z_i."""
    values = space.ritz()[0]
    seen = space.newest.numpy()
    growth = space.log_growth(values, spectrum, np.zeros(len(spectrum)))
    # an entry is known to some 1e-12, from rounding that has been magnified: to 1e-6 of it where it isn't tiny itself
    clear = np.abs(seen) > 1e-4
    assert clear.sum() > 20
    np.testing.assert_allclose(growth[clear], np.log(np.abs(seen / start))[clear], atol=1e-6)


def test_growth_is_that_of_the_vector_itself_also_after_restarts():
    spectrum = np.r_[bulk(200), 4.0, 6, -5]
    space = space_of(diagonal(spectrum))
    start = space.newest.numpy().copy()
    for _ in range(3):
        while space.count < 12:
            space.step()
            assert_growth(space, spectrum, start)
        space.restart(*space.ritz(), np.array([0, 1, 9, 10, 11]))
        assert_growth(space, spectrum, start)


def test_growth_starts_anew_with_a_new_vector_beside_the_pairs_found():
    spectrum = np.r_[bulk(200), 40.0, 60, -50]
    space = space_of(diagonal(spectrum), capacity=40)
    while space.count < 40:
        space.step()
    values, coordinates = space.ritz()
    space.restart(values, coordinates, np.array([39, 38, 0]), keep_next=False)
    space.append(normal(203, seed=1))
    # without the pairs found, which have converged to 1e-12
    start = space.newest.numpy().copy()
    for _ in range(5):
        space.step()
        assert_growth_of_rest(space, spectrum, start)


def assert_growth_of_rest(space, spectrum, start):
    growth = space.log_growth(space.ritz()[0], spectrum[:200], np.zeros(200))
    seen = space.newest.numpy()[:200]
    clear = np.abs(seen) > 1e-4
    np.testing.assert_allclose(growth[clear], np.log(np.abs(seen / start[:200]))[clear], atol=1e-6)


def test_blur_bounds_the_distance_to_a_ritz_value():
    space = space_of(diagonal(bulk(50)))
    for _ in range(4):
        space.step()
    values = space.ritz()[0]
    at, blur = values[-1:], np.array([0.25])
    assert space.log_growth(values, at, np.zeros(1)) < -100
    others = np.maximum(np.abs(at - values[:-1]), 0.25)
    norms = [space.projected[j + 1, j] for j in range(4)]
    expected = np.log(others).sum() + np.log(0.25) - np.log(norms).sum()
    np.testing.assert_allclose(space.log_growth(values, at, blur), expected, rtol=1e-12)


def test_a_product_computed_elsewhere_is_the_same_step():
    operator = rotated(bulk(100), torch.float32)
    alone, together = space_of(operator), space_of(operator)
    for _ in range(6):
        alone.step()
        together.step(operator.matvec(together.newest))
    assert torch.equal(alone.vectors[:7], together.vectors[:7])
    np.testing.assert_array_equal(alone.projected, together.projected)


def test_more_than_the_memory_there_is_says_how_much():
    operator = diagonal(np.ones(1_000_000), torch.float32)
    # 4 petabytes, beyond any address space that a machine would lend
    with pytest.raises(NoMemoryError, match=r"1000000000 vectors \(4,000,000,000,000,000 bytes\)"):
        allocate(1_000_000_000, operator)


@pytest.mark.parametrize("error", [MemoryError("no"), torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")])
def test_every_kind_of_exhausted_memory_is_said_alike(error, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(NoMemoryError, match=r"No memory for a basis of 3 vectors \(120 bytes\)"):
        allocate(3, diagonal(bulk(5)))


def test_inner_products_are_summed_in_float64():
    ones = torch.full((3_000_000,), 0.1)
    # the sum of float32 squares, each exact in float64
    assert dot(ones, ones) == pytest.approx(3e6 * float(ones[0]) ** 2, rel=1e-12)
