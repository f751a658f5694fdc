"""The quick way to compute a network at one place of its weights for several frames.

Frames are Monte Carlo passes: they share the weights and differ in dropout masks alone. So the graph of the network
is cut where the first mask comes in, and only what follows is computed for each frame. On the CPU a batch goes through
in parts that fit the caches, for memory is what elementwise operations wait for.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from analyze.landscape.masks import Mask, Masked, rate_of
from analyze.landscape.twin import Twin
from models.layers import MCDropout, TanhBlurBlock

PART_BYTES = 2**23
"""What the largest map of a part of a batch takes on the CPU, or nearly: a few of them fit the last cache, and none
is so large that the allocator fetches fresh pages for it, which takes as long as an elementwise operation."""


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # buffers move too, so the graph must read them and not hold their values

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
    """The graph of a twin: cut at the first dropout, and perhaps tuned and compiled.

    Args:
        twin: Whose weights are used, as they are at the last `update`.
        tuned: Fold norms into convolutions, and write rectifiers and sums over what nothing else reads.
        compiled: Compile what comes before the cut, and what comes after it.
        rows: Compute a batch in parts of so many images; 0 for all at once.

    Raises:
        Exception: Of any kind, where the network has no graph that `torch.fx` can trace.
    """

    def __init__(self, twin: Twin, *, tuned: bool = True, compiled: bool = False, rows: int = 0):
        self.twin, self._rows = twin, rows
        with twin.subject.frozen(0), torch.no_grad():
            graph = _Tracer().trace(twin.model)
            module = fx.GraphModule(twin.model, graph)
            self._folds = _fold_norms(module) if tuned else []
            random = [
                node for node in module.graph.nodes if node.op == "call_module" and rate_of(_target(module, node))
            ]
            self.dropouts = [Masked(rate_of(_target(module, node)), twin.subject.dtype) for node in random]
        for number, (node, masked) in enumerate(zip(random, self.dropouts, strict=True)):
            node.target = f"masked_{number}"
            module.add_submodule(node.target, masked)
        after = _descendants(random)
        if tuned:
            _write_in_place(module, after)
        module.recompile()
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
    def outputs(self, x: Tensor, masks: Sequence[Sequence[Mask]]) -> list[Any]:
        """What the network gives for a batch with each set of masks.

        Raises:
            RuntimeError: Something other than the dropouts known here draws random numbers.
        """
        state = self._random_state()
        step = self._rows
        slices = [slice(begin, begin + step) for begin in range(0, len(x), step)] if step else [slice(None)]
        parts = [self._part(x, masks, rows) for rows in slices]
        if not torch.equal(state, self._random_state()):
            raise RuntimeError("the network draws random numbers outside its dropout modules")
        return parts[0] if len(parts) == 1 else [torch.cat(each) for each in zip(*parts, strict=True)]

    def _random_state(self) -> Tensor:
        device = self.twin.subject.device
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    def _part(self, x: Tensor, masks: Sequence[Sequence[Mask]], rows: slice) -> list[Any]:
        shared: _Shared | None = None
        found = []
        for each in masks:
            if shared is None or shared.overwritten:
                shared = self._shared(x[rows])
            for dropout, mask in zip(self.dropouts, each, strict=True):
                dropout.mask = mask.rows(rows)
            found.append(shared.interpreter.run(initial_env=dict(shared.values)))
        for dropout in self.dropouts:
            dropout.mask = None
        return found

    def _shared(self, x: Tensor) -> _Shared:
        """What comes before the first dropout."""
        layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        interpreter = fx.Interpreter(self._split, garbage_collect_values=False)
        interpreter.args_iter = iter((x.clone(memory_format=layout),))  # networks may write to their input
        for node in self._before:
            if node.op != "output":
                interpreter.env[node] = interpreter.run_node(node)
        return _Shared.of(interpreter)


class _Shared(NamedTuple):
    """What several frames read."""

    interpreter: fx.Interpreter
    values: dict[fx.Node, Any]
    versions: dict[fx.Node, int]

    @classmethod
    def of(cls, interpreter: fx.Interpreter) -> _Shared:
        values = dict(interpreter.env)
        return cls(interpreter, values, {n: v._version for n, v in values.items() if isinstance(v, Tensor)})

    @property
    def overwritten(self) -> bool:
        """Whether a network that writes in place has spoiled it."""
        return any(self.values[node]._version != version for node, version in self.versions.items())


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
        if not {"weight", "bias"} <= convolution._parameters.keys():  # computed from others, as by weight_norm
            continue
        folded = copy.deepcopy(convolution)
        folded.bias = nn.Parameter(convolution.weight.new_zeros(folded.out_channels), requires_grad=False)
        found.append(_Fold(convolution, norm, folded))
        source.target = f"folded_{len(found)}"
        module.add_submodule(source.target, folded)
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
    return found


def _write_in_place(module: fx.GraphModule, after: set[fx.Node]) -> None:
    """Let rectifiers, sums and dropouts write over an input that nothing else reads."""
    for node in module.graph.nodes:
        target = _target(module, node) if node.op == "call_module" else node.target
        free = [source for source in node.args if _is_free(module, source, node, after)]
        if not free:
            continue
        if target in (torch.relu, F.relu) or type(target) is nn.ReLU:
            node.op, node.target, node.args, node.kwargs = "call_function", torch.relu_, (free[0],), {}
        elif target in (operator.add, torch.add) and len(node.args) == 2 and not node.kwargs:
            other = node.args[1] if node.args[0] is free[0] else node.args[0]
            if isinstance(other, fx.Node):
                node.target, node.args = operator.iadd, (free[0], other)
        elif isinstance(target, Masked):
            target.in_place = True


def _is_free(module: fx.GraphModule, source: Any, reader: fx.Node, after: set[fx.Node]) -> bool:
    """Whether a value is new memory that one node alone reads, on its own side of the cut."""
    if not (isinstance(source, fx.Node) and len(source.users) == 1 and (source in after) == (reader in after)):
        return False
    if source.op == "call_module":
        return isinstance(_target(module, source), (_ConvNd, nn.Linear, _BatchNorm, Masked, TanhBlurBlock))
    return source.op == "call_function" and source.target in (torch.relu_, torch.relu, operator.iadd)


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
