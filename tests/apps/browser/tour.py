"""The explorer's pictures in docs, and a short tour through it, from the results that ship: `make pictures`."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Page

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))
from browsing import CHECKOUT, PATIENCE, explorer, go, launched, opened, turn_to  # noqa: E402

from apps.context import COLORS  # noqa: E402

SHIPPED = CHECKOUT / "data_cache" / "results" / "shipped"
DOCS = CHECKOUT / "docs"
WINDOW = {"width": 1280, "height": 980}
WIDTH = 900
"""Of the tour, in pixels."""
STAY = 1600
"""Milliseconds that a page of the tour stays."""


class Tour:
    """Pictures one after the other, each with its time."""

    def __init__(self, page: Page):
        self.page = page
        self.pictures: list[Image.Image] = []
        self.times: list[int] = []

    def look(self, milliseconds: int = STAY) -> Image.Image:
        """Take what the window shows, with nothing under the mouse."""
        self.page.mouse.move(WINDOW["width"] - 2, 2)
        picture = Image.open(BytesIO(self.page.screenshot(timeout=PATIENCE * 1000))).convert("RGB")
        self.pictures.append(picture.resize((WIDTH, WIDTH * picture.height // picture.width), Image.Resampling.LANCZOS))
        self.times.append(milliseconds)
        return picture

    def tab(self, name: str) -> None:
        """Open a tab of the page."""
        turn_to(self.page, name)
        self.look()

    def keep(self, name: str) -> None:
        """Take what the window shows, and write it into docs too."""
        self.look().save(DOCS / f"explorer_{name}.png", optimize=True)

    def write(self, path: Path) -> None:
        """The animation; what does not change from one picture to the next takes no room."""
        first, *others = map(_few_colors, self.pictures)
        first.save(path, save_all=True, append_images=others, duration=self.times, loop=0, optimize=True)


def _few_colors(picture: Image.Image) -> Image.Image:
    """The picture with a palette in which the models' colours are, however few pixels have them."""
    band = picture.height // 12
    with_colors = Image.new("RGB", (picture.width, picture.height + band * len(COLORS)))
    with_colors.paste(picture)
    for place, color in enumerate(COLORS):
        with_colors.paste(color, (0, picture.height + place * band, picture.width, picture.height + (place + 1) * band))
    palette = with_colors.quantize(255, Image.Quantize.MEDIANCUT, kmeans=1)
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def walk(page: Page) -> Tour:
    """Through all pages."""
    tour = Tour(page)
    tour.look()
    go(page, "Variance")
    tour.look()
    go(page, "Fourier")
    tour.look()
    tour.tab("Power")
    go(page, "Robustness")
    tour.keep("robustness")
    tour.tab("Fourier heat map")
    go(page, "Hessian")
    tour.keep("hessian")
    tour.tab("Numbers")
    go(page, "Landscape")
    tour.keep("landscape")
    rail = page.locator(".slider-rail-touch-rect").first
    rail.scroll_into_view_if_needed()
    length = rail.bounding_box()["width"]
    for part in (0.2, 0.4, 0.6, 0.8, 0.99):  # frame after frame
        rail.click(position={"x": part * length, "y": 10}, force=True)
        page.wait_for_timeout(1000)
        tour.look(500)
    go(page, "Compare")
    tour.keep("compare")
    go(page, "New run")
    tour.look()
    return tour


def main() -> None:
    """Make them all."""
    with TemporaryDirectory() as folder, launched() as browser:
        copytree(SHIPPED, Path(folder, "shipped"))
        with explorer(Path(folder)) as running:
            window = browser.new_context(viewport=WINDOW, color_scheme="light")
            page = window.new_page()
            opened(page, running.url)
            walk(page).write(DOCS / "explorer.gif")


if __name__ == "__main__":
    main()
