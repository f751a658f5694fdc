"""Building is asked for, and what is used says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ext import build

ROOT = Path(build.__file__).parent.parent


def python(*command, **environment):
    """Run Python in the checkout with the environment changed."""
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


def status(**environment):
    return python("-c", "import ext; print(ext.status())", **environment)


def test_off_takes_the_eager_path():
    assert "eager" in status(LANDSCOPE_EXT="off").stdout


def test_nothing_is_built_unasked(tmp_path):
    done = status(LANDSCOPE_EXT="auto", LANDSCOPE_CACHE=str(tmp_path))
    assert done.stdout.startswith("smoothing operator: eager")
    assert "python -m ext" in done.stdout
    assert not list(tmp_path.iterdir())


def test_require_insists(tmp_path):
    done = status(LANDSCOPE_EXT="require", LANDSCOPE_CACHE=str(tmp_path))
    assert done.returncode
    assert "python -m ext" in done.stderr.splitlines()[-1]


def test_a_command_says_in_a_sentence_that_required_kernels_are_not_built(tmp_path):
    done = python(
        *("-m", "models.evaluate", "--ckpt", "resnet_dnn_smoothing_18"),
        LANDSCOPE_EXT="require",
        LANDSCOPE_CACHE=str(tmp_path),
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "LANDSCOPE_EXT=require, but the smoothing operator for cpu is not built" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_an_unknown_mode_is_refused():
    assert "off, auto, require" in status(LANDSCOPE_EXT="yes").stderr


def test_a_damaged_library_falls_back_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("LANDSCOPE_CACHE", str(tmp_path))
    library = build.library("cpu")
    library.parent.mkdir(parents=True)
    library.write_bytes(b"not a library")
    assert "eager" in status(LANDSCOPE_EXT="auto").stdout
    assert "does not load" in status(LANDSCOPE_EXT="require").stderr


def test_what_is_built_depends_on_sources_and_torch(monkeypatch, tmp_path):
    before = build.folder()
    monkeypatch.setattr(build.torch, "__version__", "0.0")
    assert build.folder() != before
    monkeypatch.undo()
    (tmp_path / "cpu.cpp").write_text("other")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert build.folder() != before


def test_a_missing_compiler_is_one_sentence(tmp_path):
    done = python("-m", "ext", CXX="no-such-compiler", LANDSCOPE_CACHE=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "error: there is no compiler no-such-compiler\n"


@pytest.mark.skipif(build.find_nvcc() is None, reason="no nvcc: pip install nvidia-cuda-nvcc")
def test_the_cuda_kernels_compile_and_load_without_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("LANDSCOPE_CACHE", str(tmp_path))
    (library,) = build.build(devices=["cuda"])
    build.torch.ops.load_library(library)
    assert all(f"sm_{number}".encode() in library.read_bytes() for number in build.ARCHITECTURES)
