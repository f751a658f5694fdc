"""The explorer as a visitor meets it, in seconds: to the first page, from page to page, with many runs.

`python tests/benchmarks/app.py` writes results/app.json and prints its table. The browser has no graphics card.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from machine import describe
from playwright.sync_api import Browser, Page
from table import RESULTS, markdown, titled

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from browsing import CHECKOUT, explorer, launched, opened, settled  # noqa: E402
from surfaces import surface  # noqa: E402

SHIPPED = CHECKOUT / "data_cache" / "results" / "shipped"
QUIET = 0.15
"""Seconds of rest after which a page counts as drawn, since the rest began; it looks for new files every 2 s."""
LIMITS = {"start": 4.0, "page change": 1.5, "runs listed": 2.0}
"""Seconds that the medians may take."""


@dataclass(frozen=True)
class Config:
    """Measure the explorer on the results that ship."""

    rounds: int = 5
    """Measurements of everything, of which the medians count."""
    files: int = 200
    """Run files in the long list."""
    points: int = 101
    """Grid points along each axis of the large surface."""
    frames: int = 6
    """Its frames."""
    quick: bool = False
    """One round and nothing kept, to see that it works."""
    out: Path = RESULTS / "app.json"
    """The JSON file."""


def visitor(browser: Browser) -> Page:
    """A window that has been nowhere before."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.set_default_timeout(60_000)
    return page


def starts(browser: Browser, root: Path, rounds: int) -> list[float]:
    """Seconds from the command to the first painted page, of a new process and a new visitor each time."""
    seconds = []
    for _ in range(rounds):
        page = visitor(browser)
        with explorer(root) as running:
            page.goto(running.url)
            seconds.append(settled(page, QUIET) - running.started)
        page.context.close()
    return seconds


def changes(browser: Browser, root: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds from the click on a page's name until all of it is drawn."""
    seconds: dict[str, list[float]] = {}
    with explorer(root) as running:
        page = visitor(browser)
        opened(page, running.url)
        links = page.get_by_test_id("stSidebarNavLink")
        names = [text.split(maxsplit=1)[1] for text in links.all_inner_texts()]  # without the icon's
        for _ in range(rounds):
            for place in [*range(1, len(names)), 0]:
                begin = time.time()
                links.nth(place).click()
                page.get_by_role("heading", name=names[place], exact=True).wait_for()
                seconds.setdefault(names[place], []).append(settled(page, QUIET) - begin)
        page.context.close()
    return seconds


def many_files(folder: Path, files: int) -> None:
    """Copies of the results that ship, under names of their own."""
    shipped = sorted(SHIPPED.glob("*.h5"))
    folder.mkdir()
    for number in range(files):
        source = shipped[number % len(shipped)]
        os.link(shutil.copy(source, folder / f".{source.name}"), folder / f"{source.stem}_{number:03}.h5")


def listed(browser: Browser, folder: Path, files: int, rounds: int) -> dict[str, list[float]]:
    """Seconds until the page of all runs lists files that were never read before.

    From the click on its name, by a visitor who saw another page when the files came, until their rows are drawn, and
    until all that is in the files is; and of a first visitor to a new process, from the address on, scripts included.
    """
    seconds: dict[str, list[float]] = {"click": [], "filled in": [], "visit": []}
    many_files(folder / "many", files)
    for _ in range(rounds):
        root = folder / "root"
        root.mkdir()
        with explorer(root) as running:
            page = visitor(browser)
            opened(page, f"{running.url}/new_run")
            (folder / "many").rename(root / "many")
            begin = time.time()
            page.get_by_test_id("stSidebarNavLink").first.click()
            page.get_by_role("heading", name="Runs", exact=True).wait_for()
            page.get_by_test_id("stDataFrame").wait_for()
            seconds["click"].append(settled(page, QUIET) - begin)
            page.get_by_text("Reading the files").wait_for(state="detached")
            seconds["filled in"].append(settled(page, QUIET) - begin)
            page.context.close()
        with explorer(root) as running:
            page = visitor(browser)
            begin = time.time()
            page.goto(running.url)
            seconds["visit"].append(settled(page, QUIET) - begin)
            page.context.close()
        (root / "many").rename(folder / "many")
        root.rmdir()
    return seconds


# Counts pictures of the page and drawn frames of the chart for some seconds while the frames play.
PLAYED = """async seconds => {
  const chart = [...document.querySelectorAll('.js-plotly-plot')].find(chart => chart._transitionData?._frames?.length);
  let frames = 0, gaps = [], last = performance.now();
  chart.on('plotly_animatingframe', () => frames++);
  const end = last + 1000 * seconds;
  await new Promise(done => {
    const tick = now => { gaps.push(now - last); last = now; now < end ? requestAnimationFrame(tick) : done(); };
    requestAnimationFrame(tick);
  });
  return {frames: frames / seconds, longest: Math.max(...gaps) / 1000, pictures: gaps.length / seconds};
}"""


def played(browser: Browser, folder: Path, config: Config) -> dict[str, float]:
    """How smoothly the frames of a large surface play, in each second."""
    surface(points=(config.points, config.points), frames=config.frames).save(folder / "large.h5")
    with explorer(folder) as running:
        page = visitor(browser)
        begin = time.time()
        opened(page, f"{running.url}/landscape?run=large")
        ready = settled(page, QUIET) - begin
        page.locator(".updatemenu-button").filter(has_text="play").first.click()
        seen = page.evaluate(PLAYED, 10)
        page.context.close()
    return {"page drawn": ready, **seen}


def app(content: dict) -> str:
    """The table in Markdown."""
    limits, seconds = content["limits"], content["seconds"]
    rows = [["from the command to the first painted page", _told(seconds["start"]), f"{limits['start']:g}"]]
    pages = seconds["page change"]
    everything = [value for values in pages.values() for value in values]
    rows.append(["page change, all pages", _told(everything), f"{limits['page change']:g}"])
    rows += [[f"page change: {name}", _told(values), f"{limits['page change']:g}"] for name, values in pages.items()]
    listed = seconds["runs listed"]
    rows.append([f"{content['files']} new run files listed", _told(listed["click"]), f"{limits['runs listed']:g}"])
    rows.append(["until all that is in them is shown", _told(listed["filled in"]), ""])
    rows.append(["listed to the first visitor of a new process, from the address on", _told(listed["visit"]), ""])
    large = content["large surface"]
    remark = (
        f"A surface of {content['points']} x {content['points']} points with {content['frames']} frames, drawn without "
        f"a graphics card: {large['frames']:.1f} frames a second, the page never stands still longer than "
        f"{large['longest']:.2f} s."
    )
    return titled("The explorer, in seconds", content, markdown(["", "median", "limit"], rows)) + f"\n{remark}"


def _told(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f}"


def main(config: Config) -> None:
    """Measure, write the JSON, print the table."""
    rounds = 1 if config.quick else config.rounds
    with launched() as browser, tempfile.TemporaryDirectory() as folder:
        root, many, large = (Path(folder, name) for name in ("root", "many", "large"))
        shutil.copytree(SHIPPED, root / "shipped")
        many.mkdir()
        large.mkdir()
        seconds = {
            "start": starts(browser, root, rounds),
            "page change": changes(browser, root, rounds),
            "runs listed": listed(browser, many, config.files, rounds),
        }
        surfaces = played(browser, large, config)
    content = {
        "machine": describe() | {"browser": "Chromium, headless, software rendering"},
        "limits": LIMITS,
        "files": config.files,
        "points": config.points,
        "frames": config.frames,
        "seconds": seconds,
        "large surface": surfaces,
    }
    if not config.quick:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(content, indent=2) + "\n")
    print(app(content))


if __name__ == "__main__":
    main(tyro.cli(Config))
