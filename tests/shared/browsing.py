"""A running explorer and a browser that looks at it: for the tests, the benchmark and the pictures."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WEBGL = ["--enable-unsafe-swiftshader"]  # not --use-angle: it would draw all of the page, not only scenes, that way
QUIET = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
PATIENCE = 120.0
"""Seconds for anything that should come; other work may share the machine."""

# Since when (ms since 1970) the script rests and all charts of open tabs are drawn; 0 while that isn't for `quiet` ms.
SETTLED = """quiet => {
  const app = document.querySelector('[data-testid=stApp]');
  const all = name => [...document.querySelectorAll(`[data-testid=${name}]`)];
  const seen = element => element.getClientRects().length > 0;
  const drawn = chart => chart.querySelector('.js-plotly-plot')?._fullLayout?._size;
  const rests = app?.dataset.testScriptState === 'notRunning' && app.dataset.testConnectionState === 'CONNECTED'
    && !all('stSkeleton').some(seen) && !all('stAppSkeleton').length
    && all('stPlotlyChart').filter(seen).every(drawn) && all('stMarkdown').length + all('stHeading').length > 0;
  if (!rests) { window.restingSince = undefined; return 0; }
  window.restingSince ??= Date.now();
  return Date.now() - window.restingSince >= quiet ? window.restingSince : 0;
}"""

# What each chart of an open tab shows: types of its traces, shapes in the plane, and whether it has a scene.
CHARTS = """() => [...document.querySelectorAll('.js-plotly-plot')].filter(chart => chart.getClientRects().length)
  .map(chart => ({
    types: chart._fullData.filter(trace => trace.visible === true).map(trace => trace.type),
    marks: [...chart.querySelectorAll('.mlayer path, .mlayer image')].filter(shape =>
      ['d', 'href', 'xlink:href'].some(name => shape.getAttribute(name)?.length > 4)).length,
    scenes: Object.keys(chart._fullLayout).filter(name => /^scene\\d*$/.test(name)).length,
  }))"""


def find_browser() -> str | None:
    """The program, if one is installed."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """The installed browser, without a window; it resolves no name, so nothing can leave this machine."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", *QUIET, *WEBGL]
        browser = playwright.chromium.launch(executable_path=find_browser(), args=arguments)
        yield browser
        browser.close()


@dataclass
class Explorer:
    """An explorer that runs in a process of its own."""

    url: str
    root: Path
    process: subprocess.Popen
    output: IO[bytes] = field(repr=False)
    started: float
    """Seconds since 1970."""

    @property
    def log(self) -> str:
        """What it printed so far."""
        self.output.seek(0)
        return self.output.read().decode(errors="replace")


@contextmanager
def explorer(root: Path, *, module: bool = False) -> Iterator[Explorer]:
    """The explorer over a folder, ready to answer: by `streamlit run` in that folder, or as the module `apps`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    streamlit = ["streamlit", "run", str(CHECKOUT / "apps" / "explorer.py"), "--server.headless", "true"]
    streamlit += ["--server.port", port, "--"]
    command = ["apps", "--no-browser", "--port", port] if module else streamlit
    with TemporaryFile() as output:
        started = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--root", str(root)],
            cwd=CHECKOUT if module else root,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        running = Explorer(f"http://127.0.0.1:{port}", root, process, output, started)
        try:
            _await_health(running)
            yield running
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_health(running: Explorer) -> None:
    while time.time() < running.started + PATIENCE:
        try:
            with urllib.request.urlopen(f"{running.url}/_stcore/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if running.process.poll() is not None:
                break
        time.sleep(0.02)
    raise RuntimeError(f"the explorer did not start:\n{running.log}")


def settled(page: Page, quiet: float = 0.4) -> float:
    """Wait until the script has finished and all is drawn; since when (seconds since 1970) that is so."""
    page.evaluate("window.restingSince = undefined")
    handle = page.wait_for_function(SETTLED, arg=1000 * quiet, timeout=1000 * PATIENCE)
    return handle.json_value() / 1000


def charts(page: Page) -> list[dict]:
    """What the charts of open tabs show, each with at least one shape or a drawn scene."""
    found = page.evaluate(CHARTS)
    drawn = page.locator(".js-plotly-plot").filter(visible=True)
    for number, chart in enumerate(found):
        if chart["scenes"]:
            chart["colors"] = colors(drawn.nth(number).locator(".gl-container [id^=scene] canvas").first)
            assert chart["colors"] > 100, f"the scene of chart {number} is empty: {chart}"
        else:
            assert chart["marks"], f"chart {number} shows nothing: {chart}"
    return found


def colors(locator: Locator) -> int:
    """How many colours a part of the page has."""
    picture = Image.open(BytesIO(locator.screenshot())).convert("RGB")
    return len(picture.getcolors(maxcolors=picture.width * picture.height))


def opened(page: Page, url: str = "") -> list[dict]:
    """Open a page, or wait for the one that is opening: no exception, no error, and charts with marks on them."""
    if url:
        page.goto(url)
    settled(page)
    for box in ("stException", "stAlertContentError"):
        found = page.get_by_test_id(box)
        assert not found.count(), f"{page.url}: {found.first.inner_text()}"
    return charts(page)


def go(page: Page, name: str) -> list[dict]:
    """Click on a page's name and wait for all of it, as `opened` does."""
    page.get_by_test_id("stSidebarNavLink").filter(has_text=name).click()
    page.get_by_role("heading", name=name, exact=True).wait_for()
    return opened(page)


def turn_to(page: Page, tab: str) -> list[dict]:
    """Click on a tab and wait for the chart, picture or table in it, as `opened` does."""
    page.get_by_role("tab", name=tab, exact=True).click()
    shown = page.locator(".js-plotly-plot, [data-testid=stDataFrame], [data-testid=stImage]").filter(visible=True)
    page.get_by_role("tabpanel", name=tab, exact=True).locator(shown).first.wait_for()
    return opened(page)


def whole(page: Page, path: Path, most: int = 4000) -> Path:
    """A picture of the whole page, not only of what a window shows of it."""
    size = page.viewport_size
    content = page.get_by_test_id("stMain").evaluate("main => main.scrollHeight")
    page.set_viewport_size({"width": size["width"], "height": max(size["height"], min(most, content))})
    settled(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path)
    page.set_viewport_size(size)
    return path
