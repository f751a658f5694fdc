"""The compiled operator is the eager composition in fewer passes, under every way torch has to differentiate it."""

import functools

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap
from torch.library import opcheck

import ext
import models
from ext import fused, smoothing

pytestmark = pytest.mark.usefixtures("fused")

# Rows below and above the length where loops change, rows of one pixel, images of one row, none, and several bands.
SHAPES = [(2, 3, 5, 7), (1, 1, 1, 1), (3, 2, 1, 6), (2, 2, 6, 1), (0, 3, 4, 4), (70, 64, 4, 4), (3, 5, 17, 33)]
SHAPES += [(2, 2, 40, 64), (1, 2, 3, 5000), (2, 1, 9000, 1), (5000, 1, 1, 1), (1, 2, 3, 63)]


def random_map(*shape, dtype=torch.float64, scale=8.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def close(actual, expected, eps=8):
    """Equal up to `eps` roundings of the largest terms."""
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    tolerance = eps * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale)


def derivatives(function, x):
    """Value, gradient and second derivative along random directions by double backward."""
    x = x.clone().requires_grad_()
    y = function(x)
    g = random_map(*y.shape, dtype=x.dtype, seed=1).requires_grad_()
    (gx,) = torch.autograd.grad(y, x, g, create_graph=True)
    h = random_map(*x.shape, dtype=x.dtype, seed=2)
    return [value.detach() for value in (y, gx, *torch.autograd.grad(gx, (x, g), h))]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_gradient_and_double_gradient_equal_the_eager_ones(shape, layout):
    x = random_map(*shape).contiguous(memory_format=layout)
    for actual, expected in zip(derivatives(ext.smooth, x), derivatives(smoothing.eager, x), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_lower_precision_rounds_only_at_the_end(dtype, layout):
    x = random_map(3, 8, 9, 10, dtype=dtype).contiguous(memory_format=layout)
    for actual, expected in zip(derivatives(ext.smooth, x), derivatives(smoothing.eager, x.double()), strict=True):
        assert actual.dtype == dtype
        close(actual, expected.to(dtype), eps=4)


def test_tanh_is_right_from_the_smallest_to_the_largest_numbers():
    x = torch.logspace(-37, 4, 20001, dtype=torch.float32).reshape(1, 1, -1, 1)
    for dtype in (torch.float32, torch.float64):
        y, expected = ext.smooth(x.to(dtype)), smoothing.eager(x.double())
        torch.testing.assert_close(y.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("value", [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3e38, -3e38, 1e-45])
def test_special_values_give_what_eager_gives_in_every_derivative(value):
    x = random_map(1, 2, 4, 5, dtype=torch.float32)
    x[0, 0, 1, 2] = value
    # in float64, where 1e-45 / t is not rounded to zero
    for actual, expected in zip(derivatives(ext.smooth, x), derivatives(smoothing.eager, x.double()), strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("order", [3, 4])
def test_higher_derivatives_agree(order):
    def derivative(function):
        x = random_map(1, 2, 3, 4).requires_grad_()
        y = (function(x) ** 2).sum()
        for _ in range(order):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y.detach()

    close(derivative(ext.smooth), derivative(smoothing.eager), eps=64)


def test_strided_input_and_expanded_gradients():
    x = random_map(2, 6, 9, 8)

    def strided(function):
        leaf = x.clone().requires_grad_()
        y = function(leaf.transpose(2, 3)[:, ::2, 1:])
        return y.detach(), *torch.autograd.grad(y.sum(), leaf)

    for actual, expected in zip(strided(ext.smooth), strided(smoothing.eager), strict=True):
        close(actual, expected)


def samples():
    x = random_map(2, 3, 4, 5)
    g = random_map(2, 3, 5, 6, seed=1)
    for layout in (torch.contiguous_format, torch.channels_last):
        a = x.contiguous(memory_format=layout).requires_grad_()
        yield "smooth", (a, None, 0, 10.0)
        yield "smooth", (a, random_map(2, 3, 4, 5, seed=2).requires_grad_(), 1, 3.0)
        yield "smooth_adjoint", (a, None, g.clone().requires_grad_(), 1, 10.0)
        yield "smooth_adjoint", (a, random_map(2, 3, 4, 5, seed=2).requires_grad_(), g.clone().requires_grad_(), 2, 3.0)


def tangent_sample():
    shapes = (2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 5, 6), (2, 3, 5, 6)
    return *(random_map(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)), 3.0


def test_the_tangent_of_the_backward_passes_gradcheck():
    apply, arguments = fused.AdjointTangent.apply, tangent_sample()
    assert torch.autograd.gradcheck(apply, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(apply, arguments)


def test_the_operator_for_the_tangent_has_a_fake_kernel():
    plain = [part.detach() if isinstance(part, torch.Tensor) else part for part in tangent_sample()]
    opcheck(torch.ops.landscope.smooth_adjoint_tangent.default, plain)


@pytest.mark.parametrize("case", range(8))
def test_opcheck(case):
    name, arguments = list(samples())[case]
    opcheck(getattr(torch.ops.landscope, name).default, arguments)


@pytest.mark.parametrize("case", range(8))
def test_registered_and_eager_rules_pass_gradcheck(case):
    name, arguments = list(samples())[case]
    operators = (
        getattr(torch.ops.landscope, name),
        {
            "smooth": fused.Smooth.apply,
            "smooth_adjoint": fused.SmoothAdjoint.apply,
        }[name],
    )
    for operator, forward in zip(operators, (False, True), strict=True):
        assert torch.autograd.gradcheck(operator, arguments, check_forward_ad=forward, check_batched_grad=forward)
        assert torch.autograd.gradgradcheck(operator, arguments, check_fwd_over_rev=forward)


def loss(function, x):
    return (function(function(x)) ** 2).sum()


def test_forward_over_reverse_products_equal_double_backward_and_eager():
    x, v = random_map(2, 3, 4, 5), random_map(2, 3, 4, 5, seed=1)
    product = jvp(grad(functools.partial(loss, ext.smooth)), (x,), (v,))[1]
    expected = jvp(grad(functools.partial(loss, smoothing.eager)), (x,), (v,))[1]
    close(product, expected, eps=64)
    close(grad(lambda x: (grad(functools.partial(loss, ext.smooth))(x) * v).sum())(x), expected, eps=64)


def test_compositions_of_transforms_agree():
    x, v = random_map(3, 2, 2, 3, 2), random_map(3, 2, 2, 3, 2, seed=1)

    def results(f):
        first = functools.partial(loss, f)
        yield vmap(f)(x)
        yield vmap(f, in_dims=3)(x.movedim(0, 3))
        yield vmap(vmap(f))(x[None])
        yield vmap(grad(first))(x)
        yield vmap(lambda v: jvp(grad(first), (x[0],), (v,))[1])(v)
        yield vmap(lambda v: vjp(grad(first), x[0])[1](v)[0])(v)
        yield jvp(vmap(f), (x,), (v,))[1]
        yield hessian(first)(x[0, :1, :1])
        yield jacrev(jacrev(first))(x[0, :1, :1])
        yield jvp(lambda x: jvp(f, (x,), (v[0],))[1], (x[0],), (v[1],))[1]

    for actual, expected in zip(results(ext.smooth), results(smoothing.eager), strict=True):
        close(actual, expected, eps=256)


def test_dual_numbers_pass_through():
    x, v = random_map(2, 2, 3, 3), random_map(2, 2, 3, 3, seed=1)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        actual, expected = (
            torch.autograd.forward_ad.unpack_dual(f(dual)).tangent for f in (ext.smooth, smoothing.eager)
        )
    close(actual, expected)


def test_compiles_to_one_graph_with_gradients():
    x = random_map(2, 3, 4, 5).requires_grad_()
    compiled = torch.compile(lambda x: ext.smooth(2 * x).relu().sum(), fullgraph=True, backend="aot_eager")
    (actual,) = torch.autograd.grad(compiled(x), x)
    (expected,) = torch.autograd.grad(smoothing.eager(2 * x).relu().sum(), x)
    close(actual, expected)


def test_compiles_under_forward_mode_and_vmap():
    x, v = random_map(2, 3, 4, 5), random_map(2, 3, 4, 5, seed=1)

    def product(x, v):
        return jvp(grad(functools.partial(loss, ext.smooth)), (x,), (v,))[1]

    expected = product(x, v)
    close(torch.compile(product, fullgraph=True, backend="aot_eager")(x, v), expected, eps=64)
    gradient = grad(functools.partial(loss, ext.smooth))
    expected = grad(functools.partial(loss, smoothing.eager))(x)
    close(torch.compile(gradient, fullgraph=True, backend="aot_eager")(x), expected, eps=64)
    close(torch.compile(vmap(gradient), fullgraph=True, backend="aot_eager")(x[None])[0], expected, eps=64)


def test_compiled_graphs_hold_the_operator_also_in_training():
    seen = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compile(ext.smooth, fullgraph=True, backend=backend)(random_map(2, 3, 4, 5).requires_grad_())
    assert "landscope.smooth.default" in seen


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inductor_compiles_it_with_gradients(layout):
    x = random_map(2, 3, 4, 5, dtype=torch.float32).contiguous(memory_format=layout).requires_grad_()
    (actual,) = torch.autograd.grad(torch.compile(lambda x: ext.smooth(2 * x).square().sum(), fullgraph=True)(x), x)
    (expected,) = torch.autograd.grad(smoothing.eager(2 * x).square().sum(), x)
    close(actual, expected, eps=32)


def test_autocast_keeps_the_dtype_that_arrives():
    x = random_map(2, 3, 4, 5, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ext.smooth(x).dtype == torch.float32
        y = ext.smooth(torch.nn.functional.conv2d(x, torch.ones(3, 3, 1, 1)))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad.dtype == torch.float32


def test_threads_change_no_bit():
    x = random_map(40, 16, 15, 15, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(derivatives(ext.smooth, x))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_small_maps_without_gradients_skip_autograd_and_traced_networks_can_be_saved(tmp_path, monkeypatch):
    x = random_map(1, 2, 4, 4)
    with torch.no_grad():
        monkeypatch.setattr(fused.Smooth, "apply", None)
        close(ext.smooth(x), smoothing.eager(x))
    torch.jit.trace(ext.smooth, x).save(str(tmp_path / "traced.pt"))
    close(torch.jit.load(tmp_path / "traced.pt")(x), smoothing.eager(x))


@pytest.mark.parametrize("temperature", [-1.0, 0.0, float("nan")])
def test_a_temperature_must_be_positive_on_every_path(path, temperature):
    with pytest.raises(ValueError, match="above zero"):
        ext.smooth(torch.zeros(1, 1, 2, 2), temperature)


def test_a_wrong_argument_is_named():
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(RuntimeError, match="temperature"):
        torch.ops.landscope.smooth(x, None, 0, -1.0)
    with pytest.raises(RuntimeError, match="shape"):
        torch.ops.landscope.smooth_adjoint(x, None, x, 1, 1.0)
    with pytest.raises(RuntimeError, match="dtype"):
        torch.ops.landscope.smooth(x, x.double(), 1, 1.0)


def test_a_network_gives_the_same_outputs_gradients_and_hessian_products_on_both_paths(monkeypatch):
    torch.manual_seed(0)
    model = models.get_model("resnet_dnn_smoothing_18", num_classes=10, width=4).double().eval()
    x, y = random_map(3, 3, 16, 16, scale=1.0), torch.tensor([1, 2, 3])
    weights = dict(model.named_parameters())
    tangent = {name: random_map(*weight.shape, scale=1.0) for name, weight in weights.items()}

    def objective(weights):
        return torch.nn.functional.cross_entropy(functional_call(model, weights, (x,)), y)

    def everything():
        gradient, product = jvp(grad(objective), (weights,), (tangent,))
        loss = objective(weights)
        first = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        double = torch.autograd.grad(first, list(weights.values()), list(tangent.values()))
        parts = [model(x), *gradient.values(), *product.values(), *double]
        return [part.detach() for part in parts]

    actual = everything()
    monkeypatch.setattr(smoothing, "DEVICES", frozenset())
    for a, b in zip(actual, everything(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * max(1.0, b.abs().max().item()))
