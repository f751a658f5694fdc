"""Stochastic Lanczos quadrature, with and without deflation, against matrices with known spectra."""

import numpy as np
import pytest
import torch
from matrices import DTYPES, MatrixOperator, TransformedOperator, bulk, diagonal, rotated
from scipy.fft import dct
from scipy.stats import wasserstein_distance

from analyze.hessian.density import grow, is_complete, rademacher, slq_group, slq_probe
from analyze.hessian.lanczos import extreme_eigenpairs
from analyze.hessian.spec import Config
from data_cache import InputError

OUTLIERS = [100, 60, 35, 20, 10, -5, -8]


def slq(operator, *, probes=4, steps=30, seed=0):
    """One after the other, as a grown density has them."""
    pairs = [slq_probe(operator, seed, p, steps) for p in range(probes)]
    return np.stack([nodes for nodes, _ in pairs]), np.stack([weights for _, weights in pairs])


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
    operator = diagonal(spectrum, dtype)
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
    operator = diagonal(spectrum, dtype)
    nodes, weights = slq(operator, probes=4, steps=30)
    distance = wasserstein_distance(nodes.ravel(), spectrum, weights.ravel() / 4)
    assert distance < 0.01 * np.ptp(spectrum)


def test_a_hundred_float32_steps_make_no_ghosts():
    # without reorthogonalisation: 18 copies of the top value at 100 steps
    spectrum = np.r_[np.abs(bulk(2993)) / 10, 100, 60, 35, 20, 10, -5, -8]
    operator = diagonal(spectrum, torch.float32)
    nodes, weights = slq(operator, probes=2, steps=100)
    z = np.stack([rademacher(3000, 0, p).numpy() for p in range(2)])
    for outlier in [100, 60, 35, 20, 10, -5, -8]:
        near = np.abs(nodes - outlier) < 1e-3 * abs(outlier)
        assert (near.sum(axis=1) == 1).all()
        # a sign vector sees each axis with weight 1 / n
        np.testing.assert_allclose(weights[near], z[:, 0] ** 2 / 3000, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_probe_is_the_same_bits_in_any_group_where_several_products_round_like_one(dtype):
    operator = TransformedOperator(torch.from_numpy(bulk(250)).to(dtype))
    nodes, weights = slq_group(operator, 3, [0, 1, 2, 5], 10)
    for row, probe in enumerate([0, 1, 2, 5]):
        alone = slq_probe(operator, 3, probe, 10)
        np.testing.assert_array_equal(nodes[row], alone[0])
        np.testing.assert_array_equal(weights[row], alone[1])
    assert not np.array_equal(nodes[0], nodes[1])
    assert not np.array_equal(nodes[0], slq_probe(operator, 4, 0, 10)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_agree_with_single_probes_to_rounding(dtype):
    operator = rotated(bulk(200), dtype)
    nodes, weights = slq_group(operator, 0, range(3), 12)
    assert set(operator.calls) == {3}
    alone = slq(operator, probes=3, steps=12)
    # 12 steps of products that are rounded otherwise; the ill-conditioned nodes are those of little weight
    for power in (1, 2, 3):
        moments = [(w * n**power).sum(axis=1) for n, w in ((nodes, weights), alone)]
        np.testing.assert_allclose(*moments, atol=1e3 * torch.finfo(dtype).eps)


def test_spaces_that_close_leave_the_group_and_the_others_go_on():
    # all ones: from (1, 1, 1), an eigenvector, the space closes at once, from others after two steps
    operator = MatrixOperator(torch.ones(3, 3, dtype=torch.float64))
    nodes, weights = slq_group(operator, 0, range(8), 3)
    assert operator.calls[0] == 8 > operator.calls[1]
    for probe in range(8):
        on_three = float(rademacher(3, 0, probe, torch.float64).sum()) ** 2 / 9
        for power in range(1, 4):
            assert weights[probe] @ nodes[probe] ** power == pytest.approx(on_three * 3**power, abs=1e-13)


HALF_NORMAL = np.abs(bulk(2993)) / 10
HEAVY_TAILED = np.minimum(np.random.default_rng(0).pareto(2, 2993), 50) / 10


def with_outliers(tail):
    """Five outliers above a bulk, and two below, n = 3000."""
    spectrum = np.r_[tail, OUTLIERS]
    return spectrum, TransformedOperator(torch.from_numpy(spectrum).float())


def deflated(operator, tolerance=1e-3):
    pairs = extreme_eigenpairs(operator, largest=5, smallest=2, tolerance=tolerance)
    vectors = torch.cat([pairs.largest_vectors, pairs.smallest_vectors])
    return vectors, np.r_[pairs.largest, pairs.smallest], np.r_[pairs.largest_residual, pairs.smallest_residual], pairs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [True, False])
def test_deflated_moments_are_those_of_the_projected_matrix(dtype, exact):
    operator = rotated(np.r_[bulk(290), np.geomspace(5, 100, 10)], dtype)
    dense = operator.matrix.double()
    if exact:
        vectors = torch.linalg.eigh(dense)[1][:, -6:].T.contiguous().to(dtype)
    else:  # any orthonormal rows
        vectors = torch.linalg.qr(torch.from_numpy(np.random.default_rng(1).normal(size=(300, 6))))[0].T.to(dtype)
    nodes, weights = slq_probe(operator, 2, 1, 15, deflate=vectors)
    keep = torch.eye(300, dtype=torch.float64) - vectors.double().T @ vectors.double()
    z = keep @ rademacher(300, 2, 1, torch.float64)
    share = 294 / 300 / float(z @ z)
    product = keep @ dense @ z
    eps = 20 * torch.finfo(dtype).eps
    assert weights.sum() == pytest.approx(294 / 300, rel=1e-14)
    assert weights @ nodes == pytest.approx(share * float(z @ product), abs=100 * eps)
    assert weights @ nodes**2 == pytest.approx(share * float(product @ product), abs=100**2 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [10, 25])
def test_with_as_many_steps_as_are_left_deflation_gives_the_rest_of_the_spectrum(dtype, steps):
    spectrum = np.r_[-5.0, -2, -1, 0, 0.5, 1, 2, 3, 5, 8, 40, 60]
    operator = rotated(spectrum, dtype)
    values, vectors = torch.linalg.eigh(operator.matrix.double())
    nodes, weights = slq_probe(operator, 0, 0, steps, deflate=vectors[:, -2:].T.contiguous().to(dtype))
    # rounding of the dense matrix: eps times its norm
    np.testing.assert_allclose(nodes[:10], spectrum[:10], atol=60 * 10 * torch.finfo(dtype).eps)
    assert (weights[10:] == 0).all()
    assert weights.sum() == pytest.approx(10 / 12, rel=1e-14)


def test_deflating_everything_leaves_nothing():
    operator = rotated([1.0, 2, 3])
    vectors = torch.linalg.eigh(operator.matrix)[1].T.contiguous()
    nodes, weights = slq_probe(operator, 0, 0, 4, deflate=vectors)
    assert (nodes.shape, nodes.any(), weights.any(), operator.products) == ((4,), False, False, 0)
    found = list(grow(operator, 0, Config(probes=1, steps=4), vectors=vectors, values=[1.0, 2, 3], residuals=[0.0] * 3))
    assert np.trapezoid(found[-1].density, found[-1].x) == pytest.approx(1, abs=1e-8)


def without_reorthogonalisation(operator, z, steps):
    """The textbook's three-term recurrence, in the operator's dtype: the baseline."""
    diagonal_, coupling = [], []
    v, before, beta = z / z.norm(), torch.zeros_like(z), 0.0
    for _ in range(steps):
        w = operator.matvec(v) - beta * before
        alpha = w @ v
        w = w - alpha * v
        beta = w.norm()
        before, v = v, w / beta
        diagonal_.append(float(alpha))
        coupling.append(float(beta))
    nodes, vectors = np.linalg.eigh(np.diag(diagonal_) + np.diag(coupling[:-1], 1) + np.diag(coupling[:-1], -1))
    return nodes, vectors[0] ** 2


@pytest.mark.parametrize("tail", [HALF_NORMAL, HEAVY_TAILED])
def test_thirty_deflated_steps_are_within_one_percent_and_twice_as_good_as_without_reorthogonalising(tail):
    spectrum, operator = with_outliers(tail)
    probes, steps = 8, 30
    vectors, values, _, pairs = deflated(operator)
    nodes, weights = slq_group(operator, 0, range(probes), steps, deflate=vectors)
    ours = wasserstein_distance(
        np.r_[nodes.ravel(), values], spectrum, np.r_[weights.ravel() / probes, np.full(7, 1 / 3000)]
    )
    # of the bulk's range, a hundredth of which is far below one of the whole range
    assert ours < 0.01 * np.ptp(tail)
    # as many products, those for the outliers included
    more = steps + -(-pairs.products // probes)
    plain = [without_reorthogonalisation(operator, rademacher(3000, 0, p), more) for p in range(probes)]
    nodes, weights = (np.concatenate(parts) for parts in zip(*plain, strict=True))
    assert ours < wasserstein_distance(nodes, spectrum, weights / probes) / 2


def test_outliers_with_residuals_of_a_thousandth_deflate_as_well_as_exact_ones():
    spectrum, operator = with_outliers(HALF_NORMAL)
    exact = torch.from_numpy(dct(np.eye(3000)[-7:], norm="ortho"))
    error = torch.from_numpy(np.random.default_rng(3).normal(size=(7, 3000))) / np.sqrt(3000)
    rough = torch.linalg.qr((exact + 1e-3 * error).T)[0].T
    products = operator.matmat(rough.float()).double()
    values = (rough * products).sum(1)
    residuals = (products - values[:, None] * rough).norm(dim=1).numpy()
    # as a search to 1e-3 may leave them
    assert (residuals > 0.9e-3 * np.abs(OUTLIERS)).all()
    distances = []
    for rows, known in ((exact, np.array(OUTLIERS)), (rough, values.numpy())):
        nodes, weights = slq_group(operator, 0, range(8), 30, deflate=rows.float())
        everything = np.r_[nodes.ravel(), known], spectrum, np.r_[weights.ravel() / 8, np.full(7, 1 / 3000)]
        distances.append(wasserstein_distance(*everything))
    # the block that is dropped is of rank 14 at most, and of the norm sqrt(2) ||r||: eigenvalues move by that in all
    moved = np.sqrt(14) * np.sqrt(2) * np.linalg.norm(residuals) / 3000
    assert moved < 0.1 * distances[0]
    assert abs(distances[1] - distances[0]) < moved + 0.02 * distances[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_and_second_moment_are_unbiased_with_deflation(dtype):
    operator = rotated(np.r_[bulk(293), OUTLIERS], dtype)
    dense = operator.matrix.double()
    vectors, values, residuals, _ = deflated(operator)
    found = list(grow(operator, 0, Config(probes=60, steps=3), vectors=vectors, values=values, residuals=residuals))[-1]
    for power, exact in ((1, float(dense.trace())), (2, float(dense.norm() ** 2))):
        samples = 300 * (found.weight * found.node**power).sum(axis=1) + (found.outlier**power).sum()
        error = samples.std(ddof=1) / np.sqrt(60)
        # residuals of 1e-3 lambda: what is dropped adds 2 ||r||^2 to the second moment, below 0.1
        assert abs(samples.mean() - exact) < 4 * error + 0.1 * (power == 2)


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("deflate", [False, True])
def test_a_run_resumed_after_any_group_ends_in_the_same_bits(group, deflate):
    operator = rotated(np.r_[bulk(200), 30, 20, -9], torch.float32, group=group)
    config = Config(probes=5, steps=8)
    pairs = extreme_eigenpairs(operator, largest=2, smallest=1)
    known = {}
    if deflate:
        vectors = torch.cat([pairs.largest_vectors, pairs.smallest_vectors])
        known = {"vectors": vectors, "values": np.r_[pairs.largest, pairs.smallest], "residuals": [3e-3, 2e-3, 1e-3]}
    whole = list(grow(operator, 3, config, **known))
    assert [len(found.node) for found in whole] == {1: [1, 2, 3, 4, 5], 2: [2, 4, 5], 3: [3, 5]}[group]
    for done in whole[:-1]:
        assert not is_complete(done, config)
        resumed = list(grow(operator, 3, config, done, **known))[-1]
        for field in ("node", "weight", "outlier", "outlier_residual", "width", "x", "density"):
            np.testing.assert_array_equal(getattr(resumed, field), getattr(whole[-1], field))
    assert is_complete(whole[-1], config)
    assert list(grow(operator, 3, config, whole[-1], **known)) == []
    if deflate:  # ascending, each with its own residual
        assert (np.diff(whole[-1].outlier) > 0).all()
        np.testing.assert_array_equal(whole[-1].outlier_residual, [1e-3, 2e-3, 3e-3])
    else:
        assert whole[-1].outlier.shape == whole[-1].outlier_residual.shape == (0,)


def test_a_grown_density_sums_to_one_and_its_width_is_that_of_the_deflated_range():
    spectrum, operator = with_outliers(HALF_NORMAL)
    vectors, values, residuals, _ = deflated(operator)
    found = list(grow(operator, 0, Config(steps=20), vectors=vectors, values=values, residuals=residuals))[-1]
    assert found.weight.sum(axis=1) + 7 / 3000 == pytest.approx([1, 1], rel=1e-14)
    # the halfnormal tail ends at 0.4, and the outliers at 100
    assert found.width == pytest.approx(np.ptp(found.node) / 20)
    assert found.width < np.ptp(spectrum[:-7]) / 18
    assert np.trapezoid(found.density, found.x) == pytest.approx(1, abs=1e-8)
    for outlier in OUTLIERS:  # a spike of the mass 1 / n
        near = np.abs(found.x - outlier) < 9 * found.width
        assert np.trapezoid(found.density[near], found.x[near]) == pytest.approx(1 / 3000, rel=1e-6)


def test_progress_counts_products_over_all_probes():
    operator, seen = rotated(bulk(50), group=2), []
    list(grow(operator, 0, Config(probes=3, steps=4), progress=lambda *report: seen.append(report)))
    assert [count for _, count, _, _ in seen] == [2, 4, 6, 8, 9, 10, 11, 12]
    assert {(part, total) for part, _, total, _ in seen} == {("density", 12)}
    assert [note for *_, note in seen][::4] == ["probes 1 to 2", "probe 3"]


def test_a_basis_beyond_the_memory_says_what_it_needs_and_what_to_lower(monkeypatch):
    operator = diagonal(np.ones(1_000_000), torch.float32, group=4)
    config = Config(probes=1, steps=300, basis_memory=1.0)
    with pytest.raises(
        InputError, match=r"300 steps need a basis of 1.12 GiB, but --basis-memory is 1: lower --steps to 267"
    ):
        next(grow(operator, 0, config))

    def refuse(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(InputError, match="No memory for a basis of 5 vectors .* Lower --steps"):
        next(grow(operator, 0, Config(probes=1, steps=4)))


def test_groups_shrink_to_what_the_memory_holds():
    operator = rotated(bulk(1000), torch.float32, group=4)
    bases = 2.5 * 5 * 4000 / 2**30  # of 5 vectors of 4000 bytes
    list(grow(operator, 0, Config(probes=4, steps=4, basis_memory=bases)))
    assert set(operator.calls) == {2}


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


def test_bad_input_says_what_was_expected():
    with pytest.raises(ValueError, match="steps=0"):
        slq_probe(rotated(bulk(5)), 0, 0, 0)


@pytest.mark.parametrize("probes", [[0], [0, 1]])
def test_a_product_that_is_not_finite_raises(probes):
    with pytest.raises(FloatingPointError, match="Product 1 "):
        slq_group(diagonal([1.0, np.nan, 2.0]), 0, probes, 3)
