"""Parts of the judged images, each held against the rest: where a model is better or worse."""

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

__all__ = ["FEWEST", "Slice", "compare_slices", "size_thirds"]

FEWEST = 5
"""Images that a slice needs, and the rest too, to be held against each other."""

Floats = NDArray[np.float64]
Groups = NDArray[np.intp] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Some of the images, and whether they are answered otherwise than the rest.

    Parameters
    ----------
    kind : str
        What it is cut by, such as "class".
    name : str
    images : int
    score : Interval
        Mean over the slice.
    rest : float
        Mean over all other images; NaN where there is none.
    p_value : float
        Corrected for the number of slices; NaN where one side is too small to tell.
    """

    kind: str
    name: str
    images: int
    score: Interval
    rest: float
    p_value: float

    @property
    def distinguishable(self) -> bool:
        """Whether the difference from the rest is more than chance, at the interval's level."""
        return self.p_value < 1 - self.score.level

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON: NaN becomes None."""
        return {
            "kind": self.kind,
            "name": self.name,
            "images": self.images,
            "score": self.score.as_dict(),
            "rest": None if math.isnan(self.rest) else self.rest,
            "p_value": None if math.isnan(self.p_value) else self.p_value,
            "distinguishable": self.distinguishable,
        }


def compare_slices(
    values: ArrayLike,
    groupings: Mapping[str, Sequence[str | None]],
    *,
    groups: Groups = None,
    seed: int = 0,
) -> tuple[Slice, ...]:
    """Hold every slice against all other images, corrected for how many are looked at (Holm).

    Right and wrong answers are compared by Fisher's exact test, which takes images as
    independent; where they come in groups, a t-test whose unit is the group must agree, and the
    larger p-value counts. A slice that is a group itself is held against the rest image by
    image: it is these images that are asked about. Other values: the t-test alone.

    Parameters
    ----------
    values : array, shape (n,)
        A number for every image, such as right (True) or wrong; NaN leaves an image out.
    cuts : mapping of str to n names
        By what the slices are made; None puts an image into no slice. The key ``group`` says
        that the slices are the groups.
    groups : array of int, shape (n,), optional
    seed : int
        Of the bootstrap of values other than right and wrong.

    Returns
    -------
    tuple of Slice
        Of each cut in the order of first appearance, less what has no image.

    Raises
    ------
    UsageError
        If a cut has not one name for every image.

    References
    ----------
    Holm (1979), "A simple sequentially rejective multiple test procedure".

    Examples
    --------
    >>> right = np.array([True] * 30 + [False] * 30)
    >>> sky, tree = compare_slices(right, {"class": ["sky"] * 30 + ["tree"] * 30})
    >>> sky.name, sky.score.value, sky.rest, sky.distinguishable
    ('sky', 1.0, 0.0, True)
    """
    given = np.asarray(values)
    known = np.ones(len(given), bool) if given.dtype == bool else ~np.isnan(given)
    if wrong := [kind for kind, names in groupings.items() if len(names) != len(given)]:
        raise UsageError(f"Expected {len(given)} names for each cut, got others for {wrong}.")
    found: list[Slice] = []
    kept = None if groups is None else groups[known]
    for kind, names in groupings.items():
        labels = np.asarray(names, dtype=object)[known]
        units = None if kind == "group" else kept
        different = dict.fromkeys(name for name in labels if name is not None)
        found += [_slice(kind, n, given[known], labels == n, units, seed) for n in different]
    corrected = holm([one.p_value for one in found])
    return tuple(replace(one, p_value=float(p)) for one, p in zip(found, corrected, strict=True))


def size_thirds(sizes: Sequence[tuple[int, int]]) -> list[str | None]:
    """Name for every image the third it is in by its area; None where all are alike.

    Parameters
    ----------
    sizes : sequence of (width, height)
        In pixels; (0, 0) where it is not known.

    Examples
    --------
    >>> size_thirds([(10, 10), (20, 20), (30, 30)])
    ['small, up to 100 pixels', 'middling, up to 400 pixels', 'large, above 400 pixels']
    >>> size_thirds([(10, 10), (10, 10)])
    [None, None]
    """
    areas = np.asarray([width * height for width, height in sizes])
    known = areas[areas > 0]
    if not len(known):
        return [None] * len(areas)
    thirds = np.unique(np.quantile(known, [1 / 3, 2 / 3], method="inverted_cdf"))
    ends = [int(end) for end in thirds if end < known.max()]
    if not ends:
        return [None] * len(areas)
    titles = ("small", "large") if len(ends) == 1 else ("small", "middling", "large")
    told = [f"{t}, up to {end:,} pixels" for t, end in zip(titles, ends, strict=False)]
    told.append(f"large, above {ends[-1]:,} pixels")
    places = np.searchsorted(ends, areas, side="left")
    return [told[i] if area else None for i, area in zip(places, areas, strict=True)]


def _slice(
    kind: str, name: str, values: NDArray[Any], inside: NDArray[np.bool_], groups: Groups, seed: int
) -> Slice:
    outside = ~inside
    return Slice(
        kind=kind,
        name=name,
        images=int(inside.sum()),
        score=_mean(values[inside], None if groups is None else groups[inside], seed),
        rest=float(values[outside].mean()) if outside.any() else math.nan,
        p_value=_p_value(values, inside, groups),
    )


def _mean(values: NDArray[Any], groups: Groups, seed: int) -> Interval:
    if values.dtype == bool:
        return proportion_interval(values, groups)
    [found] = bootstrap_intervals(
        lambda weights: (weights @ values / weights.sum(axis=1))[:, None],
        len(values),
        groups=groups,
        n_resamples=400,
        seed=seed,
        vectorized=True,
    )
    return found


def _p_value(values: NDArray[Any], inside: NDArray[np.bool_], groups: Groups) -> float:
    if min(inside.sum(), (~inside).sum()) < FEWEST:
        return math.nan
    if values.dtype != bool:
        return _clustered(values.astype(np.float64), inside, groups)
    from scipy.stats import fisher_exact

    right, wrong = values, ~values
    table = [[int((side & part).sum()) for part in (right, wrong)] for side in (inside, ~inside)]
    exact = float(fisher_exact(table).pvalue)
    if groups is None:
        return exact
    of_groups = _clustered(values.astype(np.float64), inside, groups)
    return of_groups if math.isnan(of_groups) else max(exact, of_groups)


def _clustered(values: Floats, inside: NDArray[np.bool_], groups: Groups) -> float:
    """Two-sided p-value of the difference of two means, the variance between groups."""
    from scipy.stats import fisher_exact, t

    codes = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    parts = [(side, values[side].mean(), sign) for side, sign in ((inside, 1), (~inside, -1))]
    pull = np.zeros(len(values))
    for side, mean, sign in parts:
        pull[side] = sign * (values[side] - mean) / side.sum()
    totals = np.bincount(codes, weights=pull)
    count = len(totals)
    # Groups of the smaller side decide how well the spread is known.
    sides = [len(np.unique(codes[side])) for side, _, _ in parts]
    if min(sides) < 2:
        return math.nan
    spread = math.sqrt(count / (count - 1) * float(np.square(totals).sum()))
    difference = float(parts[0][1] - parts[1][1])
    rounding = 1e-12 * float(np.abs(values).max())
    if spread <= rounding:  # all alike on both sides: that they are so apart is all that is known
        return float(fisher_exact(np.diag(sides)).pvalue) if abs(difference) > rounding else 1.0
    return float(2 * t.sf(abs(difference) / spread, min(sides) - 1))
