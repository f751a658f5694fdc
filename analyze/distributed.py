"""The processes that torchrun started for one command: sums over them, and a shared queue of work.

    torchrun --nproc-per-node 2 -m analyze.hessian --ckpt ...

or from Python, in a script that torchrun runs:

    with joined("auto") as world:
        result = hessian.compute(Subject.load("A.safetensors", device=local_device("auto")), world=world)

All processes run the same code. Process 0 alone reads and writes files, and prints. Importing this loads no torch.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from data_cache.errors import InputError, first_line

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store

T = TypeVar("T")
R = TypeVar("R")

MEETING = timedelta(minutes=10)
"""How long the processes of a group wait for each other at the start."""
SILENCE = timedelta(days=7)
"""How long a collective waits: between two there may be hours of work, and torchrun ends us when a process dies."""
GRACE = 10.0
"""Seconds that a failed process gives process 0 to say why, before it says so itself."""
PIECE = 4 * 2**20
"""Bytes that go into the store at a time; it refuses 8 MiB."""


class World:
    """The processes that work on one command, here a single one.

    Every process must call the same methods in the same order.
    """

    rank: int = 0
    """Number of this process; 0 reads, writes and prints."""
    size: int = 1
    """How many processes there are."""

    def sum_(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over all processes, the same bits in each of them.

        Raises:
            InputError: Another process has failed.
        """

    def broadcast(self, value: T) -> T:
        """Process 0's value, which can be pickled, to all; what the others give is ignored.

        Raises:
            InputError: Another process has failed.
        """
        return value

    def everywhere(self, what: str) -> bool:
        """Whether all processes come here, within `GRACE` seconds, because of the same `what`.

        Where they all met the same error, at the same point, they can go on with something else.
        """
        return True

    def share_out(self, items: Sequence[T], work: Callable[[T], R]) -> Iterator[tuple[T, R]]:
        """Spread independent pieces of work: whoever is free takes the next item; a slow process holds nobody up.

        Process 0 yields (item, work(item)) as they get done, in any order, those of the others between its own.
        The others work until no item is left and yield nothing; they too must run the iterator to its end.

        Args:
            items: The same in all processes.
            work: Must not call methods of this world. Results travel pickled.

        Raises:
            InputError: In process 0, with the sentence of the work that failed elsewhere.
        """
        for item in items:
            yield item, work(item)

    def share_out_in_order(self, items: Sequence[T], work: Callable[[T], R]) -> Iterator[tuple[T, R]]:
        """As `share_out`, but process 0 yields in the order of `items`; what is done early waits in its memory.

        So what is added up from the results has the same bits whoever did which item, and when.
        """
        early: dict[int, R] = {}
        following = 0
        for (number, _), result in self.share_out(list(enumerate(items)), lambda numbered: work(numbered[1])):
            early[number] = result
            while following in early:
                yield items[following], early.pop(following)
                following += 1


ALONE = World()
"""A process on its own."""


def is_first() -> bool:
    """Whether this is process 0, or the only one: the one that speaks."""
    return not _launched() or os.environ["RANK"] == "0"


@contextmanager
def first_speaks() -> Iterator[None]:
    """For what all processes print and exit alike, such as a usage error: process 0 does, the others in silence."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        try:
            yield
        except SystemExit as end:
            if end.code:  # torchrun ends all at the first failure: let that be process 0's
                time.sleep(GRACE)
            raise


def local_device(name: str) -> str:
    """What `auto` and `cuda` mean to this process: under torchrun, the GPU of its own on this host.

    Raises:
        InputError: This host has fewer GPUs than processes, or all are to share one.
    """
    if not _launched() or name == "cpu":
        return name
    import torch

    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if name not in ("auto", "cuda"):
        if int(os.environ["WORLD_SIZE"]) > 1:
            raise InputError(f"--device {name} is one device for several processes; give auto, cuda or cpu.")
        return name
    here = int(os.environ.get("LOCAL_WORLD_SIZE", int(os.environ["LOCAL_RANK"]) + 1))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if here > count:
        raise InputError(
            f"--device {name}: this host has {count} usable CUDA devices for {here} processes; lower "
            "--nproc-per-node, or give --device cpu."
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """The group of processes that torchrun started, or `ALONE`; it is left on the way out, also after errors.

    Gloo sums on the CPU, NCCL on CUDA. A process that fails tells process 0, which raises its sentence; the
    others then end quietly with the same exit status. If process 0 is too busy to notice, the one that failed speaks
    for itself, and torchrun ends the rest. Interrupts (SIGINT, and torchrun's SIGTERM) count once:
    process 0 raises KeyboardInterrupt, the others exit.

    Args:
        device: As `local_device` takes it.

    Raises:
        InputError: The processes don't find each other, or one of them failed.
    """
    if not _launched():
        yield ALONE
        return
    with _interrupted_once():
        try:
            if os.environ["WORLD_SIZE"] == "1":
                yield ALONE
            else:
                with _grouped(device) as group:
                    yield group
        except KeyboardInterrupt:
            if is_first():
                raise
            raise SystemExit(130) from None


@contextmanager
def _grouped(device: str) -> Iterator[_Group]:
    try:
        group = _join(local_device(device))
    except InputError:
        if not is_first():  # process 0 most likely says the same, and torchrun then ends us
            time.sleep(GRACE)
        raise
    try:
        yield group
    except BaseException as error:
        group.leave_after(error)
        raise
    else:
        group.leave(0)


class _Group(World):
    """Several processes, their torch.distributed group, and a store that is theirs alone."""

    def __init__(self, rank: int, size: int, store: Store):
        self.rank, self.size, self._store = rank, size, store
        self._shares = 0

    def sum_(self, tensor: Tensor) -> None:
        import torch.distributed as dist

        self._together(dist.all_reduce, tensor)

    def broadcast(self, value: T) -> T:
        import torch
        import torch.distributed as dist

        content = bytearray(pickle.dumps(value) if self.rank == 0 else b"")
        length = torch.tensor([len(content)])
        self._together(dist.broadcast, length, 0)
        content = content or bytearray(int(length))
        self._together(dist.broadcast, torch.frombuffer(content, dtype=torch.uint8), 0)
        return pickle.loads(content) if self.rank else value

    def everywhere(self, what: str) -> bool:
        deadline = time.monotonic() + GRACE
        key = f"everywhere/{what}"
        here = self._store.add(key, 1)
        while here < self.size and time.monotonic() < deadline:
            if self._wait("ended" if self.rank else "failed", 0):
                return False
            time.sleep(0.02)
            here = self._store.add(key, 0)
        return here >= self.size and not self._wait("failed", 0)

    def share_out(self, items: Sequence[T], work: Callable[[T], R]) -> Iterator[tuple[T, R]]:
        self._shares += 1
        queue = f"share/{self._shares}"
        claimed = taken = 0
        while (index := self._store.add(f"{queue}/claimed", 1) - 1) < len(items):
            result = work(items[index])
            if self.rank:
                self._put(f"{queue}/{self._store.add(f'{queue}/done', 1)}", (index, result))
                self._raise_if_over()
                continue
            claimed += 1
            yield items[index], result
            self._raise_if_over()
            while self._store.check([f"{queue}/{taken + 1}"]):
                taken += 1
                index, result = self._take(f"{queue}/{taken}")
                yield items[index], result
        while self.rank == 0 and claimed + taken < len(items):
            taken += 1
            index, result = self._take(f"{queue}/{taken}")
            yield items[index], result

    def leave_after(self, error: BaseException) -> None:
        """Leave the group because of an error; exits instead of returning where process 0 has said why."""
        status = 2 if isinstance(error, InputError) else 130 if isinstance(error, KeyboardInterrupt) else 1
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if self.rank and isinstance(error, Exception):
            known = isinstance(error, (InputError, FloatingPointError))
            sentence = str(error) if known else f"process {self.rank} failed: {type(error).__name__}: {error}"
            with contextlib.suppress(RuntimeError):
                self._store.set("failed", sentence)
            self.leave(status)  # wakes process 0 if it waits for us in a sum
            if isinstance(error, InputError) and (self._wait("ended", GRACE) or b"0") != b"0":
                raise SystemExit(status) from None
        self.leave(status)

    def leave(self, status: int) -> None:
        """Leave the group; the others read the exit status of process 0."""
        import torch.distributed as dist

        if self.rank == 0:
            with contextlib.suppress(RuntimeError):
                self._store.set("ended", str(status))
        if dist.is_initialized():
            dist.destroy_process_group()

    def _together(self, collective: Callable[..., object], *arguments: object) -> None:
        """Call a collective; where it breaks because another process has left, raise what that one said."""
        try:
            collective(*arguments)
            return
        except RuntimeError as error:
            broken = first_line(error)
        # only now: the traceback of the error would keep the connections open, and others waiting for us
        self._wait("ended" if self.rank else "failed", 2.0)
        self._raise_if_over()
        raise InputError(f"lost touch with another of the {self.size} processes: {broken}.")

    def _raise_if_over(self) -> None:
        """End this process if another one has ended the work."""
        if self.rank and (status := self._wait("ended", 0)):
            raise SystemExit(int(status) or 1)
        if self.rank == 0 and (sentence := self._wait("failed", 0)):
            raise InputError(sentence.decode())

    def _wait(self, key: str, seconds: float) -> bytes | None:
        """The store's value, None if it has none within this time."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(RuntimeError):  # the store has gone, with the process that ran it
            while not self._store.check([key]):
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.02)
            return self._store.get(key)
        return None

    def _put(self, key: str, value: object) -> None:
        content = pickle.dumps(value)
        pieces = range(0, len(content), PIECE)
        for number, start in enumerate(pieces):
            self._store.set(f"{key}/{number}", content[start : start + PIECE])  # type: ignore[arg-type]
        self._store.set(key, str(len(pieces)))

    def _take(self, key: str) -> Any:
        """What is put there, once it is."""
        while not (pieces := self._wait(key, 1.0)):
            self._raise_if_over()
        content = bytearray()
        for number in range(int(pieces)):
            content += self._store.get(f"{key}/{number}")
            self._store.delete_key(f"{key}/{number}")
        return pickle.loads(content)


def _launched() -> bool:
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def _join(device: str) -> _Group:
    import torch
    import torch.distributed as dist

    cuda = device.startswith("cuda")
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=MEETING))
        store = _meet(store, rank, size)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=SILENCE,
            device_id=torch.device(device) if cuda else None,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes did not find each other: {first_line(error)}.") from error
    return _Group(rank, size, store)


def _meet(store: Store, rank: int, size: int) -> Store:
    """A part of the store that is new and the same to all processes.

    torchrun's store outlives a restart of the group, with the addresses of the dead in it; and no number that
    torchrun gives is new at each restart and the same on all hosts. So each process leaves a name that nobody
    used before, and process 0 answers to it until all have taken up the answer.
    """
    from torch.distributed import PrefixStore

    name = uuid.uuid4().hex
    if rank:
        store.set(f"landscope/arrived/{rank}", name)
        session = store.get(f"landscope/answer/{name}").decode()
        store.set(f"landscope/{session}/met/{rank}", "")
        return PrefixStore(f"landscope/{session}", store)
    missing, deadline = set(range(1, size)), time.monotonic() + MEETING.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"landscope/{name}/met/{other}"]):
                missing.remove(other)
            elif store.check([f"landscope/arrived/{other}"]):
                store.set("landscope/answer/" + store.get(f"landscope/arrived/{other}").decode(), name)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {sorted(missing)} of {size} did not come")
        time.sleep(0.02)
    return PrefixStore(f"landscope/{name}", store)


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt, once: they may come from the terminal and torchrun both."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped = False

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal stopped
        stopped = True
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        if not stopped:  # else the process ends now, and further signals would only disturb that
            for number, handler in before.items():
                signal.signal(number, handler)
