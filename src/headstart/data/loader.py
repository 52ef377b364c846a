"""Loading: from samples to preprocessed images, boxes and masks, with or without augmentation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Boxes, Mask, Sample
from headstart.data.image_sizes import upright_size
from headstart.data.images import decode, digest, read_bytes
from headstart.data.masks import decode_mask, mask_orientation
from headstart.data.transforms.augment import Augmentation, augment
from headstart.data.transforms.geometric import (
    MIN_VISIBLE_SHARE,
    draw_transform,
    transform_boxes,
    transform_mask,
    transform_pixels,
    view_rng,
)
from headstart.data.transforms.placement import Placement
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import DataError, UnknownNameError, UnreadableImageError, UsageError

__all__ = [
    "BoxTruth",
    "decode_sample",
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

NO_AUGMENTATION = Augmentation()
"""Augmentation that is off: every view is the unchanged image, as in prediction."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class BoxTruth(NamedTuple):
    """Objects of an image, in coordinates of the network's input canvas.

    Attributes
    ----------
    boxes : array, float32, shape (n, 4)
        Left, top, right, bottom in pixels of the canvas; no box has zero area.
    labels : array, int64, shape (n,)
        Indices into the classes.
    hard : array of bool, shape (n,)
        Objects to leave out of training; see `headstart.data.dataset.Boxes`.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    hard: NDArray[np.bool_]


def digest_of(sample: Sample) -> str:
    """Content identity of a sample's image; computed if no scan has done so."""
    return sample.digest if sample.digest is not None else digest(sample.image, sample.options)


def load_pixels(sample: Sample, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Decode and preprocess one image: central square, or canvas.

    Returns
    -------
    array, uint8, shape (*preprocess.shape, 3)

    Raises
    ------
    UnreadableImageError
        If the image cannot be decoded; the message names it.
    DataError
        If the file has changed since the scan: its features would be cached for another image.
    """
    if preprocess.canvas is not None:
        return load_canvas(sample, preprocess)
    return preprocess.resize_and_crop(decode_sample(sample))


def load_canvas(sample: Sample, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Decode one image and resize it without a crop; its views are computed from the result.

    Returns
    -------
    array, uint8, shape (height, width, 3)
        Shorter side ``preprocess.resize``, or the canvas; see ``Preprocess.resize_only``.

    Raises
    ------
    UnreadableImageError, DataError
        As ``load_pixels``.
    """
    return preprocess.resize_only(decode_sample(sample))


def decode_sample(sample: Sample) -> NDArray[np.uint8]:
    """Decode all pixels of one image, uint8, shape (H, W, 3).

    JPEGs are not decoded smaller: an array of the same photograph must give the same features.

    Raises
    ------
    UnreadableImageError, DataError
        As ``load_pixels``.
    """
    try:
        source = read_bytes(sample.image) if isinstance(sample.image, Path) else sample.image
        if sample.digest is not None and digest(source, sample.options) != sample.digest:
            raise DataError(
                f"Expected {sample.name} to be unchanged since it was scanned, got other content. "
                "Run again when no program changes the files."
            )
        return decode(source, options=sample.options)
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
    """Decode one image and compute one of its augmented views.

    Parameters
    ----------
    sample : Sample
    preprocess : Preprocess
    augmentation : Augmentation
        If it is off, the view is the result of ``load_pixels``.
    seed : int
        Seed of the run, 0 or more.
    view : int
        Number of the view, 0 or more. Image, seed and number determine every pixel, in any
        process and order.

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
    >>> random = Augmentation(flip=True, crop=0.5)
    >>> views = [load_view(sample, expects, random, seed=0, view=view) for view in (0, 1, 0)]
    >>> bool((views[0] == views[1]).all()), bool((views[0] == views[2]).all())
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
    """Compute a view of a decoded image: ``load_view`` without reading the file.

    Parameters
    ----------
    canvas : array, uint8, shape (height, width, 3)
        Result of ``load_canvas``.
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
            f"Expected an image on a canvas of {preprocess.canvas}, got {canvas.shape}. Load it "
            "with the same preprocessing."
        )
    transform = draw_transform(augmentation, preprocess.shape, view_rng(seed, view, image))
    return transform_pixels(
        canvas, transform, interpolation=preprocess.interpolation, fill=preprocess.fill
    )


def load_boxes(
    sample: Sample,
    preprocess: Preprocess,
    classes: Sequence[str],
    augmentation: Augmentation = NO_AUGMENTATION,
    *,
    seed: int = 0,
    view: int = 0,
) -> BoxTruth:
    """Return an image's boxes on the canvas, transformed like the pixels of ``load_view``.

    Parameters
    ----------
    sample : Sample
        Its target is `Boxes`. Only the header of its file is read.
    preprocess : Preprocess
        With a canvas.
    classes : sequence of str
        Their order defines the labels.
    augmentation : Augmentation
        If it is off, every box with an area is returned; else see `transform_boxes`.
    seed, view : int
        As in ``load_view``.

    Raises
    ------
    DataError
        If the target is of another type.
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
        raise _wrong_target_error(Boxes, sample)
    index = {name: i for i, name in enumerate(classes)}
    for name in truth.labels:
        if name not in index:
            raise UnknownNameError("class", name, tuple(classes))
    labels = np.array([index[name] for name in truth.labels], dtype=np.int64)
    boxes = _placement(sample, preprocess).boxes_to_canvas(truth.array())
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    objects = BoxTruth(boxes[has_area], labels[has_area], truth.is_hard()[has_area])
    shape, image = preprocess.shape, digest_of(sample)
    return view_of_boxes(objects, shape, augmentation, seed=seed, view=view, image=image)


def view_of_boxes(
    truth: BoxTruth, shape: tuple[int, int], augmentation: Augmentation, *, seed: int, view: int,
    image: str,
) -> BoxTruth:  # fmt: skip
    """Transform boxes on the canvas (H, W) like ``view_of`` transforms the pixels."""
    if augmentation.is_off:
        return truth
    transform = draw_transform(augmentation, shape, view_rng(seed, view, image))
    # A hard object stays ignored however little of it is visible.
    min_share = np.where(truth.hard, 0.0, MIN_VISIBLE_SHARE)
    boxes, labels, visible = transform_boxes(
        truth.boxes, truth.labels, shape, transform, min_share=min_share
    )
    return BoxTruth(boxes, labels, truth.hard[visible])


def load_mask(
    sample: Sample,
    preprocess: Preprocess,
    classes: Sequence[str],
    augmentation: Augmentation = NO_AUGMENTATION,
    *,
    seed: int = 0,
    view: int = 0,
) -> NDArray[np.uint8]:
    """Return an image's mask on the canvas, transformed like the pixels of ``load_view``.

    Parameters
    ----------
    sample : Sample
        Its target is a `Mask`.
    preprocess, classes, augmentation, seed, view
        As in ``load_boxes``.

    Returns
    -------
    array, uint8, shape ``preprocess.canvas``
        Indices into ``classes``; 255 for ignored pixels and around the image.

    Raises
    ------
    DataError
        If the target is of another type, or the mask of another size than the image.
    UnknownNameError, UsageError, UnreadableImageError
        As ``load_boxes``.
    """
    if not isinstance(truth := sample.target, Mask):
        raise _wrong_target_error(Mask, sample)
    place = _placement(sample, preprocess)
    mask = decode_mask(truth, classes, orientation=mask_orientation(truth, sample.image))
    if mask.shape != (place.height, place.width):
        raise DataError(
            f"Expected the mask of {sample.name} to have the image's size, {place.width} x "
            f"{place.height}, got {mask.shape[1]} x {mask.shape[0]}. Pass --bad-files skip to "
            "leave the image out."
        )
    mask, image = place.mask_to_canvas(mask), digest_of(sample)
    return view_of_mask(mask, augmentation, seed=seed, view=view, image=image)


def view_of_mask(
    mask: NDArray[np.uint8], augmentation: Augmentation, *, seed: int, view: int, image: str
) -> NDArray[np.uint8]:
    """Transform a mask on the canvas (H, W) like ``view_of`` transforms the pixels."""
    if augmentation.is_off:
        return mask
    return transform_mask(
        mask, draw_transform(augmentation, mask.shape, view_rng(seed, view, image))
    )


def _placement(sample: Sample, preprocess: Preprocess) -> Placement:
    try:
        return preprocess.placement(*upright_size(sample.image))
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{sample.name}: {error}") from error


def _wrong_target_error(kind: type, sample: Sample) -> DataError:
    return DataError(
        f"Expected {sample.name} to have {kind.__name__}, got {type(sample.target).__name__}. "
        "Read the data for this task."
    )


def map_bounded(
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    executor: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[ResultT]:
    """Map in threads, in order, with at most ``ahead`` items started and not yet consumed.

    Memory is bounded for any number of items. Items that have not started are cancelled when the
    consumer stops early (Ctrl-C, an unreadable image).

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
