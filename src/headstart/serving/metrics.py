"""Metrics of the server in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

__all__ = ["Metrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one server.

    Examples
    --------
    >>> metrics = Metrics()
    >>> metrics.count_request("/predict", 200, 0.02)
    >>> 'headstart_requests_total{path="/predict",status="200"} 1.0' in metrics.text()
    True
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "headstart_requests", "Requests by status.", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "headstart_request_seconds",
            "Seconds from the first byte to the response.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self._images = Counter(
            "headstart_images", "Images that were predicted.", ["model"], registry=registry
        )
        self._batches = Histogram(
            "headstart_batch_images",
            "Images in a batch.",
            buckets=(1, 2, 3, 4, 8, 16),
            registry=registry,
        )
        self._reloads = Counter(
            "headstart_model_reloads",
            "Models that were loaded again.",
            ["model", "result"],
            registry=registry,
        )
        self._waiting = Gauge("headstart_waiting_images", "Images that wait.", registry=registry)
        ProcessCollector(registry=registry)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a response. ``path`` must be one of the server's own, not the client's text."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_images(self, model: str, number: int) -> None:
        """Count predicted images of a model."""
        self._images.labels(model).inc(number)

    def count_batch(self, number: int) -> None:
        """Count a batch of this many images."""
        self._batches.observe(number)

    def count_reload(self, model: str, is_loaded: bool) -> None:
        """Count an attempt to load a model again."""
        self._reloads.labels(model, "loaded" if is_loaded else "failed").inc()

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Report the number of waiting images by a function."""
        self._waiting.set_function(length)

    def text(self) -> str:
        """Return all values as text."""
        return generate_latest(self._registry).decode()
