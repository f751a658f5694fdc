"""A lock on a file that the kernel releases however the process ends."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_cache.errors import InputError

_descriptors: set[int] = set()


def _forget_locks() -> None:
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):  # a forked worker that outlives a killed writer must not keep its lock
    os.register_at_fork(after_in_child=_forget_locks)


@contextmanager
def exclusive(lock: Path, path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `lock`, which the kernel releases however the process ends.

    The file is removed at the end. A process that opened it before, and locks it after, holds a lock on a
    file that is gone: it sees that and tries again.
    """
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _try_lock(descriptor)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                    break
        except BlockingIOError:
            holder = "".join(filter(str.isprintable, os.read(descriptor, 200).decode("utf-8", "replace")))
            os.close(descriptor)
            raise InputError(
                f"{path} is being written by another process ({holder or 'just started'}); "
                "wait for it, or give another --out"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    _descriptors.add(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        if descriptor in _descriptors:
            _descriptors.discard(descriptor)
            if os.name == "posix":
                lock.unlink(missing_ok=True)
            os.close(descriptor)
            if os.name != "posix":  # Windows doesn't unlink open files, nor files that the next writer has open
                with suppress(OSError):
                    lock.unlink()


def _try_lock(descriptor: int) -> None:
    """Lock, or raise BlockingIOError."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # Windows' locks also stop readers, who want the pid
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            warnings.warn(f"this file system has no locks ({error}): run one writer at a time", stacklevel=2)
