"""Extreme eigenpairs of matrices with known spectra, in both dtypes."""

import io

import numpy as np
import pytest
import torch
from matrices import DTYPES, MatrixOperator, bulk, diagonal, rotated
from scipy.sparse.linalg import LinearOperator, eigsh

from analyze.hessian import lanczos
from analyze.hessian.krylov import KrylovSpace
from analyze.hessian.lanczos import extreme_eigenpairs

# Rounding the matrix moves its eigenvalues by eps times its norm, and float32 products add some eps to that.
ROUNDING = {torch.float32: 1e-5, torch.float64: 2e-14}


def explicit_residuals(operator, values, vectors):
    """||H v - lambda v|| / ||v|| in extended precision, where the machine has it."""
    matrix, vectors = (t.numpy().astype(np.longdouble) for t in (operator.matrix, vectors))
    products = matrix * vectors if matrix.ndim == 1 else vectors @ matrix.T
    defect = products - values[:, None] * vectors
    return (np.sqrt((defect**2).sum(1)) / np.sqrt((vectors**2).sum(1))).astype(np.float64)


def assert_both_ends(pairs, spectrum, dtype):
    """Values as in the spectrum, within the residual bound plus the rounding of making the matrix."""
    spectrum = np.sort(spectrum)
    scale = np.abs(spectrum).max()
    allowed = ROUNDING[dtype] * scale
    top, bottom = len(pairs.largest), len(pairs.smallest)
    assert pairs.converged
    assert (np.abs(pairs.largest - spectrum[::-1][:top]) <= pairs.largest_residual + allowed).all()
    assert (np.abs(pairs.smallest - spectrum[:bottom]) <= pairs.smallest_residual + allowed).all()


SPECTRA = {
    "outliers": np.r_[bulk(290), 10, 12, 15, 20, 40, 80, 100, -9, -15, -30],
    "smallest dominates": np.r_[bulk(297) / 10, 1, -3, -5],
    "all negative": -(np.linspace(1, 300, 300) ** 2),
    "cluster at the top": np.r_[np.linspace(0, 0.5, 250), 1, 1 + 1e-6, 1 + 2e-6],
    "tiny": 1e-12 * np.r_[bulk(250), 7, 9, 14, 25, 50, -20],
    "huge": 1e12 * np.r_[bulk(250), 7, 9, 14, 25, 50, -20],
    "one": [3.0],
    "two": [-2.0, 5.0],
    "three": [-2.0, 0.0, 5.0],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECTRA)
def test_finds_both_ends_of_known_spectra(name, dtype):
    spectrum = SPECTRA[name]
    size = len(spectrum)
    operator = rotated(spectrum, dtype)
    pairs = extreme_eigenpairs(operator, largest=min(3, size), smallest=min(2, size), tolerance=1e-5)
    assert_both_ends(pairs, spectrum, dtype)
    assert pairs.products == operator.products


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_are_orthonormal_across_both_ends(dtype):
    operator = rotated(SPECTRA["outliers"], dtype)
    pairs = extreme_eigenpairs(operator, largest=7, smallest=3, basis_size=16, tolerance=1e-4)
    vectors = torch.cat([pairs.largest_vectors, pairs.smallest_vectors]).double()
    assert pairs.largest_vectors.shape == (7, operator.size)
    assert pairs.largest_vectors.dtype == dtype
    # each restart rounds each vector once, and inner products of rounded vectors are off by eps
    assert (vectors @ vectors.T - torch.eye(10)).abs().max() < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("basis_size", [None, 20])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 0.0])
def test_reported_residuals_are_the_explicit_ones(dtype, basis_size, tolerance):
    # tolerance 0 goes down to rounding, where beta |s_last| alone would claim far less than is true
    operator = rotated(SPECTRA["outliers"], dtype)
    pairs = extreme_eigenpairs(
        operator,
        largest=7,
        smallest=3,
        tolerance=tolerance,
        floor=0.0,
        basis_size=basis_size,
        max_products=120,
    )
    reported = np.r_[pairs.largest_residual, pairs.smallest_residual]
    explicit = np.r_[
        explicit_residuals(operator, pairs.largest, pairs.largest_vectors),
        explicit_residuals(operator, pairs.smallest, pairs.smallest_vectors),
    ]
    assert (explicit <= 1.05 * reported).all()
    # the allowance for rounding grows as the root of the number of restarts: 60 eps of the norm 100
    assert (reported <= 1.05 * explicit + 60 * torch.finfo(dtype).eps * 100).all()


@pytest.mark.parametrize("basis_size", [None, 12])
def test_residuals_include_what_makes_the_products_unsymmetric(basis_size):
    # a fixed error of 1e-3 that is not symmetric: beta |s_last| alone goes on falling below that
    noise = torch.from_numpy(1e-3 * np.random.default_rng(1).normal(size=(300, 300)) / np.sqrt(300))
    operator = rotated(SPECTRA["outliers"])
    operator.matrix = operator.matrix + noise
    pairs = extreme_eigenpairs(operator, largest=3, smallest=0, tolerance=1e-9, max_products=60, basis_size=basis_size)
    explicit = explicit_residuals(operator, pairs.largest, pairs.largest_vectors)
    assert (explicit > 1e-4).all()
    # what restarts drop is added as if it were at right angles to what comes later
    np.testing.assert_allclose(pairs.largest_residual, explicit, rtol=0.05 if basis_size is None else 0.3)
    assert not pairs.converged


@pytest.mark.parametrize("basis_size", [None, 14, 24])
def test_no_ghost_copies_in_float32_beyond_fifty_steps(basis_size):
    # the case in which a peer without reorthogonalisation returns eight copies of 100
    spectrum = np.r_[np.random.default_rng(0).uniform(0, 1, 395), 100, 50, 20, 10, 5]
    operator = rotated(spectrum, torch.float32)
    pairs = extreme_eigenpairs(
        operator, largest=8, smallest=0, tolerance=0.0, floor=0.0, max_products=120, basis_size=basis_size
    )
    assert pairs.products == 120
    # rounding the matrix to float32 moves its eigenvalues by eps times its norm
    np.testing.assert_allclose(pairs.largest[:5], [100, 50, 20, 10, 5], atol=100 * 1e-6)
    assert (pairs.largest[5:] <= 1 + 100 * 1e-6).all()
    assert (np.diff(pairs.largest) < -1e-4).all()


@pytest.mark.parametrize(("size", "steps"), [(5000, 150), (1_000_000, 8)])
def test_float32_keeps_the_basis_orthonormal_in_long_runs_and_at_large_sizes(size, steps):
    operator = diagonal(np.r_[bulk(size), 100, 50, 20], torch.float32)
    generator = torch.Generator().manual_seed(0)
    space = KrylovSpace(operator, steps, torch.randn(operator.size, generator=generator))
    for _ in range(steps):
        assert space.step()
    basis = space.vectors[: steps + 1].double()
    # twice is enough: a few eps, no matter how many steps; a float32 sum over a million would leave 400 eps
    overlap = basis @ basis.T - torch.eye(steps + 1)
    assert overlap.abs().max() < 10 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_thick_restart_finds_what_an_unrestarted_run_finds(dtype):
    spectrum = bulk(5000)
    operator = diagonal(spectrum, dtype)
    options = {"largest": 5, "smallest": 2, "tolerance": 1e-4}
    whole = extreme_eigenpairs(operator, basis_size=400, **options)
    restarted = extreme_eigenpairs(operator, basis_size=24, **options)
    assert whole.products < 400
    assert restarted.products > 2 * 24
    assert_both_ends(whole, spectrum, dtype)
    assert_both_ends(restarted, spectrum, dtype)
    # half the basis costs up to 17 % more products; one this much smaller may need more
    assert restarted.products < 1.6 * whole.products


def test_the_smallest_allowed_basis_still_converges():
    spectrum = SPECTRA["outliers"]
    pairs = extreme_eigenpairs(rotated(spectrum), largest=3, smallest=1, basis_size=6, tolerance=1e-6)
    assert_both_ends(pairs, spectrum, torch.float64)


def test_basis_bytes_bounds_the_basis():
    operator = diagonal(bulk(4000), torch.float32)
    shapes = []
    original = operator.matvec
    operator.matvec = lambda v: (shapes.append(v._base.shape), original(v))[1]
    extreme_eigenpairs(operator, largest=2, smallest=1, basis_bytes=12 * 4000 * 4)
    assert set(shapes) == {(12, 4000)}


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scipy(seed):
    spectrum = np.random.default_rng(seed).standard_t(3, size=3000)
    operator = diagonal(spectrum)
    pairs = extreme_eigenpairs(operator, largest=4, smallest=4, tolerance=1e-7, seed=seed)
    oracle = eigsh(
        LinearOperator((3000, 3000), matvec=lambda v: spectrum * v.ravel(), dtype=np.float64), 8, which="BE"
    )[0]
    # the error of an eigenvalue is second order in its residual of 1e-7
    np.testing.assert_allclose(pairs.largest, oracle[::-1][:4], rtol=1e-9)
    np.testing.assert_allclose(pairs.smallest, oracle[:4], rtol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1.0, -1.0, 1e-12, 1e12])
def test_multiples_of_the_identity(scale, dtype):
    pairs = extreme_eigenpairs(diagonal(np.full(200, scale), dtype))
    assert pairs.converged
    np.testing.assert_allclose(np.r_[pairs.largest, pairs.smallest], np.full(6, scale), rtol=1e-6)
    assert pairs.products < 12


def test_an_operator_may_return_its_argument():
    operator = diagonal(np.ones(50))
    operator.matvec = lambda v: v
    np.testing.assert_allclose(extreme_eigenpairs(operator).largest, np.ones(5), rtol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rank_one(dtype):
    pairs = extreme_eigenpairs(rotated([0.0] * 199 + [7.0], dtype), largest=3, smallest=2)
    assert pairs.converged
    # rounding of the dense matrix: eps times its norm
    np.testing.assert_allclose(pairs.largest, [7, 0, 0], atol=7e-6)
    np.testing.assert_allclose(pairs.smallest, [0, 0], atol=7e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_closing_space_goes_on_to_the_copies(dtype):
    # three distinct eigenvalues: a Krylov space closes after three products, with one vector of each
    spectrum = np.repeat([1.0, 5.0, 10.0], [90, 100, 7])
    pairs = extreme_eigenpairs(diagonal(spectrum, dtype), largest=9, smallest=2)
    assert_both_ends(pairs, spectrum, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [rotated, diagonal])
@pytest.mark.parametrize("basis_size", [None, 16])
def test_multiplicity_finds_a_degenerate_top_eigenvalue(make, dtype, basis_size):
    spectrum = np.r_[bulk(300), 20.0, 20.0, 20.0, 12.0, 12.0, 9.0, -8.0, -8.0]
    operator = make(spectrum, dtype)
    pairs = extreme_eigenpairs(operator, largest=5, smallest=2, multiplicity=True, basis_size=basis_size)
    assert_both_ends(pairs, spectrum, dtype)
    # a pair that was put aside for the new vector keeps its residual, true to what is known of it
    explicit = explicit_residuals(operator, pairs.largest, pairs.largest_vectors)
    assert (explicit <= 1.05 * pairs.largest_residual).all()


def test_values_closer_than_the_tolerance_are_found_with_multiplicity():
    spectrum = np.r_[np.abs(bulk(5000)), 40.0, 30.0, 20.001, 20.0, 10.0]
    pairs = extreme_eigenpairs(diagonal(spectrum), largest=5, smallest=0, tolerance=1e-2, multiplicity=True)
    # 1e-3: the pair near 20 may come as any two values of its span
    np.testing.assert_allclose(pairs.largest, [40, 30, 20.001, 20, 10], atol=1e-3)


def test_a_new_vector_has_to_converge_before_copies_are_ruled_out():
    # the space closes after 4 products; from the next vector, the copies emerge only after some more
    spectrum = np.repeat([1.0, 2.0, 9.0, 10.0], [5000, 5000, 5, 3])
    pairs = extreme_eigenpairs(diagonal(spectrum), largest=3, smallest=0)
    np.testing.assert_allclose(pairs.largest, [10, 10, 10], rtol=1e-3)


def test_a_small_residual_alone_is_not_believed():
    # the first Rayleigh quotient has a residual of 2 %, but an outlier is still to emerge
    spectrum = np.r_[1 + 0.01 * bulk(20000), 3.0]
    pairs = extreme_eigenpairs(diagonal(spectrum), largest=1, smallest=0, tolerance=0.05)
    np.testing.assert_allclose(pairs.largest, [3], rtol=0.05)


def test_a_start_without_the_top_eigenvector_does_not_hide_it():
    start = torch.ones(2001)
    start[-1] = 0
    pairs = extreme_eigenpairs(diagonal(np.r_[bulk(2000), 50.0]), largest=1, smallest=0, start=start)
    np.testing.assert_allclose(pairs.largest, [50], rtol=1e-3)


@pytest.mark.parametrize("start_index", [0, 3])
def test_a_start_that_is_an_eigenvector_hides_nothing(start_index):
    spectrum = np.r_[100.0, 50, 20, 10, bulk(2000)]
    start = torch.zeros(2004, dtype=torch.float64)
    start[start_index] = -3.0
    pairs = extreme_eigenpairs(diagonal(spectrum), largest=1, smallest=0, start=start)
    np.testing.assert_allclose(pairs.largest, [100], rtol=1e-3)


def test_a_good_start_ends_at_the_same_eigenvalues():
    spectrum = heavy_tailed(10)
    guess = extreme_eigenpairs(diagonal(spectrum), largest=3, smallest=0, tolerance=1e-3).largest_vectors.sum(0)
    other = diagonal(spectrum + 1e-3 * bulk(20000, seed=1))
    cold = extreme_eigenpairs(other, largest=3, smallest=0, tolerance=1e-3)
    warm = extreme_eigenpairs(other, largest=3, smallest=0, tolerance=1e-3, start=guess)
    assert warm.converged
    np.testing.assert_allclose(warm.largest, cold.largest, rtol=1e-4)


@pytest.mark.parametrize("new", [6.0, 7.0, 9.0])
def test_a_start_that_lacks_an_eigenvector_does_not_hide_it(new):
    """The guess holds five of six outliers of n = 180 000, at a loose tolerance; the sixth is among the top five."""
    outliers = np.array([100.0, 50.0, 20.0, 10.0, 5.0])
    rest = np.clip(0.05 * np.random.default_rng(0).standard_normal(180_000), -1, 1)
    spectrum = np.r_[rest, new, outliers]
    operator = diagonal(spectrum, torch.float32)
    guess = torch.zeros(len(spectrum))
    guess[-5:] = 1
    true = np.sort(spectrum)[:-6:-1]
    for seed in range(6):
        pairs = extreme_eigenpairs(operator, largest=5, smallest=0, tolerance=1e-2, seed=seed, start=guess)
        assert pairs.converged
        np.testing.assert_allclose(pairs.largest, true, rtol=1e-2)


def test_five_outliers_take_a_sixth_of_the_products_of_power_iteration():
    # top 5 to 1e-2: 14 products; power iteration with deflation needs 83, ARPACK 21
    operator = diagonal(heavy_tailed(10))
    counts = [extreme_eigenpairs(operator, largest=5, smallest=0, tolerance=1e-2, seed=s).products for s in range(5)]
    assert max(counts) <= 14


def heavy_tailed(outliers):
    """Outliers over a bulk with a heavy tail, n = 20 000."""
    return np.r_[
        np.minimum(0.01 * np.random.default_rng(0).pareto(2, 20000 - outliers), 5), np.geomspace(8, 100, outliers)
    ]


def beside_zero(size):
    """A dense bulk with an edge at zero, far below the scale, and a few eigenvalues beyond it on both sides."""
    return np.r_[1e-4 * bulk(size - 12) ** 2, 150, 30, 10, 5, 3, 2, 1, 0.5, 0.3, -4, -2, -1]


def around_zero(size):
    return np.r_[1e-3 * bulk(size - 5), 150, 60, -4, -2, -1]


@pytest.mark.parametrize(("make", "largest"), [(beside_zero, 0), (beside_zero, 1), (around_zero, 0)])
def test_a_value_within_the_floor_is_not_taken_for_the_outermost(make, largest):
    # n = 200 000: -4 adds 16 / n to the squared residual of a random vector near zero, and hides below the floor of
    # 0.015; without looking for what else the space would have shown, 1 to 3 of 4 seeds end near zero
    operator = diagonal(make(200_000), torch.float32)
    for seed in range(4):
        pairs = extreme_eigenpairs(operator, largest=largest, smallest=1, tolerance=1e-2, seed=seed)
        assert pairs.converged
        # the floor lets the residual be 1e-4 of the scale, and an error is second order in that
        np.testing.assert_allclose(pairs.smallest, [-4], atol=0.015)


@pytest.mark.parametrize(
    ("spectrum", "largest", "smallest", "tolerance"),
    [
        (heavy_tailed(10), 1, 0, 1e-2),
        (heavy_tailed(10), 5, 0, 1e-2),
        (heavy_tailed(10), 10, 0, 1e-4),
        (bulk(20000), 1, 0, 1e-2),
        (bulk(20000), 1, 0, 1e-4),
        (beside_zero(20000), 5, 1, 1e-3),
    ],
)
def test_looking_for_more_costs_at_most_one_product_where_the_values_stand_apart(
    spectrum, largest, smallest, tolerance, monkeypatch
):
    operator = diagonal(spectrum, torch.float32)
    options = {"largest": largest, "smallest": smallest, "tolerance": tolerance}
    counts = [extreme_eigenpairs(operator, seed=seed, **options).products for seed in range(3)]
    monkeypatch.setattr(lanczos._Search, "_outermost", lambda *_: True)
    without = [extreme_eigenpairs(operator, seed=seed, **options).products for seed in range(3)]
    assert all(count <= other + 1 for count, other in zip(counts, without, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("basis_size", [None, 14])
def test_by_magnitude_agrees_with_scipy_and_keeps_the_signs(dtype, basis_size):
    spectrum = np.r_[bulk(2990), 14, -12, 9, 8.5, -8, -7.5, 7, 6, -6, 5]
    pairs = extreme_eigenpairs(
        diagonal(spectrum, dtype), largest=6, smallest=0, which="magnitude", tolerance=1e-4, basis_size=basis_size
    )
    oracle = eigsh(LinearOperator((3000,) * 2, matvec=lambda v: spectrum * v.ravel(), dtype=np.float64), 6, which="LM")[
        0
    ]
    oracle = oracle[np.argsort(-np.abs(oracle))]
    assert pairs.converged
    # the residual is 1e-4, and its square over the gap is the error; float32 rounds the spectrum
    np.testing.assert_allclose(pairs.largest, oracle, rtol=1e-5)
    assert pairs.smallest.shape == (0,)
    assert pairs.smallest_vectors.shape == (0, 3000)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opposite_values_of_one_magnitude_are_found_by_magnitude(dtype):
    # rounding decides which of 10 and -10 comes first, anew at each product
    operator = diagonal(np.r_[bulk(2000) / 10, 10.0, -10.0, 5.0, -5.0], dtype)
    pairs = extreme_eigenpairs(operator, largest=3, smallest=0, which="magnitude")
    assert pairs.converged
    assert pairs.products < 40
    assert set(np.round(pairs.largest[:2])) == {10, -10}
    np.testing.assert_allclose(np.abs(pairs.largest), [10, 10, 5], rtol=1e-3)


RESUMED = {
    "both ends": (bulk(2000), {"largest": 3, "smallest": 2, "tolerance": 1e-4, "basis_size": 12}),
    "smallest basis": (SPECTRA["outliers"], {"largest": 3, "smallest": 1, "basis_size": 6}),
    "magnitude": (bulk(2000), {"largest": 4, "smallest": 0, "which": "magnitude", "basis_size": 10}),
    "multiplicity": (
        np.r_[bulk(300), 20.0, 20.0, 20.0, 12.0, 12.0, 9.0, -8.0, -8.0],
        {"largest": 5, "smallest": 2, "multiplicity": True, "basis_size": 12},
    ),
    "closed space": (
        np.repeat([1.0, 3, 5, 8, 10, 20], [50, 50, 50, 40, 3, 2]),
        {"largest": 5, "smallest": 1, "basis_size": 9, "max_products": 24},
    ),
    "warm": (bulk(2000), {"largest": 2, "smallest": 1, "basis_size": 10, "start": torch.ones(2000), "tolerance": 1e-4}),
    "gives up": (bulk(2000), {"largest": 3, "smallest": 1, "tolerance": 1e-6, "basis_size": 10, "max_products": 45}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_resumed_at_any_restart_ends_in_the_same_bits(name, dtype):
    spectrum, options = RESUMED[name]
    make = rotated if len(spectrum) < 500 else diagonal
    saved = []

    def save(state):
        file = io.BytesIO()
        np.savez(file, **state)
        saved.append(file)

    whole = extreme_eigenpairs(make(spectrum, dtype), seed=4, on_restart=save, **options)
    assert len(saved) >= 2
    for file in saved:
        file.seek(0)
        operator = make(spectrum, dtype)
        state = dict(np.load(file))
        resumed = extreme_eigenpairs(operator, seed=4, state=state, **options)
        assert operator.products == whole.products - state["counts"][0]
        for field in ("largest", "largest_residual", "smallest", "smallest_residual", "products", "converged"):
            np.testing.assert_array_equal(getattr(resumed, field), getattr(whole, field))
        assert torch.equal(resumed.largest_vectors, whole.largest_vectors)
        assert torch.equal(resumed.smallest_vectors, whole.smallest_vectors)


def test_a_state_of_another_run_says_so():
    saved = []
    options = {"largest": 3, "smallest": 1, "tolerance": 1e-6}
    extreme_eigenpairs(diagonal(bulk(500)), basis_size=10, on_restart=saved.append, **options)
    for other, basis_size in [(diagonal(bulk(501)), 10), (diagonal(bulk(500), torch.float32), 10)]:
        with pytest.raises(ValueError, match="it is of another run"):
            extreme_eigenpairs(other, basis_size=basis_size, state=saved[0], **options)
    with pytest.raises(ValueError, match="it is of another run"):
        extreme_eigenpairs(diagonal(bulk(500)), basis_size=6, state=saved[0], **options)


def test_exhausted_memory_says_how_much_was_needed(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(ValueError, match=r"No memory for a basis of 23 vectors \(18,400 bytes\)"):
        extreme_eigenpairs(diagonal(bulk(100)), largest=1, smallest=0, basis_size=22)


def test_not_converged_says_so_with_true_residuals():
    operator = diagonal(bulk(3000))
    pairs = extreme_eigenpairs(operator, largest=5, smallest=1, tolerance=1e-6, max_products=20)
    assert not pairs.converged
    assert pairs.products == operator.products == 20
    explicit = explicit_residuals(operator, pairs.largest, pairs.largest_vectors)
    np.testing.assert_allclose(pairs.largest_residual, explicit, rtol=1e-6)
    assert (explicit > 1e-6 * pairs.largest).any()


def test_every_converged_residual_is_within_tolerance():
    for tolerance in [1e-1, 1e-2, 1e-3, 1e-5]:
        pairs = extreme_eigenpairs(rotated(SPECTRA["outliers"]), largest=5, smallest=2, tolerance=tolerance)
        assert pairs.converged
        assert (pairs.largest_residual <= tolerance * np.abs(pairs.largest)).all()
        assert (pairs.smallest_residual <= tolerance * np.abs(pairs.smallest)).all()


def test_same_seed_same_result_and_the_global_generators_are_untouched():
    operator = rotated(SPECTRA["outliers"], torch.float32)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = extreme_eigenpairs(operator, seed=5)
    torch.manual_seed(123)
    second = extreme_eigenpairs(operator, seed=5)
    other = extreme_eigenpairs(operator, seed=6)
    assert torch.equal(first.largest_vectors, second.largest_vectors)
    assert np.array_equal(first.largest_residual, second.largest_residual)
    assert not torch.equal(first.largest_vectors, other.largest_vectors)
    torch.set_rng_state(torch_state)
    extreme_eigenpairs(diagonal(np.ones(50)))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_progress_is_told_after_each_product():
    seen = []
    pairs = extreme_eigenpairs(rotated(SPECTRA["outliers"]), largest=3, on_product=lambda *report: seen.append(report))
    assert [count for count, _, _ in seen] == list(range(1, pairs.products + 1))
    assert [len(values) for _, values, _ in seen[:4]] == [1, 2, 3, 3]
    np.testing.assert_allclose(seen[-1][1], pairs.largest)


def test_a_product_that_is_part_of_a_graph_is_accepted():
    weights = torch.linspace(-1, 3, 60, dtype=torch.float64, requires_grad=True)
    operator = diagonal(np.ones(60))
    operator.matvec = lambda v: weights * v
    pairs = extreme_eigenpairs(operator, largest=1)
    assert not pairs.largest_vectors.requires_grad
    np.testing.assert_allclose(pairs.largest, [3], rtol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_product_that_is_not_finite_raises_with_its_number(bad):
    operator = diagonal(bulk(100))
    original = operator.matvec
    operator.matvec = lambda v: original(v) * (bad if operator.products == 7 else 1)
    with pytest.raises(FloatingPointError, match="Product 7 "):
        extreme_eigenpairs(operator, tolerance=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"largest": 11}, "has only 10 eigenvalues"),
        ({"smallest": 11}, "has only 10 eigenvalues"),
        ({"largest": 0, "smallest": 0}, "one is positive"),
        ({"largest": -1}, "one is positive"),
        ({"basis_size": 7}, "needs at least 8"),
        ({"basis_bytes": 8 * 10 * 8}, "needs at least 8"),
        ({"max_products": 5}, "at least one product"),
        ({"start": torch.zeros(10)}, "norm 0.0"),
        ({"noise": 0.0}, "noise=0.0: expected a positive number"),
        ({"which": "magnitude"}, "smallest must be 0"),
        ({"start": torch.ones(9)}, r"shape \(9,\); expected \(10,\)"),
    ],
)
def test_impossible_requests_say_why(options, message):
    with pytest.raises(ValueError, match=message):
        extreme_eigenpairs(diagonal(bulk(10)), **options)


def test_a_product_of_the_wrong_shape_says_so():
    operator = diagonal(bulk(10))
    operator.matvec = lambda v: v[:1]
    with pytest.raises(ValueError, match=r"shape \(1,\); expected \(10,\)"):
        extreme_eigenpairs(operator)


def test_a_whole_small_spectrum_can_be_asked_for():
    spectrum = bulk(8)
    pairs = extreme_eigenpairs(rotated(spectrum), largest=8, smallest=8)
    np.testing.assert_allclose(pairs.largest, np.sort(spectrum)[::-1], atol=1e-14 * 10)
    np.testing.assert_allclose(pairs.smallest, np.sort(spectrum), atol=1e-14 * 10)
    assert pairs.converged
    assert pairs.products == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_the_cpu():
    operator = rotated(SPECTRA["outliers"], torch.float32)
    on_gpu = MatrixOperator(operator.matrix.cuda())
    pairs = extreme_eigenpairs(on_gpu, basis_size=16)
    assert pairs.largest_vectors.is_cuda
    # float32 sums in another order
    np.testing.assert_allclose(pairs.largest, extreme_eigenpairs(operator, basis_size=16).largest, rtol=1e-4)
