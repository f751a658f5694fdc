"""Runs are picked in the table or the sidebar, and the URL holds what is chosen."""

from urllib.parse import parse_qs, urlparse

import pytest
from browsing import go, opened


def chosen(page) -> list[str]:
    """What the sidebar says."""
    tags = page.get_by_test_id("stSidebar").get_by_test_id("stMultiSelect").locator("[data-tag]")
    return tags.all_inner_texts()


def in_url(page) -> list[str]:
    return parse_qs(urlparse(page.url).query).get("run", [])


def pick(page, row: int, so_many: int) -> None:
    """Click the box before a row of the table; then so many runs are chosen."""
    table = page.get_by_test_id("stDataFrame").first.bounding_box()
    page.mouse.click(table["x"] + 15, table["y"] + 35 * (row + 1) + 17)
    page.wait_for_url(lambda url: url.count("run=") == so_many)
    opened(page)


def test_first_visit_has_runs_chosen(site, page):
    opened(page, site.url)
    assert len(chosen(page)) == len(in_url(page)) == 3


def test_runs_picked_in_the_table_are_chosen_on_all_pages(site, page):
    opened(page, f"{site.url}/?run=shipped/resnet_mcdo_18.h5")
    assert chosen(page) == in_url(page) == ["resnet_mcdo_18"]
    pick(page, 0, 2)
    assert chosen(page) == in_url(page) == ["resnet_mcdo_18", "resnet_dnn_18"]
    go(page, "Variance")
    assert chosen(page) == in_url(page) == ["resnet_mcdo_18", "resnet_dnn_18"]


def test_a_link_shows_a_colleague_the_same(site, page, context):
    opened(page, f"{site.url}/variance")
    page.get_by_test_id("stSidebar").get_by_role("button", name="Remove").first.click()
    drawn = opened(page)
    other = context().new_page()
    assert opened(other, page.url) == drawn
    assert chosen(other) == chosen(page) and other.url == page.url


@pytest.mark.parametrize("query", ["run=nothing.h5", "run=../../etc/passwd", "variance_value=%3Cb%3E", "run="])
def test_a_link_with_nonsense_still_opens(site, page, query):
    opened(page, f"{site.url}/?{query}")
    assert page.get_by_role("heading", name="Runs", exact=True).is_visible()


def test_a_link_that_names_the_first_page_opens_it(site, page):
    opened(page, f"{site.url}/runs?run=resnet_mcdo_18")
    assert page.url == f"{site.url}/?run=resnet_mcdo_18" and not page.get_by_role("dialog").count()


def test_a_link_to_a_page_that_the_runs_do_not_hold_still_opens(site, page):
    page.goto(f"{site.url}/no_such_analysis")
    opened(page)
