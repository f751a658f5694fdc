"""What rounding each layer's weights costs the loss, by HAWQ's measure and directly, and which widths fit a size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp
from torch import Tensor, nn

from analyze.hessian.blocks import partition
from analyze.hessian.krylov import dot, multiply, require_finite
from analyze.hessian.operator import HessianOperator
from analyze.hessian.spec import Blocks, Config, Quantization
from analyze.results import Progress, silent

CRITERIA = ("omega", "direct")
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def quantize(weight: Tensor, bits: int, channels: tuple[int, ...] = (0,)) -> Tensor:
    r"""Round weights to a symmetric uniform grid, with a scale for each output channel.

    $$Q_b(w) = s \, \mathrm{round}(w / s), \qquad s = \frac{\max |w|}{2^{b-1} - 1}$$

    Halves go to the even neighbour; a channel of zeros stays zero.

    Args:
        weight: Any shape, floating.
        bits: b, 2 or more.
        channels: Dimensions that number the output channels.

    Returns:
        The rounded weights, in the same shape and dtype.

    Raises:
        ValueError: Fewer than 2 bits.
    """
    if bits < 2:
        raise ValueError(f"bits={bits}; a symmetric grid needs 2 or more.")
    others = [dim for dim in range(weight.dim()) if dim not in channels]
    scale = (weight.abs().amax(dim=others, keepdim=True) if others else weight.abs()) / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, weight / scale, 0).round() * scale


def allocate(cost: np.ndarray, size: Sequence[int], bits: Sequence[int], mean_bits: float) -> np.ndarray:
    r"""The bit widths of least total cost that fit a size limit: the integer programme of HAWQ-V3.

    $$\min_x \sum_{ib} x_{ib} \max(c_{ib}, 0) \quad \text{with} \quad \sum_b x_{ib} = 1, \quad
      \sum_{ib} x_{ib} n_i b \le \bar b \sum_i n_i, \quad x_{ib} \in \{0, 1\}$$

    Costs below zero count as none: they come from negative curvature, off a minimum, and would reward damage.
    Room that is left goes, layer by layer, to wider widths that cost no more.
    Yao et al., "HAWQ-V3: Dyadic Neural Network Quantization", arXiv 2011.10680.

    Args:
        cost: (layer, bits).
        size: Weights of each layer, n_i, (layer,).
        bits: The widths (bits,).
        mean_bits: The limit.

    Returns:
        Bits for each layer, (layer,).

    Raises:
        ValueError: Not even the smallest width fits, or no optimum was found.
    """
    cost = np.maximum(cost, 0)
    layers, total = len(cost), sum(size)
    # whole numbers; the margin is for limits such as 2.2 * 15
    limit = int(mean_bits * total * (1 + 1e-12))
    used = np.multiply.outer(np.asarray(size, dtype=np.int64), bits)
    if used.min(axis=1).sum() > limit:
        raise ValueError(f"mean_bits={mean_bits} is less than the smallest of the widths {list(bits)} needs.")
    if layers == 0:
        return np.zeros(0, dtype=np.int64)
    excluded: list[np.ndarray] = []
    chosen = _cheapest(cost, used / total, limit / total, excluded)
    while used[np.arange(layers), chosen].sum() > limit:
        # HiGHS takes a limit exceeded by 1e-6 as met, which is some bits of a large network
        excluded.append(chosen)
        chosen = _cheapest(cost, used / total, limit / total, excluded)
    return np.asarray(bits)[_widened(chosen, cost, used, limit)]


def _cheapest(cost: np.ndarray, used: np.ndarray, limit: float, excluded: Sequence[np.ndarray]) -> np.ndarray:
    """Index of the width of each layer, (layer,), by integer programming; `excluded` choices don't count."""
    layers, widths = cost.shape
    one_each = LinearConstraint(np.kron(np.eye(layers), np.ones(widths)), 1, 1)
    fits = LinearConstraint(used.reshape(1, -1), ub=limit)
    cuts = [LinearConstraint(np.eye(widths)[choice].reshape(1, -1), ub=layers - 1) for choice in excluded]
    solution = milp(
        cost.ravel() / (cost.max() or 1.0),
        integrality=np.ones(cost.size),
        bounds=(0, 1),
        constraints=[one_each, fits, *cuts],
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        raise ValueError(f"no bit allocation was found: {solution.message}")
    return solution.x.reshape(layers, widths).argmax(axis=1)


def _widened(chosen: np.ndarray, cost: np.ndarray, used: np.ndarray, limit: int) -> np.ndarray:
    """The choice (layer,), with layers at the widest width that costs no more while there is room."""
    rows = np.arange(len(chosen))
    room = limit - used[rows, chosen].sum()
    for layer, width in enumerate(chosen):
        extra = used[layer] - used[layer, width]
        allowed = (cost[layer] <= cost[layer, width]) & (extra >= 0) & (extra <= room)
        best = int(np.argmax(np.where(allowed, extra, -1)))
        chosen[layer], room = best, room - extra[best]
    return chosen


def grow(
    operator: HessianOperator,
    config: Config,
    blocks: Blocks,
    done: Quantization | None,
    progress: Progress = silent,
) -> Iterator[Quantization]:
    r"""Yield what rounding costs, after each group of products, and at last the bit allocations.

    With d_i(b) = Q_b(W_i) - W_i, layer i rounded to b bits and the others left alone, and with the gradient g and
    the Hessian H of the whole loss, weight decay included:

    $$\Omega_i(b) = \frac{\mathrm{tr} H_{ii}}{n_i} \lVert d_i(b) \rVert^2, \qquad
      \Delta = \sum_i g^\top d_i + \frac{1}{2} \sum_{ij} G_{ij}, \qquad G_{ij} = d_i^\top H d_j$$

    Omega (Dong et al., "HAWQ-V2", arXiv 1911.03852) takes the layer's curvature to be the same in all directions
    and leaves out g and the terms between layers; G has them. G is stored as the mean of what was computed and its
    transpose, once it is whole. It takes one product for each setting (layer, bits).

    Only parameters with 2 or more dimensions are rounded; see `quantize`.

    Args:
        operator: The Hessian.
        config: `bits` (if there are none, so is the result) and `mean_bits`.
        blocks: The layers' traces.
        done: What there is already; products in it are not computed again.
        progress: Called after each group of products.

    Raises:
        FloatingPointError: A product holds NaN or infinity.
    """
    if is_complete(done, config, blocks):
        return
    rounding = _Rounding(operator, config.bits)
    found = _begin(operator, rounding, config) if done is None else done
    found = replace(found, omega=_omega(blocks, found), mean_bits=config.mean_bits)
    settings = len(found.coupling)
    count = int(np.sum(~np.isnan(found.coupling).any(axis=1)))
    while count < settings:
        # groups start at multiples of their size, so that a resumed run multiplies the same vectors together
        end = min(count - count % operator.group + operator.group, settings)
        products = multiply(operator, torch.stack([rounding.change(setting) for setting in range(count, end)]))
        coupling = found.coupling.copy()
        for row, product in enumerate(products, start=count):
            coupling[row] = rounding.inner_products(product)
            require_finite(float(coupling[row].sum()), row + 1)
        count, found = end, replace(found, coupling=coupling)
        progress("quantization", count, settings, rounding.layers[(count - 1) // len(config.bits)].name)
        yield found
    coupling = (found.coupling + found.coupling.T) / 2
    direct = coupling.diagonal().reshape(found.error.shape) / 2
    yield _allocated(operator, rounding, replace(found, coupling=coupling, direct=direct))


def is_complete(done: Quantization | None, config: Config, blocks: Blocks) -> bool:
    """Whether the allocations are made, from these traces and for this limit."""
    if not config.bits:
        return True
    return (
        done is not None
        and bool(done.allocation.all())
        and done.mean_bits == config.mean_bits
        and np.array_equal(done.omega, _omega(blocks, done))
    )


@dataclass(frozen=True)
class _Piece:
    """One parameter that is rounded."""

    where: slice
    shape: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class _Layer:
    name: str
    pieces: list[_Piece]

    @property
    def size(self) -> int:
        return sum(piece.where.stop - piece.where.start for piece in self.pieces)


class _Rounding:
    """All layers' weights rounded to all widths; setting s is layer s // widths at width s % widths."""

    def __init__(self, operator: HessianOperator, bits: Sequence[int]):
        self.bits = bits
        self.layers = _layers(operator)
        self.weights = operator.weights()
        self.changes = torch.zeros(len(bits), operator.size, dtype=operator.dtype, device=operator.device)
        for change, width in zip(self.changes, bits, strict=True):
            for layer in self.layers:
                for piece in layer.pieces:
                    change[piece.where] = self._rounded(piece, width) - self.weights[piece.where]

    def _rounded(self, piece: _Piece, bits: int) -> Tensor:
        return quantize(self.weights[piece.where].view(piece.shape), bits, piece.channels).reshape(-1)

    def change(self, setting: int) -> Tensor:
        """The change d (n,) of one setting."""
        layer, width = divmod(setting, len(self.bits))
        change = torch.zeros_like(self.weights)
        for piece in self.layers[layer].pieces:
            change[piece.where] = self.changes[width, piece.where]
        return change

    def inner_products(self, vector: Tensor) -> np.ndarray:
        """Of all changes with a vector (n,): d'v, (setting,), summed in float64."""
        return self._for_each(lambda change, where: dot(change[where], vector[where])).ravel()

    def errors(self) -> np.ndarray:
        """||d||^2, (layer, bits)."""
        return self._for_each(lambda change, where: dot(change[where], change[where]))

    def _for_each(self, term) -> np.ndarray:
        values = [
            [sum(term(change, piece.where) for piece in layer.pieces) for change in self.changes]
            for layer in self.layers
        ]
        return np.array(values, dtype=np.float64).reshape(len(self.layers), len(self.bits))

    def weights_at(self, allocation: Sequence[int]) -> Tensor:
        """The weights (n,) with each layer rounded to its bits."""
        weights = self.weights.clone()
        for layer, bits in zip(self.layers, allocation, strict=True):
            for piece in layer.pieces:
                weights[piece.where] = self._rounded(piece, bits)
        return weights


def _layers(operator: HessianOperator) -> list[_Layer]:
    """The blocks that own a parameter of 2 or more dimensions, with those parameters."""
    subject = operator.subject
    parameters = subject.parameters
    layers = []
    for block in partition(operator.names, operator.sizes):
        pieces = []
        for name, where in zip(block.parameters, block.slices, strict=True):
            shape = tuple(parameters[name].shape)
            module = subject.model.get_submodule(name.rpartition(".")[0])
            if len(shape) > 2 and isinstance(module, _TRANSPOSED):
                # (groups * inputs, outputs of a group, ...): an output channel is a group and a place in it
                pieces.append(_Piece(where, (module.groups, shape[0] // module.groups, *shape[1:]), (0, 2)))
            elif len(shape) >= 2:
                pieces.append(_Piece(where, shape, (0,)))
        if pieces:
            layers.append(_Layer(block.name, pieces))
    return layers


def _omega(blocks: Blocks, found: Quantization) -> np.ndarray:
    places = {name: place for place, name in enumerate(blocks.block)}
    where = [places[name] for name in found.layer]
    return (blocks.trace[where] / blocks.size[where])[:, None] * found.error


def _begin(operator: HessianOperator, rounding: _Rounding, config: Config) -> Quantization:
    layers, widths = len(rounding.layers), len(config.bits)
    gradient = operator.loss_and_gradient()[1]
    unknown = np.full(len(CRITERIA), np.nan)
    return Quantization(
        layer=np.array([layer.name for layer in rounding.layers], dtype=object),
        bits=np.array(config.bits),
        size=np.array([layer.size for layer in rounding.layers], dtype=np.int64),
        error=rounding.errors(),
        omega=np.full((layers, widths), np.nan),
        first_order=rounding.inner_products(gradient).reshape(layers, widths),
        direct=np.full((layers, widths), np.nan),
        coupling=np.full((layers * widths, layers * widths), np.nan),
        mean_bits=config.mean_bits,
        allocation=np.zeros((len(CRITERIA), layers), dtype=np.int64),
        criterion=np.array(CRITERIA, dtype=object),
        chosen_bits=unknown,
        predicted=unknown,
        measured=unknown,
    )


def _allocated(operator: HessianOperator, rounding: _Rounding, found: Quantization) -> Quantization:
    """With the choice by each criterion, and what it does to the loss as predicted and as measured."""
    choices, predicted, measured = [], [], []
    before = operator.loss_at(rounding.weights)
    for criterion in CRITERIA:
        chosen = allocate(getattr(found, criterion), found.size.tolist(), found.bits.tolist(), found.mean_bits)
        widths = np.argmax(found.bits == chosen[:, None], axis=1)
        settings = np.arange(len(chosen)) * len(found.bits) + widths
        second_order = found.coupling[np.ix_(settings, settings)].sum() / 2
        rounded = rounding.weights_at(chosen.tolist())
        change = rounded - rounding.weights
        decay = operator.subject.weight_decay * (dot(rounding.weights, change) + dot(change, change) / 2)
        choices.append(chosen)
        predicted.append(found.first_order.ravel()[settings].sum() + second_order)
        measured.append(operator.loss_at(rounded) - before + decay)
    allocation = np.array(choices, dtype=np.int64)
    total = found.size.sum()
    return replace(
        found,
        allocation=allocation,
        chosen_bits=(allocation @ found.size) / total if total else np.full(len(CRITERIA), np.nan),
        predicted=np.array(predicted),
        measured=np.array(measured),
    )
