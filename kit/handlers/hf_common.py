"""What the Hugging Face and sentence-transformers handlers share: errors, quiet loading, what to preload."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from kit.errors import KitError, WeightsFileError
from kit.handlers import paths

#: What the first load and call of a transformers model imports, whatever the model.
_ALWAYS = (
    "transformers.generation.utils",
    "transformers.masking_utils",
    "transformers.modeling_layers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)


def preload(model: str, *extra: str) -> tuple[str, ...]:
    """Modules of transformers to import before forking, those of a local model's architecture too."""
    kind = model_type(model)
    own = tuple(f"transformers.models.{kind}.{part}_{kind}" for part in ("modeling", "tokenization")) if kind else ()
    return (*paths.modules("torch"), *paths.modules("transformers", (*extra, *_ALWAYS, *own)))


def model_type(model: str) -> str:
    """The architecture in the ``config.json`` of a local model folder, such as "bert"; else empty."""
    kind = _config(model).get("model_type", "")
    return kind.replace("-", "_") if isinstance(kind, str) else ""


def names_no_task(folder: str) -> bool:
    """Whether a model in a local folder leaves open which task it is for; models on the hub tell theirs there."""
    return not _config(folder).get("custom_pipelines")


def _config(model: str) -> dict[str, Any]:
    """The ``config.json`` of a local model folder, {} where there is none."""
    try:
        with open(os.path.join(os.path.expanduser(model), "config.json"), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_folder(name: str) -> bool:
    """True of a local folder or the URL of one, False of a name on the hub."""
    local = name.startswith(("/", ".", "~")) or os.path.exists(os.path.expanduser(name))
    return local or paths.is_url(name)


@contextlib.contextmanager
def opened(name: str) -> Iterator[str]:
    """`name` as transformers takes it: a local folder, or a name on the hub.

    Raises:
        WeightsFileError: it doesn't exist, or can't be loaded; the message says which was tried.
        MissingExtra: the URL's protocol needs a package that isn't installed.
    """
    if is_folder(name):
        with paths.local(name, "model folder") as folder, _explained(name, hub=False):
            yield folder
    else:
        with _explained(name, hub=True):
            yield name


@contextlib.contextmanager
def _explained(name: str, hub: bool) -> Iterator[None]:
    try:
        with _no_bars():
            yield
    except (KitError, ImportError, MemoryError):
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        if hub and isinstance(error, (OSError, RuntimeError)):
            message = (
                f"The model {name!r} is neither a folder here ({os.getcwd()}) nor could it be fetched from the model "
                f"hub: {first} Give the path of a local folder, or check the name and the connection."
            )
        else:
            message = f"The model {name!r} can't be loaded: {type(error).__name__}: {first}"
        raise WeightsFileError(message) from error


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """transformers' "Loading weights" bars would fill the logs of workers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def need_transformers() -> Any:
    """The transformers package.

    Raises:
        MissingExtra: it or torch isn't installed.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise paths.needs("transformers", "transformers torch") from error
    return transformers
