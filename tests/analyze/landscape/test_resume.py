"""The command through anything: killed, interrupted, on two ranks, with files that changed under it."""

import dataclasses
import errno
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from ranks import run_ranks, torchruns_store

from analyze.landscape.shown import axis_label
from analyze.landscape.spec import DONE, TODO, Config, Result

SMALL = ["--limit", "24", "--batch-size", "16", "--points", "4", "3", "--frames", "2", "--no-plot", "--quiet"]


def slowly(folder: Path, kept_in: str, arguments: list[str]) -> None:
    """The command, saved after each point: after nine of the pre-scan and five of the grid it waits to be stopped."""
    from analyze import cli
    from analyze.landscape.grid import Evaluator

    for descriptor, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / stream, os.O_WRONLY | os.O_CREAT), descriptor)
    torch.set_num_threads(1)
    compute = importlib.import_module("analyze.landscape.compute")
    cli.SAVE_SECONDS = compute.OFFER_SECONDS = compute.SCRATCH_SECONDS = compute.SHARE = 0
    if kept_in == "scratch":
        compute.OFFER_SECONDS = 1e9
    evaluate, calls = Evaluator.evaluate, []

    def pausing(self, *given):
        calls.append(given)
        if len(calls) > 14:
            (folder / "begun").touch()
            time.sleep(60)
        return evaluate(self, *given)

    Evaluator.evaluate = pausing
    cli.main("landscape", arguments)


@pytest.fixture(scope="module")
def finished(tiny_checkpoint, tmp_path_factory) -> Path:
    """A run file of the small grid, by one process without a pause."""
    from analyze import cli

    out = tmp_path_factory.mktemp("run") / "tiny.h5"
    cli.main("landscape", ["--ckpt", str(tiny_checkpoint), "--out", str(out), *SMALL])
    return out


def contents(path) -> dict:
    """All arrays and attributes of a run file but times and commands."""
    found = {}

    def add(name, item):
        found.update({f"{name}@{key}": value for key, value in item.attrs.items() if _stays(key)})
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        add("", file)
        file.visititems(add)
    return found


def _stays(key: str) -> bool:
    return key not in ("created", "modified", "command", "seconds") and not key.endswith("_LIST") and key != "CLASS"


def assert_same_file(path, oracle) -> None:
    a, b = contents(path), contents(oracle)
    assert a.keys() == b.keys()
    for name, value in b.items():
        np.testing.assert_array_equal(a[name], value, err_msg=name)


def wait(until: Callable[[], bool], alive: Callable[[], bool] = lambda: True) -> None:
    deadline = time.monotonic() + 90
    while not until():
        assert alive() and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("blow", "kept_in"), [(signal.SIGKILL, "scratch"), (signal.SIGINT, "run file")])
def test_stopped_run_goes_on_to_the_same_file(tiny_checkpoint, tmp_path, finished, command, blow, kept_in):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    folder.mkdir()
    printed.mkdir()
    out = folder / "A.h5"
    arguments = ["--ckpt", str(tiny_checkpoint), "--out", str(out), *SMALL]
    process = multiprocessing.get_context("forkserver").Process(target=slowly, args=(printed, kept_in, arguments))
    process.start()
    wait((printed / "begun").exists, process.is_alive)
    if kept_in == "scratch":
        second = command(*arguments, name="landscape")
        assert second.status == 2 and "is being written by another process" in second.err
    os.kill(process.pid, blow)
    process.join(60)
    assert process.exitcode == (130 if blow == signal.SIGINT else -signal.SIGKILL)
    told = (printed / "err").read_text()
    result = Result.read(out)  # whatever was killed and when
    if blow == signal.SIGINT:
        assert "the same command goes on" in told and "Traceback" not in told
    done = 0 if kept_in == "scratch" and blow == signal.SIGKILL else 5
    assert (result.status[0] == DONE).sum() == (result.status[1] == DONE).sum() == done
    assert (result.status == TODO).any()
    evaluated = []
    grid = importlib.import_module("analyze.landscape.grid")
    evaluate = grid.Evaluator.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid.Evaluator, "evaluate", lambda self, *a: evaluated.append(a) or evaluate(self, *a))
        assert command(*arguments, name="landscape").status == 0
    assert len(evaluated) == 12 - 5  # nothing is computed twice, wherever it was kept
    assert_same_file(out, finished)
    assert [each.name for each in folder.iterdir()] == ["A.h5"]


def test_same_command_again_computes_nothing_and_more_frames_are_added(tiny_checkpoint, tmp_path, finished, command):
    out = tmp_path / "A.h5"
    out.write_bytes(finished.read_bytes())
    arguments = ["--ckpt", tiny_checkpoint, "--out", out, *SMALL]
    assert "already in the run file" in command(*arguments, name="landscape").out
    assert command(*arguments, "--frames", "3", name="landscape").status == 0
    two, three = Result.read(finished), Result.read(out)
    np.testing.assert_array_equal(three.nll[:2], two.nll)
    assert three.frame.tolist() == [0, 1, 2] and (three.status == DONE).all()


def test_full_disk_is_a_sentence_and_the_run_goes_on(tiny_checkpoint, tmp_path, finished, command, monkeypatch):
    out, compute, sync, synced = tmp_path / "A.h5", importlib.import_module("analyze.landscape.compute"), os.fsync, []
    arguments = ["--ckpt", tiny_checkpoint, "--out", out, *SMALL]

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) > 9:  # in the middle of the grid
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        for name in ("OFFER_SECONDS", "SCRATCH_SECONDS", "SHARE"):
            patch.setattr(compute, name, 0)
        patch.setattr("analyze.cli.SAVE_SECONDS", 0)
        patch.setattr(os, "fsync", full)
        outcome = command(*arguments, name="landscape")
    assert outcome.status == 2 and "No space left" in outcome.err and len(outcome.err.splitlines()) == 1
    assert (Result.read(out).status == DONE).any() and (Result.read(out).status == TODO).any()
    assert command(*arguments, name="landscape").status == 0
    assert_same_file(out, finished)
    assert [each.name for each in tmp_path.iterdir()] == ["A.h5"]


def test_the_animation_reports_how_far_it_is_also_without_figures(tiny_checkpoint, tmp_path, finished, command):
    out, gif = tmp_path / "A.h5", tmp_path / "a.gif"
    out.write_bytes(finished.read_bytes())
    arguments = ["--ckpt", tiny_checkpoint, "--out", out, *(word for word in SMALL if word != "--quiet")]
    arguments += ["--gif", gif, "--gif-tween", "2", "--gif-size", "100"]
    outcome = command(*arguments, name="landscape")
    assert outcome.status == 0 and "animation: 100%" in outcome.err
    assert outcome.out.strip().splitlines()[-1].split() == ["figure", str(gif)]
    with Image.open(gif) as image:
        assert image.n_frames == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analyze.landscape.animation.between", interrupted)
        outcome = command(*arguments, name="landscape")
    assert outcome.status == 130 and f"all numbers are in {out}" in outcome.err
    with Image.open(gif) as image:  # the old one, whole
        assert image.n_frames == 4


def interrupted(*_):
    raise KeyboardInterrupt


def test_other_options_are_refused_by_name(tiny_checkpoint, tmp_path, finished, command):
    out = tmp_path / "A.h5"
    out.write_bytes(finished.read_bytes())
    before = out.read_bytes()
    for word, *options in (("span", "--span", "2"), ("norm", "--norm", "layer"), ("noise", "--noise", "point")):
        outcome = command("--ckpt", tiny_checkpoint, "--out", out, *SMALL, *options, name="landscape")
        assert outcome.status == 2 and word in outcome.err and "--restart" in outcome.err
    assert out.read_bytes() == before


def test_directions_that_changed_on_the_disk_are_refused(tiny_checkpoint, tmp_path, finished, command):
    """An unfinished grid along the directions of another run file, which then is of other directions."""
    other, out = tmp_path / "other.h5", tmp_path / "A.h5"
    other.write_bytes(finished.read_bytes())
    arguments = ["--ckpt", tiny_checkpoint, "--out", out, *SMALL, "--same-directions", other]
    outcome = command(*arguments, name="landscape")
    assert outcome.status == 0 and "random, norm filter, as in other" in outcome.out
    assert axis_label(Result.read(out), "x") == "x: random direction, filter norm, as in other"
    np.testing.assert_array_equal(Result.read(out).nll, Result.read(finished).nll)
    with h5py.File(other, "r+") as file:
        next(iter(file["landscape/direction_x"]))
        for _name, item in file["landscape/direction_x"].items():
            if not h5py.h5ds.is_scale(item.id):
                item[...] = item[...] * 2
                break
    outcome = command(*arguments, "--frames", "3", name="landscape")
    assert outcome.status == 2 and "direction x" in outcome.err and "--restart" in outcome.err


def test_without_its_directions_a_run_file_is_small_and_goes_on(tiny_checkpoint, tmp_path, finished, command):
    out = tmp_path / "A.h5"
    arguments = ["--ckpt", tiny_checkpoint, "--out", out, *SMALL, "--no-keep-directions"]
    assert command(*arguments, "--frames", "1", name="landscape").status == 0
    assert command(*arguments, name="landscape").status == 0
    bare, whole = Result.read(out), Result.read(finished)
    assert not bare.direction_x and not bare.direction_y and not bare.one_dimensional
    assert (bare.info_x.sha256, bare.info_y.sha256) == (whole.info_x.sha256, whole.info_y.sha256)
    directions = sum(each.nbytes for axis in "xy" for each in getattr(whole, f"direction_{axis}").values())
    assert out.stat().st_size < finished.stat().st_size - directions
    ours, theirs = contents(out), contents(finished)
    for name, value in theirs.items():
        if "direction_" not in name and "config" not in name:
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
    taken = command(
        "--ckpt", tiny_checkpoint, "--out", tmp_path / "B.h5", *SMALL, "--same-directions", out, name="landscape"
    )
    assert taken.status == 2 and "--no-keep-directions" in taken.err and not (tmp_path / "B.h5").exists()
    # with them again, as soon as there is anything to do
    assert command(*arguments[:-1], "--frames", "3", name="landscape").status == 0
    for axis in "xy":
        ours, theirs = (getattr(result, f"direction_{axis}") for result in (Result.read(out), whole))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def in_rank(*arguments: str) -> None:
    from analyze import cli, distributed

    distributed.GRACE = 0.5
    cli.main("landscape", arguments)


@pytest.mark.parametrize("axes", [[], ["--direction-x", "eigen:1"]])
def test_two_ranks_write_the_file_of_one(tiny_checkpoint, tmp_path, finished, command, axes):
    """Both with one thread, so points are bit-equal; eigenvectors are searched together, with other rounding."""
    alone, out = finished, tmp_path / "two.h5"
    options = ["--ckpt", str(tiny_checkpoint), *SMALL, *axes]
    if axes:
        alone = tmp_path / "one.h5"
        options += ["--points", "2", "--frames", "1", "--no-prescan"]
        assert command(*options, "--out", alone, name="landscape").status == 0
    first, second = run_ranks(2, in_rank, *options, "--out", str(out), seconds=100)
    assert (first.status, first.err) == (0, "") and "run file" in first.out
    assert (second.status, second.out, second.err) == (0, "", "")
    if axes:
        np.testing.assert_allclose(Result.read(out).nll, Result.read(alone).nll, rtol=1e-5)
    else:
        assert_same_file(out, alone)


def in_fatal_rank(folder: str, *arguments: str) -> None:
    """In the first attempt rank 1 is killed at its third point, and rank 0 is then ended, as torchrun does."""
    from analyze.landscape.grid import Evaluator

    killed, second = Path(folder, "killed"), Path(folder, "killed").exists()
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(int(second))
    evaluate, calls, rank = Evaluator.evaluate, [], os.environ["RANK"]

    def fatally(self, *given):
        calls.append(given)
        if rank == "1" and len(calls) == 3:
            wait(Path(arguments[arguments.index("--out") + 1]).exists)
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
        return evaluate(self, *given)

    def end() -> None:
        wait(lambda: killed.exists() and len(calls) > 11)  # in the grid, after the nine of the pre-scan
        os.kill(os.getpid(), signal.SIGTERM)

    if not second:
        Evaluator.evaluate = fatally
        if rank == "0":
            threading.Thread(target=end, daemon=True).start()
    in_rank(*arguments)


def test_killed_rank_restarts_and_goes_on_to_the_file_of_one(tiny_checkpoint, tmp_path, finished):
    out, store = tmp_path / "A.h5", torchruns_store()
    options = [str(tmp_path), "--ckpt", str(tiny_checkpoint), "--out", str(out), *SMALL]
    first, second = run_ranks(2, in_fatal_rank, *options, store=store)
    assert (first.status, second.status) == (130, -signal.SIGKILL) and "the same command goes on" in first.err
    done = (Result.read(out).status == DONE).sum()
    assert 0 < done < 24
    again = run_ranks(2, in_fatal_rank, *options, store=store)
    assert [(rank.status, rank.err) for rank in again] == [(0, "")] * 2
    assert_same_file(out, finished)


def test_help_is_quick_and_complete():
    script = "import sys; from analyze import cli\ntry:\n    cli.main('landscape', ['--help'])\nfinally:\n"
    script += "    print('LOADED', sorted({'torch', 'matplotlib', 'plotly', 'PIL', 'scipy'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "LOADED []" in printed
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in printed
