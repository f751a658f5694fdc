"""What the first page takes long to load, loaded while the first visitor's browser still loads its own part."""

from __future__ import annotations

import importlib
import threading


def _load() -> None:
    for name in ("pandas", "pyarrow", "apps.views.runs"):
        importlib.import_module(name)
    importlib.import_module("analyze.charting").new_chart(columns=2).to_json()  # plotly loads what it needs by and by


_thread = threading.Thread(target=_load, daemon=True)


def start() -> None:
    """Begin, in a thread of its own."""
    _thread.start()


def wait() -> None:
    """Return once all is loaded, or at once if it never began: two threads should not load the same modules."""
    if _thread.is_alive():
        _thread.join()
