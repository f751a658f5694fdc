"""A copy of a network whose weights move, and the quick way to compute it at each place for several frames.

Frames are Monte Carlo passes: they share the weights and differ in dropout masks alone. So the graph of the network
is cut where the first mask comes in, and only what follows is computed for each frame. The masks are those that the
passes draw in all other analyses, a function of (seed, pass, batch), drawn ahead and kept as bits between places.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from analyze.batches import Batch
from analyze.subject import Subject
from models.layers import MCDropout, TanhBlurBlock

MASK_BYTES = 2**30
"""What kept masks take at most; further ones are drawn anew at each point."""

Tensors = Mapping[str, Tensor]


class Twin:
    """A copy of a subject's network, at weights w0 + x dx + y dy that are computed from w0 every time."""

    def __init__(self, subject: Subject, axes: Sequence[Tensors], *, channels_last: bool = False):
        self.subject = copy.copy(subject)
        self.model = self.subject.model = copy.deepcopy(subject.model).requires_grad_(False)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self._own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        names = {name for axis in axes for name in axis}
        self._moving = [(self._own[name], self._own[name].clone()) for name in self._own if name in names]
        self._axes = [
            [(own, torch.empty_like(own).copy_(axis[name])) for name, own in self._own.items() if name in axis]
            for axis in axes
        ]
        self._buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]

    @torch.no_grad()
    def move(self, *coordinates: float) -> None:
        """Go to these coordinates along the axes; buffers that no axis moves are the checkpoint's."""
        for tensor, own in self._buffers:
            tensor.copy_(own)
        for tensor, own in self._moving:
            tensor.copy_(own)
        for axis, coordinate in zip(self._axes, coordinates, strict=True):
            if coordinate:
                for tensor, step in axis:
                    tensor.add_(step, alpha=coordinate)

    @torch.no_grad()
    def move_to(self, difference: Tensors) -> None:
        """Go to w0 plus a difference; every later `move` must be of a new twin."""
        for name, step in difference.items():
            self._own[name].add_(step.to(self._own[name]))

    @torch.no_grad()
    def copy_buffers(self, other: Twin) -> None:
        """Take the buffers of another twin."""
        for own, theirs in zip(self.model.buffers(), other.model.buffers(), strict=True):
            own.copy_(theirs)

    @property
    def norms(self) -> list[_BatchNorm]:
        """The modules that have running statistics."""
        return [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]

    @torch.no_grad()
    def recompute_statistics(self, batches: Sequence[Batch], counters: Sequence[tuple[int, ...]]) -> None:
        r"""Set BatchNorm's running statistics to mean and unbiased variance over all images, at the present weights.

        .. math:: \mu = \frac{1}{n} \sum_b n_b m_b, \quad
            \sigma^2 = \frac{n}{n-1} \left[ \frac{1}{n} \sum_b n_b (v_b + m_b^2) - \mu^2 \right]

        with mean m_b and variance v_b of what each norm meets in batch b, where all norms use those of the batch. It
        takes no running average, so neither the order of the batches nor a momentum matter.

        Args:
            batches: The images.
            counters: For each batch what its dropout masks are a function of.
        """
        norms = self.norms
        sums = {norm: [0.0, 0.0, 0.0] for norm in norms}

        def add(norm: nn.Module, inputs: tuple) -> None:
            x = inputs[0]
            variance, mean = torch.var_mean(x, [axis for axis in range(x.dim()) if axis != 1], correction=0)
            n, mean, total = x.numel() // x.shape[1], mean.double(), sums[norm]
            for place, value in enumerate((n, n * mean, n * (variance.double() + mean**2))):
                total[place] = total[place] + value

        with ExitStack() as stack:
            for norm in norms:
                stack.callback(norm.register_forward_pre_hook(add).remove)
            for (x, _), numbers in zip(batches, counters, strict=True):
                with self.subject.frozen(*numbers), torch.no_grad(), _batch_statistics(norms):
                    self.model(x)
        for norm, (n, first, second) in sums.items():
            if n:
                mean = first / n
                norm.running_mean.copy_(mean)
                norm.running_var.copy_((second / n - mean**2).clamp(min=0) * (n / max(1, n - 1)))


@contextmanager
def _batch_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, (training, tracking) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracking


class Shape(NamedTuple):
    """What a dropout meets in a batch."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    rate: float


def dropouts_met(twin: Twin, x: Tensor) -> list[Shape]:
    """What each dropout that is on meets, in the order of the calls."""
    met: list[Shape] = []

    def note(module: nn.Module, inputs: tuple) -> None:
        if rate := _rate(module):
            like = torch.empty_like(inputs[0])
            met.append(Shape(tuple(like.shape), like.stride(), rate))

    with ExitStack() as stack:
        for module in twin.model.modules():
            if isinstance(module, (MCDropout, nn.Dropout)):
                stack.callback(module.register_forward_pre_hook(note).remove)
        twin.subject.outputs(x, 0)
    return met


def _rate(module: nn.Module) -> float:
    """Of a dropout that is on; 0 of anything else."""
    if isinstance(module, MCDropout):
        return module.rate
    return module.p if isinstance(module, nn.Dropout) and module.training and not module.inplace else 0.0


class Masked(nn.Module):
    """A dropout whose mask is given."""

    def __init__(self, rate: float, dtype: torch.dtype):
        super().__init__()
        self.scale = 0.0 if rate == 1 else torch.ones((), dtype=dtype).div_(1 - rate).item()  # rounded as dropout does
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop what the mask says and rescale the others."""
        return x if self.mask is None else (x * self.mask).mul_(self.scale)


class Masks:
    """The masks of each pass and batch, in the order in which a plain pass draws them."""

    def __init__(self, subject: Subject, shapes: Sequence[Sequence[Shape]], *, keep: bool):
        self._subject, self._shapes = subject, shapes
        self._room = MASK_BYTES if keep and subject.device.type == "cpu" else 0
        self._kept: dict[tuple[int, ...], list[tuple[np.ndarray, Tensor]]] = {}

    def __call__(self, index: int, counters: tuple[int, ...]) -> list[Tensor]:
        """One mask for each dropout of batch `index`."""
        if counters in self._kept:
            return [_unpacked(bits, like) for bits, like in self._kept[counters]]
        masks = []
        with self._subject.frozen(*counters), torch.no_grad():
            for shape in self._shapes[index]:
                ones = torch.empty_strided(
                    shape.size, shape.strides, dtype=self._subject.dtype, device=self._subject.device
                ).fill_(1)
                mask = torch.dropout(ones, shape.rate, True) != 0
                masks.append(mask.contiguous(memory_format=torch.channels_last) if mask.dim() == 4 else mask)
        size = sum(mask.numel() // 8 + 1 for mask in masks)
        if size <= self._room:
            self._room -= size
            self._kept[counters] = [_packed(mask) for mask in masks]
        return masks


def _packed(mask: Tensor) -> tuple[np.ndarray, Tensor]:
    """Bits in the order of memory, and a tensor of no memory that says which order that is."""
    return np.packbits(_flat(mask).numpy()), mask.to("meta")


def _unpacked(bits: np.ndarray, like: Tensor) -> Tensor:
    flat = torch.from_numpy(np.unpackbits(bits, count=like.numel())).view(torch.bool)
    return flat.as_strided(like.shape, like.stride())


def _flat(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (MCDropout, TanhBlurBlock)) or super().is_leaf_module(m, module_qualified_name)


class _Fold(NamedTuple):
    convolution: _ConvNd
    norm: _BatchNorm
    folded: _ConvNd

    @torch.no_grad()
    def update(self) -> None:
        """Norm after convolution, as one convolution with a bias."""
        convolution, norm = self.convolution, self.norm
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        offset = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
        torch.mul(
            convolution.weight,
            scale.reshape(-1, *[1] * (convolution.weight.dim() - 1)),
            out=self.folded.weight,
        )
        self.folded.bias.copy_(offset * scale if norm.bias is None else offset * scale + norm.bias)


class QuickNetwork:
    """The graph of a twin: folded, cut at the first dropout, and perhaps compiled.

    Raises:
        Exception: Of any kind, where the network has no graph that `torch.fx` can trace.
    """

    def __init__(self, twin: Twin, *, fold: bool = True, compiled: bool = False):
        self.twin = twin
        with twin.subject.frozen(0), torch.no_grad():
            graph = _Tracer().trace(twin.model)
            module = fx.GraphModule(twin.model, graph)
            self._folds = _fold_norms(module) if fold else []
            random = [node for node in module.graph.nodes if node.op == "call_module" and _rate(_target(module, node))]
            self.dropouts = [Masked(_rate(_target(module, node)), twin.subject.dtype) for node in random]
        for number, (node, masked) in enumerate(zip(random, self.dropouts, strict=True)):
            node.target = f"masked_{number}"
            module.add_submodule(node.target, masked)
        module.recompile()
        after = _descendants(random)
        self._split = split_module(module, module, lambda node: int(node in after))
        self.shares_prefix = bool(after) and hasattr(self._split, "submod_0")
        self._before = [node for node in self._split.graph.nodes if not _uses(node, "submod_1")]
        if compiled:
            for name, part in list(self._split.named_children()):
                setattr(self._split, name, torch.compile(part, dynamic=False))

    @property
    def folded(self) -> int:
        """How many norms were folded into convolutions."""
        return len(self._folds)

    def update(self) -> None:
        """Take up the twin's weights after a move."""
        for fold in self._folds:
            fold.update()

    @torch.no_grad()
    def outputs(self, x: Tensor, masks: Sequence[Sequence[Tensor]]) -> list[Any]:
        """What the network gives for a batch with each set of masks."""
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        interpreter = fx.Interpreter(self._split, garbage_collect_values=False)
        interpreter.args_iter = iter((x,))
        for node in self._before:
            if node.op != "output":
                interpreter.env[node] = interpreter.run_node(node)
        shared, found = dict(interpreter.env), []
        for each in masks:
            for dropout, mask in zip(self.dropouts, each, strict=True):
                dropout.mask = mask
            found.append(interpreter.run(x, initial_env=dict(shared)))
        for dropout in self.dropouts:
            dropout.mask = None
        return found


def _target(module: nn.Module, node: fx.Node) -> nn.Module:
    return module.get_submodule(str(node.target))


def _fold_norms(module: fx.GraphModule) -> list[_Fold]:
    """Replace each convolution whose only reader is a BatchNorm with fixed statistics by one that does both."""
    nodes = [node for node in module.graph.nodes if node.op == "call_module"]
    calls = [node.target for node in nodes]
    found = []
    for node in nodes:
        norm, source = _target(module, node), node.args[0]
        if not (isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None):
            continue
        if not (isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1):
            continue
        convolution = _target(module, source)
        if not isinstance(convolution, _ConvNd) or isinstance(convolution, _ConvTransposeNd):
            continue
        if calls.count(source.target) > 1 or calls.count(node.target) > 1:
            continue
        folded = copy.deepcopy(convolution)
        folded.bias = nn.Parameter(convolution.weight.new_zeros(folded.out_channels), requires_grad=False)
        found.append(_Fold(convolution, norm, folded))
        source.target = f"folded_{len(found)}"
        module.add_submodule(source.target, folded)
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
    return found


def _descendants(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    found, waiting = set(), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.users
    return found


def _uses(node: fx.Node, name: str) -> bool:
    """Whether a node of the cut graph depends on a part."""
    return node.target == name or any(_uses(source, name) for source in node.all_input_nodes)


def lower_precision(precision: Literal["full", "tf32", "bfloat16"], device: torch.device) -> Any:
    """A context of faster, less exact arithmetic, for use within `Subject.frozen`."""
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return _tf32() if precision == "tf32" else nullcontext()


@contextmanager
def _tf32() -> Iterator[None]:
    """TF32 on CUDA; `Subject.frozen` puts the flags back."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    if hasattr(torch.backends, "fp32_precision"):
        for place in (cuda.matmul, cudnn.conv):
            place.fp32_precision = "tf32"
    else:
        cuda.matmul.allow_tf32 = cudnn.allow_tf32 = True
    yield
