"""The panel's view of models by key in a real browser: the slider, with the keyboard."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Opened
from tests.browser.page import notebook
from tests.browser.panel import ask, telling

PANEL = """
import numpy as np
import kit
from widgets import ServingPanel

class Weighing(kit.ModelHandler):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor
    def load_model(self):
        return np.full(1_000_000, self.factor, np.float32)
    def run_inference(self, batch, model, inference_args=None):
        return [float(example * model[0]) for example in batch]

pairs = [(f"shop {(n * n) % 40}", n) for n in range(400)]  # nine of them come
mappings = [kit.KeyModelMapping([f"shop {n}"], Weighing(n)) for n in range(40)]
deployment = kit.deploy(kit.KeyedModelHandler(mappings, memory_budget="41.2MB"), processes=2)
panel = ServingPanel(deployment, examples=pairs)
panel.start_load(20)
panel
"""
ASK = telling("""[
    deployment.settings.memory_budget or deployment.handler.memory_budget,
    deployment.counters["failed"],
    [event.text for event in deployment.snapshot().events if event.kind in ("resize", "switch")],
]""")


@pytest.mark.parametrize("dark", [False, True])
def test_models_by_key(opened: Opened, dark: bool) -> None:
    page = opened(dark=dark, height=1900)
    (page.server.work / "keyed.ipynb").write_text(json.dumps(notebook(PANEL)))
    page.open("keyed.ipynb")
    page.run_all(120)
    view = page.locate(".kit-models-by-key").first
    expect(view).to_be_visible()
    expect(view.locator(".kit-models tbody tr")).to_have_count(21)
    page.wait_for(lambda: page.locate("svg .kit-slot").count() >= 9, 60, "slots")
    expect(view.locator(".kit-model-budget")).to_contain_text("of 41.2 MB loaded")
    expect(view.locator(".kit-model-facts")).to_contain_text("resident")
    page.shot(f"keyed-{'dark' if dark else 'light'}", ".kit-models-by-key")
    number = view.locator(".widget-readout")
    number.click()
    page.page.keyboard.press("Enter")  # as it is
    page.page.keyboard.press("Tab")
    assert ask(page, ASK) == [41_200_000, 0, []]
    page.show_cell(0)
    handle = view.get_by_role("slider")
    handle.focus()
    for _ in range(3):
        handle.press("ArrowRight")
    page.wait_for(lambda: ask(page, ASK)[0] > 41_200_000, 60, "another budget")
    assert ask(page, ASK)[1] == 0
    assert page.errors == []
