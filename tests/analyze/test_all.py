"""`python -m analyze`: all analyses in one run file, whatever one of them refuses."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import torch
from commands import SMALL, Outcome, metadata
from ranks import run_ranks

import analyze
from analyze import analyses, distributed, open_run, suite
from analyze.hessian.spec import Result
from models import get_model, save_checkpoint

SPEC = '''
from dataclasses import dataclass

from analyze.arrays import array
from analyze.results import AnalysisResult, Row

TITLE = "Mean output"
SUBJECT_DEFAULTS = {defaults}


@dataclass(frozen=True)
class Config:
    """Options of a small analysis."""

    scale: float = 1.0
    """Factor of the mean."""


@dataclass(frozen=True)
class Result(AnalysisResult):
    """The mean output."""

    analysis = "{name}"

    mean: float = array(doc="mean output")

    def rows(self):
        return [Row("mean output", self.mean, None, "of all images")]
'''

COMPUTE = """
import torch

from analyze.distributed import ALONE
from analyze.results import silent
from analyze.{name}.spec import Config, Result
from data_cache import InputError


def compute(subject, config=None, *, previous=None, save=None, progress=silent, world=ALONE, scratch=None):
    config = config or Config()
    progress("outputs", 0, 1, "")
    if config.scale < 0:
        raise InputError("there is nothing below zero.")
    total = torch.zeros((), dtype=torch.float64)
    batches = [x for _, _, (x, _) in subject.numbered_batches()]

    def part(index):
        return subject.outputs(batches[index], index).double().sum().item()

    for _, found in world.share_out_in_order(range(len(batches)), part):
        total += found
    return Result(float(total) / subject.data.images * config.scale).of(config, subject.describe())


def is_complete(result, config):
    return True
"""

FIGURES = """
def figures(result, others=()):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    figure.suptitle(str(1 + len(others)))
    return {{"": figure}}
"""

DEFAULTS = {"alpha": {"limit": 6, "split": "test"}, "beta": {"limit": 9}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two further analyses, in a folder of their own."""
    path = tmp_path_factory.mktemp("analyses")
    for name, defaults in DEFAULTS.items():
        (path / name).mkdir()
        for file, text in {"__init__": "", "spec": SPEC, "compute": COMPUTE, "figures": FIGURES}.items():
            content = text.replace("{name}", name).replace("{defaults}", str(defaults)).replace("{{", "{")
            (path / name / f"{file}.py").write_text(content.replace("}}", "}"))
    return path


@pytest.fixture
def added(folder, monkeypatch):
    """These are analyses like all others."""
    monkeypatch.setattr(analyze, "__path__", [*analyze.__path__, str(folder)])
    yield
    for module in [module for module in sys.modules if module.startswith(("analyze.alpha", "analyze.beta"))]:
        del sys.modules[module]


def all_in_one(*arguments: object) -> Outcome:
    """`python -m analyze` in this process."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            suite.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
    return Outcome(status, out.getvalue(), err.getvalue())


ONLY = ["--only", "alpha", "beta"]


def test_analyses_are_the_folders_with_a_spec_in_a_sensible_order(added, folder):
    (folder / "no_analysis").mkdir(exist_ok=True)
    found = analyses()
    assert found[-2:] == ["alpha", "beta"] and "hessian" in found
    known = [name for name in ("variance", "fourier", "robustness", "hessian", "landscape") if name in found]
    assert found[: len(known)] == known and len(set(found)) == len(found)
    assert "analyze.alpha.spec" not in sys.modules


def test_all_run_into_one_file_each_on_images_of_its_own(added, tiny_checkpoint, tmp_path):
    out = tmp_path / "A.h5"
    outcome = all_in_one("--ckpt", tiny_checkpoint, "--out", out, *ONLY)
    assert outcome.status == 0, outcome.err
    with open_run(out) as run:
        assert run.analyses == ["alpha", "beta"]
        described = {name: run.group_attributes(name)["subject"] for name in run.analyses}
    assert [(described[n]["images"], described[n]["data"]) for n in ("alpha", "beta")] == [
        (6, "fashion_mnist:test"),
        (9, "fashion_mnist:train"),
    ]
    for words in ("alpha: 6 images of fashion_mnist:test", "beta: 9 images of fashion_mnist:train", f"run file  {out}"):
        assert outcome.out.count(words) == 1
    assert outcome.out.count("mean output") == 2
    for name in ("alpha", "beta"):
        assert outcome.out.count(str(tmp_path / f"A_{name}.png")) == 1
        assert (tmp_path / f"A_{name}.png").stat().st_size > 100
    assert outcome.err.count("loading ...") == 1
    assert "alpha 1/2: outputs" in outcome.err and "beta 2/2: outputs" in outcome.err


def mean_of(out, name: str) -> float:
    with h5py.File(out) as file:
        return file[name]["mean"][()]


def test_numbers_are_those_of_the_single_commands(added, tiny_checkpoint, tmp_path, command):
    base = ["--ckpt", tiny_checkpoint, "--batch-size", "4", "--quiet"]
    together, single = tmp_path / "together.h5", tmp_path / "single.h5"
    assert all_in_one(*base, "--out", together, *ONLY, "--alpha.scale", "3").status == 0
    assert command(*base, "--out", single, "--scale", "3", name="alpha").status == 0
    assert command(*base, "--out", single, name="beta").status == 0
    for name in ("alpha", "beta"):
        assert mean_of(together, name) == mean_of(single, name)
    assert all_in_one(*base, "--out", single, *ONLY, "--alpha.scale", "3").out.count("already in the run file") == 2


def test_shared_options_are_for_all(added, tiny_checkpoint, tmp_path):
    out = tmp_path / "A.h5"
    outcome = all_in_one("--ckpt", tiny_checkpoint, "--out", out, *ONLY, "--limit", "5", "--data", "fashion_mnist:test")
    assert outcome.out.count("5 images of fashion_mnist:test") == 2
    assert mean_of(out, "alpha") == mean_of(out, "beta")


def test_network_is_loaded_once(added, tiny_checkpoint, tmp_path, monkeypatch):
    import analyze.subject

    calls, load = [], analyze.subject.load_checkpoint
    monkeypatch.setattr(analyze.subject, "load_checkpoint", lambda *a, **k: calls.append(a) or load(*a, **k))
    images, recorded = [], analyze.subject.recorded_data
    monkeypatch.setattr(analyze.subject, "recorded_data", lambda *a: images.append(a) or recorded(*a))
    assert all_in_one("--ckpt", tiny_checkpoint, "--out", tmp_path / "A.h5", *ONLY).status == 0
    assert len(calls) == 1 and len(images) == 2  # one for each analysis


def test_what_one_refuses_stops_none_of_the_others(added, tiny_checkpoint, tmp_path):
    out = tmp_path / "A.h5"
    base = ["--ckpt", tiny_checkpoint, "--out", out, *ONLY, "--quiet"]
    outcome = all_in_one(*base, "--alpha.scale", "-1")
    assert outcome.status == 2
    assert "alpha FAILED: there is nothing below zero." in outcome.out and "beta: 9 images" in outcome.out
    assert outcome.err.strip() == "error: 1 of 2 analyses failed: alpha."
    with open_run(out) as run:
        assert run.analyses == ["beta"]
    assert all_in_one(*base).status == 0  # goes on
    outcome = all_in_one(*base, "--beta.scale", "2", "--json")  # other options than those of the run file
    printed = json.loads(outcome.out)
    assert outcome.status == 2 and list(printed["failed"]) == ["beta"] and "--restart" in printed["failed"]["beta"]
    assert printed["analyses"]["alpha"]["alpha"]["mean"] == mean_of(out, "alpha")
    assert printed["run_file"] == str(out) and printed["figures"] == [str(tmp_path / "A_alpha.png")]


def test_other_results_are_drawn_beside_where_there_are_any(added, tiny_checkpoint, tmp_path, monkeypatch, command):
    other, drawn = tmp_path / "other.h5", {}
    assert command("--ckpt", tiny_checkpoint, "--out", other, "--quiet", name="beta").status == 0
    from analyze.results import AnalysisResult

    def plot(self, path, others=()):
        drawn[self.analysis] = len(others)
        return []

    monkeypatch.setattr(AnalysisResult, "plot", plot)
    outcome = all_in_one("--ckpt", tiny_checkpoint, "--out", tmp_path / "A.h5", *ONLY, "--compare", other)
    assert outcome.status == 0 and drawn == {"alpha": 0, "beta": 1}


def test_with_a_real_analysis_and_without_the_skipped(added, tiny_checkpoint, tmp_path):
    out = tmp_path / "A.h5"
    rest = [name for name in analyses() if name not in ("hessian", "beta")]
    own = ("--largest", "--tolerance", "--trace-samples", "--probes", "--steps")
    small = [f"--hessian.{word[2:]}" if word in own else word for word in SMALL]
    outcome = all_in_one("--ckpt", tiny_checkpoint, "--out", out, "--skip", *rest, *small, "--hessian.parts", "trace")
    assert outcome.status == 0, outcome.err
    assert len(Result.read(out).trace.samples) == 3
    with open_run(out) as run:
        assert set(run.analyses) == {"hessian", "beta"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "alhpa"], ["alhpa", "alpha"]),
        (["--skip", "nothing"], ["nothing"]),
        (["--only", "alpha", "--skip", "alpha"], ["no analysis"]),
        (["--resume", "--restart"], ["--resume", "--restart"]),
        (["--no-plot", "--compare", "A.h5"], ["--no-plot"]),
        (["--only", "alpha", "--compare", "none.h5"], ["none.h5"]),
        (["--only", "alpha", "--out", "/"], ["/ is a folder"]),
        (["--only", "alpha", "--data", "fashion_mnits"], ["fashion_mnits"]),
        (["--ckpt", "second.pt"], ["--ensemble", "analyze.compare"]),
    ],
)  # fmt: skip
def test_what_stops_all_is_one_sentence(added, tiny_checkpoint, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANDSCOPE_CACHE", str(tmp_path / "cache"))
    outcome = all_in_one("--ckpt", tiny_checkpoint, "--quiet", *arguments)
    assert outcome.status == 2 and outcome.out == "" and outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err
    assert not list(tmp_path.rglob("*.h5"))


def test_missing_checkpoint_is_one_sentence(added):
    outcome = all_in_one()
    assert outcome.status == 2 and outcome.err.startswith("error: --ckpt is missing")


def test_members_of_an_ensemble_are_studied_as_one(added, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("LANDSCOPE_CACHE", str(tmp_path))
    second = tmp_path / "second.safetensors"
    save_checkpoint(second, get_model("resnet_dnn_18", 10, width=2), metadata("resnet_dnn_18", width=2))
    outcome = all_in_one("--ckpt", tiny_checkpoint, "--ckpt", second, "--ensemble", *ONLY, "--quiet")
    assert outcome.status == 0, outcome.err
    assert "tiny+second (ensemble of 2: resnet_mcdo_smoothing_18, resnet_dnn_18)" in outcome.out
    with open_run(tmp_path / "results" / "tiny+second.h5") as run:
        assert run.attributes["checkpoint"] == "tiny+second"
        assert len(run.group_attributes("alpha")["subject"]["members"]) == 2


def test_help_names_the_options_of_each_and_loads_no_torch():
    script = (
        "import sys\n"
        "from analyze import suite\n"
        "try:\n    suite.main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "print('LOADED', sorted({'torch', 'matplotlib', 'plotly', 'streamlit', 'scipy'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "LOADED []" in printed
    for option in ("--ckpt", "--only", "--skip", "--hessian.largest", "--limit"):
        assert option in printed
    for name in analyses():
        assert f"--{name}." in printed


# Several processes


def in_rank(folder: str, *arguments: str) -> None:
    distributed.GRACE = 1.0
    analyze.__path__ = [*analyze.__path__, folder]
    suite.main(arguments)


@pytest.fixture
def one_thread():
    """As many as the ranks have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_ranks_go_on_together_after_what_all_or_the_first_alone_refuse(
    added, folder, tiny_checkpoint, tmp_path, one_thread
):
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    base = ["--ckpt", str(tiny_checkpoint), *ONLY, "--batch-size", "4", "--quiet", "--no-plot"]
    assert all_in_one(*base, "--out", one).status == 0
    for out, scale, reason in (
        (two, "-1", "nothing below zero"),
        (one, "2", "use --restart"),  # said by the first, which alone reads the run file
    ):
        first, second = run_ranks(2, in_rank, str(folder), *base, "--out", str(out), "--alpha.scale", scale)
        assert (first.status, second.status) == (2, 2), (first, second)
        assert (second.out, second.err) == ("", "")
        assert first.out.count("beta: 9 images") == 1 and "alpha FAILED" in first.out and reason in first.out
        assert first.err.strip() == "error: 1 of 2 analyses failed: alpha."
    assert mean_of(one, "beta") == mean_of(two, "beta")  # added up in order: the same bits


def test_rank_that_fails_alone_ends_all(folder, tiny_checkpoint, tmp_path):
    out = tmp_path / "A.h5"
    base = ["--ckpt", str(tiny_checkpoint), "--out", str(out), *ONLY, "--quiet", "--no-plot"]
    first, second = run_ranks(2, failing_alone, str(folder), *base)
    assert (first.status, second.status) == (2, 2)
    sentence = "error: this one has no memory left."
    assert first.err.strip() == sentence and second.out == ""
    assert second.err.strip() in ("", sentence)  # it speaks for itself if the first was too busy to notice


def failing_alone(folder: str, *arguments: str) -> None:
    from data_cache import InputError

    def assist(*_: object) -> None:
        raise InputError("this one has no memory left.")

    suite.assist = assist
    in_rank(folder, *arguments)
