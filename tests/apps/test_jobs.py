"""Jobs: they outlive who started them, run one at a time, can be cancelled, and are believed no more than needed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from commands import metadata

from apps import jobs, runner
from data_cache import InputError

CHECKOUT = Path(__file__).resolve().parents[2]
PYTHON = [sys.executable, "-c"]


@pytest.fixture(autouse=True)
def nothing_goes_on(tmp_path):
    """A test that fails leaves no job behind."""
    yield
    for job in jobs.jobs(tmp_path):
        jobs.cancel(job)


def start(root, code, *words):
    return jobs.start(root, [*PYTHON, code, *words], analysis="variance", out="a.h5")


def state(job):
    return next(each for each in jobs.jobs(job.folder.parents[1], most=100) if each.folder == job.folder)


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)
    return found


def ended(job):
    wait_until(lambda: not state(job).active)
    return state(job)


def waits_for(path):
    return f"import os, time\nwhile not os.path.exists({str(path)!r}): time.sleep(0.05)"


def test_a_job_says_what_it_printed_and_that_it_is_done(tmp_path):
    before = time.time()
    job = start(tmp_path, "import sys; print('to the log'); print('this too', file=sys.stderr)")
    assert job.active
    assert before <= job.created <= time.time()
    done = ended(job)
    assert (done.state, done.exit, done.analysis, done.out) == ("done", 0, "variance", "a.h5")
    assert done.created <= done.started <= done.ended
    assert sorted(jobs.log(done).splitlines()) == ["this too", "to the log"]
    assert done.command.startswith(sys.executable)
    assert done.folder.stat().st_mode & 0o077 == 0


def test_words_reach_the_command_as_they_are(tmp_path):
    words = ["; rm -rf x", "$(touch y)", "`touch y`", "a\nb", "--out=/etc/x", "", "*", "ü"]
    job = start(tmp_path, "import json, sys; print(json.dumps(sys.argv[1:]))", *words)
    assert json.loads(jobs.log(ended(job))) == words


def test_a_command_that_fails_says_why(tmp_path):
    job = ended(start(tmp_path, "import sys; print('loading ...'); print('error: no such thing.'); sys.exit(2)"))
    assert (job.state, job.exit, jobs.outcome(job)) == ("failed", 2, "no such thing.")
    job = ended(start(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert (job.state, jobs.outcome(job)) == ("failed", "It was ended by signal 9, perhaps for want of memory.")
    job = ended(jobs.start(tmp_path, ["/no/such/program"], analysis="", out="a.h5"))
    assert (job.state, job.exit) == ("failed", 127)
    assert jobs.outcome(job) == "the command can't be started: No such file or directory."


def test_jobs_run_one_at_a_time_in_order(tmp_path):
    go, said = tmp_path / "go", tmp_path / "said"
    first = start(tmp_path, waits_for(go))
    wait_until(lambda: state(first).state == "running")
    others = [start(tmp_path, f"open({str(said)!r}, 'a').write({word!r})") for word in "abc"]
    time.sleep(1)
    assert [state(job).state for job in [first, *others]] == ["running", "waiting", "waiting", "waiting"]
    jobs.cancel(others[1])
    assert ended(others[1]).state == "cancelled"
    go.touch()
    assert [ended(job).state for job in [first, *others]] == ["done", "done", "cancelled", "done"]
    assert said.read_text() == "ac"
    assert [job.folder for job in jobs.jobs(tmp_path)] == [job.folder for job in [*others[::-1], first]]
    assert [job.folder for job in jobs.jobs(tmp_path, most=2)] == [others[2].folder, others[1].folder]


INTERRUPTED = """
import time
print("begun")
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted; what is done is in a.h5: the same command goes on.")
    raise SystemExit(130)
"""

STARTER = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for what a script starts in the background
from apps import jobs
jobs.start(Path(sys.argv[1]), [sys.executable, "-c", sys.argv[2]], analysis="variance", out="a.h5")
"""


def test_a_job_outlives_the_app_and_the_next_app_cancels_it(tmp_path):
    subprocess.run([*PYTHON, STARTER, str(tmp_path), INTERRUPTED], check=True, cwd=CHECKOUT)
    (job,) = jobs.jobs(tmp_path)
    wait_until(lambda: "begun" in jobs.log(job))
    assert state(job).state == "running"
    assert not jobs.is_cancelled(job)
    jobs.cancel(job)
    assert jobs.is_cancelled(job)
    job = ended(job)
    assert (job.state, job.exit) == ("cancelled", 130)
    assert jobs.outcome(job) == "Interrupted; what is done is in a.h5: the same command goes on."


def test_a_command_that_does_not_end_when_asked_is_ended_with_all_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 0.5)
    folder, ready = tmp_path / ".jobs" / "20260101-000000-000000-abcd", tmp_path / "ready"
    folder.mkdir(parents=True)
    script = f'trap "" INT; sleep 60 & echo $! > {ready}; touch {folder / jobs.CANCEL}; while true; do sleep 0.1; done'
    lock = os.open(folder / jobs.ALIVE, os.O_RDWR | os.O_CREAT)
    try:
        assert runner.run(folder, lock, ["sh", "-c", script]) == -signal.SIGKILL
    finally:
        os.close(lock)
    (job,) = jobs.jobs(tmp_path)
    assert (job.state, jobs.outcome(job)) == ("cancelled", "It did not end in time, and was ended.")
    child = int(ready.read_text())
    wait_until(lambda: not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text())


def test_a_job_whose_runner_was_killed_is_lost_when_its_command_is_gone_too(tmp_path):
    go = tmp_path / "go"
    job = start(tmp_path, f"import os; print(os.getppid(), flush=True)\n{waits_for(go)}")
    wait_until(lambda: jobs.log(job))
    os.kill(int(jobs.log(job)), signal.SIGKILL)
    time.sleep(0.5)
    assert state(job).state == "running"
    with pytest.raises(InputError, match="cancel it first"):
        jobs.remove(job)
    go.touch()
    lost = ended(job)
    assert (lost.state, lost.exit) == ("lost", 0)
    assert jobs.outcome(lost) == "It ended without saying why; the same command goes on from what it kept."
    after = start(tmp_path, "print('next')")
    assert ended(after).state == "done"


def test_removing_a_job_leaves_all_else(tmp_path):
    (tmp_path / "a.h5").touch()
    first, second = ended(start(tmp_path, "")), ended(start(tmp_path, ""))
    (first.folder / "link").symlink_to(tmp_path)
    jobs.remove(first)
    assert [job.folder for job in jobs.jobs(tmp_path)] == [second.folder]
    jobs.remove(replace(second, folder=tmp_path))
    assert (tmp_path / "a.h5").exists()


def test_what_a_file_says_is_never_run(tmp_path):
    go, bad = tmp_path / "go", tmp_path / "bad"
    first, second = start(tmp_path, waits_for(go)), start(tmp_path, "print('as started')")
    about = json.loads((second.folder / jobs.ABOUT).read_text())
    (second.folder / jobs.ABOUT).write_text(json.dumps({**about, "command": f"touch {bad}", "pid": 1}))
    go.touch()
    assert ended(first).state == "done"
    assert jobs.log(ended(second)) == "as started"
    assert state(second).command == f"touch {bad}"
    assert not bad.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 10**5, '{"ended": "x"}', '{"exit": 1e400}', '{"ended": NaN}', "\xff", "9" * 5000]
)
def test_files_that_are_not_ours_harm_nothing(tmp_path, content):
    folder = tmp_path / ".jobs" / "20260101-000000-000000-abcd"
    folder.mkdir(parents=True)
    for name in (jobs.ABOUT, jobs.STATUS, jobs.LOG, jobs.ALIVE):
        (folder / name).write_text(content, encoding="latin-1")
    (job,) = jobs.jobs(tmp_path)
    assert job.state == "lost"
    assert isinstance(job.command, str)
    assert jobs.progress(job) is None
    assert jobs.outcome(job)


def test_links_are_not_followed(tmp_path):
    secret, target = tmp_path / "secret", tmp_path / "target"
    secret.write_text("secret")
    folder = tmp_path / ".jobs" / "20260101-000000-000000-abcd"
    folder.mkdir(parents=True)
    (folder / jobs.LOG).symlink_to(secret)
    (folder / jobs.CANCEL).symlink_to(target)
    (folder.parent / "20260101-000000-000000-abce").symlink_to(tmp_path)
    (folder.parent / "20260101-000000-000000-x").mkdir()
    (job,) = jobs.jobs(tmp_path)
    assert jobs.log(job) == ""
    jobs.cancel(job)
    assert not target.exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / ".jobs").symlink_to(folder.parent)
    assert jobs.jobs(other) == []
    with pytest.raises(InputError, match="is a link"):
        start(other, "")


def test_where_nothing_can_be_written_a_sentence_says_so(tmp_path):
    (tmp_path / ".jobs").write_text("a file")
    with pytest.raises(InputError, match=r"^no job can be started in .*\.jobs: File exists\.$"):
        start(tmp_path, "")
    with pytest.raises(InputError, match="character 0"):
        start(tmp_path, "\0")


BARS = [
    ("variance:  40%|####      | 32/80 [00:04<00:06,  8.00/s]", ("variance", 0.4, "32/80", "00:06", "")),
    (
        "hessian 3/5: trace: 100%|██████████| 3/3 [00:01<00:00,  2.1/s, 5 ± 1]",
        ("hessian 3/5: trace", 1, "3/3", "00:00", "5 ± 1"),
    ),
    (
        "surface:   0%|          | 0/81 [00:00<?, ?/s, nll 0.3, accuracy 0.9]",
        ("surface", 0, "0/81", "", "nll 0.3, accuracy 0.9"),
    ),
    ("extremes: 12 [00:03,  4.00/s, residual 1e-3]", ("extremes", None, "12", "", "residual 1e-3")),
]


@pytest.mark.parametrize(("line", "expected"), BARS)
def test_the_last_bar_says_how_far_it_is(tmp_path, line, expected):
    folder = tmp_path / ".jobs" / "20260101-000000-000000-abcd"
    folder.mkdir(parents=True)
    (job,) = jobs.jobs(tmp_path)
    assert jobs.progress(job) is None
    (folder / jobs.LOG).write_text(
        f"loading ...\nbefore: 100%|##| 5/5 [00:01<00:00]\n\rx: 1%|  | 1/9\r{line}\r", "utf-8"
    )
    far = jobs.progress(job)
    assert (far.part, far.fraction, far.count, far.left, far.note) == expected
    assert jobs.log(job).endswith(line)


def test_bars_of_the_commands_are_understood_and_move(tmp_path):
    code = """
import time
from analyze.cli import Bars
with Bars(quiet=False, title="hessian 2/3") as bars:
    for done in range(40):
        bars.report("trace", done, 40, f"so far {done}")
        time.sleep(0.1)
"""
    job = start(tmp_path, code)
    seen = set()
    while state(job).active:
        if far := jobs.progress(job):
            seen.add(far.fraction)
            assert far.part == "hessian 2/3: trace"
            assert re.fullmatch(r"\d+/40", far.count)
            assert far.note == "" or far.note.startswith("so far")
        time.sleep(0.1)
    assert len(seen) >= 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint of a narrow network, not trained."""
    import torch

    from models import get_model, save_checkpoint

    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_checkpoint(path, get_model("resnet_mcdo_18", 10, width=2), metadata("resnet_mcdo_18", width=2))
    return path


def test_a_cancelled_analysis_keeps_what_is_done_and_the_same_command_goes_on(tiny, tmp_path):
    out = tmp_path / "a.h5"
    line = ["--ckpt", str(tiny), "--out", str(out), "--no-plot", "--batch-size", "8", "--limit", "128"]
    command = [sys.executable, "-m", "analyze.robustness", "--parts", "frequency-noise", *line]
    job = jobs.start(tmp_path, command, analysis="robustness", out=out.name)
    wait_until(lambda: out.exists() and (far := jobs.progress(job)) is not None and far.fraction, 60)
    jobs.cancel(job)
    job = ended(job)
    assert (job.state, job.exit) == ("cancelled", 130)
    assert jobs.outcome(job) == f"Interrupted; what is done is in {out}: the same command goes on."
    assert out.stat().st_size > 0


def test_an_analysis_that_refuses_says_its_sentence(tiny, tmp_path):
    command = [sys.executable, "-m", "analyze.variance", "--ckpt", str(tiny), "--limit", "-1"]
    job = ended(jobs.start(tmp_path, command, analysis="variance", out="a.h5"))
    assert (job.state, job.exit) == ("failed", 2)
    assert jobs.outcome(job) == "limit must be at least 1 image, not -1."


ALL_OF_IT = """
import sys
from pathlib import Path
from analyze import suite
from apps import forms, inputs, jobs, runner
from apps.views import new_run
inputs.checkpoints(Path("."))
forms.shared_options("")
print("torch" in sys.modules)
"""


def test_starting_and_listing_load_no_torch():
    told = subprocess.run([*PYTHON, ALL_OF_IT], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_odd_times_and_texts_of_a_job_can_be_shown(tmp_path):
    job = ended(start(tmp_path, "pass"))
    about = json.loads((job.folder / jobs.ABOUT).read_text())
    (job.folder / jobs.ABOUT).write_text(json.dumps(about | {"created": 9e11, "command": "\ud800"}))
    found = state(job)
    assert datetime.fromtimestamp(found.created).year in (1969, 1970)
    found.command.encode()
