"""Names of the zoo, and how each becomes a network."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from data_cache import InputError

if TYPE_CHECKING:
    from torch import nn

VARIANTS = ("dnn", "mcdo", "dnn_smoothing", "mcdo_smoothing")
_FAMILY_MODULES = ("alexnet", "vgg", "resnet")


@dataclass(frozen=True)
class Options:
    """What can be varied in a network of the zoo; the defaults are the published networks."""

    width: int = 64
    """Channels of the first stage; the others scale with it."""
    stem: bool = False
    """The ImageNet stem (stride 4) instead of the one for small images."""
    rate: float | None = None
    """Dropout rate of the mcdo variants: 0.3, and 0.1 for AlexNet, unless given."""
    sblock: str = "TanhBlurBlock"
    """Class of the smoothing blocks."""
    num_sblocks: tuple[int, ...] | None = None
    """Smoothing blocks after each stage, for names without `smoothing`."""
    temp: float | None = None
    """Temperature of the smoothing blocks and of GAPClipBlock; each has its own default."""
    thr: float = 6.0
    """Upper bound of ReLuBlock."""
    sfilter: tuple[int, ...] = (1, 1)
    """One-dimensional blur kernel; (1, 1) with zero padding grows the map by one, others keep its size."""
    pad_mode: str = "constant"
    """Padding of the blur: constant (zero), reflect, replicate or circular."""
    cblock: str | None = None
    """Class of the classifier block: GAPBlock in ResNets, BNGAPBlock in pre-activation ones, else MLPBlock."""
    hidden: int = 4096
    """Hidden width of MLPBlock and GAPMLPBlock."""
    groups: int = 1
    """Groups of the 3x3 convolutions in bottlenecks."""
    width_per_group: int = 64
    """Channels for each group and 64 channels of the stage, in bottlenecks."""

    def __post_init__(self) -> None:
        for name in ("num_sblocks", "sfilter"):  # JSON metadata gives lists
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        for name, (expected, accepts) in _EXPECTED.items():
            if not accepts(value := getattr(self, name)):
                raise InputError(f"{name} must be {expected}, not {value!r}.")


def _whole(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_PAD_MODES = ("constant", "zero", "reflect", "replicate", "circular")
_POSITIVE_WHOLE = ("a positive whole number", _whole)
_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "width": _POSITIVE_WHOLE,
    "hidden": _POSITIVE_WHOLE,
    "groups": _POSITIVE_WHOLE,
    "width_per_group": _POSITIVE_WHOLE,
    "stem": ("true or false", lambda value: isinstance(value, bool)),
    "rate": ("in [0, 1)", lambda value: value is None or (_number(value) and 0 <= value < 1)),
    "num_sblocks": (
        "whole numbers up to 100, one a stage",
        lambda value: (
            value is None or (isinstance(value, tuple) and all(_whole(count, 0) and count <= 100 for count in value))
        ),
    ),
    "temp": ("a positive number", lambda value: value is None or (_number(value) and value > 0)),
    "thr": ("a positive number", lambda value: _number(value) and value > 0),
    "sfilter": (
        "numbers with a positive sum",
        lambda value: isinstance(value, tuple) and all(map(_number, value)) and sum(value) > 0,
    ),
    "pad_mode": (f"one of {', '.join(_PAD_MODES)}", lambda value: value in _PAD_MODES),
}


class Entry(NamedTuple):
    """One name of the zoo."""

    build: Callable[..., nn.Module]
    depth: int | None
    monte_carlo: bool
    smoothing: bool
    defaults: Mapping[str, Any]
    without: tuple[str, ...]


_REGISTRY: dict[str, Entry] = {}


def register(
    family: str, depths: tuple[int | None, ...], *, without: tuple[str, ...] = (), **defaults: Any
) -> Callable:
    """Register `build(depth, monte_carlo, smoothing, num_classes, options)` for every variant and depth.

    Args:
        family: First word of the names.
        depths: The depths; None alone for a family without.
        without: Names of options that mean nothing to this family.
        **defaults: Options whose default differs in this family.
    """

    def decorate(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        for variant in VARIANTS:
            for depth in depths:
                name = f"{family}_{variant}" + (f"_{depth}" if depth else "")
                monte_carlo, smoothing = "mcdo" in variant, "smoothing" in variant
                _REGISTRY[name] = Entry(build, depth, monte_carlo, smoothing, defaults, without)
        return build

    return decorate


def _registry() -> Mapping[str, Entry]:
    for module in _FAMILY_MODULES:
        importlib.import_module(f"models.{module}")
    return _REGISTRY


def names() -> list[str]:
    """All names of the zoo, family by family."""
    return list(_registry())


def get_model(name: str, /, num_classes: int = 10, **options: Any) -> nn.Module:
    """Build a network of the zoo with fresh weights; it carries its name as `.name`.

    A name is FAMILY_VARIANT_DEPTH, for example `resnet_mcdo_smoothing_18`: `mcdo` keeps dropout on at test
    time too (MC dropout, Gal & Ghahramani 2016), `smoothing` adds a smoothing block after each stage
    (Park & Kim 2022, arXiv 2105.12639). AlexNet has no depth.

    Args:
        name: One of `names()`.
        num_classes: Length of the output.
        **options: Fields of `Options`.

    Raises:
        InputError: Unknown name or option, or options that do not fit the family.
    """
    registry = _registry()
    if name not in registry:
        close = difflib.get_close_matches(name, registry, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "`python -m models list` shows all names."
        raise InputError(f"there is no model named {name!r} in the zoo; {hint}")
    entry = registry[name]
    accepted = [field.name for field in fields(Options) if field.name not in entry.without]
    for option in options:
        if option not in accepted:
            raise InputError(f"{name} takes no option {option!r}; it takes {', '.join(accepted)}.")
    if not _whole(num_classes):
        raise InputError(f"num_classes must be a positive whole number, not {num_classes!r}.")
    if not entry.monte_carlo and options.get("rate"):
        raise InputError(f"{name} has no dropout, so rate={options['rate']} has no place in it.")
    if entry.smoothing and options.get("num_sblocks") is not None:
        raise InputError(f"{name} fixes its smoothing blocks; give num_sblocks to a name without 'smoothing'.")
    chosen = Options(**{**entry.defaults, **options})
    model = entry.build(entry.depth, entry.monte_carlo, entry.smoothing, num_classes, chosen)
    model.name = name
    return model
