"""Pictures to batches: the one way from a sample to what a backbone reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.data.augment import Augmentation, augment
from headstart.data.images import decode, decode_file, digest, read_bytes
from headstart.data.moves import Moves, draw_moves, move_pixels
from headstart.data.samples import Sample
from headstart.data.transforms import Preprocess
from headstart.errors import DataError, UnreadableImageError, UsageError

__all__ = [
    "digest_of", "load_batch", "load_canvas", "load_pixels", "load_view", "load_views",
    "map_bounded", "moves_of", "view_of",
]  # fmt: skip

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def digest_of(sample: Sample) -> str:
    """Content identity of a sample's picture; computed where the scan has not done it."""
    return sample.digest if sample.digest is not None else digest(sample.image)


def load_pixels(sample: Sample, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Decode one picture and cut it to what the weights expect, or put it on their canvas.

    Returns
    -------
    array, uint8, shape (*preprocess.shape, 3)

    Raises
    ------
    UnreadableImageError
        If the picture cannot be decoded; the message names it.
    DataError
        If the file is no longer the one that was scanned: its features would be kept under
        another picture's name.
    """
    if preprocess.canvas is not None:
        return load_canvas(sample, preprocess)
    return preprocess.resize_and_crop(_decoded(sample, preprocess)[0])


def load_canvas(sample: Sample, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Decode one picture and resize it whole: what all its views are cut from.

    Returns
    -------
    array, uint8, shape (height, width, 3)
        Shorter side ``preprocess.resize``, or the canvas; see ``Preprocess.resize_only``.

    Raises
    ------
    UnreadableImageError, DataError
        As ``load_pixels``.
    """
    return preprocess.resize_only(*_decoded(sample, preprocess))


def _decoded(sample: Sample, preprocess: Preprocess) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Pixels, and the picture's real height and width: a JPEG may have been decoded smaller."""
    # The shorter side of a picture on a canvas is at most the canvas's.
    at_least = min(preprocess.canvas or (preprocess.resize,))
    try:
        source = read_bytes(sample.image) if isinstance(sample.image, Path) else sample.image
        if sample.digest is not None and digest(source) != sample.digest:
            raise DataError(
                f"Expected {sample.name} to stay as it was when it was scanned, got another "
                "content; do run again when the files are complete."
            )
        if isinstance(source, bytes):
            found, pixels = decode_file(source, at_least=at_least)
            return pixels, (found.height, found.width)
        pixels = decode(source, at_least=at_least)
        return pixels, (pixels.shape[0], pixels.shape[1])
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{sample.name}: {error}") from error


def load_batch(samples: Sequence[Sample], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Pixels of several pictures, uint8, shape (n, *preprocess.shape, 3)."""
    return np.stack([load_pixels(sample, preprocess) for sample in samples])


def load_view(
    sample: Sample,
    preprocess: Preprocess,
    augmentation: Augmentation,
    *,
    seed: int,
    view: int,
) -> NDArray[np.uint8]:
    """Decode one picture and draw one of its augmented views.

    Parameters
    ----------
    sample : Sample
    preprocess : Preprocess
    augmentation : Augmentation
        Where it is off, the view is what ``load_pixels`` gives.
    seed : int
        Of the run, 0 or more.
    view : int
        Number of the view, 0 or more. Picture, seed and number decide every pixel, whatever
        was drawn before and wherever this runs.

    Returns
    -------
    array, uint8, shape (*preprocess.shape, 3)

    Raises
    ------
    UsageError
        If ``seed`` or ``view`` is negative; if a canvas is set and there is a policy.
    UnreadableImageError, DataError
        As ``load_pixels``.

    Examples
    --------
    >>> rgb = (0.5, 0.5, 0.5)
    >>> expects = Preprocess(resize=40, crop=32, interpolation="bilinear", mean=rgb, std=rgb)
    >>> sample = Sample(image=np.eye(48))
    >>> how = Augmentation(flip=True, crop=0.5)
    >>> one, other, again = (load_view(sample, expects, how, seed=0, view=v) for v in (0, 1, 0))
    >>> bool((one == other).all()), bool((one == again).all())
    (False, True)
    """
    canvas = load_canvas(sample, preprocess)
    return view_of(
        canvas, preprocess, augmentation, seed=seed, view=view, picture=digest_of(sample)
    )


def load_views(
    samples: Sequence[Sample],
    preprocess: Preprocess,
    augmentation: Augmentation,
    *,
    seed: int,
    view: int,
) -> NDArray[np.uint8]:
    """View number ``view`` of several pictures, uint8, shape (n, *preprocess.shape, 3)."""
    return np.stack(
        [load_view(sample, preprocess, augmentation, seed=seed, view=view) for sample in samples]
    )


def view_of(
    canvas: NDArray[np.uint8],
    preprocess: Preprocess,
    augmentation: Augmentation,
    *,
    seed: int,
    view: int,
    picture: str,
) -> NDArray[np.uint8]:
    """Draw a view from a picture that is decoded already; ``load_view`` without the file.

    Parameters
    ----------
    canvas : array, uint8, shape (height, width, 3)
        What ``load_canvas`` gave.
    preprocess : Preprocess
    augmentation : Augmentation
    seed, view : int
        As in ``load_view``.
    picture : str
        The picture's digest, hexadecimal.

    Returns
    -------
    array, uint8, shape (*preprocess.shape, 3)

    Raises
    ------
    UsageError
        If ``seed`` or ``view`` is negative; if a canvas is set and there is a policy.
    """
    if preprocess.canvas is None:
        return augment(
            canvas,
            to=preprocess.crop,
            interpolation=preprocess.interpolation,
            augmentation=augmentation,
            rng=_rng(seed, view, picture),
        )
    if canvas.shape[:2] != preprocess.canvas:
        raise UsageError(
            f"Expected a picture on a canvas of {preprocess.canvas}, got {canvas.shape}; do load "
            "it with the same preprocessing."
        )
    moves = moves_of(preprocess, augmentation, seed=seed, view=view, picture=picture)
    return move_pixels(canvas, moves, interpolation=preprocess.interpolation, fill=preprocess.fill)


def moves_of(
    preprocess: Preprocess, augmentation: Augmentation, *, seed: int, view: int, picture: str
) -> Moves:
    """What happens to the pixels, boxes and masks of one view of a picture on a canvas.

    Parameters
    ----------
    preprocess : Preprocess
        With a canvas.
    augmentation : Augmentation
    seed, view : int
        As in ``load_view``.
    picture : str
        The picture's digest, hexadecimal.

    Raises
    ------
    UsageError
        As ``load_view``.
    """
    return draw_moves(augmentation, preprocess.shape, _rng(seed, view, picture))


def _rng(seed: int, view: int, picture: str) -> np.random.Generator:
    """What a view is a function of; nothing else decides."""
    if seed < 0 or view < 0:
        raise UsageError(
            f"Expected `seed` and `view` to be 0 or more, got {seed} and {view}; do count from 0."
        )
    return np.random.default_rng([seed, view, int(picture, 16)])


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
