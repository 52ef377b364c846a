"""Which outputs of a detector's head belong to which class, and moving them to other classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from headstart.heads.box_shape import BoxShape

__all__ = ["matched", "merged"]

ROWS = {
    "faster-rcnn": {r"roi\.box_predictor\.cls_score\.": 1, r"roi\.box_predictor\.bbox_pred\.": 4},
    "retinanet": {r"net\.head\.classification_head\.cls_logits\.": 1},
    "fcos": {r"net\.head\.classification_head\.cls_logits\.": 1},
    # The first layer of a predictor works by channel and knows nothing of classes.
    "ssdlite": {r"net\.head\.classification_head\.module_list\.\d+\.1\.": 1},
}
"""Layers whose outputs belong to classes, and how many a class has for one anchor."""
WITH_BACKGROUND = {"faster-rcnn", "ssdlite"}


def matched(before: Sequence[str], after: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Pair the places of equal names, whatever the case of their letters.

    Parameters
    ----------
    before, after : sequence of str

    Returns
    -------
    tuple of (int, int)
        For each name of ``after`` that is in ``before`` its place there (the first) and here.

    Examples
    --------
    >>> matched(["cat", "dog"], ["Dog", "cow", "cat"])
    ((1, 0), (0, 2))
    """
    known = {name.casefold(): place for place, name in reversed([*enumerate(before)])}
    pairs = [(known.get(name.casefold()), place) for place, name in enumerate(after)]
    return tuple((old, new) for old, new in pairs if old is not None)


def merged(
    shape: BoxShape,
    old: Mapping[str, NDArray[Any]],
    drawn: Mapping[str, NDArray[Any]],
    kept: Sequence[tuple[int, int]],
) -> dict[str, NDArray[Any]]:
    """Take over all tensors but the outputs of classes that are new.

    Parameters
    ----------
    shape : BoxShape
        Of the new head.
    old, drawn : mapping of str to array
        Tensors of the old head, and of a new one of random numbers.
    kept : sequence of (int, int)
        Place of a class in the old head and in the new one.
    """
    result = {}
    for name, array in old.items():
        each = next((n for rows, n in ROWS[shape.kind].items() if re.match(rows, name)), 0)
        result[name] = _rows(shape, array, drawn[name], each, kept) if each else array
    return result


def _rows(
    shape: BoxShape,
    old: NDArray[Any],
    drawn: NDArray[Any],
    each: int,
    kept: Sequence[tuple[int, int]],
) -> NDArray[Any]:
    """Put the outputs of kept classes, and of the background, into those that were drawn."""
    shift = int(shape.kind in WITH_BACKGROUND)
    anchors = drawn.shape[0] // ((shape.n_classes + shift) * each)
    source = old.reshape(anchors, -1, each, *old.shape[1:])
    result = drawn.reshape(anchors, -1, each, *drawn.shape[1:]).copy()
    for before, after in [(0, 0)] * shift + [(a + shift, b + shift) for a, b in kept]:
        result[:, after] = source[:, before]
    return result.reshape(drawn.shape)
