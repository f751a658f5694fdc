"""Several processes: sums, the shared queue, how failures end all of them, and the command under torchrun."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import metadata
from ranks import SCRIPT, run_ranks, torchruns_store
from ranks import command as in_rank

from analyze import distributed, open_run
from analyze._lock import exclusive
from analyze.distributed import ALONE, joined, local_device
from analyze.hessian.spec import Result
from data_cache import InputError, exit_on_input_error
from models import get_model, save_checkpoint

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def printed(ranks) -> list:
    """What each rank printed as JSON, after checking that all ended well."""
    assert [rank.status for rank in ranks] == [0] * len(ranks), ranks
    return [json.loads(rank.out) for rank in ranks]


def addend(rank: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1001, generator=torch.Generator().manual_seed(rank), dtype=torch.float64).to(dtype)


def add_and_tell() -> None:
    with joined("cpu") as world:
        sums = []
        for dtype in (torch.float64, torch.float32):
            tensor = addend(world.rank, dtype)
            world.sum_(tensor)
            sums.append(tensor.double().tolist())
        small = world.broadcast({"from": world.rank})
        nothing = world.broadcast(None if world.rank == 0 else "something")
        large = world.broadcast(np.full(3_000_000, world.rank + 1.5))
        told = [small, nothing, hashlib.sha256(large).hexdigest()]
        print(json.dumps([world.rank, world.size, sums, told]))


@pytest.mark.parametrize("size", [2, 3])
def test_sums_and_broadcasts_are_the_same_bits_in_all_ranks(size):
    ranks = printed(run_ranks(size, add_and_tell))
    assert [rank[:2] for rank in ranks] == [[number, size] for number in range(size)]
    assert all(rank[2:] == ranks[0][2:] for rank in ranks)
    for dtype, got in zip((torch.float64, torch.float32), ranks[0][2], strict=True):
        terms = torch.stack([addend(rank, dtype) for rank in range(size)]).double()
        bound = size * torch.finfo(dtype).eps * terms.abs().sum(0)  # of adding `size` numbers in any order
        assert ((torch.tensor(got, dtype=torch.float64) - terms.sum(0)).abs() <= bound).all()
    assert ranks[0][3] == [{"from": 0}, None, hashlib.sha256(np.full(3_000_000, 1.5)).hexdigest()]


def share(folder) -> None:
    with joined("cpu") as world:

        def square(item: int) -> tuple[int, int]:
            return item**2, world.rank

        def last(item: int) -> int:
            """The first item is done only after all others are."""
            while item == 0 and len(os.listdir(folder)) < 6:
                time.sleep(0.01)
            (folder / str(item)).touch()
            return item

        got = [
            list(world.share_out(range(7), square)),
            list(world.share_out([], square)),
            list(world.share_out([5], square)),
            [(item, len(result)) for item, result in world.share_out([9, 10, 11], lambda item: b"x" * item * 10**6)],
            list(world.share_out(range(7), last)),
        ]
        print(json.dumps(got))


def test_shared_work_is_done_once_each_whatever_the_number_of_items(tmp_path):
    """Also results larger than the 8 MiB that the store takes, and a rank that is slower than all others together."""
    first, *others = printed(run_ranks(3, share, tmp_path))
    assert others == [[[], [], [], [], []]] * 2
    squares, none, single, large, last = first
    assert sorted(item for item, _ in squares) == list(range(7))
    assert all(result[0] == item**2 for item, result in squares)
    assert none == [] and [item for item, _ in single] == [5] and single[0][1][0] == 25
    assert sorted(large) == [[item, item * 10**6] for item in (9, 10, 11)]
    assert sorted(last) == [[item, item] for item in range(7)] and last[-1] == [0, 0]


def share_in_order(folder) -> None:
    with joined("cpu") as world:

        def last(item: int) -> int:
            """The first item is done only after all others are."""
            while item == 0 and len(os.listdir(folder)) < 6:
                time.sleep(0.01)
            (folder / str(item)).touch()
            return -item

        equal_items = list(world.share_out_in_order(["same", "same"], str.upper))
        print(json.dumps([list(world.share_out_in_order(range(7), last)), equal_items]))


def test_ordered_work_comes_in_the_order_of_the_items_whoever_does_it_and_when(tmp_path):
    first, second = printed(run_ranks(2, share_in_order, tmp_path))
    assert first == [[[item, -item] for item in range(7)], [["same", "SAME"]] * 2]
    assert second == [[], []]
    assert list(ALONE.share_out_in_order([3, 1], str)) == [(3, "3"), (1, "1")]


def test_a_process_of_its_own_joins_nothing(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    with joined("cuda") as world:
        assert world is ALONE and not torch.distributed.is_initialized()
    tensor = torch.ones(2)
    ALONE.sum_(tensor)
    assert tensor.tolist() == [1, 1] and ALONE.broadcast("x") == "x"
    assert list(ALONE.share_out([1, 2], str)) == [(1, "1"), (2, "2")]


@pytest.mark.parametrize(
    ("name", "gpus", "local", "expected"),
    [("auto", 0, 0, "cpu"), ("auto", 2, 1, "cuda:1"), ("cuda", 2, 0, "cuda:0"), ("cpu", 2, 1, "cpu")]
    + [
        ("auto", 1, 1, "1 usable CUDA devices for 2 "),
        ("cuda", 0, 0, "0 usable CUDA devices for 1 "),
        ("cuda:1", 2, 1, "several processes"),
    ],
)
def test_under_torchrun_each_process_gets_a_gpu_of_its_own(monkeypatch, name, gpus, local, expected):
    for variable, value in zip(NAMES, (str(local), "2", str(local), "localhost", "1"), strict=True):
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if expected.startswith("c"):
        assert local_device(name) == expected
    else:
        with pytest.raises(InputError, match=expected):
            local_device(name)


# How failures end all processes


def fail(how: str) -> None:
    distributed.GRACE = 1.0
    with exit_on_input_error(), joined("cpu") as world:
        last = world.rank == world.size - 1
        if how == "everywhere":
            raise InputError("there is no such file.")
        if how == "in the first":
            if world.rank == 0:
                raise InputError("the file is in use.")
            world.broadcast(None)
        if how == "in shared work":

            def work(item: int) -> int:
                if world.rank == 0:
                    return item
                raise InputError("an item is bad.")

            for _ in world.share_out(range(1000), work):
                time.sleep(0.01)
        if last and how == "by a bug":
            raise KeyError("a bug")
        if last and how == "while the first is busy":
            raise InputError("memory ran out.")
        if last and how == "by a kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "while the first is busy":
            time.sleep(4 if world.rank == 0 else 0)
        if how == "by Ctrl-C":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                os.kill(os.getpid(), signal.SIGINT)  # torchrun's, while the first process saves what is done
                if world.rank == 0:
                    raise InputError("stopped; all was saved.") from None
                raise
        if how == "after the first was done" and last:
            world.sum_(torch.ones(1))
            time.sleep(0.5)
            raise InputError("it failed late.")
        world.sum_(torch.ones(1))


@pytest.mark.parametrize(
    ("how", "sentence", "statuses"),
    [
        ("everywhere", "error: there is no such file.", [2, 2, 2]),
        ("in the first", "error: the file is in use.", [2, 2, 2]),
        ("in shared work", "error: an item is bad.", [2, 2, 2]),
        ("by Ctrl-C", "error: stopped; all was saved.", [2, 130, 130]),
        ("by a kill", "error: lost touch with another of the 3 processes", [2, 2, -signal.SIGKILL]),
    ],
)
def test_failure_is_one_sentence_from_the_first_process_and_ends_all(how, sentence, statuses):
    ranks = run_ranks(3, fail, how)
    assert [rank.status for rank in ranks] == statuses
    assert ranks[0].err.strip().startswith(sentence) and ranks[0].err.strip().count("\n") == 0
    assert [rank.err for rank in ranks[1:]] == ["", ""]


def test_bug_in_a_process_is_traced_there_and_said_by_the_first():
    first, second = run_ranks(2, fail, "by a bug")
    assert first.err.strip() == "error: process 1 failed: KeyError: 'a bug'"
    assert "Traceback" in second.err and "KeyError: 'a bug'" in second.err
    assert first.status == 2 and second.status == 1


@pytest.mark.parametrize(
    ("how", "sentence", "first"),
    [("while the first is busy", "error: memory ran out.", "error: memory ran out."),
     ("after the first was done", "error: it failed late.", "")],
)  # fmt: skip
def test_failed_process_speaks_for_itself_where_the_first_does_not(how, sentence, first):
    ranks = run_ranks(2, fail, how)
    assert ranks[1].status == 2 and ranks[1].err.strip() == sentence
    assert ranks[0].err.strip() == first  # torchrun would have ended a busy one before it noticed


def join_late(seconds: float) -> None:
    if os.environ["RANK"] == "0":
        time.sleep(seconds)
    with joined("cpu") as world:
        tensor = torch.ones(1)
        world.sum_(tensor)
        if seconds == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        print(json.dumps(tensor.item()))


def test_restarted_group_does_not_find_the_dead():
    """torchrun keeps its store over restarts, and with it the addresses of the killed processes.

    Which of two calls the other is chance; among four, the first is called by another one almost surely.
    """
    store = torchruns_store()
    assert [rank.status for rank in run_ranks(4, join_late, 0, store=store)] == [-signal.SIGKILL] * 4
    assert printed(run_ranks(4, join_late, 1, store=store, seconds=30)) == [4.0] * 4


# The command

SMALL = ["--limit", "24", "--batch-size", "10", "--largest", "2", "--tolerance", "0.05", "--trace-samples", "3"]
SMALL += ["--probes", "2", "--steps", "4", "--parameters", "layer4.1.*", "classifier.*", "--no-plot"]
ALL_PARTS = ["--parts", "extremes", "trace", "density", "max-spectrum", "blocks", "--batches", "3", "--minibatch", "8"]
ALL_PARTS += ["--top", "2", "--spectrum-tolerance", "0.1", "--block-samples", "2", "--block-tolerance", "0.3"]
ALL_PARTS += ["--bits", "4"]


@pytest.fixture
def torchrun():
    """Start a command in two ranks; those that a failed test leaves behind are ended."""
    started = []

    def start(*arguments: object, restarts: int = 0) -> subprocess.Popen:
        started.append(
            subprocess.Popen(
                [Path(sys.executable).with_name("torchrun"), "--nproc-per-node", "2", "--max-restarts", str(restarts)]
                + [str(argument) for argument in arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.terminate()  # torchrun then ends its ranks, by force after 30 s
        process.wait(60)


@pytest.fixture(scope="module")
def alone(tiny_checkpoint, tmp_path_factory) -> Path:
    """The run file of one process: three batches, the last one short."""
    from analyze import cli

    out = tmp_path_factory.mktemp("alone") / "tiny.h5"
    cli.main("hessian", ["--ckpt", str(tiny_checkpoint), "--out", str(out), *SMALL, *ALL_PARTS, "--quiet"])
    return out


def assert_equal_to_rounding(path: Path, oracle: Path) -> None:
    """All numbers of two run files agree to 1e-6 of the largest in their array.

    A product is summed in float64 and rounded to float32 (6e-8) once, so the order of the batches moves its entries by
    one rounding. A residual is a difference of vectors as long as the eigenvalue: it is compared on that scale. Single
    nodes of a quadrature are ill-conditioned where the spectrum is dense; its moments are not. The noise
    floor is rounding itself.
    """
    with h5py.File(oracle) as expected, h5py.File(path) as found:
        arrays = {}
        expected.visititems(lambda name, item: arrays.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        scale = np.abs(expected["hessian/extremes/largest"][()]).max()
        assert len(arrays) > 60
        for name, array in arrays.items():
            last = name.rsplit("/", 1)[1]
            if last in ("noise_floor", "engine", "node", "weight"):
                continue
            a, b = array[()], found[name][()]
            if array.dtype.kind != "f":
                assert np.array_equal(a, b), name
            else:
                size = scale if "residual" in last else np.nanmax(np.abs(a), initial=0.0)
                np.testing.assert_allclose(b, a, rtol=0, atol=1e-6 * size, err_msg=name)
        node, weight = (
            [file[f"hessian/density/{name}"][()] for file in (expected, found)] for name in ("node", "weight")
        )
        for power in range(5):
            a, b = ((w * x**power).sum(1) for w, x in zip(weight, node, strict=True))
            np.testing.assert_allclose(b, a, rtol=1e-6)


def test_two_ranks_write_the_run_file_of_one(torchrun, tiny_checkpoint, tmp_path, alone):
    out = tmp_path / "two.h5"
    process = torchrun("-m", "analyze.hessian", "--ckpt", tiny_checkpoint, "--out", out, *SMALL, *ALL_PARTS)
    printed, progress = process.communicate(timeout=120)
    assert process.returncode == 0, progress
    assert printed.count("run file") == 1 and printed.count("largest eigenvalue 1") == 1
    assert progress.count("loading ...") == 1
    assert sorted(os.listdir(tmp_path)) == ["two.h5"]  # no lock, nothing left over
    assert_equal_to_rounding(out, alone)


def test_more_ranks_than_batches_and_a_finished_run_file(tiny_checkpoint, tmp_path, command):
    """One batch on two ranks: the second has an empty shard."""
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    options = ["--ckpt", str(tiny_checkpoint), *SMALL, "--batch-size", "24", "--quiet"]
    assert command(*options, "--out", one).status == 0
    for words in ("time ", "already in the run file"):
        first, second = run_ranks(2, in_rank, *options, "--out", str(two))
        assert (first.status, first.err) == (0, "") and words in first.out
        assert (second.status, second.out, second.err) == (0, "", "")
        a, b = Result.read(one), Result.read(two)
        np.testing.assert_allclose(b.extremes.largest, a.extremes.largest, rtol=1e-6)
        np.testing.assert_allclose(b.trace.samples, a.trace.samples, rtol=1e-6)


@pytest.mark.parametrize("fault", ["other checkpoint", "in use", "no file", "option", "help"])
def test_what_the_first_process_refuses_all_refuse_and_it_alone_says_so(tiny_checkpoint, tmp_path, alone, fault):
    other, out = tmp_path / "other.safetensors", tmp_path / "A.h5"
    out.write_bytes(alone.read_bytes())
    save_checkpoint(other, get_model("resnet_dnn_18", 10, width=2), metadata("resnet_dnn_18", width=2))
    arguments = {
        "other checkpoint": ["--ckpt", str(other), "--out", str(out), "--quiet"],
        "in use": ["--ckpt", str(tiny_checkpoint), "--out", str(out), "--quiet"],
        "no file": ["--ckpt", str(tmp_path / "none.pt"), "--out", str(out), "--quiet"],
        "option": ["--ckpt", str(tiny_checkpoint), "--largest", "many"],
        "help": ["--help"],
    }[fault]
    lock = out.with_name(f".{out.name}.lock")
    with exclusive(lock, out) if fault == "in use" else nullcontext():
        first, second = run_ranks(2, in_rank, *arguments)
    status = 0 if fault == "help" else 2
    assert (first.status, second.status) == (status, status)
    assert (second.out, second.err) == ("", "")
    if fault in ("option", "help"):
        assert "--largest" in first.out + first.err
    else:
        assert first.out == "" and first.err.startswith("error: ") and first.err.count("\n") == 1
    assert out.read_bytes() == alone.read_bytes()


def test_interrupted_then_killed_run_goes_on_to_the_run_file_of_one(torchrun, tiny_checkpoint, tmp_path, alone):
    """Ctrl-C after the first sample of the trace; the same again, where rank 1 is killed and torchrun restarts both."""
    script, out = tmp_path / "command.py", tmp_path / "A.h5"
    script.write_text(SCRIPT)
    options = ["--ckpt", tiny_checkpoint, "--out", out, *SMALL, *ALL_PARTS, "--quiet"]

    process = torchrun(script, 0.1, 0, *options)
    deadline = time.monotonic() + 60
    while not (out.exists() and Result.read(out).trace):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    printed, err = process.communicate(timeout=60)
    assert process.returncode != 0 and printed == ""
    assert err.count("interrupted: ") + err.count("interrupted; ") == 1 and "the same command goes on" in err
    assert "KeyboardInterrupt" not in err and "lost touch" not in err
    with open_run(out) as run:
        assert not run.group_attributes("hessian")["complete"]

    process = torchrun(script, 0.0, 10, *options, restarts=1)  # 10 products: too few to come this far from the start
    printed, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    restarted = Result.read(out.with_suffix(".restarted"))  # the file as the killed group left it: whole
    assert restarted.extremes.products > 10 and len(restarted.trace.samples) == 3
    with open_run(out.with_suffix(".restarted")) as run:
        assert not run.group_attributes("hessian")["complete"]
    assert_equal_to_rounding(out, alone)
