"""Bounded queue of images, and threads that predict them in small batches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from headstart.data.dataset import Sample
from headstart.errors import RequestError

__all__ = ["Batcher", "Predict"]

Predict = Callable[[Sequence[Sample]], Sequence[Any]]
"""From a batch of images to one answer for each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    predict: Predict
    sample: Sample
    future: Future[Any] = field(default_factory=Future)


class Batcher:
    """Predicts images of many requests together. Threads may share it.

    A thread that is free takes up to ``size`` images that wait for the same model. It never waits
    for a batch to fill, so a single image is not delayed.

    Parameters
    ----------
    workers : int
        Number of threads that predict.
    size : int
        Most images in a batch.
    capacity : int
        Most images that wait.
    prepare_thread : callable, optional
        Called once in each thread.
    on_batch : callable, optional
        Called with the number of images of each batch.

    Examples
    --------
    >>> batcher = Batcher(workers=1, size=4, capacity=8)
    >>> waiting = batcher.submit(lambda samples: ["cat"] * len(samples), [Sample(image=b"")])
    >>> waiting[0].result()
    'cat'
    >>> batcher.close()
    """

    def __init__(
        self,
        *,
        workers: int,
        size: int,
        capacity: int,
        prepare_thread: Callable[[], None] = lambda: None,
        on_batch: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.size = size
        self.capacity = capacity
        self._prepare_thread = prepare_thread
        self._on_batch = on_batch
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"predict-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def is_running(self) -> bool:
        """Whether it takes images and all its threads live."""
        return not self._is_closed and all(thread.is_alive() for thread in self._threads)

    def submit(self, predict: Predict, samples: Sequence[Sample]) -> list[Future[Any]]:
        """Queue the images of one request, all of them or none.

        Parameters
        ----------
        predict : callable
            Predicts a batch. Batches hold images of one such function only.
        samples : sequence of Sample

        Returns
        -------
        list of Future
            One for each image, in order. A cancelled image is not predicted.

        Raises
        ------
        RequestError
            If the queue is full (429), or closed (503).
        """
        jobs = [_Job(predict=predict, sample=sample) for sample in samples]
        with self._changed:
            if self._is_closed:
                raise RequestError(
                    "The server stops, so it takes no more images. Send the request again later.",
                    status=503,
                    retry_after=5,
                )
            if len(self._jobs) + len(jobs) > self.capacity:
                raise RequestError(
                    f"{len(self._jobs)} images wait already, and {self.capacity} may wait. Send "
                    f"the {len(jobs)} images again later, or start the server with a larger "
                    "--queue.",
                    status=429,
                    retry_after=1,
                )
            self._jobs.extend(jobs)
            self._changed.notify(len(jobs))
        return [job.future for job in jobs]

    def close(self) -> None:
        """Take no more images, predict those that wait, and end the threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        self._prepare_thread()
        while batch := self._next_batch():
            waiting = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if waiting:
                self._on_batch(len(waiting))
                _predict_batch(waiting)

    def _next_batch(self) -> list[_Job]:
        """Wait for images; the list is empty when the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._is_closed)
            batch: list[_Job] = []
            while self._jobs and len(batch) < self.size:
                if batch and self._jobs[0].predict is not batch[0].predict:
                    break
                batch.append(self._jobs.popleft())
            return batch


def _predict_batch(jobs: Sequence[_Job]) -> None:
    try:
        answers = jobs[0].predict([job.sample for job in jobs])
        for job, answer in zip(jobs, answers, strict=True):
            job.future.set_result(answer)
    except BaseException as error:  # noqa: BLE001 - the request that waits for it raises it
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(error)
