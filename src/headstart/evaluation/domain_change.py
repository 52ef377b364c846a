"""Change of the target by an adaptation: a map of both domains, and the classes that moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.splits import evenly_spaced
from headstart.evaluation.embeddings import project_to_plane

__all__ = ["ClassMove", "DomainMap", "DomainPoint", "class_gaps", "find_moves", "map_domains"]

MAX_POINTS = 200
"""Maximum number of images of each domain on a map."""

Features = NDArray[np.floating[Any]]
Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainPoint:
    """An image on the map, with coordinates from 0 to 1.

    ``label`` is the class of a source image, and the predicted class of a target image.
    """

    is_target: bool
    label: str
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class DomainMap:
    """A map of the features of both domains by one model.

    Parameters
    ----------
    points : tuple of DomainPoint
        The source first.
    method : str
        "t-SNE", or "PCA" for few images.
    """

    points: tuple[DomainPoint, ...]
    method: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"method": self.method, "points": [asdict(point) for point in self.points]}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMove:
    """A class before and after the adaptation.

    Parameters
    ----------
    name : str
    before, after : int
        Number of target images that are predicted as the class.
    kept : int
        Number of those that are predicted as the class both times.
    gap_before, gap_after : float or None
        Cosine distance, 0 to 2, between the mean feature of the source images of the class and that
        of the target images predicted as the class; None without such images.
    """

    name: str
    before: int
    after: int
    kept: int
    gap_before: float | None = None
    gap_after: float | None = None

    @property
    def moved(self) -> int:
        """Number of target images that joined or left the class.

        >>> ClassMove(name="cat", before=10, after=14, kept=9).moved
        6
        """
        return self.before + self.after - 2 * self.kept


def map_domains(
    domains: tuple[Features, Features], labels: tuple[Sequence[str], Sequence[str]], seed: int = 0
) -> DomainMap:
    """Map the images of source and target to two dimensions, 200 of each domain at most.

    Parameters
    ----------
    domains : pair of array, shapes (n, d) and (m, d)
        Features of the source and of the target, by one model.
    labels : pair of sequence of str
        Classes of the source images, and predicted classes of the target images.
    seed : int

    Returns
    -------
    DomainMap
        Without points for fewer than three images, or if all features are equal.

    Examples
    --------
    >>> features = np.eye(4)
    >>> len(map_domains((features, features + 1), (["a"] * 4, ["b"] * 4)).points)
    8
    """
    rows = [np.asarray(evenly_spaced(len(each), MAX_POINTS), np.intp) for each in domains]
    values = np.concatenate([each[part] for each, part in zip(domains, rows, strict=True)])
    if len(values) < 3 or not np.ptp(values, axis=0).any():
        return DomainMap(points=(), method="")
    positions, method = project_to_plane(values, seed)
    low, high = positions.min(axis=0), positions.max(axis=0)
    scaled = (positions - low) / np.maximum(high - low, np.finfo(np.float64).tiny)
    names = [(side, labels[side][row]) for side in (0, 1) for row in rows[side]]
    return DomainMap(
        points=tuple(
            DomainPoint(
                is_target=bool(side), label=label, x=round(float(x), 4), y=round(float(y), 4)
            )
            for (side, label), (x, y) in zip(names, scaled, strict=True)
        ),
        method=method,
    )


def class_gaps(
    domains: tuple[Features, Features], classes: tuple[Rows, Rows], n_classes: int
) -> list[float | None]:
    """Cosine distance between the class means of source and target.

    Parameters
    ----------
    domains : pair of array, shapes (n, d) and (m, d)
        Features of the source and of the target, by one model.
    classes : pair of array of int, shapes (n,) and (m,)
        Classes of the source images, and predicted classes of the target images.
    n_classes : int

    Returns
    -------
    list of float or None
        For each class, 0 to 2; None if one of the domains has no such image.

    Examples
    --------
    >>> class_gaps((np.eye(2), np.eye(2)[:1]), (np.array([0, 1]), np.array([1])), 2)
    [None, 1.0]
    """
    gaps: list[float | None] = []
    for number in range(n_classes):
        parts = [each[codes == number] for each, codes in zip(domains, classes, strict=True)]
        if not all(len(part) for part in parts):
            gaps.append(None)
            continue
        first, second = (part.mean(axis=0, dtype=np.float64) for part in parts)
        lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
        gaps.append(1 - float(first @ second) / lengths if lengths else None)
    return gaps


def find_moves(
    names: Sequence[str],
    predicted: tuple[Rows, Rows],
    gaps: tuple[Sequence[float | None], Sequence[float | None]] | None = None,
) -> tuple[ClassMove, ...]:
    """Compare the predictions on the target before and after, class by class.

    Parameters
    ----------
    names : sequence of str
        The classes.
    predicted : pair of array of int, shape (m,)
        Predicted classes before and after.
    gaps : pair of sequences, optional
        Results of ``class_gaps`` before and after.

    Returns
    -------
    tuple of ClassMove
        The class that most images joined or left comes first.

    Examples
    --------
    >>> moves = find_moves(["cat", "dog"], (np.array([0, 0, 1]), np.array([0, 1, 1])))
    >>> [(move.name, move.before, move.after, move.moved) for move in moves]
    [('cat', 2, 1, 1), ('dog', 1, 2, 1)]
    """
    before, after = predicted
    nothing: list[float | None] = [None] * len(names)
    first, second = gaps or (nothing, nothing)
    moves = [
        ClassMove(
            name=name,
            before=int((before == number).sum()),
            after=int((after == number).sum()),
            kept=int(((before == number) & (after == number)).sum()),
            gap_before=first[number],
            gap_after=second[number],
        )
        for number, name in enumerate(names)
    ]
    return tuple(sorted(moves, key=lambda move: -move.moved))
