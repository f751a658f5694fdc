"""Several ranks on this machine, as torchrun would start them; the fork server makes them start at once."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed import TCPStore

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "h5py", "analyze.cli", "analyze.hessian.compute"])


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit status, negative for a signal, and what it printed."""

    status: int | None
    out: str
    err: str


def torchruns_store() -> TCPStore:
    """The store that torchrun runs for its ranks."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def run_ranks(
    size: int, function: Callable[..., None], *arguments: object, store: TCPStore | None = None, seconds: float = 60
) -> list[Ended]:
    """Run an importable function in several ranks, and wait for all of them; those that hang are killed."""
    store = store or torchruns_store()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            _SERVER.Process(target=_rank, args=(rank, size, store.port, folder, function, arguments))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + seconds
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        return [
            Ended(process.exitcode, *(Path(folder, f"{rank}.{stream}").read_text() for stream in ("out", "err")))
            for rank, process in enumerate(processes)
        ]


def _rank(rank: int, size: int, port: int, folder: str, function: Callable[..., None], arguments: tuple) -> None:
    for descriptor, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder, f"{rank}.{stream}"), os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.set_num_threads(1)
    function(*arguments)


def command(*arguments: str) -> None:
    """`python -m analyze.hessian`, with less patience for a first process that torchrun would end."""
    from analyze import cli, distributed

    distributed.GRACE = 0.5
    cli.main("hessian", arguments)


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from analyze import cli
from analyze.hessian.operator import HessianOperator

pause, fatal, *arguments = sys.argv[1:]
out = Path(arguments[arguments.index("--out") + 1])
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
if os.environ["RANK"] == "0" and attempt > 0:
    out.with_suffix(".restarted").write_bytes(out.read_bytes())
cli.SAVE_SECONDS = 0
products, product = 0, HessianOperator.matmat

def slowly(self, vectors):
    global products
    products += len(vectors)
    if os.environ["RANK"] == "1" and attempt == 0 and products > int(fatal) > 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(pause))
    return product(self, vectors)

HessianOperator.matmat = slowly
cli.main("hessian", arguments)
"""
"""The command, saved after each step: a pause in each product, and a rank 1 that is killed after so many of them."""
