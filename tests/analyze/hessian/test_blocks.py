"""Layers' blocks against the dense Hessian in float64, and against matrices whose blocks are known."""

import dataclasses
import itertools

import h5py
import numpy as np
import pytest
import torch
from cases import CASES, dense_hessian
from dense import DenseOperator, SubjectOperator

from analyze.arrays import read_result, write_result
from analyze.hessian import HessianOperator
from analyze.hessian.blocks import Block, block_samples, grow, is_complete, partition
from analyze.hessian.spec import Blocks, Config

BY_NAME = {case.name: case for case in CASES}
PARAMETERS = {"conv.weight": 5, "norm.weight": 1, "conv.bias": 2, "scale": 1, "fc.weight": 40}


def config(**options):
    return Config(**{"parts": ("blocks",), "block_samples": 6, **options})


def last(steps):
    return list(steps)[-1]


def stored(found: Blocks):
    """What a run file gives back."""
    with h5py.File("stored", "w", driver="core", backing_store=False) as file:
        write_result(file, found)
        return read_result(file, Blocks)


def assert_same(a: Blocks, b: Blocks):
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def coupled(seed=0):
    """A symmetric matrix over PARAMETERS with a large, strongly coupled last block."""
    size = sum(PARAMETERS.values())
    half = np.random.default_rng(seed).normal(size=(size, size))
    half[-40:] *= 10
    matrix = half @ half.T / size
    return torch.from_numpy(matrix)


def rows_of(block: Block, size):
    return np.concatenate([np.arange(size)[part] for part in block.slices])


def dense_blocks(matrix, operator):
    blocks = partition(operator.names, operator.sizes)
    index = [rows_of(block, operator.size) for block in blocks]
    return [matrix[np.ix_(rows, rows)] for rows in index]


def test_parameters_are_grouped_by_the_module_that_owns_them():
    blocks = partition(list(PARAMETERS), list(PARAMETERS.values()))
    assert [block.name for block in blocks] == ["conv", "norm", "scale", "fc"]
    assert blocks[0].parameters == ("conv.weight", "conv.bias")
    assert blocks[0].slices == (slice(0, 5), slice(6, 8))
    assert [block.size for block in blocks] == [7, 1, 1, 40]


def test_empty_parameters_are_in_no_block():
    blocks = partition(["a.weight", "b.weight", "c.weight"], [2, 0, 3])
    assert [(block.name, block.slices) for block in blocks] == [("a", (slice(0, 2),)), ("c", (slice(2, 5),))]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("conv_bn_dropout", {"0": 54, "1": 6, "4": 56, "8": 9}),
        ("tied", {"first": 20, "second": 4, "head": 15}),  # the shared weight belongs to its first name
        ("partly_frozen", {"1": 5, "3": 18}),
        ("unused_parameters", {"used": 18, "unused": 20}),
    ],
)
def test_blocks_of_networks(name, expected):
    found = last(grow(HessianOperator(BY_NAME[name].build()), 0, config(), None))
    assert dict(zip(found.block, found.size, strict=True)) == expected


def test_over_all_sign_vectors_the_samples_have_the_mean_and_variance_of_the_formula():
    size = 9
    half = np.random.default_rng(3).normal(size=(size, size))
    matrix = half + half.T
    blocks = partition(["a.weight", "b.weight", "a.bias"], [3, 4, 2])
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=size)), dtype=torch.float64)
    samples = np.array([block_samples(blocks, z, torch.from_numpy(matrix) @ z) for z in signs])
    for number, block in enumerate(blocks):
        rows = rows_of(block, size)
        own = matrix[np.ix_(rows, rows)]
        others = np.delete(matrix[rows], rows, axis=1)
        variance = 2 * (np.sum(own**2) - np.sum(np.diag(own) ** 2)) + np.sum(others**2)
        # 512 float64 terms: 1e-12 is thousands of roundings
        assert samples[:, number].mean() == pytest.approx(np.trace(own), abs=1e-12 * np.abs(matrix).sum())
        assert samples[:, number].var() == pytest.approx(variance, rel=1e-12)


def test_samples_of_all_blocks_add_up_to_that_of_the_trace():
    matrix = coupled()
    blocks = partition(list(PARAMETERS), list(PARAMETERS.values()))
    z = torch.from_numpy(np.random.default_rng(1).choice([-1.0, 1.0], size=len(matrix)))
    assert block_samples(blocks, z, matrix @ z).sum() == pytest.approx(float(z @ matrix @ z), rel=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_traces_and_eigenvalues_equal_dense_blocks(case, dtype):
    subject = case.build(weight_decay=0.03)
    operator = HessianOperator(case.build(dtype, weight_decay=0.03))
    exact = dense_blocks(dense_hessian(subject).numpy(), operator)
    found = last(grow(operator, 1, config(block_samples=30, block_tolerance=1e-3), None))
    largest = np.array([np.linalg.eigvalsh(block)[-1] for block in exact])
    scale = max(np.abs(block).max() for block in exact)
    rounding = 0 if dtype == torch.float64 else 1e-5 * scale
    assert found.converged.all()
    # within its residual of each value lies an eigenvalue; here it must be the largest. 1e-12: float64 rounding
    assert (np.abs(found.largest - largest) <= found.largest_residual + 1e-12 * scale + rounding).all()
    # 4.5 standard errors of 30 samples: one in 1e4 per block by chance, and the seed is fixed
    error = np.abs(found.trace - [np.trace(block) for block in exact])
    assert (error <= 4.5 * found.trace_stderr + 1e-12 * scale + 50 * rounding).all()


def test_standard_errors_cover_the_exact_traces():
    matrix = coupled()
    operator = DenseOperator(matrix, PARAMETERS)
    exact = [np.trace(block) for block in dense_blocks(matrix.numpy(), operator)]
    inside = []
    for seed in range(150):
        steps = grow(operator, seed, config(block_samples=20, block_error=1e9, block_tolerance=0.5), None)
        found = last(itertools.islice(steps, 20))
        inside.append(np.abs(found.trace - exact) <= 2 * found.trace_stderr)
    # 2 standard errors of 20 samples cover 94 %; 5 binomial deviations of 150 runs are 10 % of it
    assert (np.mean(inside, axis=0) > 0.84).all()
    assert (np.mean(inside, axis=0)[:2] < 1).all()


def test_noisy_blocks_are_estimated_from_their_own_vectors_alone():
    matrix = coupled()
    operator = DenseOperator(matrix, PARAMETERS)
    found = last(grow(operator, 0, config(block_samples=10, block_error=0.2), None))
    shared = found.samples.mean(axis=0), found.samples.std(axis=0, ddof=1) / np.sqrt(10)
    noisy = shared[1] > 0.2 * np.abs(shared[0])
    assert list(noisy) == [True, True, True, False]
    exact = dense_blocks(matrix.numpy(), operator)
    assert np.isnan(found.own_samples[:, 3]).all()
    assert (found.trace[3], found.trace_stderr[3]) == (shared[0][3], shared[1][3])
    np.testing.assert_allclose(found.trace[:3], found.own_samples[:, :3].mean(axis=0), rtol=1e-15)
    # a block of one weight has only one sample: its entry, exact but for two roundings
    np.testing.assert_allclose(found.own_samples[:, 1], exact[1][0, 0], rtol=1e-15)
    np.testing.assert_allclose(found.own_samples[:, 2], exact[2][0, 0], rtol=1e-15)
    # what the others' rows add to the variance is gone
    assert found.trace_stderr[0] < shared[1][0] / 2
    off = exact[0] - np.diag(np.diag(exact[0]))
    assert found.trace_stderr[0] == pytest.approx(np.sqrt(2 * np.sum(off**2) / 10), rel=0.7)  # 10 samples, 7 weights


def test_own_vectors_of_all_blocks_differ():
    size = 64
    operator = DenseOperator(torch.ones(2 * size, 2 * size), {"a.weight": size, "b.weight": size}, group=4)
    found = last(grow(operator, 0, config(block_samples=12, block_error=1e-6), None))
    # z'11'z of 64 signs: the same by chance with probability 1/10 for each pair
    assert (found.own_samples[:, 0] != found.own_samples[:, 1]).sum() >= 8
    assert len(set(found.own_samples[:, 0])) >= 4


@pytest.mark.parametrize("dtype, group", [(torch.float64, 1), (torch.float32, 3), (torch.float32, 8)])
def test_run_killed_after_any_step_resumes_bit_equal(dtype, group):
    operator = DenseOperator(coupled(), PARAMETERS, dtype=dtype, group=group)
    steps = list(grow(operator, 5, config(), None))
    assert len(steps) > 6 + 4
    for number, step in enumerate(map(stored, steps)):
        assert is_complete(step, config()) == (number == len(steps) - 1)
        rest = list(grow(operator, 5, config(), step))
        assert len(rest) == len(steps) - 1 - number
        for resumed, straight in zip(rest, steps[number + 1 :], strict=True):
            assert_same(resumed, straight)


def test_killed_run_on_a_network_resumes_bit_equal():
    options = config(block_samples=3, block_error=0.01)
    subject = BY_NAME["conv_bn_dropout"].build(torch.float32)
    steps = list(grow(HessianOperator(subject), 5, options, None))
    for step in steps[1::4]:
        assert_same(last(grow(HessianOperator(subject), 5, options, step)), steps[-1])


def test_samples_added_later_give_what_all_at_once_give():
    changes = set()
    for seed in range(8):
        operator = DenseOperator(coupled(), PARAMETERS)
        more = config(block_samples=15, block_error=0.5)
        few = last(grow(operator, seed, config(block_samples=5, block_error=0.5), None))
        assert not is_complete(few, more)
        grown = last(grow(operator, seed, more, few))
        assert_same(grown, last(grow(operator, seed, more, None)))
        was, now = (np.isnan(found.own_samples).all(axis=0) for found in (few, grown))
        changes |= set(zip(was, now, strict=True))
    assert len(changes) == 4  # blocks became noisy, and ceased to be


def test_fewer_samples_than_there_are_change_nothing():
    operator = DenseOperator(coupled(), PARAMETERS)
    found = last(grow(operator, 0, config(block_samples=8), None))
    assert is_complete(found, config(block_samples=4))
    assert list(grow(operator, 0, config(block_samples=4), found)) == []


def test_samples_computed_elsewhere_cost_no_products():
    operator = DenseOperator(coupled(), PARAMETERS)
    straight = list(grow(operator, 0, config(block_error=1e9), None))
    operator.products = 0
    shared = list(grow(operator, 0, config(block_error=1e9), None, sample=lambda probe: straight[-1].samples[probe]))
    assert operator.products == 0
    assert_same(shared[-1], straight[-1])


def test_unused_layer_has_no_curvature():
    subject = BY_NAME["unused_parameters"].build(torch.float32)
    found = last(grow(HessianOperator(subject), 0, config(block_samples=3), None))
    unused = list(found.block).index("unused")
    assert found.trace[unused] == found.trace_stderr[unused] == found.largest[unused] == 0
    assert found.converged[unused]
    assert np.isnan(found.own_samples[:, unused]).all()


def test_eigenvalue_that_did_not_converge_says_so():
    operator = DenseOperator(coupled(), PARAMETERS)
    options = config(max_products=8, block_tolerance=1e-6)
    found = last(grow(operator, 0, options, None))
    assert list(found.converged) == [True, True, True, False]
    assert found.products[3] == 8
    assert found.largest_residual[3] > 1e-6 * found.largest[3]
    assert is_complete(found, options)


def test_progress_reaches_its_totals():
    calls = {}
    operator = DenseOperator(coupled(), PARAMETERS, group=4)
    list(grow(operator, 0, config(), None, lambda part, done, total, note: calls.update({part: (done, total)})))
    assert calls == {"blocks": (6, 6), "blocks: noisy traces": (6, 6), "blocks: eigenvalues": (4, 4)}


@pytest.mark.parametrize("where", [0, -1])
def test_product_that_is_not_finite_stops_the_run(where):
    matrix = coupled()
    matrix[where, where] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        list(grow(DenseOperator(matrix, PARAMETERS), 0, config(), None))


def test_dense_stand_in_equals_the_operator():
    subject = BY_NAME["attention"].build(weight_decay=0.1)
    options = config(block_samples=4, block_error=0.05, block_tolerance=1e-6)
    real = last(grow(HessianOperator(subject), 2, options, None))
    dense = last(grow(SubjectOperator(subject, group=3), 2, options, None))
    for name in ("trace", "trace_stderr", "largest", "samples", "own_samples"):
        a, b = getattr(real, name), getattr(dense, name)
        # float64 roundings of sums of some hundred terms
        np.testing.assert_allclose(a, b, atol=1e-10 * np.nanmax(np.abs(b)), err_msg=name)
