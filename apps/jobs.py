"""Commands as processes of their own, that outlive the page, the browser and the app.

A job is a folder `ROOT/.jobs/ID`:

    job.json     what was started, for people to read: nothing in it is ever executed
    log.txt      what the command printed
    status.json  written by `apps.runner`, whole or not at all: when it began and ended, and how
    alive        locked by the kernel as long as the runner or its command lives
    cancel       there if it is to end
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from data_cache.errors import InputError
from data_cache.files import written_whole

try:
    import fcntl
except ImportError:  # Windows, where `start` says so
    fcntl = None  # type: ignore[assignment]

State = Literal["waiting", "running", "done", "failed", "cancelled", "lost"]
FOLDER, CANCEL, LOG, ABOUT, STATUS, ALIVE = ".jobs", "cancel", "log.txt", "job.json", "status.json", "alive"
TAIL = 64 * 1024
"""Bytes of a log that are read."""
_ID = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{4}")
_PROJECT = Path(__file__).resolve().parents[1]
_BAR = re.compile(
    r"(?P<part>.*?): *(?P<percent>\d+)%\|.*?\| *(?P<count>\S+/\S+) \[[\d:?]+<(?P<left>[\d:?]+)(?:, *(?P<rest>.*))?\]"
)
_COUNTER = re.compile(r"(?P<part>.*?): (?P<count>\d\S*?)(?:it)? \[(?P<elapsed>[\d:]+)(?:, *(?P<rest>.*))?\]")


@dataclass(frozen=True)
class Job:
    """A command that was started here."""

    folder: Path
    command: str
    """As it would be typed; for people."""
    analysis: str
    """Empty for all of them."""
    out: str
    """Name of its run file, in the root."""
    created: float
    """Seconds since 1970, as all times here."""
    state: State
    started: float | None = None
    ended: float | None = None
    exit: int | None = None

    @property
    def active(self) -> bool:
        """Whether it still has something to do."""
        return self.state in ("waiting", "running")


@dataclass(frozen=True)
class Progress:
    """How far a command is, by the last bar it drew."""

    part: str
    fraction: float | None
    """None where the end isn't known."""
    count: str
    """Such as 3/10."""
    left: str
    """Time to go, such as 01:30; empty if it isn't known."""
    note: str


def start(root: Path, command: Sequence[str], *, analysis: str, out: str) -> Job:
    """Start a command, after those that are already under way under this root.

    Args:
        root: Of the run files; jobs are kept in its folder `.jobs`.
        command: An argument list. No shell sees it.
        analysis: Its analysis, empty for all of them; for people.
        out: Name of its run file in the root; for people.

    Raises:
        InputError: The folder can't be written to, or an argument can't be one, or this is Windows.
    """
    if fcntl is None:
        raise InputError("On Windows runs can't be started from here: give the command in a terminal.")
    if any("\0" in word for word in command):
        raise InputError("a command can't hold the character 0.")
    home = root.resolve() / FOLDER
    if home.is_symlink():
        raise InputError(f"{home} is a link: jobs are kept in a folder only.")
    name = f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(2)}"
    about = {"command": shlex.join(command), "analysis": analysis, "out": out, "created": time.time()}
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft, folder = home / f".{name}", home / name
        draft.mkdir(mode=0o700)
        (draft / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        lock = os.open(draft / ALIVE, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with open(draft / LOG, "xb") as log:
                os.rename(draft, folder)  # from here on others see it, alive
                subprocess.Popen(
                    [sys.executable, "-m", "apps.runner", str(folder), str(lock), *command],
                    cwd=_PROJECT, env=_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, pass_fds=(lock,),
                )  # fmt: skip
        finally:
            os.close(lock)
    except OSError as error:
        raise InputError(f"no job can be started in {home}: {error.strerror or error}.") from None
    return _job(folder)


def _environment() -> dict[str, str]:
    """Ours, and such that what is printed can be watched: a bar moves every second."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "TQDM_MININTERVAL": "1"}


def jobs(root: Path, most: int = 30) -> list[Job]:
    """The latest jobs under the root and all that have not ended, the last one first."""
    folders = job_folders(root.resolve() / FOLDER)
    active = [folder for folder in folders[:-most] if is_alive(folder)]
    return [_job(folder) for folder in reversed([*active, *folders[-most:]])]


def job_folders(home: Path) -> list[Path]:
    """The folders of jobs, the earliest first."""
    if home.is_symlink():
        return []
    try:
        with os.scandir(home) as entries:
            found = [
                entry.name for entry in entries if _ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []
    return [home / name for name in sorted(found)]


def is_alive(folder: Path) -> bool:
    """Whether the runner of a job, or its command, still lives."""
    if fcntl is None:
        return False
    try:
        lock = os.open(folder / ALIVE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(lock)


def _job(folder: Path) -> Job:
    alive = is_alive(folder)  # first: whoever is gone has written all it had to say
    about, status = _read(folder / ABOUT), _read(folder / STATUS)
    started, ended = _number(status, "started"), _number(status, "ended")
    code = int(_number(status, "exit") or 0)
    state: State = "lost"
    if ended is not None:
        state = "cancelled" if status.get("cancelled") and code != 0 else "failed" if code else "done"
        if status.get("cancelled") and started is None:
            state = "cancelled"
    elif alive:
        state = "waiting" if started is None else "running"
    command, analysis, out = (
        str(about.get(key, "")).encode("utf-8", "backslashreplace").decode() for key in ("command", "analysis", "out")
    )
    return Job(folder, command, analysis, out, _number(about, "created") or 0.0, state, started, ended, code)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none."""
    try:
        found = json.loads(_tail(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _tail(path: Path, most: int = TAIL) -> bytes:
    """The last bytes of a file that is one, not a link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most))
        return file.read(most)


def _number(about: dict[str, Any], key: str) -> float | None:
    value = about.get(key)
    return float(value) if isinstance(value, int | float) and -1e3 < value < 1e11 else None  # until the year 5138


def write_status(folder: Path, **status: Any) -> None:
    """Say how a job stands; the file appears whole or not at all."""
    with written_whole(folder / STATUS) as temporary:
        temporary.write_text(json.dumps(status), encoding="utf-8")


def cancel(job: Job) -> None:
    """Ask a job to end; its runner sees to that within a second, and gives it time to keep what is done."""
    with suppress(OSError):
        os.close(os.open(job.folder / CANCEL, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))


def is_cancelled(job: Job) -> bool:
    """Whether it was asked to end."""
    return (job.folder / CANCEL).exists()


def remove(job: Job) -> None:
    """Forget a job that has ended; its run file stays.

    Raises:
        InputError: It has not ended.
    """
    if is_alive(job.folder):
        raise InputError("The job is still under way: cancel it first.")
    if _ID.fullmatch(job.folder.name) and job.folder.parent.name == FOLDER and not job.folder.is_symlink():
        shutil.rmtree(job.folder, ignore_errors=True)


def log(job: Job) -> str:
    """The end of what the command printed, of each progress bar as it last was."""
    try:
        text = _tail(job.folder / LOG).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def progress(job: Job) -> Progress | None:
    """How far it is; None before its first bar."""
    for line in reversed(log(job).splitlines()):
        if found := _BAR.fullmatch(line) or _COUNTER.fullmatch(line):
            groups = found.groupdict()
            fraction = min(1.0, int(groups["percent"]) / 100) if "percent" in groups else None
            left = groups.get("left") or ""
            note = (groups["rest"] or "").partition(", ")[2]
            return Progress(groups["part"], fraction, groups["count"], "" if "?" in left else left, note)
    return None


def outcome(job: Job) -> str:
    """What became of a job that has ended, in a sentence."""
    last = log(job).rpartition("\n")[2].removeprefix("error: ")
    signal = max(0, -(job.exit or 0))
    if job.state == "lost":
        return "It ended without saying why; the same command goes on from what it kept."
    if job.state == "cancelled":
        early = "Cancelled before it began to compute." if not signal else "It did not end in time, and was ended."
        return last[:1].upper() + last[1:] if last.startswith("interrupted") else early
    if signal:
        return f"It was ended by signal {signal}{', perhaps for want of memory' if signal == 9 else ''}."
    return last
