"""The CUDA kernels' work, emulated on the CPU under sanitizers, equals the definition in float64."""

import functools
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ext import build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]  # in the order of schemes.h
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# The edges of tiles, strips and packs: rows short and long, of odd and even lengths, one pixel, one row, one column,
# more planes than blocks; rows of the last ones do not fit into shared memory.
SHAPES = [(2, 3, 5, 7), (1, 1, 1, 1), (3, 2, 1, 6), (2, 2, 6, 1), (70, 64, 4, 4), (3, 5, 17, 33), (2, 2, 40, 64)]
SHAPES += [(2, 1, 9000, 1), (5000, 1, 1, 1), (1, 2, 3, 63), (2, 16, 33, 9), (1, 8, 8, 8), (1, 3, 50, 300)]
SHAPES += [(1, 2, 3, 5000), (1, 1, 19, 2000), (3, 2, 1, 1500), (1, 2, 1, 681), (1, 2, 2, 682)]
TEMPERATURE = 3.0


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """The program. The kernels' functions need no inlining here, and compile faster without."""
    path = tmp_path_factory.mktemp("emulator") / "emulate"
    include = Path(torch.__file__).parent / "include"
    sources = ["-isystem", include, "-I", build.SOURCES, Path(__file__).parent / "emulate.cpp"]
    flags = ["-std=c++17", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Dalways_inline=noinline"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    done = subprocess.run(["g++", *flags, *checks, *map(str, sources), "-o", str(path)], capture_output=True, text=True)
    if "cannot find" in done.stderr:
        pytest.skip("g++ has no sanitizers here")
    assert done.returncode == 0, done.stderr
    return path


@dataclass(frozen=True)
class Emulated:
    """What came out."""

    result: torch.Tensor
    reads: int
    """Numbers converted for arithmetic."""
    writes: int
    """Results rounded to the dtype."""
    blocks: int
    shared: int
    """Numbers in shared memory."""


def emulate(program, x, order, factor=None, gradient=None, dgradient=None, past=(0, 0, 0, 0, 0)):
    """Run a kernel's work with its tensors `past` numbers behind aligned addresses."""
    last = not x.is_contiguous()
    n, c, h, w = x.shape
    planes, pixel = (n, c) if last else (n * c, 1)
    tensors = [x, factor, gradient, dgradient]
    given = [int(tensor is not None) for tensor in tensors]
    fields = [TYPES.index(x.dtype), planes, h, w, pixel, order, *given[1:], *past]
    data = struct.pack(f"{len(fields)}qd", *fields, TEMPERATURE)
    for tensor in tensors:
        if tensor is not None:
            flat = tensor.permute(0, 2, 3, 1) if last else tensor
            data += flat.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    done = subprocess.run([program], input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[:4000]
    grow = int(gradient is None)
    result = torch.frombuffer(bytearray(done.stdout), dtype=x.dtype)
    if last:
        result = result.reshape(n, h + grow, w + grow, c).permute(0, 3, 1, 2)
    else:
        result = result.reshape(n, c, h + grow, w + grow)
    return Emulated(result, *map(int, done.stderr.split()))


def activation(x, order):
    """relu(t tanh(x / t)) differentiated `order` times."""
    x = x.double().requires_grad_()
    y = torch.relu(TEMPERATURE * torch.tanh(x / TEMPERATURE))
    for _ in range(order):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y.detach()


def box(a):
    return F.avg_pool2d(a, kernel_size=2, stride=1, padding=1)


def box_adjoint(g):
    return (g[..., :-1, :-1] + g[..., :-1, 1:] + g[..., 1:, :-1] + g[..., 1:, 1:]) / 4


@functools.cache
def tensors(shape, dtype, layout):
    """x, dx, gradient and dgradient."""
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [shape, shape, (n, c, h + 1, w + 1), (n, c, h + 1, w + 1)]
    parts = [torch.randn(size, generator=generator, dtype=torch.float64).mul(4).to(dtype) for size in sizes]
    return [part.contiguous(memory_format=LAYOUTS[layout]) for part in parts]


def close(actual, expected):
    """To the rounding of the result and that of float32's arithmetic, of the largest number."""
    eps = torch.finfo(actual.dtype).eps
    tolerance = 16 * (eps if actual.dtype in (torch.float32, torch.float64) else eps / 8)
    assert not actual.isnan().any()
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance * scale)


def check(program, x, f, g, dg, order, past=(0, 0, 0, 0, 0)):
    """Both operators with and without factor."""
    at, double = activation(x, order), f.double()
    close(emulate(program, x, order, past=past).result, box(at))
    close(emulate(program, x, order, factor=f, past=past).result, box(at * double))
    pulled = box_adjoint(g.double())
    close(emulate(program, x, order, gradient=g, past=past).result, at * pulled)
    close(emulate(program, x, order, factor=f, gradient=g, past=past).result, at * double * pulled)
    if order == 1:
        tangent = at * box_adjoint(dg.double()) + activation(x, 2) * double * pulled
        close(emulate(program, x, 1, factor=f, gradient=g, dgradient=dg, past=past).result, tangent)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_derivatives_equal_the_definition(emulator, shape, dtype, layout):
    check(emulator, *tensors(shape, dtype, layout), order=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("order", [0, 2, 3, 4])
def test_other_orders_equal_the_definition(emulator, order, dtype, layout):
    for shape in [(2, 8, 17, 9), (1, 3, 6, 33)]:
        check(emulator, *tensors(shape, dtype, layout), order=order)


@pytest.mark.parametrize("past", [(1,) * 5, (3, 2, 1, 3, 0), (0, 0, 0, 0, 1), (0, 1, 2, 3, 2), (3, 0, 3, 0, 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
def test_tensors_may_begin_at_any_number(emulator, dtype, layout, past):
    for shape in [(2, 8, 9, 13), (1, 1, 9, 1500), (1, 1, 1, 2)]:
        check(emulator, *tensors(shape, dtype, layout), order=1, past=past)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(64, 16, 4, 4), (16, 16, 14, 14), (2, 16, 112, 112), (1, 16, 64, 500)])
def test_activations_are_computed_once_and_results_written_once(emulator, shape, layout):
    x, _, g, _ = tensors(shape, torch.float32, layout)
    smoothed = emulate(emulator, x, 0)
    assert smoothed.writes == g.numel()
    assert x.numel() <= smoothed.reads <= (1.4 if layout == "channels_last" else 1.13) * x.numel()
    pulled = emulate(emulator, x, 1, gradient=g)
    assert pulled.writes == x.numel()
    if layout == "contiguous":
        assert x.numel() + g.numel() <= pulled.reads <= x.numel() + 1.3 * g.numel()


def test_a_block_leaves_room_for_seven_more(emulator):
    for shape in [(64, 16, 4, 4), (2, 16, 112, 112)]:
        assert 4 * emulate(emulator, tensors(shape, torch.float32, "contiguous")[0], 0).shared <= (164 << 10) // 8


def test_nan_reaches_the_four_results_that_see_it(emulator):
    x = torch.ones(1, 1, 4, 4)
    x[0, 0, 1, 2] = torch.nan
    seen = torch.zeros(5, 5, dtype=torch.bool)
    seen[1:3, 2:4] = True
    assert torch.equal(emulate(emulator, x, 0).result.isnan()[0, 0], seen)
