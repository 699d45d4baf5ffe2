"""Handlers for scikit-learn estimators in pickle or joblib files."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kit.checks import check_function
from kit.errors import InvalidSetting, UnsupportedInput, WeightsFileError
from kit.handlers import paths, results

#: Modules in which most estimators live, so that unpickling one imports nothing more.
_MODULES = tuple(
    f"sklearn.{name}"
    for name in (
        "compose", "decomposition", "ensemble", "feature_extraction.text", "linear_model", "naive_bayes", "neighbors",
        "neural_network", "pipeline", "preprocessing", "svm", "tree",
    )
)  # fmt: skip


class ModelFileType(enum.Enum):
    """How the estimator was saved."""

    PICKLE = 1
    JOBLIB = 2


class _SklearnModelHandler(paths.WithModelPath):
    _extra_modules: tuple[str, ...] = ()

    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        model_file_type: ModelFileType = ModelFileType.PICKLE,
        *,
        inference_fn: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not model_uri:
            raise InvalidSetting(f"{type(self).__name__}: model_uri={model_uri!r}: give the path of the model's file.")
        # Beam's enum of the same name is as good.
        if getattr(model_file_type, "name", None) not in ModelFileType.__members__:
            raise InvalidSetting(f"model_file_type={model_file_type!r}: give ModelFileType.PICKLE or .JOBLIB.")
        check_function("inference_fn", inference_fn)
        self._model_path = paths.checked("model_uri", model_uri)
        self._model_file_type = ModelFileType[model_file_type.name]
        self._inference_fn = inference_fn
        self.preload = (*paths.modules("sklearn", _MODULES), *paths.modules("joblib"), *self._extra_modules)

    def load_model(self) -> Any:
        """The estimator.

        Raises:
            WeightsFileError: the file is missing, corrupt, needs a module that isn't here, or holds
                something without ``predict`` while there is no `inference_fn`.
            MissingExtra: scikit-learn, joblib or the URL's package isn't installed.
        """
        try:
            import sklearn  # noqa: F401
        except ImportError as error:
            raise paths.needs("scikit-learn") from error
        with paths.local_file(self._model_path, "model file") as path:
            try:
                model = self._load(path)
            except MemoryError:
                raise
            except ModuleNotFoundError as error:
                raise WeightsFileError(
                    f"The model file {self._model_path!r} needs the module {error.name!r}, which isn't installed here."
                ) from error
            except Exception as error:
                raise WeightsFileError(
                    f"The model file {self._model_path!r} can't be read as {self._model_file_type.name.lower()}, it "
                    f"may be corrupt: {type(error).__name__}: {error}"
                ) from error
        if self._inference_fn is None and not callable(getattr(model, "predict", None)):
            raise WeightsFileError(
                f"The model file {self._model_path!r} holds a {type(model).__name__}, which has no predict method: "
                "save an estimator, or give inference_fn."
            )
        return model

    def _load(self, path: str) -> Any:
        if self._model_file_type is ModelFileType.JOBLIB:
            import joblib

            return joblib.load(path)
        import pickle

        with open(path, "rb") as file:
            return pickle.load(file)

    def infer_batch(self, batch: Any, model: Any, inference_args: Mapping[str, Any] | None = None) -> Any:
        """Predictions: a numeric array [n, ...], or a list of n for labels that aren't numbers."""
        if self._inference_fn is not None:
            return self._custom(self._inference_fn, batch, model, inference_args)
        predictions = model.predict(self._join(batch), **(inference_args or {}))
        return _plain(predictions)

    def _custom(self, inference_fn: Callable[..., Any], batch: Any, model: Any, args: Any) -> Any:
        return _plain(inference_fn(model, batch, args))

    def _join(self, batch: Any) -> Any:
        raise NotImplementedError

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        """A PredictionResult for each example; `inference_args` are keyword arguments of ``predict``.

        Raises:
            WrongPredictionCount: not one prediction for each example.
        """
        return results.wrap(batch, self.infer_batch(batch, model, inference_args), self.model_id)

    @property
    def can_infer_stacked(self) -> bool:
        """True when examples may come as one array or DataFrame of n rows."""
        return self._inference_fn is None

    def infer_stacked(self, stacked: Any, model: Any, inference_args: Mapping[str, Any] | None = None) -> Any:
        """Predictions as a numeric array [n, ...] for n stacked rows; None for labels that aren't numbers."""
        predictions = self.infer_batch(stacked, model, inference_args)
        return None if isinstance(predictions, list) else predictions


def _plain(predictions: Any) -> Any:
    if hasattr(predictions, "to_numpy"):
        predictions = predictions.to_numpy()
    if hasattr(predictions, "dtype") and predictions.ndim > 0 and predictions.dtype.kind in "biufc":
        return predictions
    return results.bare(predictions)


class SklearnModelHandlerNumpy(_SklearnModelHandler):
    """An estimator whose examples are numpy arrays (or tensors) of one shape, stacked to [n, ...].

    Args:
        model_uri: file of the estimator; a local path or any fsspec URL. Unpickling runs code: load
            files that you trust only.
        model_file_type: `ModelFileType.PICKLE` or ``JOBLIB``.
        inference_fn: ``fn(model, batch, inference_args)`` that returns one prediction for each example.
        options: those of `kit.ModelHandler`.

    Raises:
        InvalidSetting: no model_uri, an unknown model_file_type.
    """

    def _join(self, batch: Any) -> Any:
        import numpy as np

        if hasattr(batch, "shape"):
            return np.asarray(batch)
        if len(batch) and hasattr(batch[0], "columns"):
            raise UnsupportedInput(
                f"{type(self).__name__} takes numpy arrays; the batch holds DataFrames of one row. Use "
                "SklearnModelHandlerPandas, or give frame.to_numpy(), whose rows are the examples."
            )
        return np.stack([np.asarray(example) for example in batch])


class SklearnModelHandlerPandas(_SklearnModelHandler):
    """An estimator whose examples are DataFrames of one row, or Series, joined to a DataFrame of n rows.

    A custom `inference_fn` may return (predictions, rows), as in Beam; the rows aren't used.

    Args and errors are those of `SklearnModelHandlerNumpy`.
    """

    _extra_modules = ("pandas",)

    def _custom(self, inference_fn: Callable[..., Any], batch: Any, model: Any, args: Any) -> Any:
        found = inference_fn(model, batch, args)
        return _plain(found[0] if isinstance(found, tuple) and len(found) == 2 else found)

    def _join(self, batch: Any) -> Any:
        import pandas as pd

        if isinstance(batch, pd.DataFrame):
            return batch
        if all(isinstance(example, pd.Series) for example in batch):
            # Rows of mixed columns are Series of objects; the columns' own types come back.
            return pd.DataFrame(list(batch)).infer_objects()
        for position, example in enumerate(batch):
            if not isinstance(example, pd.DataFrame) or len(example) != 1:
                rows = f" of {len(example)} rows" if isinstance(example, pd.DataFrame) else ""
                raise UnsupportedInput(
                    f"{type(self).__name__} takes DataFrames of one row; example {position} of the batch is a "
                    f"{type(example).__name__}{rows}."
                )
        return pd.concat(batch, axis=0)

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Bytes of the rows with their texts."""
        usage = (example.memory_usage(deep=True) for example in batch)
        return sum(int(size.sum()) if hasattr(size, "sum") else int(size) for size in usage)
