"""Subgroups ("slices") of the test images, each compared with all other images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import UsageError
from headstart.metrics.confidence_intervals import (
    Interval,
    bootstrap_intervals,
    proportion_interval,
)
from headstart.metrics.significance import holm
from headstart.metrics.validation import to_jsonable

__all__ = ["MIN_SLICE_IMAGES", "Slice", "compare_slices", "size_thirds"]

MIN_SLICE_IMAGES = 5
"""Minimum number of images in a slice, and outside of it, for a test."""

Floats = NDArray[np.float64]
Groups = NDArray[np.intp] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Score of a subgroup of images, compared with all other images.

    Parameters
    ----------
    kind : str
        Property that defines the slice, such as "class".
    name : str
    images : int
    score : Interval
        Mean over the slice.
    rest : float
        Mean over all other images; NaN if there are none.
    p_value : float
        Corrected for the number of slices; NaN if one side is too small for a test.
    """

    kind: str
    name: str
    images: int
    score: Interval
    rest: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the slice is significantly different from the rest, at the interval's level."""
        return self.p_value < 1 - self.score.level

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON: NaN becomes None."""
        return {
            "kind": self.kind,
            "name": self.name,
            "images": self.images,
            "score": self.score.as_dict(),
            "rest": to_jsonable(self.rest),
            "p_value": to_jsonable(self.p_value),
            "significant": self.significant,
        }


def compare_slices(
    values: ArrayLike,
    groupings: Mapping[str, Sequence[str | None]],
    *,
    groups: Groups = None,
    seed: int = 0,
) -> tuple[Slice, ...]:
    """Compare every slice with all other images, with Holm's correction for all slices.

    Correct and wrong predictions are compared by Fisher's exact test, which assumes independent
    images. With groups, a t-test over groups is computed too, and the larger p-value counts. If
    the slice is itself a group, its images are compared one by one. Other values are compared by
    the t-test alone.

    Parameters
    ----------
    values : array, shape (n,)
        One value per image, such as whether it is correct. Images with NaN are ignored.
    groupings : mapping of str to n names
        Slice of each image by property; None for no slice. The property ``group`` means that the
        slices are the groups.
    groups : array of int, shape (n,), optional
    seed : int
        Seed of the bootstrap, for values that are not boolean.

    Returns
    -------
    tuple of Slice
        The slices of each grouping in order of appearance, without empty ones.

    Raises
    ------
    UsageError
        If a grouping does not have one name per image.

    References
    ----------
    Holm (1979), "A simple sequentially rejective multiple test procedure".

    Examples
    --------
    >>> right = np.array([True] * 30 + [False] * 30)
    >>> sky, tree = compare_slices(right, {"class": ["sky"] * 30 + ["tree"] * 30})
    >>> sky.name, sky.score.value, sky.rest, sky.significant
    ('sky', 1.0, 0.0, True)
    """
    scores = np.asarray(values)
    is_known = np.ones(len(scores), bool) if scores.dtype == bool else ~np.isnan(scores)
    if incomplete := [kind for kind, names in groupings.items() if len(names) != len(scores)]:
        raise UsageError(
            f"Each grouping needs {len(scores)} names, one per image; {incomplete} have another "
            "number. Pass None for images in no slice."
        )
    slices: list[Slice] = []
    known_groups = None if groups is None else groups[is_known]
    for kind, names in groupings.items():
        labels = np.asarray(names, dtype=object)[is_known]
        units = None if kind == "group" else known_groups
        distinct = dict.fromkeys(name for name in labels if name is not None)
        slices += [
            _score_slice(kind, name, scores[is_known], labels == name, units, seed)
            for name in distinct
        ]
    corrected = holm([slice_.p_value for slice_ in slices])
    return tuple(
        replace(slice_, p_value=float(p)) for slice_, p in zip(slices, corrected, strict=True)
    )


def size_thirds(sizes: Sequence[tuple[int, int]]) -> list[str | None]:
    """Assign each image to a third by its area; None if all images have the same size.

    Parameters
    ----------
    sizes : sequence of (width, height)
        In pixels; (0, 0) if it is unknown.

    Examples
    --------
    >>> size_thirds([(10, 10), (20, 20), (30, 30)])
    ['small, up to 100 pixels', 'medium, up to 400 pixels', 'large, above 400 pixels']
    >>> size_thirds([(10, 10), (10, 10)])
    [None, None]
    """
    areas = np.asarray([width * height for width, height in sizes])
    known_areas = areas[areas > 0]
    if not len(known_areas):
        return [None] * len(areas)
    quantiles = np.unique(np.quantile(known_areas, [1 / 3, 2 / 3], method="inverted_cdf"))
    upper_areas = [int(upper) for upper in quantiles if upper < known_areas.max()]
    if not upper_areas:
        return [None] * len(areas)
    words = ("small", "large") if len(upper_areas) == 1 else ("small", "medium", "large")
    names = [
        f"{word}, up to {upper:,} pixels" for word, upper in zip(words, upper_areas, strict=False)
    ]
    names.append(f"large, above {upper_areas[-1]:,} pixels")
    indices = np.searchsorted(upper_areas, areas, side="left")
    return [names[index] if area else None for index, area in zip(indices, areas, strict=True)]


def _score_slice(
    kind: str, name: str, values: NDArray[Any], inside: NDArray[np.bool_], groups: Groups, seed: int
) -> Slice:
    outside = ~inside
    return Slice(
        kind=kind,
        name=name,
        images=int(inside.sum()),
        score=_mean_interval(values[inside], None if groups is None else groups[inside], seed),
        rest=float(values[outside].mean()) if outside.any() else math.nan,
        p_value=_p_value(values, inside, groups),
    )


def _mean_interval(values: NDArray[Any], groups: Groups, seed: int) -> Interval:
    if values.dtype == bool:
        return proportion_interval(values, groups)
    [interval] = bootstrap_intervals(
        lambda weights: (weights @ values / weights.sum(axis=1))[:, None],
        len(values),
        groups=groups,
        n_resamples=400,
        seed=seed,
        vectorized=True,
    )
    return interval


def _p_value(values: NDArray[Any], inside: NDArray[np.bool_], groups: Groups) -> float:
    if min(inside.sum(), (~inside).sum()) < MIN_SLICE_IMAGES:
        return math.nan
    if values.dtype != bool:
        return _cluster_t_test(values.astype(np.float64), inside, groups)
    from scipy.stats import fisher_exact

    is_right, is_wrong = values, ~values
    table = [
        [int((side & part).sum()) for part in (is_right, is_wrong)] for side in (inside, ~inside)
    ]
    fisher_p = float(fisher_exact(table).pvalue)
    if groups is None:
        return fisher_p
    group_p = _cluster_t_test(values.astype(np.float64), inside, groups)
    return group_p if math.isnan(group_p) else max(fisher_p, group_p)


def _cluster_t_test(values: Floats, inside: NDArray[np.bool_], groups: Groups) -> float:
    """Return the two-sided p-value of a difference of means, with the variance between groups."""
    from scipy.stats import fisher_exact, t

    codes = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    parts = [(side, values[side].mean(), sign) for side, sign in ((inside, 1), (~inside, -1))]
    contributions = np.zeros(len(values))
    for side, mean, sign in parts:
        contributions[side] = sign * (values[side] - mean) / side.sum()
    totals = np.bincount(codes, weights=contributions)
    n_groups = len(totals)
    # The side with fewer groups limits the degrees of freedom.
    n_clusters = [len(np.unique(codes[side])) for side, _, _ in parts]
    if min(n_clusters) < 2:
        return math.nan
    standard_error = math.sqrt(n_groups / (n_groups - 1) * float(np.square(totals).sum()))
    difference = float(parts[0][1] - parts[1][1])
    tolerance = 1e-12 * float(np.abs(values).max())
    if standard_error <= tolerance:  # no variance on either side: test the numbers of groups
        return (
            float(fisher_exact(np.diag(n_clusters)).pvalue) if abs(difference) > tolerance else 1.0
        )
    return float(2 * t.sf(abs(difference) / standard_error, min(n_clusters) - 1))
