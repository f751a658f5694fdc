"""Small real run files of two tiny networks, with all analyses, and files that are not what they should be."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

from commands import metadata

from analyze import suite
from analyze.run import RunFile, open_run

WITHOUT, WITH = "without_dropout", "with_dropout"
"""Stems of the run files that `make_runs` writes: of a deterministic network, and of one with dropout and smoothing."""

OPTIONS = [
    "--limit", "12", "--batch-size", "12", "--no-plot", "--quiet",
    "--variance.passes", "2", "--fourier.passes", "2", "--fourier.spectra", "layer1.*",
    "--robustness.passes", "2", "--robustness.sigmas", "0.1", "0.4", "--robustness.bands", "4",
    "--robustness.heat-map-images", "4", "--robustness.heat-map-cycles", "2", "--robustness.attacks", "fgsm",
    "--robustness.attack-images", "4", "--robustness.epsilons-linf", "0.01", "0.02",
    "--robustness.epsilons-l2", "0.5", "--robustness.corruptions", "contrast", "gaussian_noise",
    "--robustness.severities", "1", "3", "--robustness.corruption-images", "4",
    "--hessian.parts", "extremes", "trace", "density", "max-spectrum", "blocks", "--hessian.largest", "2",
    "--hessian.parameters", "layer1.0.*", "classifier*",
    "--hessian.tolerance", "1e-2", "--hessian.trace-samples", "2", "--hessian.probes", "2", "--hessian.steps", "4",
    "--hessian.batches", "2", "--hessian.minibatch", "8", "--hessian.top", "2", "--hessian.spectrum-tolerance", "0.3",
    "--hessian.max-products", "8", "--hessian.block-samples", "2", "--hessian.block-error", "2",
    "--hessian.block-tolerance", "0.5", "--hessian.bits", "2", "4", "--hessian.mean-bits", "3",
    "--landscape.points", "5", "--landscape.frames", "3", "--landscape.no-prescan", "--landscape.no-keep-directions",
]  # fmt: skip


def make_runs(folder: Path) -> None:
    """Write the two run files into a folder."""
    import torch

    from models import get_model, save_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    for stem, name in {WITHOUT: "resnet_dnn_18", WITH: "resnet_mcdo_smoothing_18"}.items():
        checkpoint = folder / f"{stem}.safetensors"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = get_model(name, 10, width=2)
        save_checkpoint(checkpoint, model, metadata(name, width=2))
        shared, _, configs = suite.parse(["--ckpt", str(checkpoint), "--out", str(folder / f"{stem}.h5"), *OPTIONS])
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            outcome = suite.run(shared, configs)
        assert not outcome.failed, outcome.failed
        checkpoint.unlink()
    for lock in folder.glob(".*.lock"):
        lock.unlink()


def truncated(source: Path, target: Path) -> None:
    """A run file that lost its second half."""
    content = source.read_bytes()
    target.write_bytes(content[: len(content) // 2])


def empty(target: Path) -> None:
    """A file of no bytes."""
    target.write_bytes(b"")


def half_written(source: Path, target: Path, analysis: str = "variance") -> None:
    """A copy of a run file whose run was stopped: one analysis is not complete, and the others are not there."""
    import h5py

    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        for name in set(file) - {analysis}:
            del file[name]
        file[analysis].attrs["complete"] = False


def renamed(source: Path, target: Path, model: str) -> None:
    """A copy of a run file that says it is of a model, checkpoint and data of another name."""
    from analyze import analyses

    with open_run(source) as run:
        about = {name: run.group_attributes(name) for name in analyses()}
        identity = {key: run.attributes[key] for key in ("checkpoint_sha256", "data", "seed")}
        results = {name: _load(run, name) for name in analyses() if about[name]}
    with RunFile(target, identity | {"model": model, "checkpoint": model}) as file:
        for name, result in results.items():
            told = about[name] or {}
            subject = told["subject"] | {"model": model, "checkpoint": model, "data": model}
            file.save(name, result, config=told["config"], complete=True, seconds=1.0, subject=subject)


def without(source: Path, target: Path, *names: str) -> None:
    """A copy of a run file without these analyses or parts, such as "hessian" or "hessian/density"."""
    import h5py

    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        for name in names:
            del file[name]


def _load(run, name):
    import importlib

    return run.load(name, importlib.import_module(f"analyze.{name}.spec").Result)
