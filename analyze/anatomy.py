"""What the parts of a network are: which tensors of a forward pass are feature maps, and which calls are blocks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _MaxPoolNd,
)

from analyze.calls import Call, Pass, Seen
from models.layers import SmoothingBlock

IMAGES = 2  # as many as tell the axis of images from that of tokens
_MOST_PREFIX_TOKENS = 8  # of a model that doesn't say how many: a class token and some registers
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
_CHANNELS_FIRST = (
    _ConvNd, _NormBase, nn.GroupNorm, _MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, SmoothingBlock,
)  # fmt: skip


class Form(NamedTuple):
    """How a tensor is a batch of maps."""

    axes: str
    """As in `Tap`; `?` if both `bchw` (which the sizes then say) and `bhwc` are possible."""
    channels: int
    height: int
    width: int


class Place(NamedTuple):
    """A tensor in a forward pass that is a batch of maps."""

    name: str
    kind: str
    call: Call
    before: bool
    form: Form

    @property
    def time(self) -> int:
        """When the tensor is there."""
        return self.call.start if self.before else self.call.end


class Anatomy:
    """What the parts of a network are, from a forward pass of two images."""

    def __init__(self, network: nn.Module, run: Pass, size: tuple[int, int]):
        self.run, self._size = run, size
        self._ends = [call.end for call in run.ended]
        self._prefix = _prefix_tokens(network)
        self._takers = _takers(run)
        maps = {call: self._settled(call) for call in run.ended}
        self._grids = {(form.height, form.width) for form in maps.values() if form and form.axes != "?"}
        self._forms = {
            call: form or self._first(self._token_form, call.outputs, call.end) for call, form in maps.items()
        }
        self._weights: dict[Call, int] = {}
        self.stages: list[Place] = []
        self.blocks = list(self._blocks(run.root))

    def maps(self) -> list[str]:
        """Names of all modules that give maps."""
        return [call.name for call in self.run.ended if call.parent and self._forms[call]]

    def places(self) -> list[Place]:
        """All that has a name and is a map, blocks by their kind."""
        found = {call.name: self._whole(call, "module") for call in self.run.ended if call.parent and self._forms[call]}
        return list({**found, **{place.name: place for place in self.stages + self.blocks}}.values())

    def _whole(self, call: Call, kind: str) -> Place:
        form = self._forms[call]
        assert form is not None
        return Place(call.name, kind, call, False, form)

    # what is a map

    def _settled(self, call: Call) -> Form | None:
        """The form of a call's output (B, ...) of four axes, by the modules that take it or the input if need be.

        A residual block keeps the order of the axes, so its input's is its output's.
        """
        form = self._first(self._map_form, call.outputs, call.end)
        if form and form.axes == "?":
            taken = [seen for seen in call.inputs if seen.shape[1:] == form[1:]] if self._is_residual(call) else []
            inner = [part.module for part in call.below() if any(seen in taken for seen in part.inputs)]
            takers = [taker.module for taker in self._takers_of(call)]
            known = next(
                (order for module in inner + takers if (order := _puts_channels_first(module)) is not None), None
            )
            if known is not None:
                _, *shape = form
                return Form("bchw", *shape) if known else Form("bhwc", shape[2], shape[0], shape[1])
        return form

    def _takers_of(self, call: Call) -> Iterator[Call]:
        """The calls that are given the output of a call as it is, also through others that pass it on."""
        for taker in self._takers.get(call, ()):
            yield taker
            if any(seen in taker.inputs for seen in taker.outputs):
                yield from self._takers_of(taker)

    @staticmethod
    def _first(find: Callable[..., Form | None], found: Sequence[Seen], time: int) -> Form | None:
        return next((form for seen in found if (form := find(seen.shape, time)) is not None), None)

    def _map_form(self, shape: tuple[int, ...], time: int, taker: nn.Module | None = None) -> Form | None:
        """How a tensor (B, ...) of four axes is a map, where `taker` is the module that it goes into."""
        if len(shape) != 4 or shape[0] != IMAGES:
            return None
        first, last = Form("bchw", *shape[1:]), Form("bhwc", shape[3], shape[1], shape[2])
        known = _puts_channels_first(taker)
        known = self._channels_first(shape, time) if known is None else known
        if known is None:
            alike = self._resembles(first.height, first.width), self._resembles(last.height, last.width)
            form = first if alike == (True, False) else last if alike == (False, True) else first._replace(axes="?")
        elif known:
            form = first
        elif self._resembles(last.height, last.width):
            form = last
        else:
            return None  # tokens in windows
        return form if form.height * form.width > 1 else None

    def _token_form(self, shape: tuple[int, ...], time: int) -> Form | None:
        """How a tensor (B, N, C) or (N, B, C) is a map."""
        if len(shape) != 3 or IMAGES not in shape[:2] or self._channels_first(shape, time):
            return None
        axes, count = ("bnc", shape[1]) if shape[0] == IMAGES else ("nbc", shape[0])
        grid = self._grid(count)
        return Form(axes, shape[2], *grid) if grid else None

    def _resembles(self, height: int, width: int) -> bool:
        """Whether a map has the image's ratio of height to width, to a pixel."""
        return abs(height * self._size[1] - width * self._size[0]) <= max(self._size)

    def _channels_first(self, shape: tuple[int, ...], time: int) -> bool | None:
        """What the last module that ran before tells, whose order of axes is known and whose output had this shape.

        None if there is none, or if axes were reordered since.
        """
        permutations = self.run.permutations
        latest = permutations[place - 1] if (place := bisect_left(permutations, time)) else 0
        for call in reversed(self.run.ended[: bisect_left(self._ends, time + 1)]):
            if call.end < latest:
                return None
            if any(seen.shape == shape for seen in call.outputs):
                known = _puts_channels_first(call.module)
                if known is not None:
                    return known
        return None

    def _grid(self, tokens: int) -> tuple[int, int] | None:
        """Height and width of so many tokens, some of which may stand before those of the image."""
        prefixes = range(_MOST_PREFIX_TOKENS + 1) if self._prefix is None else (self._prefix, 0)
        heights = range(1, self._size[0] + 1)
        by_ratio = [(height, round(height * self._size[1] / self._size[0])) for height in heights]
        for grids in (self._grids, by_ratio):
            fits = [grid for grid in grids if tokens - grid[0] * grid[1] in prefixes and grid[0] * grid[1] > 1]
            if fits:
                return max(fits, key=lambda grid: grid[0] * grid[1])
        return None

    # what is a block

    def _blocks(self, frame: Call) -> list[Place]:
        """Blocks inside a call that is none itself."""
        found: list[Place] = []
        group: Call | None = None
        for child in frame.children:
            if group and self._continues(group, child):
                group = child
                continue
            found += [self._whole(group, "block")] if group else []
            group = child if _is_weighted(child) and self._forms[child] and _takes_positions(child) else None
            found += [] if group else self._inside(child)
        return found + ([self._whole(group, "block")] if group else [])

    def _continues(self, group: Call, child: Call) -> bool:
        """Whether a norm, activation or the like keeps to the convolution before it."""
        smooths = isinstance(child.module, SmoothingBlock)
        return not smooths and not self._weights_in(child) and self._forms[child] == self._forms[group]

    def _inside(self, call: Call) -> list[Place]:
        """The blocks that a call consists of."""
        if isinstance(call.module, SmoothingBlock):
            return [self._whole(call, "smoothing")] if self._forms[call] else []
        if self._weights_in(call) and _takes_positions(call) and self._is_block(call):
            return self._parts(call) if self._forms[call] else []
        if call.attends or any(child.attends and not child.children for child in call.children):
            return []  # keys and values of a class token's attention are no layers
        stages = len(self.stages)
        found = self._blocks(call)
        blocks = [place for place in found if place.kind != "smoothing"]
        if blocks and self._forms[call] and len(self.stages) == stages:
            self.stages.append(self._whole(call, "stage"))
        return found

    def _is_block(self, call: Call) -> bool:
        if isinstance(call.module, _CONTAINERS) and not call.concatenates and not self._is_residual(call):
            nested = any(self._weights_in(child) and child.children for child in call.children)
            return self._forms[call] is not None and self._weights_in(call) == 1 and not nested
        if not self._forms[call] and not any(seen.shape[2:] == (1, 1) for seen in call.outputs):
            return False
        if self._is_residual(call) or self._weights_in(call) == 1:
            return True
        inner = [part for part in call.below() if self._forms[part] and self._weights_in(part) > 1]
        if any(part.concatenates or self._is_residual(part) for part in inner):
            return False
        return len(self._convolution_sizes(call)) <= 2

    def _is_residual(self, call: Call) -> bool:
        sizes = {_numel(seen) for seen in call.outputs}
        return any(_numel(seen) in sizes for _, seen in call.sums)

    def _weights_in(self, call: Call) -> int:
        """How many convolutions or dense layers ran in a call and gave more than one position."""
        if call not in self._weights:
            own = not call.children and _is_weighted(call) and not all(_is_vector(seen) for seen in call.outputs)
            self._weights[call] = int(own) + sum(self._weights_in(child) for child in call.children)
        return self._weights[call]

    @staticmethod
    def _convolution_sizes(call: Call) -> set[tuple[int, ...]]:
        outputs = [seen for part in call.below() if isinstance(part.module, _ConvNd) for seen in part.outputs]
        return {seen.shape[2:] for seen in outputs if not _is_vector(seen)}

    # residual streams

    def _parts(self, block: Call) -> list[Place]:
        """A block as one layer, or one for each sum in its residual stream."""
        found: list[Place] = []
        part: list[Call] = []
        for position, child in enumerate(block.children):
            after = sum(self._weights_in(later) for later in block.children[position:])
            if part and after and (form := self._stream(block, child, part[0])):
                name = f"{block.name}+{self._main(block, part)}"
                found.append(Place(name, self._kind(part), child, True, form))
                part = []
            part.append(child)
        return [*found, self._whole(block, self._kind(part) if found else self._kind_of_whole(block))]

    def _stream(self, block: Call, child: Call, since: Call) -> Form | None:
        """What goes into `child`, if it is a sum that the block took after `since` began, and a map."""
        sizes = {_numel(seen) for seen in block.outputs}
        sums = {(seen.storage, _numel(seen)) for time, seen in block.sums if since.start < time < child.start}
        for seen in child.inputs:
            if _numel(seen) in sizes and (seen.storage, _numel(seen)) in sums:
                form = self._map_form(seen.shape, child.start, child.module)
                return form or self._token_form(seen.shape, child.start)
        return None

    def _main(self, block: Call, part: Sequence[Call]) -> str:
        """The name, in its block, of the module that does the work between two sums."""
        working = [call for call in part if not isinstance(call.module, (*_NORMS, nn.Identity))] or part
        path = max(working, key=lambda call: (self._weights_in(call), bool(call.children))).path
        return path.removeprefix(f"{block.path}.")

    def _kind(self, part: Sequence[Call]) -> str:
        if any(_attends(call) for call in part):
            return "attention"
        return "mlp" if any(self._weights_in(call) for call in part) else "block"

    def _kind_of_whole(self, block: Call) -> str:
        form = self._forms[block]
        if form and form.axes != "bchw" and self._weights_in(block) > 1 and self._is_residual(block):
            return "attention" if _attends(block) else "mlp"
        return "block"


def _takers(run: Pass) -> dict[Call, list[Call]]:
    """The calls that are given the output of a call that has just ended."""
    found: dict[Call, list[Call]] = {}
    for taker in run.ended:
        giver = taker.takes
        while giver:
            found.setdefault(giver, []).append(taker)
            last = giver.children[-1] if giver.children else None
            giver = last if last and any(seen in giver.outputs for seen in last.outputs) else None
    return found


def _numel(seen: Seen) -> int:
    return prod(seen.shape)


def _is_vector(seen: Seen) -> bool:
    """Whether there is one position for each image."""
    return prod(seen.shape[1:]) == max(seen.shape[1:], default=1)


def _takes_positions(call: Call) -> bool:
    """Whether anything that goes in can be maps, tokens or windows of the images."""
    return any(
        len(seen.shape) > 2 and not _is_vector(seen) and (seen.shape[0] % IMAGES == 0 or seen.shape[1] == IMAGES)
        for seen in call.inputs
    )


def _is_weighted(call: Call) -> bool:
    """Whether a module that calls no others has a matrix or a stack of kernels."""
    weights = [parameter.shape for parameter in call.module.parameters(recurse=False)]
    return not call.children and any(sum(length > 1 for length in shape) >= 2 for shape in weights)


def _attends(call: Call) -> bool:
    return call.attends or any(part.attends for part in call.below())


def _puts_channels_first(module: nn.Module | None) -> bool | None:
    """Whether what goes into and comes out of a module has its channels before positions; None if it does not say."""
    if isinstance(module, _CHANNELS_FIRST):
        return True
    # other LayerNorms than torch's own may reorder axes
    if isinstance(module, nn.Linear) or (isinstance(module, nn.LayerNorm) and type(module).__name__ == "LayerNorm"):
        return False
    return None


def _prefix_tokens(network: nn.Module) -> int | None:
    """How many class and register tokens stand before those of the image, if the network says so."""
    for module in network.modules():
        if isinstance(number := getattr(module, "num_prefix_tokens", None), int):  # timm
            return number
        if isinstance(getattr(module, "class_token", None), Tensor):  # torchvision
            return 1
    return None
