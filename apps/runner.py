"""Runs one command to its end, whatever becomes of the app that asked for it: `apps.jobs` starts it.

    python -m apps.runner FOLDER LOCK COMMAND...

FOLDER is the job's; LOCK the number of an open file that the kernel keeps locked as long as this process or the
command lives; COMMAND an argument list. That list comes from whoever starts this process and is never read from a file.
Jobs of a folder run one at a time, in the order of their names. A file `cancel` in FOLDER asks for an end: the command
gets what Ctrl-C sends, and some seconds to keep what is done.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from apps.jobs import CANCEL, is_alive, job_folders, write_status

GRACE = 20.0
"""Seconds from asking a command to end to ending it."""
PERIOD = 0.2
"""Seconds between two looks at the command and at whether it is to end."""


def run(folder: Path, lock: int, command: Sequence[str]) -> int:
    """Wait for earlier jobs, run the command, and write how it ended; its exit status."""
    while any(is_alive(earlier) for earlier in job_folders(folder.parent) if earlier.name < folder.name):
        if (folder / CANCEL).exists():
            write_status(folder, cancelled=True, ended=time.time())
            return 130
        time.sleep(PERIOD)
    started = time.time()
    write_status(folder, started=started)
    try:
        # a session of its own: the interrupt reaches what the command itself started, and not us
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=(lock,))
    except OSError as error:
        print(f"error: the command can't be started: {error.strerror or error}.", file=sys.stderr, flush=True)
        write_status(folder, started=started, ended=time.time(), exit=127)
        return 127
    cancelled = _watch(process, folder / CANCEL)
    write_status(folder, started=started, ended=time.time(), exit=process.returncode, cancelled=cancelled)
    return process.returncode


def _watch(process: subprocess.Popen, cancel: Path) -> bool:
    """Wait for the command's end; whether it was asked to end before."""
    deadline = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(PERIOD)
            return deadline is not None
        if deadline is None and cancel.exists():
            deadline = time.monotonic() + GRACE
            _signal(process, signal.SIGINT)
        elif deadline is not None and time.monotonic() > deadline:
            _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def main() -> None:
    """Run the job that the arguments name."""
    # started in the background of a script we ignore Ctrl-C, and so would the command
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, lock, *command = sys.argv[1:]
    run(Path(folder), int(lock), command)


if __name__ == "__main__":
    main()
