"""What rounding costs, against the dense Hessian, quadratic losses, brute force and torch's fake quantization."""

import dataclasses
import itertools

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, dense_hessian
from dense import SubjectOperator
from torch import nn

from analyze import Subject
from analyze.arrays import read_result, write_result
from analyze.hessian import HessianOperator, blocks, quantization
from analyze.hessian.quantization import allocate, quantize
from analyze.hessian.spec import Blocks, Config, Quantization
from analyze.hessian.tables import aligned, cost_rows, layer_rows, warnings

BY_NAME = {case.name: case for case in CASES}


def config(**options):
    return Config(**{"parts": ("blocks",), "block_samples": 4, "bits": (2, 4, 8), "mean_bits": 4.0, **options})


def last(steps):
    return list(steps)[-1]


def layers_of(operator, options=None):
    return last(blocks.grow(operator, 0, options or config(), None))


def quantized(operator, options=None):
    """Blocks and quantization of an operator."""
    options = options or config()
    found = layers_of(operator, options)
    return found, last(quantization.grow(operator, options, found, None))


def stored(costs: Quantization):
    """What a run file gives back."""
    with h5py.File("stored", "w", driver="core", backing_store=False) as file:
        write_result(file, costs)
        return read_result(file, Quantization)


def assert_same(a: Quantization, b: Quantization):
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def rounded(weight, bits, axis=0):
    """By torch's own simulated quantization."""
    others = [dim for dim in range(weight.dim()) if dim != axis]
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=others) / top
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -top, top)


class TransposedNet(nn.Module):
    """A grouped transposed convolution, a bare parameter, and a layer with two matrices."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.up = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.mix = nn.Bilinear(6, 6, 3)

    def forward(self, x):
        y = self.up(torch.tanh(x + self.offset)).mean(dim=(2, 3))
        return self.mix(y, torch.sin(y))


def regression(weight_decay=0.0):
    """Linear regression through two independent linear layers: a loss that is exactly quadratic."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3, bias=False)

        def forward(self, x):
            return self.a(x[:, :4]) + self.b(x[:, 4:])

    case = Case("regression", Sum, (9,), batches=(5, 5, 2), loss=F.mse_loss, regression=True)
    return case.build(weight_decay=weight_decay)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(7, 3, 3, 3), (5, 1), (1, 9), (3, 2, 5)])
def test_rounding_equals_fake_quantization(bits, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    # torch multiplies by 1/s where we divide by s: equal to a few roundings, unless w/s is within those of a half
    torch.testing.assert_close(quantize(weight, bits), rounded(weight, bits), rtol=1e-6, atol=0)


def test_halves_go_to_the_even_neighbour():
    weight = torch.tensor([[3.0, 2.5, 1.5, 0.5, -0.5, -1.5, -3.0]])
    assert quantize(weight, 3).tolist() == [[3, 2, 2, 0, 0, -2, -3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-45])
def test_channels_of_zeros_and_of_the_smallest_numbers_stay_finite(dtype, value):
    weight = torch.tensor([[value, -value], [1.0, 0.3]], dtype=dtype)
    assert quantize(weight, 4).isfinite().all()
    assert (quantize(torch.zeros(2, 3, dtype=dtype), 4) == 0).all()


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_rounding_again_changes_nothing_and_uses_the_whole_grid(bits):
    weight = torch.randn(4, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    once = quantize(weight, bits)
    torch.testing.assert_close(quantize(once, bits), once, rtol=1e-14, atol=0)
    assert (once.abs().amax(1) - weight.abs().amax(1)).abs().max() <= 1e-15 * weight.abs().max()
    half_a_step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1) / 2
    assert ((once - weight).abs() <= half_a_step * (1 + 1e-12)).all()


def test_one_bit_is_refused():
    with pytest.raises(ValueError, match="bits=1"):
        quantize(torch.ones(2, 2), 1)


def changes_of(subject, bits):
    """d (n,) of each (layer, bits), in float64, from the parameters by name."""
    parameters = {name: p.detach() for name, p in subject.parameters.items()}
    owners = {name: name.rpartition(".")[0] or name for name in parameters}
    moved = [
        o for o in dict.fromkeys(owners.values()) if any(p.dim() > 1 for n, p in parameters.items() if owners[n] == o)
    ]
    result = []
    for owner in moved:
        for b in bits:
            pieces = [
                rounded(p.float(), b).double() - p if owners[name] == owner and p.dim() > 1 else torch.zeros_like(p)
                for name, p in parameters.items()
            ]
            result.append(torch.cat([piece.reshape(-1) for piece in pieces]))
    return moved, torch.stack(result).numpy()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_costs_equal_those_of_the_dense_hessian(case, weight_decay):
    # float32 weights, so that both roundings fall on the same side
    subject = case.build(torch.float32, weight_decay=weight_decay)
    subject = Subject(
        subject.model.double(), [(x.double(), y.double() if case.regression else y) for x, y in subject.data],
        case.loss, weight_decay=weight_decay,
    )  # fmt: skip
    found, costs = quantized(HessianOperator(subject))
    matrix = dense_hessian(subject).numpy()
    layers, changes = changes_of(subject, (2, 4, 8))
    assert list(costs.layer) == layers
    shape = (len(layers), 3)
    # torch's own rounding is in float32: relative 1e-7 of each weight, and that much of d where d is small
    near = {"rtol": 1e-4, "atol": 1e-6 * np.abs(matrix).max()}
    np.testing.assert_allclose(costs.error, np.sum(changes**2, axis=1).reshape(shape), **near)
    np.testing.assert_allclose(costs.coupling, changes @ matrix @ changes.T, **near)
    np.testing.assert_allclose(costs.direct, np.diag(changes @ matrix @ changes.T).reshape(shape) / 2, **near)
    np.testing.assert_array_equal(costs.coupling, costs.coupling.T)
    where = [list(found.block).index(layer) for layer in layers]
    mean = (found.trace / found.size)[where]
    np.testing.assert_allclose(costs.omega, mean[:, None] * costs.error, rtol=1e-14)
    gradient = SubjectOperator(subject).loss_and_gradient()[1].numpy()
    np.testing.assert_allclose(costs.first_order, (changes @ gradient).reshape(shape), **near)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("mean_bits", [2.0, 3.1, 4.0, 8.0])
def test_prediction_is_exact_where_the_loss_is_quadratic(weight_decay, mean_bits):
    _, costs = quantized(HessianOperator(regression(weight_decay)), config(mean_bits=mean_bits))
    assert np.abs(costs.measured).min() > 1e-5
    # a difference of losses of order 1 in float64
    np.testing.assert_allclose(costs.predicted, costs.measured, rtol=1e-10, atol=1e-13)


def test_prediction_needs_the_gradient_and_the_terms_between_layers():
    _, costs = quantized(HessianOperator(regression()), config(mean_bits=2.0))
    settings = [0, 3]
    without_gradient = costs.coupling[np.ix_(settings, settings)].sum() / 2
    without_others = costs.first_order[:, 0].sum() + costs.direct[:, 0].sum()
    for incomplete in (without_gradient, without_others):
        assert abs(incomplete - costs.measured[0]) > 1e-3 * abs(costs.measured[0])


def test_measured_change_is_that_of_a_network_with_rounded_weights():
    case = BY_NAME["conv_bn_dropout"]
    _, costs = quantized(HessianOperator(case.build()), config(mean_bits=4.0))
    before = case.build()
    for number in range(2):
        after = case.build()
        for layer, bits in zip(costs.layer, costs.allocation[number], strict=True):
            weight = after.model.get_submodule(layer).weight
            weight.data.copy_(quantize(weight.data, int(bits)))
        losses = [HessianOperator(subject).loss_and_gradient()[0] for subject in (before, after)]
        # a difference of losses of order 1 in float64
        assert costs.measured[number] == pytest.approx(losses[1] - losses[0], abs=1e-14)


def test_transposed_convolutions_have_a_scale_for_each_output_channel():
    case = Case("transposed", TransposedNet, (4, 3, 3))
    subject = case.build()
    _, costs = quantized(HessianOperator(subject))
    assert list(costs.layer) == ["offset", "up", "mix"]
    assert list(costs.size) == [4, 4 * 3 * 9, 3 * 36]
    weight = subject.parameters["up.weight"].detach()
    channels = [weight[2 * group : 2 * group + 2, channel] for group in range(2) for channel in range(3)]
    for column, bits in enumerate((2, 4, 8)):
        exact = sum((quantize(part[None], bits) - part).square().sum().item() for part in channels)
        assert costs.error[1, column] == pytest.approx(exact, rel=1e-12)


def brute_force(cost, size, bits, mean_bits):
    fitting = [
        choice
        for choice in itertools.product(range(len(bits)), repeat=len(size))
        if sum(n * bits[b] for n, b in zip(size, choice, strict=True)) <= mean_bits * sum(size) * (1 + 1e-12)
    ]
    return min(sum(max(cost[layer, b], 0) for layer, b in enumerate(choice)) for choice in fitting)


@pytest.mark.parametrize("seed", range(30))
def test_allocation_is_the_best_of_all(seed):
    random = np.random.default_rng(seed)
    layers, bits = int(random.integers(1, 6)), [(2, 4, 8), (8,), (3, 5), (8, 2, 6, 4)][seed % 4]
    size = random.integers(1, 10 ** random.integers(1, 7), size=layers)
    # costs of layers three decades apart, that fall with the width as squared errors do, but for a few
    cost = (
        10 ** random.uniform(-3, 0, size=(layers, 1))
        * 4.0 ** -np.array(bits)
        * random.uniform(0.5, 2, (layers, len(bits)))
    )
    cost[random.uniform(size=cost.shape) < 0.1] *= -1
    mean_bits = min(bits) + random.uniform(0, 1) * (max(bits) - min(bits))
    chosen = allocate(cost, size, bits, mean_bits)
    assert set(chosen) <= set(bits)
    assert chosen @ size <= mean_bits * size.sum()
    columns = [bits.index(b) for b in chosen]
    found = np.maximum(cost[np.arange(layers), columns], 0).sum()
    # HiGHS stops within 1e-6 of the largest cost
    assert found <= brute_force(cost, size, bits, mean_bits) + 1e-6 * max(cost.max(), 0)


def test_limit_that_is_met_exactly_counts_as_met():
    cost = np.array([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    assert allocate(cost, [5, 5, 5], (2, 5), 4.0).tolist() == [5, 5, 2]
    assert 4.1 * 30 < 123  # in floating point
    assert allocate(cost, [3, 20, 7], (4, 5), 4.1).tolist() == [5, 4, 4]


def test_large_network_is_not_over_its_limit_by_a_single_bit():
    size = np.array([10_000_000, 30_000_001])
    cost = np.array([[1.0, 0.5, 0.1], [1.0, 0.5, 0.1]])
    for chosen in ([8, 8], [8, 4], [4, 8], [2, 8]):
        total = int(chosen @ size)
        assert allocate(cost, size, (2, 4, 8), (total - 1) / size.sum()) @ size < total
        assert allocate(cost, size, (2, 4, 8), (total + 0.5) / size.sum()) @ size <= total


def test_limit_that_only_the_smallest_width_meets():
    cost = np.array([[1.0, 0.1], [2.0, 0.1]])
    assert allocate(cost, [10, 1000], (2, 4), 2.0).tolist() == [2, 2]
    with pytest.raises(ValueError, match="smallest of the widths"):
        allocate(cost, [10, 1000], (2, 4), 1.9)


@pytest.mark.parametrize("level", [0.0, -1.0])
def test_room_goes_to_layers_whose_cost_says_nothing(level):
    cost = np.array([[level] * 3, [1.0, 0.1, 0.01]])
    assert allocate(cost, [10, 10], (2, 4, 8), 8.0).tolist() == [8, 8]
    assert allocate(cost, [10, 10], (2, 4, 8), 6.0).tolist() == [4, 8]


def test_costs_of_any_scale_give_the_same_choice():
    cost = np.array([[3.0, 1.0], [5.0, 1.0], [4.0, 0.5]])
    for scale in (1e-12, 1.0, 1e12):
        assert allocate(cost * scale, [7, 7, 7], (2, 8), 6.0).tolist() == [2, 8, 8]


@pytest.mark.parametrize("dtype, group", [(torch.float64, 1), (torch.float32, 2), (torch.float32, 4)])
def test_run_killed_after_any_step_resumes_bit_equal(dtype, group):
    operator = SubjectOperator(BY_NAME["attention"].build(weight_decay=0.01), group=group)
    options = config(bits=(3, 6, 8))
    found = layers_of(operator, options)
    steps = list(quantization.grow(operator, options, found, None))
    assert len(steps) == -(-6 // group) + 1
    for number, step in enumerate(map(stored, steps)):
        assert quantization.is_complete(step, options, found) == (number == len(steps) - 1)
        rest = list(quantization.grow(operator, options, found, step))
        assert len(rest) == len(steps) - 1 - number
        for resumed, straight in zip(rest, steps[number + 1 :], strict=True):
            assert_same(resumed, straight)


def test_better_traces_change_the_choice_without_new_products():
    operator = SubjectOperator(BY_NAME["mlp"].build())
    few = layers_of(operator)
    costs = last(quantization.grow(operator, config(), few, None))
    options = config(block_samples=9)
    more = last(blocks.grow(operator, 0, options, few))
    assert not quantization.is_complete(costs, options, more)
    operator.products = 0
    again = last(quantization.grow(operator, options, more, costs))
    assert operator.products == 0
    assert_same(again, last(quantization.grow(operator, options, more, None)))


def test_no_widths_and_no_matrices_cost_nothing():
    operator = SubjectOperator(BY_NAME["mlp"].build())
    found = layers_of(operator)
    assert list(quantization.grow(operator, config(bits=()), found, None)) == []
    assert quantization.is_complete(None, config(bits=()), found)

    case = BY_NAME["mlp"]
    subject = case.build()
    for name, parameter in subject.model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    operator = HessianOperator(subject)
    found, costs = quantized(operator)
    assert costs.coupling.shape == (0, 0) and costs.allocation.shape == (2, 0)
    assert quantization.is_complete(costs, config(), found)
    assert len(layer_rows(found, costs)) == 1 + len(found.block) + 3
    assert_same(stored(costs), costs)


def test_network_of_one_layer_and_one_width():
    case = Case("linear", lambda: nn.Linear(5, 3), (5,))
    found, costs = quantized(HessianOperator(case.build()), config(bits=(8,), mean_bits=8.0))
    assert list(found.block) == ["weight", "bias"]
    assert costs.allocation.tolist() == [[8], [8]]
    assert costs.chosen_bits.tolist() == [8.0, 8.0]


def test_unused_and_tied_weights():
    _, costs = quantized(HessianOperator(BY_NAME["unused_parameters"].build()), config(mean_bits=5.0))
    assert list(costs.layer) == ["used", "unused"]
    assert (costs.direct[1] == 0).all() and (costs.omega[1] == 0).all() and (costs.error[1] > 0).all()
    assert costs.allocation.tolist() == [[8, 2], [8, 2]]
    _, costs = quantized(HessianOperator(BY_NAME["tied"].build()))
    assert list(costs.layer) == ["first", "head"] and list(costs.size) == [16, 12]


def some_blocks(trace, stderr):
    count = len(trace)
    return Blocks(
        block=np.array([f"layer{i}" for i in range(count)], dtype=object), size=np.full(count, 1000),
        trace=np.array(trace), trace_stderr=np.array(stderr), largest=np.array([12.3456, *[np.nan] * (count - 1)]),
        largest_residual=np.array([0.01, *[np.nan] * (count - 1)]), products=np.zeros(count, int),
        converged=np.zeros(count, bool), samples=np.zeros((2, count)), own_samples=np.zeros((2, count)),
    )  # fmt: skip


def test_warnings_tell_negative_traces_from_uncertain_ones():
    found = some_blocks([5.0, -3.0, -1.0, 0.0, -1e-8, -0.4], [1.0, 1.0, 0.6, 0.0, 1e-12, 0.1])
    surely, perhaps = warnings(found)
    assert "more than two standard errors in layer1, layer5:" in surely
    assert "within two standard errors in layer2:" in perhaps
    assert warnings(some_blocks([5.0, 0.0], [1.0, 0.0])) == []
    assert len(warnings(some_blocks([-5.0], [np.nan]))) == 1


def test_table_names_every_layer_and_choice():
    found, costs = quantized(HessianOperator(BY_NAME["conv_bn_dropout"].build()))
    rows = layer_rows(found, costs)
    assert len({len(row) for row in rows}) == 1
    assert rows[0][:4] == ["layer", "weights", "trace", "largest eigenvalue"]
    assert rows[0][4:] == ["bits by omega", "bits by direct"]
    assert [row[0] for row in rows[1:5]] == ["0", "1", "4", "8"]
    assert rows[2][4:] == ["", ""]  # BatchNorm is not rounded
    assert [int(row[-1]) for row in (rows[1], rows[3], rows[4])] == costs.allocation[1].tolist()
    assert rows[-1][-2:] == [f"{value:.3g}" for value in costs.measured]
    lines = aligned(rows).splitlines()
    assert len(lines) == len(rows) and len({line.index(rows[0][-1]) for line in lines[:1]}) == 1
    assert all(len(line) == len(lines[0]) for line in lines[-3:])
    prices = cost_rows(costs)
    omegas, directs = ([f"{cost} at {bits}" for bits in (2, 4, 8)] for cost in ("omega", "d'Hd/2"))
    assert prices[0] == ["rounded layer", *omegas, *directs]
    assert [row[0] for row in prices[1:]] == costs.layer.tolist()
    assert np.allclose(np.array([row[1:4] for row in prices[1:]], dtype=float), costs.omega, rtol=5e-3)
    assert np.allclose(np.array([row[4:] for row in prices[1:]], dtype=float), costs.direct, rtol=5e-3)


def test_table_says_what_did_not_converge_or_is_not_there_yet():
    rows = layer_rows(some_blocks([5.0, -3.0], [1.0, np.nan]))
    assert rows[1] == ["layer0", "1,000", "5 ± 1", "12.3 ± 0.01 NOT CONVERGED"]
    assert rows[2] == ["layer1", "1,000", "-3", ""]
    operator = SubjectOperator(BY_NAME["mlp"].build())
    found = layers_of(operator)
    partial = next(quantization.grow(operator, config(), found, None))
    assert layer_rows(found, partial)[1][-2:] == ["", ""]


@pytest.mark.parametrize("name", ["conv_bn_dropout", "attention", "tied"])
def test_float32_equals_float64(name):
    options = config(bits=(3, 8), mean_bits=5.0)
    single = HessianOperator(BY_NAME[name].build(torch.float32))
    _, found = quantized(single, options)
    subject = BY_NAME[name].build(torch.float32)
    double = Subject(subject.model, list(subject.data), dtype=torch.float64)
    _, exact = quantized(HessianOperator(double), options)
    for field in ("error", "direct", "first_order", "coupling"):
        a, b = getattr(found, field), getattr(exact, field)
        # d itself, of 1/128 of the weights, has 1e-7 of the weights as rounding
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max(), err_msg=field)
