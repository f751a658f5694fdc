"""How the Hessian of one batch's loss is multiplied with vectors: the engines behind `HessianOperator`.

An engine is given the batch's loss as a function of the weights by name, those weights, and the names of the
weights that are variables. Vectors are flat, over some of these, in the order of the names they come with.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from analyze.hessian.spec import Engine
from data_cache import InputError
from data_cache.errors import first_line

Loss = Callable[[Mapping[str, Tensor]], Tensor]
R = TypeVar("R")
# Relative error, in units of eps, up to which two ways to a product count as the same.
_ROUNDINGS = 1e3


class BatchHessian(Protocol):
    """The Hessian of one batch's loss over the named weights."""

    keeps: bool
    """Whether it holds a graph that is worth keeping between products."""
    depends: bool
    """Whether the loss depends on any of the variables, as far as that is known."""

    def __init__(self, loss: Loss, weights: Mapping[str, Tensor], names: Sequence[str]):
        """Prepare products at `weights`; only those in `names` are variables."""

    def products(self, vectors: Tensor, names: Sequence[str], keep: bool) -> Tensor:
        """Rows and columns `names` of H, times each vector: (k, n) to (k, n), detached.

        Args:
            vectors: (k, n), all multiplied at once where the engine can.
            names: Which of the variables, in the order of the vectors' entries.
            keep: Whether more products follow; if not, the graph may be freed on the way.
        """


class DoubleBackward:
    r"""The gradient's graph, differentiated: :math:`H v = \nabla_w (v^\top \nabla_w \ell)` (Pearlmutter 1994)."""

    keeps = True

    def __init__(self, loss: Loss, weights: Mapping[str, Tensor], names: Sequence[str]):
        self._leaves = {name: weight.detach().requires_grad_(name in names) for name, weight in weights.items()}
        value = loss(self._leaves)
        self.depends = value.requires_grad
        self._gradients: dict[str, Tensor] = {}
        if self.depends:
            leaves = [self._leaves[name] for name in names]
            gradients = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
            _require_second_derivatives(gradients)
            # a gradient that does not depend on the weights, or a weight that the loss does not use, has zero rows
            self._gradients = {
                name: g for name, g in zip(names, gradients, strict=True) if g is not None and g.requires_grad
            }

    def products(self, vectors: Tensor, names: Sequence[str], keep: bool) -> Tensor:
        """As `BatchHessian.products`; several vectors at once by mapping the second differentiation over them."""
        leaves = [self._leaves[name] for name in names]
        parts = _split(vectors, leaves)
        pairs = [(self._gradients[name], v) for name, v in zip(names, parts, strict=True) if name in self._gradients]
        if not pairs:
            return torch.zeros_like(vectors)
        outputs, seeds = zip(*pairs, strict=True)
        if len(vectors) == 1:
            single = [seed[0] for seed in seeds]
            rows = torch.autograd.grad(outputs, leaves, single, retain_graph=keep, allow_unused=True)
            return _flat([_or_zeros(row, leaf.shape, leaf)[None] for row, leaf in zip(rows, leaves, strict=True)])
        rows = torch.autograd.grad(outputs, leaves, seeds, retain_graph=True, allow_unused=True, is_grads_batched=True)
        return _flat([_or_zeros(row, v.shape, leaf) for row, v, leaf in zip(rows, parts, leaves, strict=True)])


class ForwardOverReverse:
    r"""The derivative of the gradient along v, by forward mode: :math:`H v = \partial_t \nabla \ell(w + t v)|_0`.

    Some operations have no forward mode in torch, among them `mse_loss` with fixed targets and `huber_loss`.
    """

    keeps, depends = False, True

    def __init__(self, loss: Loss, weights: Mapping[str, Tensor], names: Sequence[str]):
        _load_forward_mode()
        self._loss = loss
        self._weights = {name: weight.detach() for name, weight in weights.items()}

    def products(self, vectors: Tensor, names: Sequence[str], keep: bool) -> Tensor:
        """As `BatchHessian.products`; vectors at once share the gradient they are tangent to."""
        at = {name: self._weights[name] for name in names}

        gradient = torch.func.grad(lambda variables: self._loss({**self._weights, **variables}))

        def product(v: Tensor) -> Tensor:
            tangent = {name: part[0] for name, part in zip(names, _split(v[None], list(at.values())), strict=True)}
            derivative = torch.func.jvp(gradient, (at,), (tangent,))[1]
            return _flat([derivative[name][None] for name in names])[0]

        if len(vectors) == 1:
            return product(vectors[0])[None]
        # the same dropout masks for all vectors: they belong to the loss
        return torch.func.vmap(product, randomness="same")(vectors)


@cache
def _load_forward_mode() -> None:
    """Let torch load its forward-mode rules, which warns, at first use, of a part of torch that they use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        one = torch.ones(())
        torch.func.jvp(torch.sin, (one,), (one,))


class FiniteDifferences:
    r"""A central difference of gradients, good to about eps^(2/3): for models that can't be differentiated twice.

    .. math:: H v \approx \frac{\nabla \ell(w + h v) - \nabla \ell(w - h v)}{2 h},
              \qquad h = \epsilon^{1/3}\, \frac{1 + \|w\|}{\|v\|}

    with epsilon of the weights' dtype; differences are taken in float64. In float64 weights it is good to many digits;
    in float32 the step is so long that it crosses kinks of ReLUs, and only smooth models come out right.
    """

    keeps, depends = False, True

    def __init__(self, loss: Loss, weights: Mapping[str, Tensor], names: Sequence[str]):
        self._loss = loss
        self._weights = {name: weight.detach() for name, weight in weights.items()}

    def products(self, vectors: Tensor, names: Sequence[str], keep: bool) -> Tensor:
        """As `BatchHessian.products`, one vector at a time, in float64."""
        at = _flat([self._weights[name][None] for name in names])[0].double()
        rows = torch.zeros(vectors.shape, dtype=torch.float64, device=vectors.device)
        for v, row in zip(vectors.double(), rows, strict=True):
            norm = torch.linalg.vector_norm(v).item()
            if norm > 0:
                eps = torch.finfo(vectors.dtype).eps
                step = eps ** (1 / 3) * (1 + torch.linalg.vector_norm(at).item()) / norm
                difference = self._gradient(at + step * v, names) - self._gradient(at - step * v, names)
                row.copy_(difference / (2 * step))
        return rows

    def _gradient(self, flat: Tensor, names: Sequence[str]) -> Tensor:
        weights = [self._weights[name] for name in names]
        leaves = [part[0].to(w).requires_grad_() for part, w in zip(_split(flat[None], weights), weights, strict=True)]
        value = self._loss({**self._weights, **dict(zip(names, leaves, strict=True))})
        if not value.requires_grad:
            return torch.zeros_like(flat)
        gradients = torch.autograd.grad(value, leaves, materialize_grads=True)
        return _flat([g[None] for g in gradients])[0].double()


class PyHessian:
    """PyHessian's own `hessian` of the batch and its `hessian_vector_product` (Yao et al. 2020).

    It sees a module whose parameters are our copies of the variables, so that what it does to modes and `.grad`
    never reaches the model.

    Raises:
        InputError: The loss does not use one of the variables; PyHessian has no Hessian then.
    """

    keeps, depends = True, True

    def __init__(self, loss: Loss, weights: Mapping[str, Tensor], names: Sequence[str]):
        import pyhessian  # only for those who ask for it

        wrapped = _Wrapped(loss, weights, names)
        nothing = torch.empty(0)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
                # it moves the batch for cuda=True only, and the batch is in the loss, where it belongs
                own = pyhessian.hessian(wrapped, lambda value, _: value, data=(nothing, nothing), cuda=False)
        finally:
            for parameter in wrapped.parameters():
                parameter.grad = None  # breaks the cycle parameter -> .grad -> graph -> parameter
        unused = [name for name, g in zip(names, own.gradsH, strict=True) if not isinstance(g, Tensor)]
        if unused:
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            raise InputError(
                f"PyHessian can't handle weights that the loss does not use ({', '.join(unused[:3])}{more}); choose "
                "another --engine, or leave them out with --parameters."
            )
        _require_second_derivatives(own.gradsH)
        self._pairs = dict(zip(names, zip(own.gradsH, own.params, strict=True), strict=True))
        self._product = pyhessian.hessian_vector_product

    def products(self, vectors: Tensor, names: Sequence[str], keep: bool) -> Tensor:
        """As `BatchHessian.products`, one vector at a time; PyHessian never frees a graph on the way."""
        gradients, parameters = zip(*(self._pairs[name] for name in names), strict=True)
        parts = _split(vectors, parameters)
        rows = [self._product(gradients, parameters, [part[k] for part in parts]) for k in range(len(vectors))]
        return torch.cat([_flat([part[None] for part in row]) for row in rows])


class _Wrapped(nn.Module):
    """A batch's loss as a module without arguments worth the name, as PyHessian wants it."""

    def __init__(self, loss: Loss, weights: Mapping[str, Tensor], names: Sequence[str]):
        super().__init__()
        self._loss, self._names = loss, names
        self._fixed = {name: weight.detach() for name, weight in weights.items()}
        self.variables = nn.ParameterList([nn.Parameter(self._fixed[name]) for name in names])

    def forward(self, _: Tensor) -> Tensor:
        return self._loss({**self._fixed, **dict(zip(self._names, self.variables, strict=True))})


ENGINES: dict[str, type[BatchHessian]] = {
    "auto": DoubleBackward,
    "recomputed": DoubleBackward,
    "forward-over-reverse": ForwardOverReverse,
    "finite-differences": FiniteDifferences,
    "pyhessian": PyHessian,
}
GROUPING = ("auto", "recomputed", "forward-over-reverse")
"""Engines that can multiply several vectors at once."""


def parse_choice(choice: str) -> tuple[str, int]:
    """`ENGINE` or `ENGINE/GROUP` as (engine, how many vectors at once).

    Raises:
        InputError: There is no such engine, or it takes one vector at a time.
    """
    name, slash, group = choice.partition("/")
    if name not in get_args(Engine):
        raise InputError(f"there is no engine {name!r}; choose one of {', '.join(get_args(Engine))}.")
    if not slash:
        return name, 1
    if not group.isascii() or not group.isdecimal() or int(group) < 1:
        raise InputError(f"engine {choice!r}: what follows the slash must be a number of vectors from 1 up.")
    if name not in GROUPING and int(group) > 1:
        raise InputError(f"engine {name} takes one vector at a time; {' and '.join(GROUPING)} take groups.")
    return name, int(group)


def format_choice(name: str, group: int) -> str:
    """The shortest text that `parse_choice` reads as this engine and group."""
    return name if group == 1 else f"{name}/{group}"


class GraphBytes(saved_tensors_hooks):
    """Counts the bytes that graphs built in this context hold on to, each storage once."""

    def __init__(self):
        self._storages: dict[int, int] = {}
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # with its own graph, a saved output would hold its node, and the node it: for ever

    @property
    def bytes(self) -> int:
        """So far."""
        return sum(self._storages.values())


@dataclass(frozen=True)
class Measured:
    """What `measure` picked, and its price."""

    name: str
    """Of the engine."""
    group: int
    """Vectors at once."""
    gradients: float
    """Time of each product of such a group in gradients, on one batch."""


def measure(
    loss: Loss, weights: Mapping[str, Tensor], names: Sequence[str], *, memory: float, batches: int
) -> Measured:
    """Time the exact engines on one batch, and pick the fastest for single vectors, and its best group.

    These are double backward on a kept and on a recomputed graph, and forward-over-reverse; the first and the last
    also with groups of 2, and of 4 where 2 were no slower. One that fails, or differs from double backward by more
    than rounding, is out.

    Args:
        loss: Of the batch.
        weights: By name.
        names: The variables.
        memory: Bytes for kept graphs, and for what a group adds to a product.
        batches: How many there are, each taken to cost what this one does.

    Raises:
        InputError: None of them works.
    """
    some = weights[names[0]]
    count = sum(weights[name].numel() for name in names)
    vectors = torch.randn(4, count, generator=torch.Generator().manual_seed(0)).to(some)
    leaves = {name: weight.detach().requires_grad_(name in names) for name, weight in weights.items()}
    held, reference, failures = 0, None, []
    costs: dict[tuple[str, int], float] = {}

    def time_groups(name: str, batch: BatchHessian, extra: float) -> None:
        """Seconds for each vector; `extra` is what comes on top once for each group."""
        for group in (1, 2, 4):
            if group > 1 and group * held > memory or group > 2 and costs[name, 2] > costs[name, 1]:
                return
            found, seconds = _timed(lambda group=group: batch.products(vectors[:group], names, True), some.device)
            if reference is not None and not _agree(found, reference[:group]):
                raise InputError(f"{name} differs from double backward by more than rounding")
            costs[name, group] = (seconds + extra) / group

    def double_backward() -> None:
        nonlocal held, reference
        counted = GraphBytes()
        with counted:
            batch = DoubleBackward(loss, weights, names)
        held = counted.bytes
        rows, seconds = _timed(lambda: [batch.products(v[None], names, True) for v in vectors], some.device)
        reference = torch.cat(rows)
        costs["recomputed", 1] = _timed(
            lambda: DoubleBackward(loss, weights, names).products(vectors[:1], names, False), some.device
        )[1]
        if held <= memory:
            lacking = max(0.0, 1 - memory // max(held, 1) / batches)  # share of batches whose graph is not kept
            time_groups("auto", batch, lacking * max(0.0, costs["recomputed", 1] - seconds / len(vectors)))

    def gradient() -> Sequence[Tensor | None]:
        return torch.autograd.grad(loss(leaves), [leaves[name] for name in names], allow_unused=True)

    of_gradient = _timed(gradient, some.device)[1]
    for candidate in (
        double_backward,
        lambda: time_groups("forward-over-reverse", ForwardOverReverse(loss, weights, names), 0.0),
    ):
        try:
            candidate()
        except (RuntimeError, MemoryError, InputError) as error:
            failures.append(first_line(error))
    if not costs:
        raise InputError(f"no exact engine can differentiate this model twice: {failures[0]}.")
    # most parts multiply one vector at a time: that decides on the engine, and the group is the best for it
    name = min((cost, name) for (name, group), cost in costs.items() if group == 1)[1]
    seconds, group = min((cost, group) for (engine, group), cost in costs.items() if engine == name)
    of_gradient = min(of_gradient, _timed(gradient, some.device)[1])
    return Measured(name, group, seconds / of_gradient)


def _timed(run: Callable[[], R], device: torch.device) -> tuple[R, float]:
    """What it returns, and the seconds of the faster of two runs."""
    times = []
    for _ in range(2):
        _finish(device)
        begin = time.perf_counter()
        result = run()
        _finish(device)
        times.append(time.perf_counter() - begin)
    return result, min(times)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _agree(found: Tensor, reference: Tensor) -> bool:
    """Whether two ways to the same products (k, n) differ by rounding only, in the norm."""
    error = torch.linalg.vector_norm(found.double() - reference.double())
    return bool(error <= _ROUNDINGS * torch.finfo(reference.dtype).eps * torch.linalg.vector_norm(reference.double()))


def _require_second_derivatives(gradients: Sequence[Tensor | None]) -> None:
    """Find functions that may be differentiated once only: autograd silently leaves out what passes through them."""
    found = [g.grad_fn for g in gradients if g is not None]
    seen = set(found)
    while found:
        node = found.pop()
        if node is None:
            continue
        if node.name().endswith("Error"):
            raise InputError(
                "a function of the model can be differentiated only once (@once_differentiable), so double backward "
                "has no Hessian; use --engine finite-differences."
            )
        new = [following for following, _ in node.next_functions if following not in seen]
        seen.update(new)
        found.extend(new)


def _split(vectors: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Flat vectors (k, n) as tensors (k, *shape) of each weight's shape."""
    parts = vectors.split([weight.numel() for weight in like], dim=1)
    return [part.reshape(len(vectors), *weight.shape) for part, weight in zip(parts, like, strict=True)]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """The inverse of `_split`: tensors (k, *shape) as flat vectors (k, n)."""
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], dim=1)


def _or_zeros(tensor: Tensor | None, shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.zeros(shape, dtype=like.dtype, device=like.device) if tensor is None else tensor
