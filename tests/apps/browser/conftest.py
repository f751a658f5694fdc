"""The explorer over the results that ship, in a browser, with `LANDSCOPE_BROWSER=require`: that takes minutes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import browsing
import pytest

SHIPPED = browsing.CHECKOUT / "data_cache" / "results" / "shipped"


@pytest.fixture(scope="module")  # a browser's event loop must not outlive these tests
def browser() -> Iterator:
    if os.environ.get("LANDSCOPE_BROWSER") != "require":
        pytest.skip("the tests in a browser are run by `make browser`")
    if browsing.find_browser() is None:
        pytest.fail(f"these tests need a browser: none of {', '.join(browsing.PROGRAMS)} is installed")
    with browsing.launched() as running:
        yield running


@pytest.fixture
def context(browser) -> Iterator[Callable]:
    """A function that makes a visitor's own browser window, and at the end looks at what it did."""
    made, outside, errors = [], [], []

    def note(url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:", "file:")):
            outside.append(url)

    def make(width: int = 1280, height: int = 800, **options):
        window = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
        window.on("request", lambda request: note(request.url))
        window.on("weberror", lambda error: errors.append(str(error.error)))  # "undefined": an animation was stopped
        window.set_default_timeout(1000 * browsing.PATIENCE)
        window.on("page", lambda page: page.on("websocket", lambda socket: note(socket.url)))
        made.append(window)
        return window

    yield make
    for window in made:
        window.close()
    assert not outside, f"asked for outside of 127.0.0.1: {outside}"
    assert set(errors) <= {"undefined"}, f"scripts of the page failed: {errors}"


@pytest.fixture
def page(context):
    return context().new_page()


@pytest.fixture(scope="session")
def shipped(tmp_path_factory) -> Path:
    """A copy of the run files that ship."""
    return Path(shutil.copytree(SHIPPED, tmp_path_factory.mktemp("root") / "shipped")).parent


@pytest.fixture(scope="module")
def site(browser, shipped) -> Iterator:
    """The explorer over them; at the end its log must know of no failure."""
    with browsing.explorer(shipped) as running:
        yield running
        assert "Traceback" not in running.log, running.log


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Where screenshots go: `$LANDSCOPE_SCREENSHOTS`, or a temporary folder."""
    chosen = os.environ.get("LANDSCOPE_SCREENSHOTS")
    return Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
