"""The layers of any image model: which there are, and their feature maps during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from analyze.anatomy import IMAGES, Anatomy, Place
from analyze.calls import Pass, bare, named_modules, observable, record, tensors
from analyze.subject import Subject
from data_cache import InputError

STAGES = "stages"
"""The word that chooses stages, in place of a name."""


@dataclass(frozen=True)
class Tap:
    """Where a layer's maps are taken from, and how their axes are ordered there."""

    module: str
    """Path of the module."""
    call: int
    """Which of its calls in a forward pass, from 1."""
    before: bool
    """What goes into the module, and not what comes out of it."""
    axes: str
    """`bchw` and `bhwc` maps; `bnc` and `nbc` tokens."""


@dataclass(frozen=True)
class Layer:
    """A place in a network where it has feature maps (B, channels, height, width)."""

    name: str
    """Path of the module whose output it is, such as `layer1.0`; `relu:2` is the second call of `relu`. `blocks.0+attn`
    is inside `blocks.0`: its residual stream, with what `blocks.0.attn` gives added."""
    kind: str
    """`block`, `smoothing`, `stage`, `attention`, `mlp`, or `module` for one that was chosen by name."""
    subsampling: bool
    """Whether its maps are smaller than those of the layer before it in the list; of the first, than the images."""
    channels: int
    height: int
    width: int
    tap: Tap | None = field(default=None, repr=False, compare=False)


def find_layers(subject: Subject, patterns: tuple[str, ...] = ()) -> list[Layer]:
    """Layers in the order in which they end in a forward pass, found from one pass over two images.

    By default, every block and every smoothing layer. A block is found by what runs inside it, not by its class:

    - a module that adds up two tensors of its output's size (residual);
    - else one that holds no module that adds up or joins tensors, and no convolutions at three sizes or more
      (Inception and MBConv blocks, layers of a dense block, a convolution with its norm);
    - in a container's flat list of convolutions, norms and activations, the last one of these before the next
      convolution or pooling; the container itself where it holds one convolution only.

    Everything else that holds blocks is looked into, but attention that is no block; what gives no map, or only one
    position, or takes none (position embeddings) is passed over. A
    residual block with several sums inside (transformers, mixers) is one layer for each sum, as published ("How Do
    Vision Transformers Work?", Park & Kim 2022): the residual stream after attention, kind `attention`, and after
    the MLP, kind `mlp`; the last of these is the block's output and has its name. Where such a sum is no map, as in
    windows, the block is one layer.

    Args:
        subject: Whose members all need the same layers.
        patterns: Names of modules or `BLOCK+PART`, with wildcards `*`, `?` and `[...]`; `stages` stands for
            the innermost modules that hold blocks in a row. Modules that have no maps are passed over where
            a pattern matches others too.

    Raises:
        InputError: A pattern matches nothing that has a feature map; no layer has one; the network is a
            TorchScript module or an exported graph, or works without modules; the order of axes or of tokens (Hiera)
            can't be told; or the members of an ensemble have different layers.
    """
    networks = [bare(member) for member in subject.members]
    for network in networks:
        _refuse_graphs(network)
        _refuse_other_orders(network)
    x = _first_images(subject)
    with observable(subject.model):
        passes = record(networks, lambda: subject.outputs(x, 0, model=bare(subject.model)))
    size = int(x.shape[2]), int(x.shape[3])
    found = [_layers_of(network, run, size, patterns) for network, run in zip(networks, passes, strict=True)]
    for number, other in enumerate(found[1:], start=2):
        for ours, theirs in zip([*found[0], None], [*other, None], strict=False):
            if ours != theirs:
                name = (ours or theirs).name  # type: ignore[union-attr]
                raise InputError(
                    f"members 1 and {number} of the ensemble differ at layer {name}; feature maps can be compared only "
                    "between networks of one architecture."
                )
    return found[0]


def feature_maps(
    subject: Subject,
    layers: Sequence[Layer],
    x: Tensor,
    index: int,
    number: int,
    receive: Callable[[int, int, Tensor], None],
) -> Tensor:
    """One forward pass of the whole subject that hands over the layers' feature maps as soon as each is there.

    Args:
        subject: The model; its outputs are those of `Subject.outputs`, but for the rounding of
            `nn.TransformerEncoderLayer`'s fused kernel, which passes over modules and is off here.
        layers: From `find_layers`.
        x: Normalised images (B, C, H, W) of batch `index`.
        index: Which batch it is.
        number: The Monte Carlo pass.
        receive: `receive(position in layers, member, map)` with a map (B, channels, height, width), not always
            contiguous, of the dtype of the network. It is a view of what the network works with: to be read
            at once and never to be written to; who keeps it copies it. Class and register tokens are left out.

    Returns:
        The outputs of the subject.

    Raises:
        InputError: A layer does not run in this pass, or has maps of another size; or as `Subject.outputs`.
    """
    taken: set[tuple[int, int]] = set()

    def take(member: int, position: int, values: Any) -> None:
        layer = layers[position]
        maps = next((found for tensor in tensors(values) if (found := _fold(tensor, layer, len(x))) is not None), None)
        if maps is None:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors(values)) or "no tensor"
            raise InputError(
                f"layer {layer.name} gave maps of {layer.channels}x{layer.height}x{layer.width} on the first images "
                f"and now gives {shapes}; the images must have one size, and the network one path."
            )
        taken.add((position, member))
        receive(position, member, maps)

    with observable(subject.model), ExitStack() as stack:
        for member, network in enumerate(subject.members):
            _watch(bare(network), layers, partial(take, member), stack)
        outputs = subject.outputs(x, index, number, model=bare(subject.model))
    for member in range(len(subject.members)):
        for position, layer in enumerate(layers):
            if (position, member) not in taken:
                raise InputError(
                    f"layer {layer.name} did not run in pass {number} of batch {index}, as it did on the first images; "
                    "choose layers that always run."
                )
    return outputs


def _watch(network: nn.Module, layers: Sequence[Layer], take: Callable[[int, Any], None], stack: ExitStack) -> None:
    """Have `take(position, values)` called with the input or output of each layer's module, at the right call of it."""
    modules = named_modules(network)
    taps: dict[tuple[str, bool], list[tuple[int, int]]] = {}
    for position, layer in enumerate(layers):
        if layer.tap is None or layer.tap.module not in modules:
            raise InputError(f"the network has no layer {layer.name}.")
        taps.setdefault((layer.tap.module, layer.tap.before), []).append((layer.tap.call, position))
    for (name, before), wanted in taps.items():
        hand_over = _counting(wanted, take)
        if before:
            hook = modules[name].register_forward_pre_hook(
                lambda _, args, kwargs, hand_over=hand_over: hand_over((args, kwargs)), with_kwargs=True
            )
        else:
            hook = modules[name].register_forward_hook(lambda _, args, output, hand_over=hand_over: hand_over(output))
        stack.callback(hook.remove)


def _counting(wanted: Sequence[tuple[int, int]], take: Callable[[int, Any], None]) -> Callable[[Any], None]:
    """`take(position, values)` at the wanted (call, position)s among those that are made."""
    calls = count(1)

    def hand_over(values: Any) -> None:
        call = next(calls)
        for which, position in wanted:
            if which == call:
                take(position, values)

    return hand_over


def _fold(tensor: Tensor, layer: Layer, images: int) -> Tensor | None:
    """(B, C, H, W) of what a module gives, None if it does not fit the layer."""
    channels, height, width = layer.channels, layer.height, layer.width
    axes = layer.tap.axes if layer.tap else "bchw"
    if tensor.dim() != len(axes):
        return None
    if axes == "nbc":
        tensor = tensor.transpose(0, 1)
    if axes in ("bnc", "nbc"):
        if tensor.shape[1] < height * width:
            return None
        tensor = tensor[:, tensor.shape[1] - height * width :].unflatten(1, (height, width))
    if axes != "bchw":
        tensor = tensor.permute(0, 3, 1, 2)
    return tensor if tuple(tensor.shape) == (images, channels, height, width) else None


def _first_images(subject: Subject) -> Tensor:
    x, _ = next(iter(subject.data))
    if x.dim() != 4:
        raise InputError(f"the data are no images (B, C, H, W): a batch is {tuple(x.shape)}.")
    return torch.cat([x[:IMAGES]] * (IMAGES if len(x) == 1 else 1))


def _refuse_graphs(network: nn.Module) -> None:
    """Refuse networks that were turned into a program, whose modules are no longer called."""
    graph = network.graph if isinstance(network, torch.fx.GraphModule) else None
    exported = graph is not None and any(isinstance(node.target, torch._ops.OpOverload) for node in graph.nodes)
    if exported or isinstance(network, torch.jit.ScriptModule):
        what = "an exported graph" if exported else "a TorchScript module"
        raise InputError(
            f"the network is {what} ({type(network).__name__}), whose layers can't be watched; give the Python "
            "network that it was made from."
        )


def _refuse_other_orders(network: nn.Module) -> None:
    """Refuse networks whose tokens are not in the order of an image's rows: they would be folded to scrambled maps."""
    if any(isinstance(getattr(module, "unroll", None), nn.Module) for module in network.modules()):
        raise InputError(
            f"the network ({type(network).__name__}) keeps its tokens unrolled, in the order of mask units and not of "
            "the image's rows, so they can't be put together to feature maps."
        )


def _layers_of(network: nn.Module, run: Pass | None, size: tuple[int, int], patterns: tuple[str, ...]) -> list[Layer]:
    name = type(network).__name__
    if run is None or not run.root.children:
        raise InputError(
            f"no module inside the network ({name}) can be watched: it works by functions, TorchScript or an exported "
            "graph; give a network that is built of modules."
        )
    anatomy = Anatomy(network, run, size)
    places = _chosen(anatomy, network, patterns) if patterns else anatomy.blocks
    if unclear := next((place for place in places if place.form.axes == "?"), None):
        shape = "x".join(map(str, (unclear.form.channels, unclear.form.height, unclear.form.width)))
        raise InputError(
            f"layer {unclear.name} gives {shape} numbers for each image, and it can't be told whether channels come "
            "first or last; choose other layers with --layers."
        )
    if not places:
        known = anatomy.maps()
        hint = f"choose from {_some(known)} with --layers" if known else "it has no layer to study here"
        raise InputError(
            f"no block of the network ({name}) gives feature maps (B, C, H, W) or tokens (B, N, C); {hint}."
        )
    return list(_as_layers(places, size))


def _as_layers(places: Iterable[Place], size: tuple[int, int]) -> Iterator[Layer]:
    for place in sorted(places, key=lambda place: place.time):
        axes, channels, height, width = place.form
        subsampling = height < size[0] or width < size[1]
        size = height, width
        tap = Tap(place.call.path, place.call.number, place.before, axes)
        yield Layer(place.name, place.kind, subsampling, channels, height, width, tap)


def _some(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _chosen(anatomy: Anatomy, network: nn.Module, patterns: Sequence[str]) -> list[Place]:
    """The places whose names match, once each."""
    chosen: dict[str, Place] = {}
    places = anatomy.places()
    for pattern in patterns:
        if pattern == STAGES:
            matching = anatomy.stages
        else:
            matching = [place for place in places if fnmatchcase(place.name, pattern)]
        if not matching:
            raise InputError(_why_nothing(anatomy, network, pattern))
        clear = [place for place in matching if place.form.axes != "?"]
        chosen |= {place.name: place for place in clear or matching}
    return list(chosen.values())


def _why_nothing(anatomy: Anatomy, network: nn.Module, pattern: str) -> str:
    if pattern == STAGES:
        return f"the network has no stages; its layers are {_some([place.name for place in anatomy.blocks])}."
    call = next((call for call in anatomy.run.ended if call.parent and fnmatchcase(call.name, pattern)), None)
    if call:
        shape = "x".join(map(str, call.outputs[0].shape[1:])) if call.outputs else "no"
        return (
            f"{call.name} gives {shape} numbers for each image, which are no feature map (channels, height, width) of "
            "more than one position."
        )
    name = next((name for name in named_modules(network) if name and fnmatchcase(name, pattern)), None)
    if name:
        return f"{name} is never called as a module in a forward pass, so it has no feature map that can be watched."
    known = [place.name for place in anatomy.blocks] or anatomy.maps()
    return f"no layer is called {pattern!r}; there are {_some(known)}, and all modules by their paths."
