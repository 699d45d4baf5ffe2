"""The panel in a real browser, used with a mouse: what it says is compared with what the kernel says."""

from __future__ import annotations

import json

import psutil
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Opened
from tests.browser.jupyter import ROOT
from tests.browser.page import copy_notebook
from tests.browser.panel import ASK, SWITCH_S, Panel, ask, small

LESSON = ROOT / "notebooks" / "02_large_model.ipynb"
START_S = 400.0


@pytest.mark.timeout(900)
def test_the_lesson_switches_with_clicks_under_load(opened: Opened) -> None:
    """Lesson 02 up to and with its panel, which is what there is to click; `make test` runs all of its cells."""
    page = opened(height=1300)
    count = copy_notebook(LESSON, page.server.work / "lesson.ipynb", upto="ServingPanel(deployment", extra=ASK)
    page.open("lesson.ipynb")
    page.run_all(START_S)
    panel = Panel(page, count - 2)
    panel.wait_for_mode("default")
    assert panel.topology.count("holds a copy of the model") == 2
    panel.wait_for_answers(1)
    page.shot("02-default", ".kit-panel")

    panel.switch("large")
    page.shot("02-large", ".kit-panel")
    assert panel.topology.count("holds a copy of the model") == 1
    assert "host 0: pid" in panel.topology
    panel.switch("shared")
    assert "weights segment:" in panel.topology
    page.shot("02-shared", ".kit-panel")

    # The switch is told once what it replaced has finished, which is after the first answers of the new mode.
    page.wait_for(lambda: "switch: large → shared" in ask(page)["text"], 60, "the end of the switch")
    said = ask(page)
    assert said["modes"] == ["shared"]
    assert said["seen"] == ["default", "large", "shared"]
    assert "switch: default → large" in said["text"]
    assert {str(pid) for pid in said["pids"]} > panel.pids
    assert said["failed"] == 0
    first = next(at for at, rate in enumerate(said["rates"]) if rate)
    window = said["rates"][first:]
    # An answer of this model may take a second, so a single second can be without one.
    assert all(any(window[at : at + 5]) for at in range(len(window) - 4)), window
    assert page.errors == []


@pytest.mark.timeout(300)
def test_after_a_kernel_restart_the_panel_works_again_and_the_old_processes_are_gone(opened: Opened) -> None:
    page = opened(height=1300)
    small(page.server.work)
    page.open("small.ipynb")
    page.run_all()
    panel = Panel(page, 0)
    panel.switch("large")
    before = panel.pids
    page.restart_and_run_all()
    panel = Panel(page, 0)
    panel.wait_for_mode("default")
    assert not panel.pids & before
    page.wait_for(lambda: not any(psutil.pid_exists(int(pid)) for pid in before), 30, "old processes gone")
    for mode in ("large", "shared"):
        panel.switch(mode)
    said = ask(page)
    assert said["modes"] == ["shared"]
    assert said["failed"] == 0
    first = next(at for at, rate in enumerate(said["rates"]) if rate)
    # All the way through two switches; the load may have begun, and the asking come, in mid-second.
    assert all(said["rates"][first + 1 : -1]), said["rates"]
    assert page.locate(".kit-panel").count() == 1
    assert page.errors == []


@pytest.mark.timeout(300)
def test_a_killed_worker_is_replaced_in_the_picture_in_the_dark(opened: Opened) -> None:
    page = opened(dark=True, height=1300)
    small(page.server.work)
    page.open("small.ipynb")
    page.run_all()
    panel = Panel(page, 0)
    panel.wait_for_mode("default")
    assert page.locate("body").get_attribute("data-jp-theme-light") == "false"
    panel.wait_for_answers(1)
    before = panel.pids
    panel.root.get_by_role("button", name="Kill worker 0").click()
    page.wait_for(lambda: len(panel.pids) == 2 and panel.pids != before, SWITCH_S, "another pid drawn")
    panel.wait_for_answers(20)
    assert "0" in panel.words("kit-failed")
    panel.switch("shared")
    page.shot("panel-dark", ".kit-panel")
    page.shot("panel-dark-page")
    said = ask(page)
    assert said["modes"] == ["shared"]
    assert "death" in said["text"]
    assert page.errors == []


@pytest.mark.timeout(300)
def test_the_keyboard_alone_switches_and_starts_the_load(opened: Opened) -> None:
    page = opened(height=1300)
    small(page.server.work, load=False)
    page.open("small.ipynb")
    page.run_all()
    panel = Panel(page, 0)
    panel.wait_for_mode("default")
    keys = page.page.keyboard
    page.page.locator(".kit-panel [role=tab]").first.focus()
    for name, part in (("ArrowRight", ".kit-compare"), ("ArrowLeft", ".kit-live")):
        keys.press(name)
        keys.press("Enter")
        expect(panel.root.locator(part)).to_be_visible()
    # JupyterLab takes the arrows for itself in most places, but every radio button is a stop of its own.
    page.tab_to("default:")
    page.tab_to("large:", most=2)
    keys.press("Space")
    expect(panel.root.locator(".kit-chosen").first).to_contain_text("not applied yet: large")
    page.tab_to("Apply")
    page.shot("panel-keyboard", ".kit-panel")
    keys.press("Enter")
    panel.wait_for_mode("large")
    page.tab_to("Start load")
    keys.press("Enter")
    expect(panel.root.locator(".kit-load").first).to_contain_text("running")
    panel.wait_for_answers(4)
    said = ask(page)
    assert said["modes"] == ["large"]
    assert said["failed"] == 0
    assert page.errors == []


@pytest.mark.timeout(300)
def test_notebook_7_renders_the_panel(opened: Opened) -> None:
    page = opened(height=1300)
    small(page.server.work)
    page.open("small.ipynb", app="notebook")
    page.run_all()
    panel = Panel(page, 0)
    panel.switch("large")
    page.shot("panel-notebook-7")
    assert ask(page)["modes"] == ["large"]
    assert page.errors == []


@pytest.mark.timeout(300)
def test_a_saved_notebook_without_a_kernel_shows_the_static_twin(opened: Opened) -> None:
    page = opened(height=1300)
    small(page.server.work)
    page.open("small.ipynb")
    page.run_all()
    panel = Panel(page, 0)
    panel.switch("shared")
    assert not page.locate(".kit-twin").first.is_visible()
    page.run_cell(-1)
    page.add_and_run("deployment.close()")
    page.show_cell(0)
    expect(page.locate(".kit-panel")).to_have_count(0, timeout=SWITCH_S * 1000)
    expect(page.locate(".kit-twin").first).to_be_visible(timeout=SWITCH_S * 1000)
    expect(page.locate(".kit-twin").first).to_contain_text("mode shared (closed)")
    page.shot("panel-closed")
    page.save()

    saved = page.server.work / "small.ipynb"
    written = json.loads(saved.read_text(encoding="utf-8"))
    # A kernel that isn't installed, for a language that none is for: the page asks, and we take none.
    written["metadata"] = {"kernelspec": {"name": "gone", "display_name": "gone", "language": "gone"}}
    (page.server.work / "saved.ipynb").write_text(json.dumps(written), encoding="utf-8")
    page.open("saved.ipynb", kernel=False)
    page.choose_no_kernel()
    # Where the widget was stands one line, not the inside of a widget.
    expect(page.locate(".jp-Notebook")).to_contain_text("ServingPanel; without its kernel", timeout=SWITCH_S * 1000)
    assert "VBox(" not in page.locate(".jp-Notebook").inner_text()
    twin = page.locate(".kit-twin").first
    expect(twin).to_be_visible(timeout=SWITCH_S * 1000)
    expect(twin).to_contain_text("mode shared")
    expect(twin).to_contain_text("switch: default → shared")
    assert twin.locator("img").evaluate("image => image.complete && image.naturalWidth > 300")
    assert saved.stat().st_size < 300_000
    page.shot("panel-static-twin")
    assert len(page.server.kernels()) == 1, "the one of the first page only"


@pytest.mark.timeout(300)
def test_a_panel_that_was_closed_says_why_beside_one_that_lives(opened: Opened) -> None:
    page = opened(height=2800)
    small(page.server.work)
    page.open("small.ipynb")
    page.run_all()
    Panel(page, 0).wait_for_mode("default")
    handler = "kit.ModelHandler.from_callable(lambda: 2, lambda batch, model: batch)"
    page.add_and_run(f"other = kit.deploy({handler}, processes=1)\nServingPanel(other)")
    expect(page.locate(".kit-panel")).to_have_count(2, timeout=SWITCH_S * 1000)
    page.add_and_run("deployment.close()")
    page.show_cell(0)
    expect(page.locate(".kit-panel")).to_have_count(1, timeout=SWITCH_S * 1000)
    twins = page.locate(".kit-twin")
    expect(twins.first).to_be_visible(timeout=SWITCH_S * 1000)
    expect(twins.first).to_contain_text("the deployment is closed")
    assert not twins.nth(1).is_visible()
    page.shot("panel-closed-beside")
    assert page.errors == []
