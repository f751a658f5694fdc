"""Sections of the README, for readers who want more."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

_PICTURE = re.compile(r"^(\|.*)?!\[[^\]]*\]\([^)]*\).*$|^\|[| -]*$", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?://)[^)]*\)")


@lru_cache
def section(command: str) -> str:
    """The last section of the README whose first command begins with this one, without its pictures; else ""."""
    file = Path(__file__).resolve().parents[1] / "README.md"
    if not file.is_file():
        return ""
    for text in reversed(re.split(r"^## ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]):
        commands = re.findall(r"^ {4}((?:python -m|streamlit) .*)$", text, flags=re.MULTILINE)
        if commands and commands[0].startswith(command):
            return "#### " + _LINK.sub(r"\1", _PICTURE.sub("", text)).strip()
    return ""
