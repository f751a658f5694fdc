"""The compiled operator on a GPU equals the definition in float64 and its derivatives."""

import pytest
import torch

import ext
from ext import smoothing

pytestmark = pytest.mark.skipif("cuda" not in smoothing.DEVICES, reason="no GPU, or not built for it: python -m ext")

LAYOUTS = [torch.contiguous_format, torch.channels_last]
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(2, 3, 5, 7), (1, 1, 1, 1), (3, 2, 1, 6), (2, 2, 6, 1), (0, 3, 4, 4), (70, 64, 4, 4), (3, 5, 17, 33)]
SHAPES += [(2, 2, 40, 64), (1, 2, 3, 5000), (2, 1, 9000, 1), (5000, 1, 1, 1), (4, 64, 56, 56), (8, 16, 113, 112)]


def random_map(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda").mul(4).to(dtype)


def close(actual, expected):
    """To the rounding of the result and that of float32's arithmetic, of the largest number."""
    eps = torch.finfo(actual.dtype).eps
    tolerance = 16 * (eps if actual.dtype in (torch.float32, torch.float64) else eps / 8)
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance * scale)


def derivatives(function, x, dtype):
    """Value, gradient, double gradient, and the tangent of the gradient; x as it arrives, computed in `dtype`."""
    x = x.detach().to(dtype).requires_grad_()
    n, c, h, w = x.shape
    g = random_map(n, c, h + 1, w + 1, seed=1).bfloat16().to(dtype).requires_grad_()
    k = random_map(n, c, h, w, seed=2).bfloat16().to(dtype)
    y = function(x)
    (gx,) = torch.autograd.grad(y, x, g, create_graph=True)
    double = torch.autograd.grad(gx, (x, g), k)

    def pull(x, g):
        return torch.func.vjp(function, x)[1](g)[0]

    tangent = torch.func.jvp(pull, (x.detach(), g.detach()), (k, g.detach()))[1]
    return [part.detach() for part in (y, gx, *double, tangent)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_gradient_double_gradient_and_tangent_equal_the_definition(shape, dtype, layout):
    # Numbers that bfloat16 holds, so that all compute from the same ones.
    x = random_map(*shape, dtype=torch.bfloat16).to(dtype).contiguous(memory_format=layout)
    for actual, expected in zip(
        derivatives(ext.smooth, x, dtype), derivatives(smoothing.eager, x, torch.float64), strict=True
    ):
        close(actual, expected)


@pytest.mark.parametrize("order", [3, 4])
def test_higher_derivatives_agree(order):
    def derivative(function):
        x = random_map(1, 2, 3, 4).double().requires_grad_()
        y = (function(x) ** 2).sum()
        for _ in range(order):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y.detach()

    close(derivative(ext.smooth), derivative(smoothing.eager))


@pytest.mark.parametrize("past", [1, 2, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_map_may_begin_at_any_number(dtype, past):
    flat = random_map(2 * 3 * 9 * 13 + past, dtype=dtype)
    x = flat[past:].view(2, 3, 9, 13)
    assert x.data_ptr() % 16
    close(ext.smooth(x), smoothing.eager(x.double()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_infinities_and_nan_give_what_eager_gives(layout):
    x = random_map(1, 8, 4, 5).contiguous(memory_format=layout)
    for value in (float("inf"), -float("inf"), float("nan"), 0.0, 3e38, -3e38, 1e-38):
        x[0, 0, 1, 2] = value
        torch.testing.assert_close(ext.smooth(x), smoothing.eager(x), rtol=1e-5, atol=1e-6, equal_nan=True)


def test_the_kernel_runs_on_the_current_stream():
    x = random_map(16, 64, 56, 56)
    expected = smoothing.eager(2 * x.double())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        doubled = torch.zeros_like(x)
        torch.cuda._sleep(10**7)
        doubled.copy_(2 * x)
        y = ext.smooth(doubled)
    torch.cuda.current_stream().wait_stream(stream)
    close(y, expected)


def test_a_graph_can_be_captured():
    x = random_map(4, 8, 14, 14)
    ext.smooth(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ext.smooth(x)
    x.mul_(2)
    graph.replay()
    close(y, smoothing.eager(x.double()))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_the_kernel_runs_on_the_tensors_device():
    x = random_map(2, 3, 5, 7).to("cuda:1")
    y = ext.smooth(x)
    assert y.device == x.device
    close(y, smoothing.eager(x.double()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_numbers_than_32_bits_count(layout):
    planes = 2**31 // (8 * 63 * 63) + 2
    needed = 2 * 4 * planes * 8 * 64 * 64
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GiB of GPU memory")
    x = torch.ones(planes, 8, 63, 63, dtype=torch.float16, device="cuda").contiguous(memory_format=layout)
    x[-1] = random_map(8, 63, 63, dtype=torch.float16)
    x.requires_grad_()
    y = ext.smooth(x)
    (gx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    last = x.detach()[-1:].double().requires_grad_()
    expected = smoothing.eager(last)
    close(y.detach()[-1:], expected.detach())
    close(gx[-1:], torch.autograd.grad(expected.sum(), last)[0])
    close(y.detach()[-2:-1], smoothing.eager(torch.ones_like(last)).detach())
