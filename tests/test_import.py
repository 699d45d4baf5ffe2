"""Importing the kit costs next to nothing and brings no heavy library along."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

import kit

HEAVY = ["torch", "IPython", "pandas", "ipywidgets", "matplotlib", "transformers", "sklearn", "apache_beam", "numpy"]


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("statement", ["import kit", "from kit import ModelHandler, PredictionResult, KitError"])
def test_no_heavy_library_is_imported(statement: str) -> None:
    found = json.loads(
        _python(f"{statement}\nimport json, sys\nprint(json.dumps([n for n in {HEAVY} if n in sys.modules]))")
    )
    assert found == []


def test_the_engine_brings_numpy_only() -> None:
    code = f"""
import json, sys, kit
class Double(kit.ModelHandler):
    def load_model(self): return 2
    def run_inference(self, batch, model, inference_args=None): return [x * model for x in batch]
with kit.deploy(Double(), processes=1) as deployment:
    assert [1] | kit.RunInference(deployment) == [(1, 2, None)]
print(json.dumps([n for n in {HEAVY} if n in sys.modules]))
"""
    assert json.loads(_python(code)) == ["numpy"]


def test_import_takes_under_a_fifth_of_a_second() -> None:
    code = "import time; t = time.perf_counter(); import kit; print(time.perf_counter() - t)"
    assert min(float(_python(code)) for _ in range(3)) < 0.2


def test_dir_names_everything_public() -> None:
    assert set(kit.__all__) <= set(dir(kit))
    for name in ("RunInference", "deploy", "compare", "LoadGenerator", "assets", "PredictionResult", "close_all"):
        assert name in kit.__all__


def test_every_public_name_can_be_had() -> None:
    for name in kit.__all__:
        assert getattr(kit, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'RunInferense'"):
        kit.RunInferense  # type: ignore[attr-defined]


def test_the_function_compare_is_not_hidden_by_its_module() -> None:
    code = "import kit; from kit.compare import compare; print(callable(kit.compare))"
    assert _python(code).strip() == "True"
    code = "import kit; kit.compare; from kit.compare import compare; print(callable(kit.compare))"
    assert _python(code).strip() == "True"


def test_exit_ends_open_deployments_quickly() -> None:
    began = time.monotonic()
    code = """
import kit
class Double(kit.ModelHandler):
    def load_model(self): return 2
    def run_inference(self, batch, model, inference_args=None): return [x * model for x in batch]
deployment = kit.deploy(Double())
print(deployment.predict([1])[0].inference)
"""
    assert _python(code).strip() == "2"
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("mode", ["default", "large"])
def test_serving_processes_of_a_handler_of_beams_import_what_the_handler_needs(mode: str) -> None:
    code = f"""
import json, sys, kit
from apache_beam.ml.inference import base
class Imported(base.ModelHandler):
    def load_model(self): return object()
    def run_inference(self, batch, model, inference_args=None):
        return [sorted(n for n in ("torch", "scipy", "apache_beam") if n in sys.modules) for _ in batch]
with kit.deploy(Imported(), mode={mode!r}, processes=1) as deployment:
    print(json.dumps(deployment.predict([1])[0].inference))
"""
    assert json.loads(_python(code)) == ["apache_beam"]
