"""Real run files for the pages, made once, and any page in a test of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_files import make_runs


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with the two run files of `run_files.make_runs`; not to be changed. All workers share it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "run_files"
    with open(base / "run_files.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            make_runs(base / "run_files.part")
            (base / "run_files.part").rename(folder)
    return folder


@pytest.fixture
def runs(made, tmp_path) -> Path:
    """A folder of one's own with these run files."""
    folder = tmp_path / "runs"
    shutil.copytree(made, folder)
    return folder


@pytest.fixture(autouse=True)
def main_module() -> Iterator[None]:
    """Streamlit takes the place of the main module, which processes that are started later would look for."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before
