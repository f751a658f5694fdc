"""Hutchinson's estimate and Hutch++, against exact traces."""

import numpy as np
import pytest
import torch
from matrices import DTYPES, bulk, diagonal, rotated

from analyze.hessian.density import rademacher, slq_probe
from analyze.hessian.krylov import dot
from analyze.hessian.spec import Config
from analyze.hessian.trace import grow, is_complete, probe_product, sketch, trace_estimate, trace_sample
from data_cache import InputError

OUTLIERS = np.r_[bulk(290), np.geomspace(5, 100, 8), -10, -20]


def last(operator, seed=0, **options):
    return list(grow(operator, seed, Config(**options)))[-1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sample_is_the_product_with_a_probe_and_the_mean_node_of_its_quadrature(dtype):
    operator = rotated(OUTLIERS, dtype)
    z = rademacher(300, 7, 2, torch.float64)
    expected = float(z @ operator.matrix.double() @ z)
    # products are rounded to eps of the norm 100 times ||z||^2 = 300
    allowed = 100 * 300 * torch.finfo(dtype).eps
    signs, product = probe_product(operator, 7, 2)
    assert torch.equal(signs.double(), z)
    assert dot(signs, product) == trace_sample(operator, 7, 2) == pytest.approx(expected, abs=allowed)
    nodes, weights = slq_probe(operator, 7, 2, 20)
    assert 300 * weights @ nodes == pytest.approx(expected, abs=20 * allowed)


def test_the_trace_of_a_diagonal_matrix_is_exact_and_summed_in_float64():
    spectrum = torch.full((3_000_000,), 0.1)
    # a float32 running sum of 3e6 terms would be off by far more than 1e-9
    assert trace_sample(diagonal(spectrum, torch.float32), 0, 0) == pytest.approx(3e6 * float(spectrum[0]), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_standard_error_is_that_of_the_off_diagonal_part(dtype):
    operator = rotated(OUTLIERS, dtype)
    matrix = operator.matrix.double()
    found = last(operator, trace_samples=60)
    assert found.sketched == 0
    assert abs(found.estimate - float(matrix.trace())) < 4 * found.stderr
    # Rademacher: the variance of one sample is twice the squared norm of the off-diagonal part;
    # that of 60 samples is itself known to 1 / sqrt(2 * 59) = 9 %, and these have a heavier tail
    off_diagonal = matrix - matrix.diag().diag()
    assert found.stderr == pytest.approx(float(off_diagonal.norm()) * np.sqrt(2 / 60), rel=0.4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sketched", [0, 15])
def test_standard_errors_cover_the_exact_trace(dtype, sketched):
    operator = rotated(OUTLIERS, dtype)
    exact = float(operator.matrix.double().trace())
    runs = [last(operator, seed, trace_samples=10, sketch=sketched) for seed in range(60)]
    within = sum(abs(run.estimate - exact) < 2.26 * run.stderr for run in runs)
    # 95 % of Student's t with 9 degrees of freedom: 57 +- 1.7 of 60; fewer than 50 has a chance of 1e-3
    assert within >= 50
    # unbiased: the mean over all runs, too
    mean, error = trace_estimate([run.estimate for run in runs])
    assert abs(mean - exact) < 4 * error


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sketch_takes_the_outliers_out_of_the_variance(dtype):
    operator = rotated(OUTLIERS, dtype)
    matrix = operator.matrix.double()
    plain, sketched = last(operator, trace_samples=60), last(operator, trace_samples=60, sketch=15)
    assert sketched.stderr < plain.stderr / 4
    basis, trace = sketch(operator, 0, 15)
    basis = basis.double()
    assert trace == sketched.sketched == pytest.approx(float((basis @ matrix @ basis.T).trace()), rel=1e-5)
    keep = torch.eye(300, dtype=torch.float64) - basis.T @ basis
    rest = keep @ matrix @ keep
    z = rademacher(300, 0, 3, torch.float64)
    # float32 rounds sums of 300 terms of up to 100
    assert sketched.samples[3] == pytest.approx(trace + float(z @ rest @ z), abs=3e4 * torch.finfo(dtype).eps)
    off_diagonal = rest - rest.diag().diag()
    assert sketched.stderr == pytest.approx(float(off_diagonal.norm()) * np.sqrt(2 / 60), rel=0.4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_basis_of_a_sketch_is_orthonormal_and_spans_the_range(dtype):
    operator = rotated(np.r_[np.geomspace(1e-3, 1e3, 6), np.zeros(194)], dtype)
    basis, trace = sketch(operator, 1, 6)
    basis = basis.double()
    assert len(basis) <= 6
    assert (basis @ basis.T - torch.eye(len(basis))).abs().max() < 10 * torch.finfo(dtype).eps
    # all of the range that rounding of the matrix leaves visible
    assert trace == pytest.approx(float(operator.matrix.double().trace()), rel=100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_of_lower_rank_than_the_sketch_has_an_exact_trace(dtype):
    operator = rotated(np.r_[3.0, -1, 5, np.zeros(197)], dtype)
    basis, _ = sketch(operator, 0, 10)
    found = last(operator, trace_samples=4, sketch=10)
    # float32 rounds the matrix itself, and so to full rank, at 1e-7 of its norm in each of 200 rows
    assert found.estimate == pytest.approx(float(operator.matrix.double().trace()), abs=3e4 * torch.finfo(dtype).eps)
    if dtype == torch.float64:
        assert len(basis) == 3
    assert last(diagonal(np.zeros(20), dtype), trace_samples=3, sketch=4).estimate == 0


def test_a_sketch_of_all_directions_is_the_trace():
    spectrum = 3 + bulk(40)
    found = last(rotated(spectrum), trace_samples=3, sketch=60)
    np.testing.assert_allclose(found.samples, spectrum.sum(), rtol=1e-13)
    assert found.sketched == pytest.approx(spectrum.sum(), rel=1e-13)


@pytest.mark.parametrize("sketched", [0, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_run_resumed_after_any_sample_ends_in_the_same_bits(sketched, dtype):
    operator, config = rotated(OUTLIERS, dtype), Config(trace_samples=6, sketch=sketched)
    whole = list(grow(operator, 3, config))
    assert [len(found.samples) for found in whole] == [1, 2, 3, 4, 5, 6]
    for done in whole[:-1]:
        resumed = list(grow(operator, 3, config, done))
        assert len(resumed) == 6 - len(done.samples)
        np.testing.assert_array_equal(resumed[-1].samples, whole[-1].samples)
        assert (resumed[-1].estimate, resumed[-1].sketched) == (whole[-1].estimate, whole[-1].sketched)
    assert not is_complete(None, config)
    assert not is_complete(whole[-2], config)
    assert is_complete(whole[-1], config)
    before = operator.products
    assert list(grow(operator, 3, config, whole[-1])) == []
    assert operator.products == before


def test_a_shared_sample_is_used_where_nothing_is_sketched():
    operator = rotated(OUTLIERS)
    shared = [4.0, 6.0, 8.0]
    found = list(grow(operator, 0, Config(trace_samples=3), sample=shared.__getitem__))[-1]
    assert (found.estimate, operator.products) == (6.0, 0)
    found = list(grow(operator, 0, Config(trace_samples=3, sketch=2), sample=shared.__getitem__))[-1]
    assert found.estimate == last(operator, trace_samples=3, sketch=2).estimate


def test_products_are_counted_and_the_sketch_goes_in_groups():
    operator, seen = rotated(bulk(50), group=3), []
    list(grow(operator, 0, Config(trace_samples=4, sketch=5), progress=lambda *report: seen.append(report)))
    assert operator.calls == [3, 2, 3, 2, 1, 1, 1, 1]
    assert [count for _, count, _, _ in seen] == [3, 5, 8, 10, 11, 12, 13, 14]
    assert {(part, total) for part, _, total, _ in seen} == {("trace", 14)}


def test_a_single_sample_has_no_standard_error():
    found = last(rotated(bulk(30)), trace_samples=1)
    assert found.estimate == found.samples[0]
    assert np.isnan(found.stderr)


def test_standard_error_is_that_of_the_mean():
    assert trace_estimate([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, np.sqrt(5 / 3) / 2))
    with pytest.raises(ValueError, match="one probe or more"):
        trace_estimate([])


def test_a_sketch_beyond_the_memory_says_what_to_lower(monkeypatch):
    operator = diagonal(np.ones(1_000_000), torch.float32)
    with pytest.raises(InputError, match="a sketch of 500 directions needs 1.86 GiB, but --basis-memory is 1: lower"):
        last(operator, trace_samples=1, sketch=500, basis_memory=1.0)

    def refuse(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(InputError, match="No memory for a basis of 5 vectors .* Lower --sketch"):
        last(operator, trace_samples=1, sketch=5)


@pytest.mark.parametrize("sketched", [0, 2])
def test_a_product_that_is_not_finite_raises(sketched):
    with pytest.raises(FloatingPointError, match="Product 1 "):
        last(diagonal([1.0, np.nan, 2.0]), trace_samples=2, sketch=sketched)
