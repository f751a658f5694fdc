"""The command through anything: killed, interrupted, on two ranks, with files that changed under it."""

import dataclasses
import errno
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from ranks import run_ranks

from analyze.landscape.spec import DONE, TODO, Config, Result

SMALL = ["--limit", "24", "--batch-size", "16", "--points", "4", "3", "--frames", "2", "--no-plot", "--quiet"]

SLOWLY = """
import importlib, sys, time
from pathlib import Path
from analyze import cli
from analyze.landscape.grid import Evaluator

compute = importlib.import_module("analyze.landscape.compute")
pause, after, *arguments = sys.argv[1:]
out = Path(arguments[arguments.index("--out") + 1])
cli.SAVE_SECONDS = compute.OFFER_SECONDS = compute.SCRATCH_SECONDS = compute.SHARE = 0
if after == "scratch":
    compute.OFFER_SECONDS = 1e9
evaluate, calls = Evaluator.evaluate, 0

def slowly(self, *arguments):
    global calls
    calls += 1
    if calls > 14:
        out.with_suffix(".begun").touch()
        time.sleep(float(pause))
    return evaluate(self, *arguments)

Evaluator.evaluate = slowly
cli.main("landscape", arguments)
"""
"""The command, saved after each point: after nine of the pre-scan and five of the grid it pauses at each one."""


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


def begin(*arguments: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", SLOWLY, *(str(argument) for argument in arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(process: subprocess.Popen, path: Path) -> None:
    deadline = time.monotonic() + 90
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("blow", "kept_in"), [(signal.SIGKILL, "run file"), (signal.SIGKILL, "scratch"), (signal.SIGINT, "run file")]
)
def test_stopped_run_goes_on_to_the_same_file(tiny_checkpoint, tmp_path, finished, command, blow, kept_in):
    out = tmp_path / "A.h5"
    arguments = ["--ckpt", tiny_checkpoint, "--out", out, *SMALL]
    process = begin(60, kept_in, *arguments)
    wait_for(process, out.with_suffix(".begun"))
    if kept_in == "scratch":
        second = command(*arguments, name="landscape")
        assert second.status == 2 and "is being written by another process" in second.err
    process.send_signal(blow)
    printed, told = process.communicate(timeout=60)
    assert process.returncode == (130 if blow == signal.SIGINT else -signal.SIGKILL)
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
    assert sorted(each.name for each in tmp_path.iterdir()) == ["A.begun", "A.h5"]


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
    assert command(*arguments, name="landscape").status == 0
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
        assert command(*options, "--out", alone, name="landscape").status == 0
    first, second = run_ranks(2, in_rank, *options, "--out", str(out), seconds=100)
    assert (first.status, first.err) == (0, "") and "run file" in first.out
    assert (second.status, second.out, second.err) == (0, "", "")
    a, b = Result.read(alone), Result.read(out)
    if axes:
        np.testing.assert_allclose(b.nll, a.nll, rtol=1e-2)  # of the eigenvectors' tolerance
    else:
        assert_same_file(out, alone)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from analyze import cli
from analyze.landscape.grid import Evaluator

evaluate, calls, attempt = Evaluator.evaluate, 0, int(os.environ["TORCHELASTIC_RESTART_COUNT"])
out = Path(sys.argv[sys.argv.index("--out") + 1])

def fatally(self, *arguments):
    global calls
    calls += 1
    out.with_suffix(f".{attempt}.{os.environ['RANK']}.{calls}").touch()
    if os.environ["RANK"] == "1" and attempt == 0 and calls == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return evaluate(self, *arguments)

Evaluator.evaluate = fatally
cli.main("landscape", sys.argv[1:])
"""


def test_killed_rank_restarts_and_goes_on_to_the_file_of_one(tiny_checkpoint, tmp_path, finished):
    script, out = tmp_path / "command.py", tmp_path / "A.h5"
    script.write_text(KILLED)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    process = subprocess.run(
        [sys.executable, "-m", *launcher, str(script), "--ckpt", str(tiny_checkpoint), "--out", str(out), *SMALL],
        capture_output=True,
        text=True,
        timeout=110,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "A.0.1.3").exists() and not (tmp_path / "A.0.1.4").exists()
    assert (tmp_path / "A.1.0.1").exists()
    assert_same_file(out, finished)


def test_help_is_quick_and_complete():
    script = "import sys; from analyze import cli\ntry:\n    cli.main('landscape', ['--help'])\nfinally:\n"
    script += "    print('LOADED', sorted({'torch', 'matplotlib', 'plotly', 'PIL', 'scipy'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "LOADED []" in printed
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in printed
