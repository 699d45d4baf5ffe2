"""A memory budget is checked before anything is loaded where the size is known, and after the first copy where not."""

from __future__ import annotations

import pytest
import torch

import kit
from kit import errors
from tests.models import Wide


class Linear(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(width, width, bias=False)

    def forward(self, rows):
        return self.layer(rows)


def handler_of(tmp_path):
    from kit.handlers import PytorchModelHandlerTensor

    path = tmp_path / "weights.pt"
    torch.save(Linear(1000).state_dict(), path)  # 4 MB
    return PytorchModelHandlerTensor(
        state_dict_path=str(path), model_class=Linear, model_params={"width": 1000}, device="cpu"
    )


def test_copies_that_do_not_fit_are_refused_before_a_process_is_started(tmp_path, monkeypatch):
    from kit.engine import topology

    handler = handler_of(tmp_path)
    monkeypatch.setattr(topology.Topology, "start", lambda *_: pytest.fail("started"))
    with pytest.raises(errors.BudgetExceeded, match=r"4 copies .*4 × 4 MB = 16 MB.*10 MB.*can only fit 2.*'large'"):
        kit.deploy(handler, processes=4, memory_budget="10MB")
    with pytest.raises(errors.BudgetExceeded, match="No mode fits"):
        kit.deploy(handler, mode="large", memory_budget="1MB")


def test_a_size_that_is_not_known_is_measured_on_the_first_copy():
    with pytest.raises(errors.BudgetExceeded, match="can only fit 1"):
        kit.deploy(Wide(20, width=512), processes=3, memory_budget="30MB")


def test_a_switch_beyond_the_budget_is_refused_and_the_old_mode_serves_on(tmp_path):
    handler = handler_of(tmp_path)
    with kit.deploy(handler, mode="large", memory_budget="10MB", processes=3) as deployment:
        with pytest.raises(errors.BudgetExceeded, match="'default' with processes=2"):
            deployment.switch("default")
        assert deployment.mode == "large"
        assert len(deployment.predict(torch.rand(3, 1000))) == 3
        deployment.switch("default", processes=2)
        assert deployment.mode == "default"


class Underestimated(Wide):
    """Expects its model to be smaller than it is."""

    def __init__(self, expected_bytes: int, **options):
        super().__init__(20, width=512, **options)  # 20 MB
        self.expected_bytes = expected_bytes

    def estimate_model_bytes(self):
        return self.expected_bytes


@pytest.mark.parametrize(
    ("mode", "options", "budget", "words"),
    [
        ("default", {"processes": 2}, "30MB", r"2 copies .*2 × 19\.9 MB = .*30 MB.*can only fit 1"),
        ("medium", {"model_copies": 2}, "30MB", r"2 copies .*2 × 19\.9 MB = .*30 MB.*can only fit 1"),
        ("large", {}, "15MB", "No mode fits"),
        ("shared", {}, "15MB", "No mode fits"),
    ],
)
def test_a_model_heavier_than_expected_is_refused_after_loading_with_the_numbers(mode, options, budget, words):
    with pytest.raises(errors.BudgetExceeded, match=words) as caught:
        kit.deploy(Underestimated(1_000_000), mode=mode, memory_budget=budget, **options)
    assert "takes 19.9 MB" in str(caught.value)
    assert "1 MB were expected" in str(caught.value)


@pytest.mark.parametrize("mode", ["default", "medium", "large", "shared"])
def test_an_update_to_a_model_heavier_than_expected_keeps_the_old_one(mode):
    rows = list(torch.rand(4, 512))
    with kit.deploy(Wide(4, width=512), mode=mode, memory_budget="15MB", sample=rows) as deployment:
        before = deployment.predict(rows)
        with pytest.raises(errors.BudgetExceeded, match=r"takes 19\.9 MB"):
            deployment.update_model(Underestimated(1_000_000))
        after = deployment.predict(rows)
        assert deployment.mode == mode
        for old, new in zip(before, after, strict=True):
            assert torch.allclose(old.inference, new.inference, atol=1e-6)
