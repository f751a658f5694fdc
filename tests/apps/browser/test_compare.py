"""Compare, clicked through: each analysis that the chosen runs share has its differences, with errors."""

from browsing import go, opened


def test_each_shared_analysis_has_differences_with_errors(site, page, pictures):
    opened(page, site.url)
    go(page, "Compare")
    for name in ["Fourier", "Robustness", "Hessian", "Landscape", "Variance"]:
        page.get_by_test_id("stMain").get_by_role("radio", name=name).click()
        page.locator(f".st-key-compare_{name.lower()} .js-plotly-plot").wait_for()
        (chart, *_) = opened(page)
        assert chart["marks"] > 2
        table = page.get_by_test_id("stDataFrame").first.locator("table")  # what a screen reader is given
        for heading in ("difference", "±"):
            table.get_by_text(heading).first.wait_for(state="attached")
        page.screenshot(path=pictures / f"compare_{name.lower()}.png")


def test_one_run_has_nothing_to_be_compared_with(site, page):
    opened(page, f"{site.url}/?run=resnet_mcdo_18")
    assert not page.get_by_test_id("stSidebarNavLink").filter(has_text="Compare").count()
