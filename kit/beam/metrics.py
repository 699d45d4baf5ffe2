"""Beam's metrics of RunInference, under its names and with its units."""

from __future__ import annotations

from apache_beam.metrics import Metrics


class Reporter:
    """Counts into the metrics of the running pipeline.

    Args:
        namespace: of all names.
        prefix: name of the model version, when a side input gave it.
    """

    def __init__(self, namespace: str, prefix: str = "") -> None:
        start = f"{prefix}_" if prefix else ""
        self._inferences = Metrics.counter(namespace, f"{start}num_inferences")
        self._failed = Metrics.counter(namespace, f"{start}failed_batches_counter")
        self._size = Metrics.distribution(namespace, f"{start}inference_request_batch_size")
        self._bytes = Metrics.distribution(namespace, f"{start}inference_request_batch_byte_size")
        self._latency_us = Metrics.distribution(namespace, f"{start}inference_batch_latency_micro_secs")
        self._model_bytes = Metrics.distribution(namespace, f"{start}model_byte_size")
        self._load_ms = Metrics.distribution(namespace, f"{start}load_model_latency_milli_secs")

    def answered(self, count: int) -> None:
        """Examples that were answered."""
        self._inferences.inc(count)

    def batch(self, size: int, size_bytes: int, seconds: float) -> None:
        """A batch that was computed."""
        self._latency_us.update(int(seconds * 1e6))
        self._size.update(size)
        self._bytes.update(int(size_bytes))

    def failed(self, count: int = 1) -> None:
        """Batches that failed."""
        self._failed.inc(count)

    def loaded(self, seconds: float, size_bytes: int) -> None:
        """A model was loaded."""
        self._load_ms.update(int(seconds * 1e3))
        self._model_bytes.update(int(size_bytes))
