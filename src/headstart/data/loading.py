"""Pictures to batches: the one way from a sample to what a backbone reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.data.images import decode, digest, read_bytes
from headstart.data.samples import Sample
from headstart.data.transforms import Preprocess
from headstart.errors import DataError, UnreadableImageError

__all__ = ["digest_of", "load_batch", "load_pixels", "map_bounded"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def digest_of(sample: Sample) -> str:
    """Content identity of a sample's picture; computed where the scan has not done it."""
    return sample.digest if sample.digest is not None else digest(sample.image)


def load_pixels(sample: Sample, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Decode one picture and cut it to what the weights expect.

    Returns
    -------
    array, uint8, shape (crop, crop, 3)

    Raises
    ------
    UnreadableImageError
        If the picture cannot be decoded; the message names it.
    DataError
        If the file is no longer the one that was scanned: its features would be kept under
        another picture's name.
    """
    try:
        source = read_bytes(sample.image) if isinstance(sample.image, Path) else sample.image
        if sample.digest is not None and digest(source) != sample.digest:
            raise DataError(
                f"Expected {sample.name} to stay as it was when it was scanned, got another "
                "content; do run again when the files are complete."
            )
        return preprocess.resize_and_crop(decode(source, at_least=preprocess.resize))
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{sample.name}: {error}") from error


def load_batch(samples: Sequence[Sample], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Pixels of several pictures, uint8, shape (n, crop, crop, 3)."""
    return np.stack([load_pixels(sample, preprocess) for sample in samples])


def map_bounded(
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    executor: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[ResultT]:
    """Map in threads, in order, with at most ``ahead`` items begun and not yet taken.

    Memory stays bounded however many items there are, and what is not begun is dropped when
    the consumer stops early (Ctrl-C, an unreadable picture).

    Examples
    --------
    >>> with ThreadPoolExecutor(2) as executor:
    ...     list(map_bounded(abs, [-1, -2, 3], executor, 2))
    [1, 2, 3]
    """
    pending: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
