"""A tiny checkpoint on real images, and the command as a function."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
import torch
from commands import Outcome, metadata

from analyze import cli
from models import get_model, save_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """resnet_mcdo_smoothing_18 at width 2, not trained."""
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_model("resnet_mcdo_smoothing_18", 10, width=2)
    save_checkpoint(path, model, metadata("resnet_mcdo_smoothing_18", width=2))
    return path


@pytest.fixture
def command():
    """Run `python -m analyze.hessian` in this process."""

    def run(*arguments: object, name: str = "hessian") -> Outcome:
        out, err, status = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main(name, [str(argument) for argument in arguments])
            except SystemExit as end:
                status = end.code
        return Outcome(status, out.getvalue(), err.getvalue())

    return run
