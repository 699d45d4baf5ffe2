"""Serve machine-learning models on this machine, in any serving mode, from a notebook.

    predictions = examples | kit.RunInference(handler)
    deployment = kit.deploy(handler, mode="shared", processes=4)
    deployment.switch("large")

Names are loaded when first used, so that importing the kit costs next to nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "BatchSizer": "kit.batching",
    "Comparison": "kit.comparison",
    "Deployment": "kit.deployment",
    "Failure": "kit.engine.requests",
    "KeyModelMapping": "kit.keyed",
    "KeyModelPathMapping": "kit.keyed",
    "KeyedModelHandler": "kit.keyed",
    "KeyedModels": "kit.engine.keyed_models",
    "KitError": "kit.errors",
    "LoadGenerator": "kit.load",
    "MaybeKeyedModelHandler": "kit.keyed",
    "ModelHandler": "kit.handler",
    "ModelManager": "kit.manager",
    "PredictionResult": "kit.handler",
    "Predictions": "kit.predictions",
    "RunInference": "kit.transform",
    "Settings": "kit.settings",
    "close_all": "kit.deploying",
    "compare": "kit.compare",
    "connect": "kit.daemon.client",
    "deploy": "kit.deploying",
    "simulate": "kit.simulate",
    "deployments": "kit.daemon.client",
    "load_ipython_extension": "kit.magics",
    "_in_our_form": "kit.beams_keyed",
    "_serve_named": "kit.daemon.client",
}
_MODULES = ("assets", "beam", "errors", "handlers")

if TYPE_CHECKING:
    from kit import assets, beam, errors, handlers
    from kit.beams_keyed import _in_our_form as _in_our_form
    from kit.compare import compare
    from kit.comparison import Comparison
    from kit.daemon.client import _serve_named as _serve_named
    from kit.daemon.client import connect, deployments
    from kit.deploying import close_all, deploy
    from kit.deployment import Deployment
    from kit.engine.keyed_models import KeyedModels
    from kit.engine.requests import Failure
    from kit.errors import KitError
    from kit.handler import ModelHandler, PredictionResult
    from kit.keyed import KeyedModelHandler, KeyModelMapping, KeyModelPathMapping, MaybeKeyedModelHandler
    from kit.load import LoadGenerator
    from kit.magics import load_ipython_extension as load_ipython_extension
    from kit.manager import ModelManager
    from kit.predictions import Predictions
    from kit.settings import Settings
    from kit.simulate import simulate
    from kit.transform import RunInference

__all__ = [
    "Comparison",
    "Deployment",
    "Failure",
    "KeyModelMapping",
    "KeyModelPathMapping",
    "KeyedModelHandler",
    "KeyedModels",
    "KitError",
    "LoadGenerator",
    "MaybeKeyedModelHandler",
    "ModelHandler",
    "ModelManager",
    "PredictionResult",
    "Predictions",
    "RunInference",
    "Settings",
    "assets",
    "beam",
    "close_all",
    "compare",
    "connect",
    "deploy",
    "deployments",
    "errors",
    "handlers",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"kit.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'kit' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    # A module of the same name (kit.compare) would otherwise hide the function.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "IPython" in sys.modules:
    importlib.import_module("kit.beams_notebooks").let_pipelines_be_built()
