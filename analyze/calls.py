"""What one forward pass does: which modules run inside which, on tensors of which shapes, and what is added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_CONCATENATIONS = {"cat", "concat", "concatenate"}
_ATTENTIONS = {"softmax", "scaled_dot_product_attention", "multi_head_attention_forward"}
_PERMUTATIONS = {"permute", "transpose", "transpose_", "movedim", "moveaxis", "swapaxes", "swapdims", "einsum"}


class Seen(NamedTuple):
    """A tensor of a forward pass, without its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: int
    """Where its values lie; another tensor may come to lie there when this one is gone."""


@dataclass(eq=False)
class Call:
    """One call of a module in a forward pass."""

    path: str
    """Of the module in the network."""
    number: int
    """Which of the module's calls it is, from 1."""
    module: nn.Module
    parent: Call | None
    start: int
    """Times count calls and functions in the order of execution."""
    inputs: list[Seen]
    takes: Call | None = None
    """The call that ended last, if this one is given its output."""
    end: int = -1
    outputs: list[Seen] = field(default_factory=list)
    children: list[Call] = field(default_factory=list)
    sums: list[tuple[int, Seen]] = field(default_factory=list)
    """When the module's own code added two tensors of one shape, none of them a parameter, and what it got."""
    concatenates: bool = False
    """Whether the module's own code joined tensors."""
    attends: bool = False
    """Whether the module's own code took a softmax, of more than one row for each image."""

    @property
    def name(self) -> str:
        """The path; from the second call of a module on with `:2`, `:3`, ..."""
        return self.path if self.number == 1 else f"{self.path}:{self.number}"

    def below(self) -> Iterator[Call]:
        """All calls inside this one."""
        for child in self.children:
            yield child
            yield from child.below()


@dataclass(eq=False)
class Pass:
    """A forward pass of one network."""

    root: Call
    ended: list[Call]
    """All calls in the order in which they ended."""
    permutations: list[int]
    """When functions that reorder a tensor's axes ran."""


def named_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Modules by path, as if no part of the network was compiled or wrapped for parallel work.

    TorchScript modules can't be watched, and are left out.
    """
    found: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()

    def visit(module: nn.Module, path: str) -> None:
        if module in seen or isinstance(module, torch.jit.ScriptModule):
            return
        seen.add(module)
        if not is_wrapper(module):
            found[path] = module
        for name, child in module.named_children():
            visit(child, path if is_wrapper(module) else f"{path}.{name}".removeprefix("."))

    visit(network, "")
    return found


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module only runs another one: compiled, or on several devices."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return isinstance(module, parallel) or "_orig_mod" in module._modules


def bare(network: nn.Module) -> nn.Module:
    """The network inside of its wrappers."""
    while is_wrapper(network):
        network = network._modules.get("_orig_mod") or network._modules["module"]  # type: ignore[assignment]
    return network


@contextmanager
def observable(network: nn.Module) -> Iterator[None]:
    """Let all modules run one by one, none of them compiled."""
    with ExitStack() as stack:
        if any("_orig_mod" in module._modules or module._compiled_call_impl for module in network.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def record(networks: list[nn.Module], run: Callable[[], Any]) -> list[Pass | None]:
    """What each of the networks does in `run()`, which calls each at most once; None for those it does not call."""
    with ExitStack() as stack:
        recorders = [_Recorder(network, stack) for network in networks]
        functions = stack.enter_context(_Functions())
        for recorder in recorders:
            recorder.functions = functions
        run()
    return [recorder.found() for recorder in recorders]


class _Recorder:
    """Hooks on all modules of a network."""

    def __init__(self, network: nn.Module, stack: ExitStack):
        self.functions = _Functions()
        self.root: Call | None = None
        self.ended: list[Call] = []
        self._calls: dict[str, int] = {}
        for name, module in named_modules(network).items():
            before = module.register_forward_pre_hook(self._starts(name), with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(module.register_forward_hook(self._ends).remove)

    def found(self) -> Pass | None:
        return None if self.root is None else Pass(self.root, self.ended, self.functions.permutations)

    def _starts(self, name: str) -> Callable[..., None]:
        def start(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            running, time = self.functions.running, self.functions.tick()
            number = self._calls[name] = self._calls.get(name, 0) + 1
            parent = running[-1] if running else None
            inputs = self.functions.seen((args, kwargs))
            call = Call(name, number, module, parent, time, inputs, self.functions.giver(inputs))
            if parent is not None:
                parent.children.append(call)
            if self.root is None:
                self.root = call
            running.append(call)

        return start

    def _ends(self, module: nn.Module, args: tuple, output: Any) -> None:
        call = self.functions.running.pop()
        call.end = self.functions.tick()
        call.outputs = self.functions.seen(output)
        self.functions.given = call, tensors(output)
        self.ended.append(call)


class _Functions(TorchFunctionMode):
    """Notes what the modules' own code does between calls of other modules."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[Call] = []
        self.permutations: list[int] = []
        self.given: tuple[Call, list[Tensor]] | None = None
        self._time = 0
        self._kept: list[Tensor] = []  # as long as a tensor lives, its place in memory is its own

    def tick(self) -> int:
        self._time += 1
        return self._time

    def seen(self, values: Any) -> list[Seen]:
        with torch._C.DisableTorchFunction():
            return [
                Seen(tuple(tensor.shape), tensor.stride(), tensor.untyped_storage().data_ptr())
                for tensor in tensors(values)
                if tensor.layout is torch.strided
            ]

    def giver(self, inputs: list[Seen]) -> Call | None:
        """The call that ended last, if these are among its outputs, which still live."""
        call = self.given[0] if self.given else None
        return call if call and any(seen in call.outputs for seen in inputs) else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _PERMUTATIONS:
            self.permutations.append(self.tick())
        elif self.running:
            call = self.running[-1]
            if name in _ADDITIONS and _adds_up(args, result):
                self._kept.append(result)
                call.sums += [(self.tick(), seen) for seen in self.seen(result)]
            call.concatenates |= name in _CONCATENATIONS
            call.attends |= name in _ATTENTIONS and any(len(seen.shape) > 2 for seen in self.seen(result))
        return result


def _adds_up(args: tuple, result: Any) -> bool:
    terms = args[:2]
    with torch._C.DisableTorchFunction():
        return len(terms) == 2 and all(
            isinstance(term, Tensor) and not isinstance(term, nn.Parameter) and term.shape == result.shape
            for term in terms
        )


def tensors(values: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dictionaries, in order."""
    if isinstance(values, Tensor):
        return [values]
    if hasattr(values, "__dataclass_fields__") and not isinstance(values, dict):
        values = list(vars(values).values())
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
