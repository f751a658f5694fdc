"""Each page as a visitor sees it: it opens, its charts have marks, nothing is cut off, in light and dark."""

import pytest
from browsing import go, opened, turn_to, whole

NAMES = ["Runs", "Variance", "Fourier", "Robustness", "Hessian", "Landscape", "Compare", "New run"]
WINDOWS = {"light": (1280, 800), "wide": (1920, 1080), "dark": (1280, 800)}

# Words of axes and headings that differ too little from what is behind them: WCAG's contrast below 3.
FAINT = """() => {
  const light = color => { const [r, g, b] = color.match(/[\\d.]+/g).map(value => {
      const part = value / 255; return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = light(getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor);
  const words = document.querySelectorAll('h2, [class$=tick] text, text[class$=title], .legendtext');
  return [...words].filter(word => word.getClientRects().length && word.textContent).filter(word => {
    const style = getComputedStyle(word), own = light(word.tagName === 'H2' ? style.color : style.fill);
    return (Math.max(own, behind) + 0.05) / (Math.min(own, behind) + 0.05) < 3;
  }).map(word => word.textContent);
}"""


@pytest.mark.parametrize("window", WINDOWS)
def test_each_page_opens_and_draws(site, context, pictures, window):
    width, height = WINDOWS[window]
    page = context(width, height, color_scheme="dark" if window == "dark" else "light").new_page()
    opened(page, site.url)
    links = page.get_by_test_id("stSidebarNavLink")
    assert [text.split()[1:] for text in links.all_inner_texts()] == [name.split() for name in NAMES]
    for name in NAMES:
        assert go(page, name) or name in ("Runs", "New run")
        assert page.get_by_test_id("stMain").evaluate("main => main.scrollWidth <= main.clientWidth"), "cut off"
        assert not page.evaluate(FAINT)
        whole(page, pictures / f"{name.lower().replace(' ', '_')}_{window}.png")


@pytest.mark.parametrize("name", ["Fourier", "Robustness", "Hessian"])
def test_each_tab_of_a_page_draws(site, page, pictures, name):
    opened(page, f"{site.url}/{name.lower()}")
    tabs = page.get_by_role("tab").all_inner_texts()
    assert len(tabs) > 2
    for place, tab in enumerate(tabs):
        turn_to(page, tab)
        whole(page, pictures / f"{name.lower()}_tab_{place}.png")
