"""The smoothing operator is relu(t tanh(x/t)) followed by a zero-padded 2x2 box."""

import math

import numpy as np
import pytest
import torch

import ext

pytestmark = pytest.mark.usefixtures("path")


def random_map(*shape, dtype=torch.float64, scale=8.0):
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def reference(x, temperature=10.0):
    """The definition, output pixel by output pixel, in float64."""
    bounded = np.maximum(0.0, temperature * np.tanh(x.double().numpy() / temperature))
    batch, channels, height, width = bounded.shape
    y = np.zeros((batch, channels, height + 1, width + 1))
    for i in range(height + 1):
        for j in range(width + 1):
            for row in (i - 1, i):
                for column in (j - 1, j):
                    if 0 <= row < height and 0 <= column < width:
                        y[:, :, i, j] += bounded[:, :, row, column] / 4
    return torch.from_numpy(y)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (2, 2, 1, 6), (2, 2, 6, 1), (1, 4, 8, 8)])
@pytest.mark.parametrize("temperature", [0.5, 10.0])
def test_equals_a_loop_over_pixels(shape, temperature):
    x = random_map(*shape)
    # Four roundings on numbers up to t.
    torch.testing.assert_close(ext.smooth(x, temperature), reference(x, temperature), rtol=1e-14, atol=1e-15)


def test_the_default_temperature_is_ten():
    x = random_map(1, 2, 4, 4)
    assert torch.equal(ext.smooth(x), ext.smooth(x, 10.0))
    assert not torch.equal(ext.smooth(x), ext.smooth(x, 9.0))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 4), (0, 3, 4, 4)])
def test_height_and_width_grow_by_one(shape):
    batch, channels, height, width = shape
    assert ext.smooth(torch.zeros(shape)).shape == (batch, channels, height + 1, width + 1)


def test_a_constant_is_kept_inside_halved_on_the_border_and_quartered_in_the_corners():
    y = ext.smooth(torch.full((1, 1, 3, 4), 2.0, dtype=torch.float64))[0, 0] / (10 * math.tanh(0.2))
    share = torch.full((4, 5), 1.0, dtype=torch.float64)
    share[[0, -1]] *= 0.5
    share[:, [0, -1]] *= 0.5
    torch.testing.assert_close(y, share, rtol=1e-14, atol=0)


@pytest.mark.parametrize("frequency", [(0, 0), (1, 0), (0, 3), (2, 5), (4, 4), (8, 3), (8, 8)])
def test_the_transfer_function_is_the_product_of_half_angle_cosines(frequency):
    size, offset, amplitude = 16, 0.5, 1e-4
    omega_y, omega_x = (2 * math.pi * k / size for k in frequency)
    rows, columns = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    wave = torch.exp(1j * (omega_y * rows + omega_x * columns))
    gain = 1 - math.tanh(offset / 10) ** 2
    # Only the difference of +wave and -wave is left, so the offset and the curvature of tanh cancel; what
    # remains is its third derivative, amplitude^2 / 300 relative, below 1e-10.
    responses = []
    for part in (wave.real, wave.imag):
        plus, minus = (ext.smooth(offset + s * amplitude * part[None, None]) for s in (1, -1))
        responses.append((plus - minus)[0, 0, 1:size, 1:size] / (2 * amplitude * gain))
    response = torch.complex(*responses)
    # Output (i, j) averages rows i-1 and i: half a sample of delay on each axis.
    delayed = torch.exp(1j * (omega_y * (rows - 0.5) + omega_x * (columns - 0.5)))[1:, 1:]
    transfer = math.cos(omega_y / 2) * math.cos(omega_x / 2)
    torch.testing.assert_close(response, transfer * delayed, rtol=0, atol=1e-9)


def test_first_and_second_derivatives_agree_with_finite_differences():
    # Away from the kink of relu by more than gradcheck's step of 1e-6.
    x = random_map(2, 2, 3, 4)
    x = torch.where(x.abs() < 0.1, x + 0.5, x).requires_grad_()
    assert torch.autograd.gradcheck(ext.smooth, x)
    assert torch.autograd.gradgradcheck(ext.smooth, x)


def test_the_third_derivative_exists_and_is_that_of_tanh():
    x = torch.full((1, 1, 1, 1), 3.0, dtype=torch.float64, requires_grad=True)
    derivative = ext.smooth(x).sum()
    for _ in range(3):
        (derivative,) = torch.autograd.grad(derivative, x, create_graph=True)
    # The box spreads x over four outputs of a quarter each; t tanh(x/t)''' = -2 (1 - u^2)(1 - 3u^2) / t^2.
    u = math.tanh(0.3)
    assert derivative.item() == pytest.approx(-2 * (1 - u**2) * (1 - 3 * u**2) / 100, rel=1e-12)


def test_zero_stays_zero_and_has_no_gradient():
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    y = ext.smooth(x)
    y.sum().backward()
    assert not y.any()
    assert not x.grad.any()


def test_infinities_and_huge_values_saturate_at_the_bounds():
    limit = torch.finfo(torch.float32).max
    x = torch.tensor([math.inf, limit, -math.inf, -limit]).reshape(4, 1, 1, 1).requires_grad_()
    y = ext.smooth(x)
    assert torch.equal(y[:2], torch.full((2, 1, 2, 2), 2.5))  # a quarter of t
    assert torch.equal(y[2:], torch.zeros(2, 1, 2, 2))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_nan_reaches_the_four_outputs_that_see_it_and_no_other():
    x = torch.ones(1, 1, 4, 4)
    x[0, 0, 1, 2] = math.nan
    seen = torch.zeros(5, 5, dtype=torch.bool)
    seen[1:3, 2:4] = True
    assert torch.equal(ext.smooth(x).isnan()[0, 0], seen)


def test_channels_last_and_strided_inputs_give_the_values_of_contiguous_ones():
    x = random_map(2, 6, 8, 9, dtype=torch.float32)
    expected = ext.smooth(x)
    last = ext.smooth(x.contiguous(memory_format=torch.channels_last))
    # The order of the three additions may differ between kernels.
    torch.testing.assert_close(last, expected, rtol=4 * torch.finfo(torch.float32).eps, atol=0)
    assert last.is_contiguous(memory_format=torch.channels_last)
    strided = random_map(2, 6, 9, 8, dtype=torch.float32).transpose(2, 3)
    torch.testing.assert_close(ext.smooth(strided), ext.smooth(strided.contiguous()), rtol=5e-7, atol=0)
    sliced = x[:, ::2, 1:, ::3]
    torch.testing.assert_close(ext.smooth(sliced), ext.smooth(sliced.contiguous()), rtol=5e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_dtype_is_kept_and_right_to_its_rounding(dtype):
    x = random_map(2, 3, 6, 5, dtype=dtype)
    y = ext.smooth(x)
    assert y.dtype == dtype
    # Roundings: x/t (its error grows no further, as |d log tanh(u)/d log u| <= 1), tanh, times t, the mean.
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), reference(x), rtol=tolerance, atol=tolerance * 1e-3)


def test_the_input_is_left_alone():
    x = random_map(1, 2, 4, 4)
    before = x.clone()
    ext.smooth(x)
    assert torch.equal(x, before)


def test_an_empty_batch_has_an_empty_gradient():
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    ext.smooth(x).sum().backward()
    assert x.grad.shape == (0, 3, 4, 4)


def test_status_is_one_line():
    assert ext.status().startswith("smoothing operator: ")
    assert "\n" not in ext.status()
