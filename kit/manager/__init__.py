"""The model manager: models by name, as many of them loaded as a budget in bytes allows."""

from kit.manager.core import ModelManager
from kit.manager.entry import Lease

__all__ = ["Lease", "ModelManager"]
