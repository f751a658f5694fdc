"""The listing of run files, and their results."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from run_files import WITH, WITHOUT, empty, half_written, truncated

from analyze import analyses
from analyze.hessian.spec import Result as Hessian
from analyze.robustness.spec import Result as Robustness
from apps import library
from data_cache import InputError


def test_listing_says_what_each_file_holds(runs):
    listed = library.list_runs(runs)
    assert [run.key for run in listed] == [f"{WITH}.h5", f"{WITHOUT}.h5"]
    assert [run.name for run in listed] == [WITH, WITHOUT]
    for run in listed:
        assert list(run.analyses) == analyses() and not run.problem
        assert all(each.complete and each.seconds > 0 for each in run.analyses.values())
        assert run.size == run.path.stat().st_size and run.modified == run.path.stat().st_mtime
    with h5py.File(runs / f"{WITH}.h5") as file:
        assert listed[0].attributes["model"] == file.attrs["model"] == "resnet_mcdo_smoothing_18"
        assert listed[0].analyses["variance"].command == file["variance"].attrs["command"]
    assert listed[0].analyses["variance"].subject["images"] == 12
    assert listed[0].analyses["variance"].config["passes"] == 2


def test_names_are_as_short_as_can_be_told_apart(runs):
    (runs / "old").mkdir()
    for name in (f"old/{WITH}.h5", f"old/{WITH}.hdf5", "old/other.h5"):
        (runs / name).write_bytes((runs / f"{WITH}.h5").read_bytes())
    assert {run.key: run.name for run in library.list_runs(runs)} == {
        "old/other.h5": "other",
        f"old/{WITH}.h5": f"old/{WITH}.h5",
        f"old/{WITH}.hdf5": f"old/{WITH}.hdf5",
        f"{WITH}.h5": f"{runs.name}/{WITH}",
        f"{WITHOUT}.h5": WITHOUT,
    }


def test_run_is_found_by_name_key_and_stem(runs):
    (runs / "old").mkdir()
    (runs / "old" / f"{WITH}.h5").write_bytes((runs / f"{WITH}.h5").read_bytes())
    listed = library.list_runs(runs)
    found = {name: library.find(listed, name) for name in (WITH, f"old/{WITH}", f"old/{WITH}.h5", WITHOUT, "nothing")}
    assert {name: run and run.key for name, run in found.items()} == {
        WITH: f"{WITH}.h5",
        f"old/{WITH}": f"old/{WITH}.h5",
        f"old/{WITH}.h5": f"old/{WITH}.h5",
        WITHOUT: f"{WITHOUT}.h5",
        "nothing": None,
    }


def test_bad_files_are_listed_with_a_sentence(runs):
    truncated(runs / f"{WITH}.h5", runs / "cut.h5")
    empty(runs / "empty.h5")
    (runs / "text.h5").write_text("not a run file")
    with h5py.File(runs / "foreign.h5", "w", libver=("v108", "latest")) as file:
        file["x"] = np.arange(3)
    (runs / "unreadable.h5").mkdir()
    problems = {run.key: run.problem for run in library.list_runs(runs)}
    assert sorted(problems) == ["cut.h5", "empty.h5", "foreign.h5", "text.h5", f"{WITH}.h5", f"{WITHOUT}.h5"]
    for key, words in {
        "cut": "damaged",
        "empty": "is empty",
        "text": "not an HDF5",
        "foreign": "not a run file",
    }.items():
        sentence = problems[f"{key}.h5"]
        assert words in sentence and sentence.startswith(f"{key}.h5 ") and sentence.endswith(".")
        assert str(runs) not in sentence


def test_half_written_run_is_listed_as_such_and_read(runs):
    half_written(runs / f"{WITH}.h5", runs / "half.h5")
    run = library.find(library.list_runs(runs), "half")
    assert {name: each.complete for name, each in run.analyses.items()} == {"variance": False}
    assert library.load(run, "variance").subject["images"] == 12


def test_links_out_of_the_root_hidden_files_pipes_and_other_kinds_are_left_out(runs, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    source = (runs / f"{WITH}.h5").read_bytes()
    (outside / "secret.h5").write_bytes(source)
    (runs / "link.h5").symlink_to(outside / "secret.h5")
    (runs / "folder").symlink_to(outside)
    (runs / "loop.h5").symlink_to(runs / "loop.h5")
    (runs / "dangling.h5").symlink_to(outside / "nothing.h5")
    (runs / ".hidden.h5").write_bytes(source)
    (runs / ".jobs").mkdir()
    (runs / ".jobs" / "a.h5").write_bytes(source)
    (runs / "notes.txt").write_text("")
    os.mkfifo(runs / "pipe.h5")
    (runs / "inside.h5").symlink_to(runs / f"{WITH}.h5")
    assert [run.key for run in library.list_runs(runs)] == ["inside.h5", f"{WITH}.h5", f"{WITHOUT}.h5"]


def test_name_that_is_no_unicode_is_listed_as_text(runs):
    name = os.fsdecode(b"bad\xff.h5")
    try:
        (runs / name).write_bytes((runs / f"{WITH}.h5").read_bytes())
    except OSError:
        pytest.skip("this file system takes Unicode names alone")
    run = library.list_runs(runs)[0]
    assert run.key == "bad\\xff.h5" and not run.problem
    run.key.encode("utf-8")


def test_shipped_results_are_listed_wherever_the_root_is(runs, tmp_path, monkeypatch):
    own = tmp_path / "cache" / "results"
    (own / "shipped").mkdir(parents=True)
    monkeypatch.setenv("LANDSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "shipped_folder", lambda: runs)
    (own / "mine.h5").write_bytes((runs / f"{WITH}.h5").read_bytes())
    (own / "shipped" / f"{WITH}.h5").write_bytes(b"")
    listed = {run.key: run.path for run in library.list_runs(own)}
    assert listed == {
        "mine.h5": own / "mine.h5",
        f"shipped/{WITH}.h5": own / "shipped" / f"{WITH}.h5",
        f"shipped/{WITHOUT}.h5": runs / f"{WITHOUT}.h5",
    }
    assert [run.key for run in library.list_runs(own / "shipped")] == [f"{WITH}.h5"]


@pytest.mark.parametrize("name", analyses())
def test_loaded_result_is_the_stored_one_and_kept(runs, name):
    run = library.list_runs(runs)[0]
    result = library.load(run, name)
    assert result is library.load(run, name)
    assert result.analysis == name and result.subject == run.analyses[name].subject
    assert result.config == run.analyses[name].config
    assert result.rows() and result.quantities()


def test_loaded_numbers_are_those_of_the_file(runs):
    run = library.list_runs(runs)[0]
    with h5py.File(run.path, locking=False) as file:
        np.testing.assert_array_equal(library.load(run, "hessian").extremes.largest, file["hessian/extremes/largest"])
        assert library.key_numbers(run) == {
            name: tuple(file[place][()].flat[0] for place in places)
            for name, places in {
                "accuracy": ("robustness/clean/accuracy", "robustness/clean/accuracy_stderr"),
                "nll": ("robustness/clean/nll", "robustness/clean/nll_stderr"),
                "eigenvalue": ("hessian/extremes/largest", "hessian/extremes/largest_residual"),
                "trace": ("hessian/trace/estimate", "hessian/trace/stderr"),
            }.items()
        }


def test_numbers_that_take_long_come_later(runs):
    listed = library.list_runs(runs)
    numbers = library.Numbers(listed, seconds=0)
    assert numbers.left == len(listed) and numbers.of(listed[0]) is None
    numbers.go_on()
    deadline = time.monotonic() + 20
    while numbers.left and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not numbers.left
    assert [numbers.of(run) for run in listed] == [library.key_numbers(run) for run in listed]


def test_file_that_changed_is_read_anew(runs):
    before = library.list_runs(runs)
    signature = library.signature(runs)
    assert signature == library.signature(runs)
    half_written(runs / f"{WITHOUT}.h5", runs / f"{WITH}.h5")
    after = library.list_runs(runs)
    assert list(after[0].analyses) == ["variance"] and after[1] == before[1]
    assert library.signature(runs) != signature
    assert library.load(after[0], "variance").subject == before[1].analyses["variance"].subject
    (runs / f"{WITH}.h5").unlink()
    assert library.signature(runs) not in (signature, None)


def test_what_cannot_be_loaded_is_one_sentence(runs):
    run = library.list_runs(runs)[0]
    with h5py.File(run.path, "r+") as file:
        del file["hessian"]
        del file["variance/layer"]
        file["fourier"].attrs["subject"] = '{"data": 3}'
    for name, words in {"hessian": "holds no", "variance": "layer", "fourier": "does not say what it is of"}.items():
        with pytest.raises(InputError, match=words) as raised:
            library.load(run, name)
        assert "\n" not in str(raised.value)
    run.path.unlink()
    for name in analyses():
        with pytest.raises(InputError, match="can't be read"):
            library.load(run, name)
    assert library.key_numbers(run) == {}


def test_hostile_file_is_refused_with_a_sentence(runs, tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w", libver=("v108", "latest")) as file:
        file["x"] = np.arange(3.0)
    with h5py.File(runs / f"{WITH}.h5", "r+") as file:
        del file["variance/layer"]
        file["variance/layer"] = h5py.ExternalLink(str(secret), "x")
    run = library.list_runs(runs)[0]
    with pytest.raises(InputError, match="external link"):
        library.load(run, "variance")
    with h5py.File(runs / f"{WITHOUT}.h5", "r+") as file:
        file["more"] = h5py.ExternalLink(str(secret), "x")
    assert "external link" in library.list_runs(runs)[1].problem


def test_results_are_read_in_time_for_a_listing_of_many(runs):
    """Only the top of each file is looked at: a fifth of the time that reading all of its structure takes."""
    from analyze.run import open_run

    path = runs / f"{WITH}.h5"

    def seconds(**options) -> float:
        found = []
        for _ in range(5):
            began = time.thread_time()
            with open_run(path, **options) as run:
                assert set(run.analyses) >= set(analyses())
            found.append(time.thread_time() - began)
        return min(found)

    assert seconds(into=()) < 0.4 * seconds()


def test_only_what_was_asked_for_can_be_loaded(runs):
    from analyze.run import open_run

    path = runs / f"{WITH}.h5"
    with open_run(path, into=("hessian",)) as run:
        assert run.load("hessian", Hessian).extremes is not None
        with pytest.raises(ValueError, match="opened to read"):
            run.load("robustness", Robustness)


def test_library_and_its_neighbours_load_neither_torch_nor_matplotlib():
    code = (
        "import sys, apps.library, apps.context, apps.chart, apps.differences, apps.views.runs, apps.views.compare, "
        "apps.views.generic\n"
        "for name in ('torch', 'matplotlib.figure', 'matplotlib.pyplot'): assert name not in sys.modules, name"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_results_that_ship_keep_their_names(runs):
    (runs / "shipped").mkdir()
    (runs / "shipped" / f"{WITH}.h5").write_bytes((runs / f"{WITH}.h5").read_bytes())
    listed = library.list_runs(runs)
    assert {run.key: run.name for run in listed} == {
        f"{WITH}.h5": f"{runs.name}/{WITH}",
        f"{WITHOUT}.h5": WITHOUT,
        f"shipped/{WITH}.h5": WITH,
    }
    assert library.find(listed, WITH).key == f"shipped/{WITH}.h5"


def test_numbers_of_another_kind_are_left_out_once_and_for_all(runs, monkeypatch):
    with h5py.File(runs / f"{WITH}.h5", "r+") as file:
        extremes = file["hessian/extremes"]
        count = len(extremes["largest"])
        attributes = dict(extremes["largest"].attrs)
        del extremes["largest"]
        extremes.create_dataset("largest", data=["a"] * count, dtype=h5py.string_dtype())
        extremes["largest"].attrs.update({key: value for key, value in attributes.items() if key == "units"})
    opened = []
    original = library.open_run
    monkeypatch.setattr(library, "open_run", lambda path, **kw: opened.append(path) or original(path, **kw))
    run = library.list_runs(runs)[0]
    for _ in range(3):
        assert set(library.key_numbers(run)) == {"accuracy", "nll"}
    assert len(opened) == 2  # for what it holds, and for the numbers


def test_text_that_cannot_be_printed_is_a_problem(runs):
    with h5py.File(runs / f"{WITH}.h5", "r+") as file:
        file["variance"].attrs["config"] = '{"name": "\\ud800"}'
    assert "can't be read" in library.list_runs(runs)[0].problem


def test_errors_and_commands_name_files_of_any_bytes(runs):
    name = os.fsencode(runs) + b"/b\xffd.h5"
    os.link(runs / f"{WITH}.h5", name)
    run = next(run for run in library.list_runs(runs) if run.key.startswith("b"))
    assert run.key == "b\\xffd.h5" and library.printable(run.path).endswith("/b\\xffd.h5")
    result = library.load(run, "variance")
    from apps.chart import commands
    from apps.context import Chosen

    "".join(commands([Chosen(run, result, "#000000")] * 2)).encode()
    with h5py.File(runs / f"{WITH}.h5", "r+") as file:
        del file["variance/layer"]
    with pytest.raises(InputError) as raised:
        library.load(run, "variance")
    assert str(raised.value).startswith("b\\xffd.h5") and str(runs) not in str(raised.value)
