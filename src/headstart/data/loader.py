"""Images to batches: the one way from a sample to what a backbone reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Boxes, Mask, Sample
from headstart.data.images import decode, decode_file, digest, read_bytes, shown_size
from headstart.data.masks import decode_mask, mask_turn
from headstart.data.transforms.augment import Augmentation, augment
from headstart.data.transforms.geometric import (
    draw_moves,
    move_boxes,
    move_mask,
    move_pixels,
    view_rng,
)
from headstart.data.transforms.preprocess import Placement, Preprocess
from headstart.errors import DataError, UnknownNameError, UnreadableImageError, UsageError

__all__ = [
    "BoxTruth",
    "digest_of",
    "load_batch",
    "load_boxes",
    "load_canvas",
    "load_mask",
    "load_pixels",
    "load_view",
    "load_views",
    "map_bounded",
    "view_of",
    "view_of_boxes",
    "view_of_mask",
]

STILL = Augmentation()
"""Every view is the image as prediction sees it."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class BoxTruth(NamedTuple):
    """The objects of an image on the canvas that a network reads.

    Parameters
    ----------
    boxes : array, float32, shape (n, 4)
        Left, top, right, bottom in pixels of the canvas; each has an area.
    labels : array, int64, shape (n,)
        Indices into the classes.
    hard : array of bool, shape (n,)
        Not to be learned from; see `headstart.data.truths.Boxes`.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    hard: NDArray[np.bool_]


def digest_of(sample: Sample) -> str:
    """Content identity of a sample's image; computed where the scan has not done it."""
    return sample.digest if sample.digest is not None else digest(sample.image)


def load_pixels(sample: Sample, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Decode one image and cut it to what the weights expect, or put it on their canvas.

    Returns
    -------
    array, uint8, shape (*preprocess.shape, 3)

    Raises
    ------
    UnreadableImageError
        If the image cannot be decoded; the message names it.
    DataError
        If the file is no longer the one that was scanned: its features would be kept under
        another image's name.
    """
    if preprocess.canvas is not None:
        return load_canvas(sample, preprocess)
    return preprocess.resize_and_crop(_decoded(sample, preprocess)[0])


def load_canvas(sample: Sample, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Decode one image and resize it whole: what all its views are cut from.

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
    """Pixels, and the image's real height and width: a JPEG may have been decoded smaller."""
    # The shorter side of an image on a canvas is at most the canvas's.
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
    """Pixels of several images, uint8, shape (n, *preprocess.shape, 3)."""
    return np.stack([load_pixels(sample, preprocess) for sample in samples])


def load_view(
    sample: Sample,
    preprocess: Preprocess,
    augmentation: Augmentation,
    *,
    seed: int,
    view: int,
) -> NDArray[np.uint8]:
    """Decode one image and draw one of its augmented views.

    Parameters
    ----------
    sample : Sample
    preprocess : Preprocess
    augmentation : Augmentation
        Where it is off, the view is what ``load_pixels`` gives.
    seed : int
        Of the run, 0 or more.
    view : int
        Number of the view, 0 or more. Image, seed and number decide every pixel, whatever
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
    return view_of(canvas, preprocess, augmentation, seed=seed, view=view, image=digest_of(sample))


def load_views(
    samples: Sequence[Sample],
    preprocess: Preprocess,
    augmentation: Augmentation,
    *,
    seed: int,
    view: int,
) -> NDArray[np.uint8]:
    """View number ``view`` of several images, uint8, shape (n, *preprocess.shape, 3)."""
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
    image: str,
) -> NDArray[np.uint8]:
    """Draw a view from an image that is decoded already; ``load_view`` without the file.

    Parameters
    ----------
    canvas : array, uint8, shape (height, width, 3)
        What ``load_canvas`` gave.
    preprocess : Preprocess
    augmentation : Augmentation
    seed, view : int
        As in ``load_view``.
    image : str
        The image's digest, hexadecimal.

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
            rng=view_rng(seed, view, image),
        )
    if canvas.shape[:2] != preprocess.canvas:
        raise UsageError(
            f"Expected an image on a canvas of {preprocess.canvas}, got {canvas.shape}; do load "
            "it with the same preprocessing."
        )
    moves = draw_moves(augmentation, preprocess.shape, view_rng(seed, view, image))
    return move_pixels(canvas, moves, interpolation=preprocess.interpolation, fill=preprocess.fill)


def load_boxes(
    sample: Sample,
    preprocess: Preprocess,
    classes: Sequence[str],
    augmentation: Augmentation = STILL,
    *,
    seed: int = 0,
    view: int = 0,
) -> BoxTruth:
    """Give an image's boxes on the canvas, moved exactly as ``load_view`` moves its pixels.

    Parameters
    ----------
    sample : Sample
        Its target is `Boxes`; of its file only the header is read.
    preprocess : Preprocess
        With a canvas.
    classes : sequence of str
        Their order gives the labels.
    augmentation : Augmentation
        Where it is off, every box that has an area is given; else see `move_boxes`.
    seed, view : int
        As in ``load_view``.

    Raises
    ------
    DataError
        If the target is something else.
    UnknownNameError
        If a label is not one of ``classes``.
    UsageError
        As ``load_view``; if no canvas is set.
    UnreadableImageError
        If the image cannot be read; the message names it.

    Examples
    --------
    >>> rgb = (0.5, 0.5, 0.5)
    >>> expects = Preprocess(
    ...     resize=32, crop=32, interpolation="bilinear", mean=rgb, std=rgb, canvas=(32, 32)
    ... )
    >>> cells = Boxes(corners=((0, 0, 32, 16),), labels=("cell",))
    >>> sample = Sample(image=np.zeros((64, 64)), target=cells)
    >>> truth = load_boxes(sample, expects, ("cell",))
    >>> truth.boxes.tolist(), truth.labels.tolist()
    ([[0.0, 0.0, 16.0, 8.0]], [0])
    """
    if not isinstance(truth := sample.target, Boxes):
        raise _not_a(Boxes, sample)
    index = {name: i for i, name in enumerate(classes)}
    for name in truth.labels:
        if name not in index:
            raise UnknownNameError("class", name, tuple(classes))
    labels = np.array([index[name] for name in truth.labels], dtype=np.int64)
    boxes = _placement(sample, preprocess).boxes_to_canvas(truth.array())
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    found = BoxTruth(boxes[kept], labels[kept], truth.is_hard()[kept])
    shape, image = preprocess.shape, digest_of(sample)
    return view_of_boxes(found, shape, augmentation, seed=seed, view=view, image=image)


def view_of_boxes(
    truth: BoxTruth, shape: tuple[int, int], augmentation: Augmentation, *, seed: int, view: int,
    image: str,
) -> BoxTruth:  # fmt: skip
    """Move boxes that are on the canvas (H, W) already, exactly as ``view_of`` moves pixels."""
    if augmentation.is_off:
        return truth
    moves = draw_moves(augmentation, shape, view_rng(seed, view, image))
    boxes, labels, kept = move_boxes(truth.boxes, truth.labels, shape, moves)
    return BoxTruth(boxes, labels, truth.hard[kept])


def load_mask(
    sample: Sample,
    preprocess: Preprocess,
    classes: Sequence[str],
    augmentation: Augmentation = STILL,
    *,
    seed: int = 0,
    view: int = 0,
) -> NDArray[np.uint8]:
    """Give an image's mask on the canvas, moved exactly as ``load_view`` moves its pixels.

    Parameters
    ----------
    sample : Sample
        Its target is a `Mask`.
    preprocess, classes, augmentation, seed, view
        As in ``load_boxes``.

    Returns
    -------
    array, uint8, shape ``preprocess.canvas``
        Indices into ``classes``; 255 where ignored, and where the image does not reach.

    Raises
    ------
    DataError
        If the target is something else, or of another size than the image.
    UnknownNameError, UsageError, UnreadableImageError
        As ``load_boxes``.
    """
    if not isinstance(truth := sample.target, Mask):
        raise _not_a(Mask, sample)
    place = _placement(sample, preprocess)
    mask = decode_mask(truth, classes, orientation=mask_turn(truth, sample.image))
    if mask.shape != (place.height, place.width):
        raise DataError(
            f"Expected the mask of {sample.name} to have its size, {place.width} x "
            f"{place.height}, got {mask.shape[1]} x {mask.shape[0]}; do leave the image out."
        )
    mask, image = place.mask_to_canvas(mask), digest_of(sample)
    return view_of_mask(mask, augmentation, seed=seed, view=view, image=image)


def view_of_mask(
    mask: NDArray[np.uint8], augmentation: Augmentation, *, seed: int, view: int, image: str
) -> NDArray[np.uint8]:
    """Move a mask (H, W) that is on the canvas already, exactly as ``view_of`` moves pixels."""
    if augmentation.is_off:
        return mask
    return move_mask(mask, draw_moves(augmentation, mask.shape, view_rng(seed, view, image)))


def _placement(sample: Sample, preprocess: Preprocess) -> Placement:
    try:
        return preprocess.placement(*shown_size(sample.image))
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{sample.name}: {error}") from error


def _not_a(kind: type, sample: Sample) -> DataError:
    return DataError(
        f"Expected {sample.name} to have {kind.__name__}, got {type(sample.target).__name__}; "
        "do read the data for this task."
    )


def map_bounded(
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    executor: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[ResultT]:
    """Map in threads, in order, with at most ``ahead`` items begun and not yet taken.

    Memory stays bounded however many items there are, and what is not begun is dropped when
    the consumer stops early (Ctrl-C, an unreadable image).

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
