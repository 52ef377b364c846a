"""The queue: batches of one model, limits, cancelled images, errors and the end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from headstart.data.dataset import Sample
from headstart.errors import RequestError
from headstart.serving.batcher import Batcher

IMAGES = [Sample(image=bytes([number])) for number in range(40)]


class Echo:
    """Answers with the bytes of each image, when it is allowed to."""

    def __init__(self) -> None:
        self.started, self.allowed = threading.Semaphore(0), threading.Semaphore(0)
        self.batches: list[int] = []

    def __call__(self, samples: Sequence[Sample]) -> list[Any]:
        self.started.release()
        assert self.allowed.acquire(timeout=10)
        self.batches.append(len(samples))
        return [sample.image for sample in samples]


@pytest.fixture
def echo() -> Echo:
    return Echo()


def test_images_that_wait_are_predicted_together(echo: Echo) -> None:
    other, sizes = Echo(), []
    batcher = Batcher(workers=1, size=4, capacity=40, on_batch=sizes.append)
    first = batcher.submit(echo, IMAGES[:1])
    assert echo.started.acquire(timeout=10)
    waiting = [
        *batcher.submit(echo, IMAGES[1:7]),
        *batcher.submit(other, IMAGES[7:9]),
        *batcher.submit(echo, IMAGES[9:10]),
    ]
    assert len(batcher) == 9
    for one in (echo, other):
        one.allowed.release(9)
    answers = [future.result(10) for future in first + waiting]
    assert answers == [sample.image for sample in IMAGES[:10]]
    assert sizes == [1, 4, 2, 2, 1]
    assert (echo.batches, other.batches) == ([1, 4, 2, 1], [2])
    batcher.close()


def test_a_full_queue_takes_all_or_nothing(echo: Echo) -> None:
    batcher = Batcher(workers=1, size=1, capacity=3)
    running = batcher.submit(echo, IMAGES[:1])
    assert echo.started.acquire(timeout=10)
    waiting = batcher.submit(echo, IMAGES[1:3])
    with pytest.raises(RequestError, match="2 images wait already, and 3 may wait") as caught:
        batcher.submit(echo, IMAGES[3:5])
    assert (caught.value.status, caught.value.retry_after) == (429, 1)
    assert len(batcher) == 2
    waiting[0].cancel()
    echo.allowed.release(3)
    assert waiting[1].result(10) == IMAGES[2].image
    assert running[0].result(10) == IMAGES[0].image
    batcher.close()
    assert len(echo.batches) == 2  # the cancelled image was not predicted


def test_an_error_reaches_its_images_only() -> None:
    def fail(samples: Sequence[Sample]) -> list[Any]:
        raise MemoryError("no room")

    batcher = Batcher(workers=2, size=4, capacity=40)
    with pytest.raises(MemoryError, match="no room"):
        batcher.submit(fail, IMAGES[:1])[0].result(10)
    with pytest.raises(ValueError, match="zip"):
        batcher.submit(lambda samples: [], IMAGES[:1])[0].result(10)
    assert batcher.is_running
    assert batcher.submit(lambda samples: ["cat"], IMAGES[:1])[0].result(10) == "cat"
    batcher.close()


def test_the_end_answers_what_waits(echo: Echo) -> None:
    batcher = Batcher(workers=1, size=2, capacity=40)
    waiting = batcher.submit(echo, IMAGES[:7])
    echo.allowed.release(7)
    batcher.close()
    assert [future.result(0) for future in waiting] == [sample.image for sample in IMAGES[:7]]
    assert not batcher.is_running
    with pytest.raises(RequestError, match="The server stops") as caught:
        batcher.submit(echo, IMAGES[:1])
    assert caught.value.status == 503
