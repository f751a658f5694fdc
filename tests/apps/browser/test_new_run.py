"""An analysis started from the form is seen to finish, and its result is a click away."""

import pytest
import torch
from browsing import explorer, opened
from commands import metadata

from models import get_model, save_checkpoint


@pytest.fixture(scope="module")
def workshop(browser, tmp_path_factory):
    """An explorer over a folder that holds a tiny network and no results."""
    root = tmp_path_factory.mktemp("workshop")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_model("resnet_mcdo_18", 10, width=2)
    save_checkpoint(root / "tiny.safetensors", model, metadata("resnet_mcdo_18", width=2))
    with explorer(root) as running:
        yield running
        assert "Traceback" not in running.log, running.log


def choose(page, label: str, word: str) -> None:
    """Choose in one of the form's lists."""
    page.get_by_role("combobox", name=label, exact=True).first.fill(word)
    page.keyboard.press("Enter")
    opened(page)


def fill(page, label: str, value: object) -> None:
    box = page.get_by_label(label, exact=True).first
    box.fill(str(value))
    box.press("Enter")
    opened(page)


def start(page, workshop, analysis: str, limit: int) -> None:
    opened(page, f"{workshop.url}/new_run")
    choose(page, "Analysis", analysis)
    choose(page, "Checkpoint", "tiny")
    fill(page, "Limit", limit)
    page.locator(".st-key-new_run_start button").click()


def test_a_run_started_from_the_form_finishes_and_is_opened(workshop, page, pictures):
    start(page, workshop, "variance", 32)
    page.get_by_text("variance into tiny.h5").wait_for()
    page.reload()  # stops nothing
    page.get_by_text("done", exact=True).wait_for()
    opened(page)
    page.screenshot(path=pictures / "new_run_done.png")
    page.get_by_role("button", name="See the result").click()
    page.wait_for_url("**/variance?*run=tiny*")
    assert opened(page)


def test_a_long_run_shows_progress_and_can_be_cancelled(workshop, page, pictures):
    start(page, workshop, "fourier", 5000)
    bar = page.get_by_test_id("stProgress").filter(has_text="to go")
    bar.wait_for()
    page.screenshot(path=pictures / "new_run_running.png")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("cancelled", exact=True).wait_for()
    opened(page)


def test_no_results_yet_is_a_sentence(tmp_path, browser, page, pictures):
    with explorer(tmp_path) as running:
        opened(page, running.url)
        page.screenshot(path=pictures / "runs_none.png")
        assert "There are no run files below" in page.get_by_test_id("stMain").inner_text()
