"""Stochastic Lanczos quadrature and the trace, against matrices with known spectra."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from analyze.hessian.density import rademacher, slq, slq_probe, trace_estimate, trace_sample

DTYPES = [torch.float32, torch.float64]


class MatrixOperator:
    """A dense symmetric matrix, or a diagonal one given as a vector."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device

    def matvec(self, v):
        return self.matrix * v if self.matrix.ndim == 1 else self.matrix @ v


def rotated(spectrum, dtype=torch.float64, seed=0):
    """Q diag(spectrum) Q^T with a random orthogonal Q."""
    spectrum = np.asarray(spectrum, dtype=np.float64)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum),) * 2))[0]
    return MatrixOperator(torch.from_numpy((q * spectrum) @ q.T).to(dtype))


def bulk(size, seed=0):
    return np.random.default_rng(seed).normal(size=size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_first_two_moments_of_each_probe_are_exact(dtype):
    operator = rotated(np.r_[bulk(290), np.geomspace(5, 100, 10)], dtype)
    nodes, weights = slq(operator, probes=3, steps=20, seed=7)
    for p in range(3):
        z = rademacher(300, 7, p, torch.float64)
        product = operator.matrix.double() @ z
        # the products are rounded to eps of their norm, and eigh to some eps of the norm 100
        eps = 20 * torch.finfo(dtype).eps
        mean = float(z @ product) / 300
        assert weights[p] @ nodes[p] == pytest.approx(mean, abs=100 * eps)
        assert weights[p] @ nodes[p] ** 2 == pytest.approx(float(product @ product) / 300, abs=100**2 * eps)
        sum_of_roundings = float(z.norm() * product.norm())
        assert trace_sample(operator, 7, p) == pytest.approx(300 * mean, abs=sum_of_roundings * eps)


def test_moments_up_to_degree_2m_minus_1_are_exact():
    operator = rotated(bulk(100))
    nodes, weights = slq_probe(operator, 0, 0, 4)
    z = rademacher(100, 0, 0, torch.float64)
    values, vectors = torch.linalg.eigh(operator.matrix)
    weight = (vectors.T @ z) ** 2 / 100
    for degree in range(8):
        # absolute, for the odd moments nearly cancel; the sums of absolute values are below 100
        assert weights @ nodes**degree == pytest.approx(float(weight @ values**degree), abs=1e-11)
    assert abs(weights @ nodes**8 - float(weight @ values**8)) > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [12, 13, 40])
def test_as_many_steps_as_rows_give_the_spectrum_itself(dtype, steps):
    spectrum = np.array([-5.0, -2, -1, 0, 0.5, 1, 2, 3, 5, 8, 13, 21])
    operator = rotated(spectrum, dtype)
    nodes, weights = slq(operator, probes=2, steps=steps)
    assert nodes.shape == weights.shape == (2, steps)
    # rounding of the dense matrix: eps times its norm
    np.testing.assert_allclose(nodes[:, :12], [spectrum, spectrum], atol=21 * 10 * torch.finfo(dtype).eps)
    assert (weights[:, 12:] == 0).all()
    assert (nodes[:, 12:] == nodes[:, 11:12]).all()
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    z = rademacher(12, 0, 1, torch.float64).numpy()
    # weights move with the eigenvectors: eps times the norm over the smallest gap of 0.5
    np.testing.assert_allclose(weights[1, :12], (q.T @ z) ** 2 / 12, atol=42 * 10 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spectrum", [np.zeros(50), np.ones(50), 1e-12 * bulk(50), 1e12 * bulk(50), [4.0]])
def test_weights_are_a_distribution_and_nodes_ascend(spectrum, dtype):
    operator = MatrixOperator(torch.as_tensor(np.asarray(spectrum), dtype=dtype))
    nodes, weights = slq(operator, probes=2, steps=7)
    assert nodes.shape == weights.shape == (2, 7)
    assert nodes.dtype == weights.dtype == np.float64
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-14)
    assert (weights >= 0).all()
    assert (np.diff(nodes, axis=1) >= 0).all()
    assert nodes.min() >= np.min(spectrum) - 1e-6 * np.abs(spectrum).max()
    assert nodes.max() <= np.max(spectrum) + 1e-6 * np.abs(spectrum).max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_thirty_steps_are_within_one_percent_of_a_smooth_spectrum(dtype):
    spectrum = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 20000)) + 0.5
    operator = MatrixOperator(torch.from_numpy(spectrum).to(dtype))
    nodes, weights = slq(operator, probes=4, steps=30)
    distance = wasserstein_distance(nodes.ravel(), spectrum, weights.ravel() / 4)
    assert distance < 0.01 * np.ptp(spectrum)


def test_a_hundred_float32_steps_make_no_ghosts():
    # hessian.md section 5.3: without reorthogonalisation, 18 copies of the top value at 100 steps
    spectrum = np.r_[np.abs(bulk(2993)) / 10, 100, 60, 35, 20, 10, -5, -8]
    operator = MatrixOperator(torch.from_numpy(spectrum).float())
    nodes, weights = slq(operator, probes=2, steps=100)
    z = np.stack([rademacher(3000, 0, p).numpy() for p in range(2)])
    for outlier in [100, 60, 35, 20, 10, -5, -8]:
        near = np.abs(nodes - outlier) < 1e-3 * abs(outlier)
        assert (near.sum(axis=1) == 1).all()
        # a sign vector sees each axis with weight 1 / n
        np.testing.assert_allclose(weights[near], z[:, 0] ** 2 / 3000, rtol=1e-4)


def test_a_probe_does_not_depend_on_how_many_there_are():
    operator = rotated(bulk(200), torch.float32)
    nodes, weights = slq(operator, probes=4, steps=10, seed=3)
    later = slq(operator, probes=2, steps=10, seed=3, first_probe=2)
    alone = slq_probe(operator, 3, 2, 10)
    np.testing.assert_array_equal(nodes[2:], later[0])
    np.testing.assert_array_equal(weights[2:], later[1])
    np.testing.assert_array_equal(nodes[2], alone[0])
    assert not np.array_equal(nodes[0], nodes[1])
    assert not np.array_equal(nodes[0], slq_probe(operator, 4, 0, 10)[0])


def test_products_are_counted_over_all_probes():
    seen = []
    slq(rotated(bulk(50)), probes=3, steps=5, on_product=seen.append)
    assert seen == list(range(1, 16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_signs_are_the_same_in_every_dtype_and_leave_the_global_generator_alone(dtype):
    state = torch.get_rng_state()
    signs = rademacher(10001, 5, 2, dtype)
    assert torch.equal(torch.get_rng_state(), state)
    assert signs.dtype == dtype
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert torch.equal(signs.float(), rademacher(10001, 5, 2))
    # the mean and the overlap of independent signs have a standard deviation of 0.01
    assert abs(signs.mean()) < 0.05
    for seed, probe in [(5, 3), (6, 2), (2, 5)]:
        assert abs((signs * rademacher(10001, seed, probe, dtype)).mean()) < 0.05


@pytest.mark.parametrize("dtype", DTYPES)
def test_trace_and_frobenius_norm_are_within_their_standard_errors(dtype):
    operator = rotated(np.r_[bulk(290), np.geomspace(5, 100, 10)], dtype)
    matrix = operator.matrix.double()
    trace, error = trace_estimate([trace_sample(operator, 0, p) for p in range(60)])
    assert abs(trace - float(matrix.trace())) < 4 * error
    # Rademacher: the variance of one sample is twice the squared norm of the off-diagonal part;
    # that of 60 samples is itself known to 1 / sqrt(2 * 59) = 9 %, and these have a heavier tail
    off_diagonal = matrix - matrix.diag().diag()
    assert error == pytest.approx(float(off_diagonal.norm()) * np.sqrt(2 / 60), rel=0.4)
    nodes, weights = slq(operator, probes=60, steps=2)
    square, error = trace_estimate(300 * (weights * nodes**2).sum(axis=1))
    assert abs(square - float(matrix.norm() ** 2)) < 4 * error


def test_the_trace_of_a_diagonal_matrix_is_exact_and_summed_in_float64():
    spectrum = torch.full((3_000_000,), 0.1)
    # a float32 running sum of 3e6 terms would be off by far more than 1e-9
    assert trace_sample(MatrixOperator(spectrum), 0, 0) == pytest.approx(3e6 * float(spectrum[0]), rel=1e-12)


def test_standard_error_is_that_of_the_mean():
    assert trace_estimate([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, np.sqrt(5 / 3) / 2))


def test_one_sample_has_no_standard_error():
    estimate, error = trace_estimate([3.0])
    assert estimate == 3.0
    assert np.isnan(error)


def test_bad_input_says_what_was_expected():
    operator = rotated(bulk(5))
    with pytest.raises(ValueError, match="steps=0"):
        slq_probe(operator, 0, 0, 0)
    with pytest.raises(ValueError, match="probes=0"):
        slq(operator, probes=0)
    with pytest.raises(ValueError, match="one probe or more"):
        trace_estimate([])


@pytest.mark.parametrize("run", [lambda o: slq_probe(o, 0, 0, 3), lambda o: trace_sample(o, 0, 0)])
def test_a_product_that_is_not_finite_raises(run):
    operator = MatrixOperator(torch.tensor([1.0, torch.nan, 2.0]))
    with pytest.raises(FloatingPointError, match="Product 1 "):
        run(operator)
