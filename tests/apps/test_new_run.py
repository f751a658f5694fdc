"""The page: a command for every analysis, sentences for mistakes, and a run from its start to its result."""

import sys
import time

import pytest
from commands import metadata
from streamlit.testing.v1 import AppTest

from analyze import analyses, cli, open_run
from apps import jobs
from data_cache import paths


def script():
    import os
    from pathlib import Path

    from apps.context import Context
    from apps.library import list_runs
    from apps.views import new_run

    root = Path(os.environ["TEST_ROOT"])
    new_run.show(Context(root, list_runs(root), []))


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_ROOT", str(tmp_path))
    return AppTest.from_function(script, default_timeout=60).run()


@pytest.fixture
def started(monkeypatch):
    """The commands that the page starts, none of which is run."""
    lines = []
    monkeypatch.setattr(jobs, "start", lambda root, command, **about: lines.append((command, about)))
    return lines


def errors(page):
    assert not page.exception
    return [error.value.replace("\\", "") for error in page.error]


def command(page):
    """The words that the page shows."""
    assert errors(page) == []
    return page.code[0].value.split()


def press(page, key):
    page.button(key=f"new_run_{key}").click()
    return page.run()


@pytest.mark.parametrize("name", analyses())
def test_untouched_the_command_says_no_more_than_it_must(page, tmp_path, name):
    page.selectbox(key="new_run_analysis").select(name).run()
    first = next(iter(paths.checkpoints()))
    line = ["python", "-m", f"analyze.{name}", "--ckpt", first, "--out", str(tmp_path / f"{first}.h5")]
    assert command(page) == line


def test_all_analyses_together(page):
    page.selectbox(key="new_run_analysis").select("all of them").run()
    assert command(page)[:3] == ["python", "-m", "analyze"]
    assert len(command(page)) == 7
    page.multiselect(key="new_run_only").set_value(["hessian", "variance"])
    page.number_input(key="new_run_hessian_largest").set_value(2)
    page.number_input(key="new_run_all_shared_limit").set_value(64)
    page.run()
    assert command(page)[7:] == ["--limit", "64", "--only", "variance", "hessian", "--hessian.largest", "2"]
    page.multiselect(key="new_run_only").set_value([])
    page.run()
    assert errors(page) == ["Choose at least one analysis."]


def test_what_is_entered_is_what_is_started(page, started, tmp_path):
    page.selectbox(key="new_run_analysis").select("landscape")
    page.selectbox(key="new_run_checkpoint").select("resnet_mcdo_18").run()
    page.selectbox(key="new_run_data_resnet_mcdo_18").select("fashion_mnist:test")
    page.text_input(key="new_run_out_resnet_mcdo_18").set_value("mine")
    page.text_input(key="new_run_landscape_points").set_value("9, 11")
    page.selectbox(key="new_run_landscape_direction_x").select("resnet_dnn_18")
    page.checkbox(key="new_run_landscape_prescan").uncheck()
    page.checkbox(key="new_run_landscape_gif").check()
    page.selectbox(key="new_run_landscape_shared_mode").select("train")
    press(page, "start")
    assert errors(page) == []
    ((line, about),) = started
    assert line[:3] == [sys.executable, "-m", "analyze.landscape"]
    assert about == {"analysis": "landscape", "out": "mine.h5"}
    shared, config = cli.parse("landscape", line[3:])
    assert (shared.ckpt, shared.data, shared.mode) == (("resnet_mcdo_18",), "fashion_mnist:test", "train")
    assert (shared.out, config.gif) == (tmp_path / "mine.h5", tmp_path / "mine.gif")
    assert (config.points, config.direction_x, config.prescan) == ((9, 11), "resnet_dnn_18", False)


MISTAKES = {
    "out_resnet_dnn_18": ("../../etc/x", "The run file's name has letters, digits"),
    "variance_layers": ("--out=/etc/x", "Layers can't begin with - or ~"),
    "fourier_spectra": ("/etc/passwd", "Spectra can't begin with"),
    "hessian_bits": ("1", "bits must be different whole numbers from 2 to 16"),
    "robustness_sigmas": ("a", "Sigmas takes numbers with spaces between, not 'a'."),
    "robustness_corruptions": ("smog", "there is no corruption 'smog'"),
    "landscape_span": ("-1", "span along x must be a number above 0, not -1."),
}


@pytest.mark.parametrize("field", MISTAKES)
def test_a_mistake_is_a_sentence_and_nothing_can_be_started(page, field):
    entered, sentence = MISTAKES[field]
    if field.split("_")[0] in analyses():
        page.selectbox(key="new_run_analysis").select(field.split("_")[0]).run()
    page.text_input(key=f"new_run_{field}").set_value(entered).run()
    (error,) = errors(page)
    assert error.startswith(sentence)
    assert page.button(key="new_run_start").disabled


def test_without_checkpoints_the_page_says_how_to_get_one(page, monkeypatch):
    monkeypatch.setattr(paths, "checkpoints", dict)
    page.run()
    assert not page.exception
    assert page.info[0].value == "There is no checkpoint yet. `python -m models.train` makes one."


def test_a_job_is_started_watched_and_opened(page, tmp_path, monkeypatch):
    import torch

    from models import get_model, save_checkpoint

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = get_model("resnet_mcdo_18", 10, width=2)
    tiny = tmp_path / "tiny<b>.safetensors"
    save_checkpoint(tiny, network, metadata("resnet_mcdo_18", width=2))
    page.run()
    page.selectbox(key="new_run_checkpoint").select(str(tiny)).run()
    assert command(page)[-1] == str(tmp_path / "tiny_b_.h5")
    page.text_input(key=f"new_run_out_{tiny}").set_value("tiny")
    page.number_input(key="new_run_variance_shared_limit").set_value(24)
    page.number_input(key="new_run_variance_passes").set_value(2)
    press(page, "start")
    (job,) = jobs.jobs(tmp_path)
    assert page.button(key=f"new_run_cancel_{job.folder.name}").label == "Cancel"
    end = time.monotonic() + 90
    while jobs.jobs(tmp_path)[0].active:
        assert time.monotonic() < end
        time.sleep(0.2)
        assert not page.run().exception
    assert jobs.jobs(tmp_path)[0].state == "done", jobs.log(job)
    with open_run(tmp_path / "tiny.h5") as run:
        assert run.group_attributes("variance")["config"]["passes"] == 2
    opened = []
    monkeypatch.setattr("streamlit.switch_page", lambda page, query_params: opened.append(page.url_path))
    page.run()
    press(page, f"open_{job.folder.name}")
    assert (page.session_state["run"], opened) == (["tiny.h5"], ["variance"])
    press(page, f"remove_{job.folder.name}")
    assert jobs.jobs(tmp_path) == []
    assert (tmp_path / "tiny.h5").exists()


def test_a_failed_job_shows_its_sentence_and_log(page, tmp_path):
    code = "import sys; print('<b>loading</b>'); print('error: [a](http://b) is missing.'); sys.exit(2)"
    job = jobs.start(tmp_path, [sys.executable, "-c", code], analysis="variance", out="a.h5")
    while jobs.jobs(tmp_path)[0].active:
        time.sleep(0.1)
    page.run()
    assert errors(page) == []
    assert page.text[0].value == "[a](http://b) is missing."
    assert page.code[-1].value == "<b>loading</b>\nerror: [a](http://b) is missing."
    assert page.expander[-1].proto.expanded
    assert f"new_run_open_{job.folder.name}" not in [button.key for button in page.button]
