"""The frame: which runs and pages there are, and how the app is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from run_files import WITH, WITHOUT, empty, half_written, renamed, truncated
from streamlit.testing.v1 import AppTest

from analyze import analyses
from apps import library, router
from apps.__main__ import command_line
from apps.context import Context
from apps.readme import section

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def opened(monkeypatch):
    """The app over a folder, at the URL's parameters."""

    def run(root, **parameters) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["explorer.py", f"--root={root}"])
        app = AppTest.from_file(str(CHECKOUT / "apps" / "router.py"), default_timeout=60)
        for name, values in parameters.items():
            app.query_params[name] = values
        app.run()
        assert not app.exception
        return app

    return run


def picked(app: AppTest) -> list[str]:
    return app.sidebar.multiselect[0].value


def test_url_chooses_the_runs(runs, opened):
    app = opened(runs, run=[WITH])
    assert picked(app) == [f"{WITH}.h5"] and not app.warning and not app.error
    assert app.sidebar.multiselect[0].options == [WITH, WITHOUT]
    assert picked(opened(runs, run=[WITHOUT, WITH])) == [f"{WITHOUT}.h5", f"{WITH}.h5"]


def test_first_visit_shows_something_and_says_it_in_the_url(runs, opened):
    app = opened(runs)
    assert picked(app) == [f"{WITH}.h5", f"{WITHOUT}.h5"]
    assert app.query_params["run"] == [WITH, WITHOUT]
    assert app.subheader[0].value == "Runs"


def test_url_may_call_runs_by_their_keys_and_names_of_gone_ones_are_told(runs, opened):
    app = opened(runs, run=[f"{WITHOUT}.h5", "<b>gone"])
    assert picked(app) == [f"{WITHOUT}.h5"]
    assert app.query_params["run"] == WITHOUT
    assert "\\<b\\>gone" in app.warning[0].value
    app.sidebar.multiselect[0].set_value([f"{WITH}.h5"]).run()
    assert not app.warning  # who chooses anew has read it


def test_picker_is_followed(runs, opened):
    app = opened(runs, run=[WITH])
    app.sidebar.multiselect[0].select(f"{WITHOUT}.h5").run()
    assert picked(app) == [f"{WITH}.h5", f"{WITHOUT}.h5"] and not app.exception
    app.sidebar.multiselect[0].set_value([]).run()
    assert picked(app) == [] and not app.exception


def test_shipped_runs_come_first_on_a_first_visit(runs):
    (runs / "shipped").mkdir()
    for name in ("resnet_mcdo_smoothing_18", "resnet_dnn_18", "resnet_other"):
        (runs / "shipped" / f"{name}.h5").write_bytes((runs / f"{WITH}.h5").read_bytes())
    listed = library.list_runs(runs)
    assert [run.name for run in router.first_runs(listed)] == ["resnet_dnn_18", "resnet_mcdo_smoothing_18"]


def test_first_choice_without_shipped_runs_is_what_holds_most(runs):
    for place in range(3):
        half_written(runs / f"{WITH}.h5", runs / f"half{place}.h5")
    empty(runs / "empty.h5")
    chosen = router.first_runs(library.list_runs(runs))
    assert {WITH, WITHOUT} < {run.name for run in chosen} and len(chosen) == 3
    assert router.first_runs([]) == []


def test_broken_file_that_is_chosen_is_a_sentence(runs, opened):
    truncated(runs / f"{WITH}.h5", runs / "cut.h5")
    app = opened(runs, run=["cut", WITH])
    assert len(app.error) == 1 and "cut\\.h5 can\\'t be read" in app.error[0].value


def test_root_that_is_no_folder_is_one_sentence(runs, opened):
    for root in (runs / "nothing", runs / f"{WITH}.h5"):
        app = opened(root)
        assert len(app.error) == 1 and "is not a folder" in app.error[0].value and not app.multiselect


def test_empty_folder_is_no_error(tmp_path, opened):
    app = opened(tmp_path)
    assert not app.error and app.info and picked(app) == []


def test_new_file_is_seen_at_the_next_look(runs, opened):
    app = opened(runs, run=[WITH])
    half_written(runs / f"{WITH}.h5", runs / "a_new_one.h5")
    app.run()
    assert app.sidebar.multiselect[0].options == ["a_new_one", WITH, WITHOUT]
    assert picked(app) == [f"{WITH}.h5"]
    (runs / f"{WITH}.h5").unlink()
    app.run()
    assert not app.exception and f"{WITH}.h5" not in picked(app)


def context(runs: Path, *names: str) -> Context:
    listed = library.list_runs(runs)
    return Context(runs, listed, [library.find(listed, name) for name in names])


def test_each_page_says_of_how_many_images(runs):
    half_written(runs / f"{WITH}.h5", runs / "half.h5")
    renamed(runs / f"{WITH}.h5", runs / "other.h5", "x")
    told = {
        (WITH,): "Of 12 images of fashion_mnist:test.",
        (WITH, WITHOUT): "Of 12 images of fashion_mnist:test.",
        (WITH, "half"): "Of 12 images of fashion_mnist:test. Not complete yet: half.",
        (WITH, "other"): f"Of 12 images of fashion_mnist:test ({WITH}); 12 images of x (other).",
    }
    assert {names: context(runs, *names).images("variance") for names in told} == told


def page(root, name, *chosen):
    from pathlib import Path

    from apps import router
    from apps.context import Context
    from apps.library import find, list_runs

    runs = list_runs(Path(root))
    router.show_page(name, Context(Path(root), runs, [find(runs, each) for each in chosen]))


def shown(root, name, *chosen) -> AppTest:
    app = AppTest.from_function(page, args=(str(root), name, *chosen), default_timeout=120).run()
    assert not app.exception
    return app


@pytest.mark.parametrize("name", ["runs", *analyses(), "compare"])
def test_each_page_is_drawn_without_a_complaint(runs, name):
    app = shown(runs, name, WITH, WITHOUT)
    assert not app.error and app.subheader[0].value == name.capitalize()
    if name in analyses():
        assert "12 images" in app.caption[0].value


@pytest.mark.parametrize("name", analyses())
def test_page_of_what_no_chosen_run_holds_says_so(runs, name):
    app = shown(runs, name)
    assert len(app.info) == 1 and f"python -m analyze.{name}" in app.info[0].value and not app.error


def test_page_that_fails_is_a_sentence(runs, monkeypatch):
    from apps.views import runs as view

    def fail(context):
        raise ValueError("<b>this</b> happened\nand more")

    monkeypatch.setattr(view, "show", fail)
    app = shown(runs, "runs")
    assert len(app.error) == 1 and "\\<b\\>this" in app.error[0].value and "and more" not in app.error[0].value


def test_readme_has_a_section_for_each_analysis():
    sections = [section(f"python -m analyze.{name}") for name in analyses()]
    assert all(text.startswith("#### ") and len(text) > 200 for text in sections)
    assert len(set(sections)) == len(sections)
    assert not any("![" in text for text in sections)
    assert section("python -m nothing") == ""


def test_command_becomes_streamlit(tmp_path):
    (tmp_path / "a b; rm").mkdir()
    command = command_line(["--root", str(tmp_path / "a b; rm"), "--port", "9000", "--no-browser"])
    assert command[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert command[-2:] == ["--", f"--root={tmp_path / 'a b; rm'}"]
    assert {"--server.port=9000", "--server.headless=true"} <= set(command)
    assert "--" not in command_line([])


def test_settings_are_safe_wherever_it_is_started(tmp_path):
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "config.toml").write_text(
        '[server]\naddress = "0.0.0.0"\nenableXsrfProtection = false\n'
    )
    code = (
        "from streamlit import config\n"
        f"config._main_script_path = {command_line([])[4]!r}\n"
        "names = ['address', 'enableCORS', 'enableXsrfProtection', 'enableStaticServing']\n"
        "print(*[config.get_option(f'server.{name}') for name in names], config.get_option('browser.gatherUsageStats'))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert told.stdout.split() == ["127.0.0.1", "True", "True", "False", "False"]


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--port", "x"], ["--nothing"], ["--root", "/no/such"]])
def test_wrong_options_are_refused(arguments):
    with pytest.raises(SystemExit) as raised:
        command_line(arguments)
    assert raised.value.code == 2


def test_help_takes_less_than_a_second_of_work():
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = subprocess.run([sys.executable, "-m", "apps", "--help"], capture_output=True, text=True, cwd=CHECKOUT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert told.returncode == 0 and "--root" in told.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def fill(path, value):
    """Put a value into all arrays and numbers of floats in a run file."""

    def change(_, item):
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            item[...] = np.full(item.shape, value, item.dtype)

    with h5py.File(path, "r+") as file:
        file.visititems(change)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.inf, np.nan, 0.0, -1.0, 3e38])
@pytest.mark.parametrize("name", ["runs", *analyses(), "compare"])
def test_whatever_numbers_a_file_holds_each_page_ends_with_a_picture_or_a_sentence(runs, name, value):
    fill(runs / f"{WITH}.h5", value)
    app = shown(runs, name, WITH, WITHOUT)
    assert app.subheader[0].value == router.page_title(name) and not app.exception


def test_app_loads_no_torch(runs):
    code = (
        "import sys, importlib, pkgutil, apps.router, apps.views\n"
        "for view in pkgutil.iter_modules(apps.views.__path__): importlib.import_module(f'apps.views.{view.name}')\n"
        f"runs = apps.library.list_runs(__import__('pathlib').Path({str(runs)!r}))\n"
        "for run in runs:\n"
        "    for name in run.analyses: apps.library.load(run, name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT)


def test_listing_opens_no_file_and_a_first_choice_not_all(runs, monkeypatch):
    opened = []
    original = library._open_contents
    monkeypatch.setattr(library, "_open_contents", lambda path: opened.append(path) or original(path))
    for place in range(40):
        os.link(runs / f"{WITH}.h5", runs / f"run_{place}.h5")
    listed = library.list_runs(runs)
    assert len(listed) == 42 and not opened
    assert len(router.first_runs(listed)) == 3 and len(opened) == 20
