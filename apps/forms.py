"""An analysis's `Config` as a form, and what is entered in it as a command line.

Nothing here knows a single analysis: the options come from the fields of the dataclass, as in `analyze.cli`. What a
field names beyond its own value, its metadata says:

    reads   "checkpoint", "run" or "folder": the value names files of this machine. Checkpoints and run files are chosen
            from those that are there; folders are for the command line.
    words   values of a field that reads files which are none.
    writes  an ending: the value is a file to write. The form asks whether, and puts it beside the run file.

Other paths, and types that no command line has, are left out. Free text never names a file: it holds no separators.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import math
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from analyze.cli import Shared
from data_cache.errors import InputError

Kind = Literal["flag", "whole", "number", "text", "list", "choice", "choices", "file", "files", "output"]

SHARED = ("limit", "batch_size", "weight_decay", "mode", "dtype", "device", "seed", "plot", "restart")
"""Options of `analyze.cli.Shared` that a form offers as they are."""
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Option:
    """One option of a form."""

    name: str
    kind: Kind
    default: Any
    help: str = ""
    choices: tuple[str, ...] = ()
    """Values of a choice; words that a field which reads files also takes."""
    items: tuple[type, ...] = (str,)
    """Types of a list's items; the last one for all that follow."""
    optional: bool = False
    """Whether None is a value."""
    reads: str = ""
    writes: str = ""

    @property
    def label(self) -> str:
        """What the form calls it."""
        return self.name.replace("_", " ").capitalize()


def options(cls: type, defaults: Mapping[str, Any] | None = None, only: Iterable[str] | None = None) -> list[Option]:
    """The options of a dataclass that a form can offer, in its order.

    Args:
        cls: A `Config`, or `Shared`.
        defaults: Those that differ from the fields' own.
        only: Names; default: all.
    """
    hints, helps = typing.get_type_hints(cls), field_docs(cls)
    found = []
    for field in dataclasses.fields(cls):
        if only is not None and field.name not in set(only):
            continue
        default = (defaults or {}).get(field.name, _default(field))
        option = _option(field.name, hints[field.name], default, field.metadata)
        if option is not None and default is not dataclasses.MISSING:
            found.append(dataclasses.replace(option, help=helps.get(field.name, "")))
    return found


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def shared_options(analysis: str) -> list[Option]:
    """Those that all analyses share, with the analysis's own defaults; `analysis` is empty for all of them."""
    defaults = {}
    if analysis:
        defaults = importlib.import_module(f"analyze.{analysis}.spec").SUBJECT_DEFAULTS
    else:
        from analyze.suite import SharedByAll

        return _with_devices(options(SharedByAll, only=SHARED))
    return _with_devices(options(Shared, defaults, SHARED))


def _with_devices(found: list[Option]) -> list[Option]:
    """`device` is text on the command line, for there may be many."""
    choice = dataclasses.replace
    return [choice(each, kind="choice", choices=DEVICES) if each.name == "device" else each for each in found]


@lru_cache
def field_docs(cls: type) -> Mapping[str, str]:
    """The docstring under each field, in one line."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):
            continue
        statements = getattr(body, "body", [])
        for statement, following in zip(statements, statements[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                text = getattr(following.value, "value", None)
                if isinstance(text, str) and isinstance(statement.target, ast.Name):
                    docs[statement.target.id] = " ".join(text.split())
    return docs


def _option(name: str, hint: Any, default: Any, metadata: Mapping[str, Any]) -> Option | None:
    if get_origin(hint) in (Union, types.UnionType):
        inner = [each for each in get_args(hint) if each is not type(None)]
        if len(inner) > 1 or len(inner) == len(get_args(hint)):
            return None
        found = _option(name, inner[0], default, metadata)
        return found and dataclasses.replace(found, optional=True)
    if "writes" in metadata:
        return Option(name, "output", default, writes=metadata["writes"]) if hint is Path and default is None else None
    many = get_origin(hint) is tuple
    items = tuple(each for each in get_args(hint) if each is not ...) if many else (hint,)
    if "reads" in metadata or Path in items:
        if metadata.get("reads") not in ("checkpoint", "run") or set(items) - {str, Path}:
            return None
        kind: Kind = "files" if many else "file"
        return Option(
            name, kind, default, choices=tuple(metadata.get("words", ())), items=items, reads=metadata["reads"]
        )
    if all(get_origin(item) is Literal for item in items) and items:
        return Option(name, "choices" if many else "choice", default, choices=get_args(items[0]))
    kinds: dict[Any, Kind] = {bool: "flag", int: "whole", float: "number", str: "text"}
    if not items or any(item not in kinds for item in items) or (many and bool in items):
        return None
    return Option(name, "list" if many else kinds[hint], default, items=items)


# What is entered


def shown(value: Any) -> str:
    """A value, or several, as text that `read` takes back: 1/255 rather than 0.00392156862745098."""
    if isinstance(value, (tuple, list)):
        return " ".join(shown(each) for each in value)
    if isinstance(value, float) and float(f"{value:g}") != value:
        fraction = Fraction(value).limit_denominator(1000)
        return str(fraction) if float(fraction) == value else repr(value)
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def read(option: Option, entered: Any) -> Any:
    """The value of an option that is entered as text; other kinds give theirs as it is.

    Raises:
        InputError: It is no such value, or text that could name a file or pass for another option.
    """
    if option.kind == "text":
        return None if option.optional and not str(entered).strip() else plain_text(option.label, str(entered).strip())
    if option.kind == "list":
        words = str(entered).replace(",", " ").split()
        items = option.items
        return tuple(_item(option, items[min(place, len(items) - 1)], word) for place, word in enumerate(words))
    if option.kind in ("choices", "files"):
        return tuple(entered)
    if entered is None and not option.optional and option.default is not None:
        raise InputError(f"{option.label} is empty.")
    return entered


def plain_text(label: str, text: str) -> str:
    """The text, if it can be nothing but text: no option, no path, no control characters."""
    if text.startswith(("-", "~")) or any(mark in text for mark in "/\\") or not text.isprintable() or ".." in text:
        raise InputError(f"{label} can't begin with - or ~, nor hold slashes, '..' or control characters.")
    return text


def _item(option: Option, kind: type, word: str) -> Any:
    if kind is str:
        return plain_text(option.label, word)
    try:
        value = kind(Fraction(word)) if kind is float and "/" in word else kind(word)
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        told = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{option.label} takes {told} with spaces between, not {word!r}.")
    return value


# From values to the command


def arguments(found: Sequence[Option], values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The command line's options for values that differ from the defaults.

    Args:
        found: From `options`.
        values: By name, as `read` gives them; what isn't there has its default.
        prefix: Of each option, such as `hessian.` where several analyses share a command.
    """
    line: list[str] = []
    for option in found:
        value = values.get(option.name, option.default)
        if value == option.default and type(value) is type(option.default):
            continue
        name = option.name.replace("_", "-")
        if isinstance(value, bool):
            line.append(f"--{prefix}{name}" if value else f"--{prefix}no-{name}")
        else:
            words = [_word(each) for each in value] if isinstance(value, tuple) else [_word(value)]
            line += [f"--{prefix}{name}", *words]
    return line


def _word(value: Any) -> str:
    word = repr(value) if isinstance(value, float) else str(value)
    if isinstance(value, (str, Path)) and (word.startswith("-") or not word.isprintable() or not word):
        raise InputError(
            f"{word!r} can't be given to a command: it begins with -, is empty or holds control characters."
        )
    return word


def command(analysis: str, line: Sequence[str]) -> list[str]:
    """The whole command, for no shell: this Python, the analysis (all of them if empty), and its options."""
    return [sys.executable, "-m", f"analyze.{analysis}" if analysis else "analyze", *line]
