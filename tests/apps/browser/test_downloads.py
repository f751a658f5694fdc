"""What can be taken away from a chart is what it says it is."""

import csv
import io

import pytest
from browsing import charts, opened
from PIL import Image


@pytest.fixture
def taken(page, site):
    """A function that downloads the first chart of a page in one of its formats."""

    def take(name: str, kind: str):
        opened(page, f"{site.url}/{name}")
        page.get_by_test_id("stPopover").filter(has_text="Download").first.get_by_role("button").click()
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).filter(visible=True).click()
        opened(page)
        return download.value

    return take


def test_png_is_a_picture_that_is_not_empty(taken):
    download = taken("variance", "PNG")
    assert download.suggested_filename.endswith(".png")
    picture = Image.open(download.path())
    assert picture.width > 600 and len(picture.convert("L").getcolors()) > 20


@pytest.mark.parametrize(("kind", "begin"), {"SVG": b"<?xml", "PDF": b"%PDF-"}.items())
def test_vector_figures_are_of_their_kind(taken, kind, begin):
    download = taken("hessian", kind)
    assert download.suggested_filename.endswith(f".{kind.lower()}")
    assert download.path().read_bytes().startswith(begin)


def test_html_draws_the_same_chart_without_the_explorer(taken, page, context, tmp_path):
    download = taken("fourier", "HTML")
    (shown, *_) = charts(page)
    download.save_as(tmp_path / "chart.html")
    alone = context().new_page()
    alone.goto((tmp_path / "chart.html").as_uri())
    alone.wait_for_selector(".js-plotly-plot .mlayer path")
    (drawn,) = charts(alone)
    assert drawn["types"] == shown["types"]


def test_csv_holds_the_numbers_of_the_chart(taken, page):
    rows = list(csv.DictReader(io.StringIO(taken("variance", "CSV").path().read_text())))
    traces = "document.querySelector('.js-plotly-plot')._fullData"
    shown = page.evaluate(f"() => {traces}.flatMap(trace => [...trace.y]).filter(Number.isFinite)")
    told = [float(row["y"]) for row in rows if row["y"] not in ("", "nan")]
    assert len(shown) > 10 and sorted(told) == pytest.approx(sorted(shown))
