"""The landscape's frames play inside the chart, and nobody but the visitor turns the camera."""

import re

import pytest
from browsing import opened

SCENE = "[...document.querySelectorAll('.js-plotly-plot')].find(chart => chart._fullLayout.scene)"
CAMERA = (
    f"() => ['eye', 'center', 'up'].flatMap(name => Object.values({SCENE}._fullLayout.scene._scene.getCamera()[name]))"
)
PICTURES = """async count => {
  while (count--) await new Promise(done => requestAnimationFrame(done));
}"""
HEIGHTS = f"() => {SCENE}._fullData.filter(t => t.type === 'surface').map(t => [...t.z].map(row => [...row]))"


@pytest.fixture
def landscape(site, page):
    opened(page, f"{site.url}/landscape?run=resnet_mcdo_18")
    return page


def turn(page):
    """Drag the surface with the mouse; the camera that follows."""
    before = page.evaluate(CAMERA)
    box = page.locator(".gl-container [id^=scene] canvas").filter(visible=True).first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 90, y + 30, steps=4)
    page.mouse.up()
    page.wait_for_function(f"before => JSON.stringify(({CAMERA})()) !== JSON.stringify(before)", arg=before)
    while (now := page.evaluate(CAMERA)) != before:  # it glides to a stop, a picture at a time
        before = now
        page.evaluate(PICTURES, 10)
        page.wait_for_timeout(1000)
    return pytest.approx(now)


def test_frames_play_and_the_camera_stays(landscape):
    camera, before = turn(landscape), landscape.evaluate(HEIGHTS)
    landscape.evaluate(
        f"() => {{ window.played = []; {SCENE}.on('plotly_animatingframe', e => played.push(e.name)); }}"
    )
    landscape.locator(".updatemenu-button").filter(has_text="play").first.click()
    landscape.wait_for_function("() => new Set(played).size > 1")
    assert landscape.evaluate(HEIGHTS) != before
    landscape.locator(".updatemenu-button").filter(has_text="pause").first.click()
    assert landscape.evaluate(CAMERA) == camera


def test_another_setting_leaves_the_camera(landscape):
    camera, before = turn(landscape), landscape.evaluate(HEIGHTS)
    landscape.get_by_test_id("stMain").get_by_text("Accuracy", exact=True).first.click()
    landscape.wait_for_function(f"before => JSON.stringify(({HEIGHTS})()) !== JSON.stringify(before)", arg=before)
    opened(landscape)
    landscape.evaluate(PICTURES, 10)
    assert landscape.evaluate(CAMERA) == camera


def test_a_click_on_the_contours_moves_the_point(landscape):
    said = landscape.get_by_text(re.compile("^At x = "))
    before = said.inner_text()
    box = landscape.locator(".cartesianlayer .subplot").first.bounding_box()
    landscape.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 0.25 * box["height"])
    landscape.wait_for_function("before => !document.body.innerText.includes(before)", arg=before)
    opened(landscape)
    place = dict(re.findall(r"(\w) = (-?[\d.]+)", said.inner_text()))
    assert float(place["x"]) == pytest.approx(-0.5, abs=0.3) and float(place["y"]) == pytest.approx(0.5, abs=0.3)
    assert f"landscape_x={place['x']}" in landscape.url
