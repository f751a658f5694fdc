"""The smoothing operator: the fused kernels where they are built, else torch's own operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ext import fused, library

LOADED = library.load()
DEVICES = LOADED.devices
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REGISTERED = fused.register() if DEVICES else None


def smooth(x: Tensor, temperature: float = 10.0) -> Tensor:
    r"""Bound, rectify and blur a feature map with a 2x2 box; differentiable any number of times.

    .. math:: y = \mathrm{box}_{2\times2}(\mathrm{relu}(t \tanh(x / t)))

    The box zero-pads by one on each side and counts the padding, so height and width grow by one, values on
    the border are halved and those in the corners quartered (Park & Kim 2022, arXiv 2105.12639).

    Args:
        x: Feature map, (N, C, H, W), any floating dtype.
        temperature: t > 0, the bound of the activation, in units of x.

    Returns:
        Smoothed map, (N, C, H + 1, W + 1), channels_last where x is.

    Raises:
        ValueError: The temperature isn't above zero.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be above zero, not {temperature}")
    if x.device.type not in DEVICES or x.dtype not in DTYPES or x.dim() != 4 or torch.jit.is_tracing():
        return eager(x, temperature)
    differentiated = _transformed() or forward_ad._current_level >= 0
    if torch.compiler.is_compiling():
        return eager(x, temperature) if differentiated else REGISTERED.smooth(x, None, 0, temperature)
    if differentiated or (x.requires_grad and torch.is_grad_enabled()):
        return fused.Smooth.apply(x, None, 0, temperature)
    return torch.ops.landscope.smooth.default(x, None, 0, temperature)


@torch.compiler.assume_constant_result  # graphs are guarded by the transforms they were traced in
def _transformed() -> bool:
    """Whether `torch.func` transforms what runs: registered operators know neither its grad nor forward mode."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def eager(x: Tensor, temperature: float = 10.0) -> Tensor:
    """`smooth` composed of torch's own operations."""
    bounded = torch.relu(temperature * torch.tanh(x / temperature))
    return F.avg_pool2d(bounded, kernel_size=2, stride=1, padding=1)


def status() -> str:
    """Which path computes `smooth`, in one line."""
    return f"smoothing operator: {LOADED.status}"
