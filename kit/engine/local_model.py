"""Calling a handler on a model in this process, the fastest way that it offers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kit.checks import check_prediction_count, list_of_predictions
from kit.engine.codec import Rows


class Computed(NamedTuple):
    """What a model made of a batch: bare inferences in order, by which model, in how many seconds."""

    values: Any  # list or Rows
    model_id: str | None
    raw: bool  # True when run_inference returned bare values, not PredictionResults
    seconds: float = 0.0


Compute = Callable[[Any, Mapping[str, Any] | None], Computed]


class LocalModel:
    """Computes on a model in this process."""

    def __init__(self, handler: Any, model: Any) -> None:
        self.handler = handler
        self.model = model
        self._stacked = handler.infer_stacked if getattr(handler, "can_infer_stacked", False) else None
        self._batch = getattr(handler, "infer_batch", None)
        self._batches = getattr(handler, "infer_batches", None)

    def __call__(self, batch: Any, inference_args: Mapping[str, Any] | None) -> Computed:
        """Run inference on a list or Rows.

        Raises:
            WrongPredictionCount: not one prediction for each example.
            Exception: whatever the handler raises.
        """
        start = time.perf_counter()
        handler = self.handler
        if type(batch) is Rows:
            if self._stacked is not None:
                out = self._stacked(batch.stacked, self.model, inference_args)
                if out is not None:
                    return self._checked(Rows(out), len(batch), handler.model_id, False, start)
            batch = batch.tolist()
        if self._batch is not None:
            out = self._batch(batch, self.model, inference_args)
            if not isinstance(out, list):
                out = Rows(out)
            return self._checked(out, len(batch), handler.model_id, False, start)
        values = list_of_predictions(handler, handler.run_inference(batch, self.model, inference_args))
        # Beam's PredictionResult is another class with the same fields.
        raw = not (values and hasattr(values[0], "inference") and hasattr(values[0], "example"))
        model_id = getattr(handler, "model_id", None)
        if not raw:
            model_id = getattr(values[0], "model_id", None) or model_id
            values = [value.inference for value in values]
        return self._checked(values, len(batch), model_id, raw, start)

    def several(self, examples: Any, inference_args: Mapping[str, Any] | None, size: int) -> Computed | None:
        """Run inference on a list or Rows in batches of `size`; None when the handler can't do that in one go."""
        if self._batches is None:
            return None
        start = time.perf_counter()
        given = examples.stacked if type(examples) is Rows else examples
        out = self._batches(given, size, self.model, inference_args)
        if out is None or len(out) != len(examples):
            return None
        return Computed(Rows(out), self.handler.model_id, False, time.perf_counter() - start)

    def _checked(self, values: Any, count: int, model_id: Any, raw: bool, start: float) -> Computed:
        check_prediction_count(self.handler, values, count)
        return Computed(values, model_id, raw, time.perf_counter() - start)
