"""The landscape's frames play inside the chart, and nobody but the visitor turns the camera."""

import pytest
from browsing import opened

SCENE = "[...document.querySelectorAll('.js-plotly-plot')].find(chart => chart._fullLayout.scene)"
CAMERA = f"() => {SCENE}._fullLayout.scene._scene.getCamera()"
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
    page.wait_for_timeout(500)  # it glides to a stop
    return page.evaluate(CAMERA)


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
    assert landscape.evaluate(CAMERA) == camera
