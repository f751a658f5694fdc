"""Keyword arguments on a command line."""

from __future__ import annotations

import json

from data_cache import InputError


def parse_key_values(pairs: tuple[str, ...]) -> dict[str, object]:
    """`("width=16", "sfilter=[1,2,1]", "cblock=MLPBlock")` as keyword arguments; values are JSON, else text."""
    arguments: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (equals and key.isidentifier()):
            raise InputError(f"--model-args takes key=value, not {pair!r}.")
        try:
            arguments[key] = json.loads(value)
        except json.JSONDecodeError:
            arguments[key] = {"True": True, "False": False, "None": None}.get(value, value)
    return arguments
