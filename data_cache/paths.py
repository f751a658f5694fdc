"""Where data sets, checkpoints and results live on this machine."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped() -> Path | None:
    """The checkout's `data_cache` folder, which holds the files that ship in git; None without a checkout."""
    return _PACKAGE if (_PACKAGE.parent / "pyproject.toml").is_file() else None


def root() -> Path:
    """The folder for everything this machine fetches or makes; it need not exist yet.

    `$LANDSCOPE_CACHE` where set, else the checkout's `data_cache`, else (installed without a checkout) the
    user's cache directory. Never site-packages.
    """
    if chosen := os.environ.get("LANDSCOPE_CACHE"):
        return Path(chosen).expanduser()
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return shipped() or Path(cache_home) / "landscope"


def search(*parts: str) -> Path | None:
    """The first existing `root()/parts` or, failing that, the file of that name that ships."""
    for base in (root(), shipped()):
        if base is not None and (path := base.joinpath(*parts)).exists():
            return path
    return None


def results() -> Path:
    """The folder that run files go to by default."""
    return root() / "results"


def checkpoints() -> dict[str, Path]:
    """Checkpoints that commands take by name, `{name: path}`; one's own shadow those that ship."""
    found: dict[str, Path] = {}
    for base in (shipped(), root()):
        if base is not None:
            found |= {path.stem: path for path in base.joinpath("checkpoints").glob("*.safetensors")}
    return dict(sorted(found.items()))
