r"""Derivatives of the compiled smoothing operator, of any order and in both modes.

With :math:`a(x) = \mathrm{relu}(t \tanh(x/t))`, the box :math:`B` and its adjoint, there are two operators,

.. math:: S_n(x, f) = B\,(a^{(n)}(x)\, f), \qquad S_n^*(x, f, g) = a^{(n)}(x)\, f\, B^{\mathsf T} g,

with elementwise products: a family that is closed, as each derivative is one of the two again, of order n or n + 1.
Forward is :math:`S_0`, backward :math:`S_1^*`, a tangent :math:`S_1`, double backward :math:`S_2^*` and :math:`S_1`.

Under eager autograd and `torch.func` the rules are those of an `autograd.Function`, which knows jvp; `torch.compile`
can't trace one with its own jvp and gets the operators, with the same backward rules registered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Pair(NamedTuple):
    """The two operators, differentiable by one mechanism."""

    smooth: Callable[..., Tensor]
    """(x, factor or None, order, temperature) to the smoothed map."""
    adjoint: Callable[..., Tensor]
    """(x, factor or None, gradient, order, temperature) to a map like x."""


def product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Elementwise, where None is 1."""
    return b if a is None else a if b is None else a * b


def total(parts: list[Tensor]) -> Tensor | None:
    """The sum, None where there is nothing to sum."""
    return sum(parts[1:], parts[0]) if parts else None


def save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Keep the arguments for all derivatives."""
    *tensors, order, temperature = inputs
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.order, ctx.temperature = order, temperature
    ctx.set_materialize_grads(False)


def smooth_backward(pair: Pair, ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
    """Pull g back through S_n(x, f)."""
    (x, f), n, t, needs = ctx.saved_tensors, ctx.order, ctx.temperature, ctx.needs_input_grad
    if g is None:
        return None, None, None, None
    return (
        pair.adjoint(x, f, g, n + 1, t) if needs[0] else None,
        pair.adjoint(x, None, g, n, t) if needs[1] else None,
        None,
        None,
    )


def adjoint_backward(pair: Pair, ctx: Any, k: Tensor | None) -> tuple[Tensor | None, ...]:
    """Pull k back through S*_n(x, f, g)."""
    (x, f, g), n, t, needs = ctx.saved_tensors, ctx.order, ctx.temperature, ctx.needs_input_grad
    if k is None:
        return None, None, None, None, None
    kf = product(k, f)
    return (
        pair.adjoint(x, kf, g, n + 1, t) if needs[0] else None,
        pair.adjoint(x, k, g, n, t) if needs[1] else None,
        pair.smooth(x, kf, n, t) if needs[2] else None,
        None,
        None,
    )


def batched(operator: Callable[..., Tensor], info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
    """One call for a whole vmap: its dimension joins the batch."""

    def fold(tensor: Any, dim: int | None) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        if dim is None:
            tensor = tensor.expand(info.batch_size, *tensor.shape)
        else:
            tensor = tensor.movedim(dim, 0)
        return tensor.flatten(0, 1)

    result = operator(*map(fold, args, in_dims))
    return result.unflatten(0, (info.batch_size, result.shape[0] // info.batch_size)), 0


class Smooth(torch.autograd.Function):
    """S_n."""

    @staticmethod
    def forward(x: Tensor, factor: Tensor | None, order: int, temperature: float) -> Tensor:
        """Call the kernel."""
        return torch.ops.landscope.smooth.default(x, factor, order, temperature)

    setup_context = staticmethod(save)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        """Reverse mode."""
        return smooth_backward(EAGER, ctx, gradient)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, df: Tensor | None, *_: None) -> Tensor | None:
        """Forward mode."""
        (x, f), n, t = ctx.saved_tensors, ctx.order, ctx.temperature
        parts = []
        if dx is not None:
            parts.append(EAGER.smooth(x, product(dx, f), n + 1, t))
        if df is not None:
            parts.append(EAGER.smooth(x, df, n, t))
        return total(parts)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        """Batched."""
        return batched(EAGER.smooth, info, in_dims, *args)


class SmoothAdjoint(torch.autograd.Function):
    """S*_n."""

    @staticmethod
    def forward(x: Tensor, factor: Tensor | None, gradient: Tensor, order: int, temperature: float) -> Tensor:
        """Call the kernel."""
        return torch.ops.landscope.smooth_adjoint.default(x, factor, gradient, order, temperature)

    setup_context = staticmethod(save)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        """Reverse mode."""
        return adjoint_backward(EAGER, ctx, gradient)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, df: Tensor | None, dg: Tensor | None, *_: None) -> Tensor | None:
        """Forward mode."""
        (x, f, g), n, t = ctx.saved_tensors, ctx.order, ctx.temperature
        if n == 1 and f is None and dx is not None and dg is not None:
            return AdjointTangent.apply(x, dx, g, dg, t)
        parts = []
        if dx is not None:
            parts.append(EAGER.adjoint(x, product(dx, f), g, n + 1, t))
        if df is not None:
            parts.append(EAGER.adjoint(x, df, g, n, t))
        if dg is not None:
            parts.append(EAGER.adjoint(x, f, dg, n, t))
        return total(parts)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        """Batched."""
        return batched(EAGER.adjoint, info, in_dims, *args)


class AdjointTangent(torch.autograd.Function):
    """S*_2(x, dx, g) + S*_1(x, 1, dg), the tangent that Hessian products need, in one pass."""

    @staticmethod
    def forward(x: Tensor, dx: Tensor, g: Tensor, dg: Tensor, temperature: float) -> Tensor:
        """Call the kernel."""
        return torch.ops.landscope.smooth_adjoint_tangent.default(x, dx, g, dg, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keep the arguments."""
        *tensors, ctx.temperature = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, k: Tensor | None) -> tuple[Tensor | None, ...]:
        """Reverse mode."""
        (x, dx, g, dg), t, needs = ctx.saved_tensors, ctx.temperature, ctx.needs_input_grad
        if k is None:
            return None, None, None, None, None
        return (
            EAGER.adjoint(x, dx * k, g, 3, t) + EAGER.adjoint(x, k, dg, 2, t) if needs[0] else None,
            EAGER.adjoint(x, k, g, 2, t) if needs[1] else None,
            EAGER.smooth(x, dx * k, 2, t) if needs[2] else None,
            EAGER.smooth(x, k, 1, t) if needs[3] else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        """Forward mode."""
        (x, dx, g, dg), t = ctx.saved_tensors, ctx.temperature
        to_x, to_dx, to_g, to_dg, _ = tangents
        parts = []
        if to_x is not None:
            parts += [EAGER.adjoint(x, dx * to_x, g, 3, t), EAGER.adjoint(x, to_x, dg, 2, t)]
        if to_dx is not None:
            parts.append(EAGER.adjoint(x, to_dx, g, 2, t))
        if to_g is not None:
            parts.append(EAGER.adjoint(x, dx, to_g, 2, t))
        if to_dg is not None:
            parts.append(EAGER.adjoint(x, None, to_dg, 1, t))
        return total(parts)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        """Batched."""
        return batched(AdjointTangent.apply, info, in_dims, *args)


EAGER = Pair(Smooth.apply, SmoothAdjoint.apply)


def register() -> Pair:
    """Give the loaded operators shapes, backward rules and batching, and return them."""
    names = "landscope::smooth", "landscope::smooth_adjoint"
    pair = Pair(torch.ops.landscope.smooth.default, torch.ops.landscope.smooth_adjoint.default)
    torch.library.register_fake(names[0], lambda x, factor, order, temperature: _like(x, grow=1))
    torch.library.register_fake(names[1], lambda x, factor, gradient, order, temperature: _like(x, grow=0))
    torch.library.register_fake(f"{names[1]}_tangent", lambda x, *others: _like(x, grow=0))
    for name, rule, operator in zip(names, (smooth_backward, adjoint_backward), pair, strict=True):
        torch.library.register_autograd(name, lambda ctx, g, rule=rule: rule(pair, ctx, g), setup_context=save)
        torch.library.register_vmap(
            name, lambda info, dims, *args, operator=operator: batched(operator, info, dims, *args)
        )
    return pair


def _like(x: Tensor, grow: int) -> Tensor:
    """An empty map of x's size, or one pixel more, in the layout the kernels choose."""
    n, c, h, w = x.shape
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty((n, c, h + grow, w + grow), dtype=x.dtype, device=x.device, memory_format=layout)
