"""Which way to learn wins, by what each answered right on the same held-out pictures: pure rules.

Whatever costs more than a linear probe, or reads another stage than the last, has to be shown to
be better. The chance of leaving the plain probe for nothing is held below 5 % over all rivals and
all looks at them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.intervals import (
    Difference,
    Interval,
    paired_proportion_difference,
    proportion_interval,
)
from headstart.paired_tests import paired_bootstrap
from headstart.resampling import Groups

if TYPE_CHECKING:
    from headstart.data.samples import Kind

__all__ = [
    "BUDGET",
    "MEASURES",
    "PROBES_SHARE",
    "RULE",
    "TRAININGS_SHARE",
    "Row",
    "best_of",
    "gain",
    "level_of",
    "picture_scores",
    "score",
    "sound",
    "undecidable",
]

Floats = NDArray[np.float64]

PROBES_SHARE = 0.02
"""Of the 5 %: for choosing another stage or backbone to probe."""

TRAININGS_SHARE = 0.03
"""Of the 5 %: for training one."""

BUDGET = 120.0
"""Seconds for a race and the training of its winner, where nothing else is said."""

MEASURES: Mapping[str, str] = {
    "multiclass": "accuracy",
    "multilabel": "label ranking average precision",
}
"""What a picture is worth, by the kind of data: the mean over pictures is the score."""

RULE = (
    "A linear probe on the whole backbone is taken unless another way to learn is better on the "
    "same held-out training pictures, beyond what chance explains: at most 5 % over all rivals "
    "and all looks (paired intervals, the level shared among them)."
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to learn, and how it did.

    Parameters
    ----------
    name : str
        For people.
    backbone, stage, method : str
    pictures : int
        Held-out ones that it has answered.
    score : Interval or None
    against : str
        Name of the row that ``gain`` is over.
    gain : Interval or None
        At the level that decides.
    distinguishable : bool or None
    seconds, estimated : float
        What it took, and what was expected beforehand.
    megabytes : float
        Of the network's values in float32.
    state : {"chosen", "promoted", "probed", "left out"}
    note : str
    """

    name: str
    backbone: str
    stage: str
    method: str
    pictures: int = 0
    score: Interval | None = None
    against: str = ""
    gain: Interval | None = None
    distinguishable: bool | None = None
    seconds: float = 0.0
    estimated: float = 0.0
    megabytes: float = 0.0
    state: str = "probed"
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **asdict(self),
            "score": None if self.score is None else self.score.as_dict(),
            "gain": None if self.gain is None else self.gain.as_dict(),
        }


def picture_scores(kind: Kind, targets: NDArray[np.integer[Any]], chances: Floats) -> Floats:
    """What each picture's answer is worth, 0 to 1.

    Parameters
    ----------
    kind : {"multiclass", "multilabel"}
    targets : array, shape (n,) or (n, n_classes)
    chances : array, shape (n, n_classes)
        Probabilities or logits: only their order in a picture counts.

    Returns
    -------
    array, shape (n,)
        1 for a right class, 0 for a wrong one; for labels the picture's label ranking average
        precision.

    References
    ----------
    Tsoumakas, Katakis and Vlahavas (2010), "Mining multi-label data", section 3.2, for labels.

    Examples
    --------
    >>> picture_scores("multiclass", np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]])).tolist()
    [1.0, 0.0]
    >>> picture_scores("multilabel", np.array([[1, 0, 1]]), np.array([[0.9, 0.8, 0.1]])).round(3)
    array([0.833])
    """
    if kind != "multilabel":
        return np.asarray(chances.argmax(axis=1) == targets, dtype=np.float64)
    # Rank of each label, ties counted against it; and how many true ones are as high.
    at_least = chances[:, None, :] >= chances[:, :, None]
    ranks = at_least.sum(axis=2)
    hits = (at_least & (targets[:, None, :] == 1)).sum(axis=2)
    true = targets == 1
    found = np.where(true, hits / ranks, 0.0).sum(axis=1) / np.maximum(true.sum(axis=1), 1)
    # Where all labels hold, or none does, no order is wrong.
    return np.asarray(np.where(true.sum(axis=1) % targets.shape[1] == 0, 1.0, found))


def level_of(share: float, looks: int) -> float:
    """Level of each interval, so that all looks together are wrong in a share of all cases.

    >>> round(level_of(0.03, 10), 3)
    0.997
    """
    return 1.0 - share / max(looks, 1)


def score(values: Floats, groups: Groups, kind: Kind) -> Interval:
    """The mean over pictures, with its 95 % interval.

    >>> print(score(np.ones(20), None, "multiclass"))
    1.000 [0.839, 1.000]
    """
    if kind != "multilabel":
        return proportion_interval(values > 0.5, groups)
    found = paired_bootstrap(values[None], np.zeros((1, len(values))), groups=groups).interval
    high = min(found.high, 1.0) if found.high == found.high else found.high
    return Interval(value=found.value, low=found.low, high=high, method=found.method)


def gain(
    values: Floats, against: Floats, groups: Groups, kind: Kind, *, level: float
) -> Difference:
    """How much better one is than another on the same pictures, at the level that decides.

    >>> more, less = np.arange(200) < 190, np.arange(200) < 120
    >>> gain(more * 1.0, less * 1.0, None, "multiclass", level=0.997).distinguishable
    True
    """
    if kind != "multilabel":
        return paired_proportion_difference(values > 0.5, against > 0.5, groups, level=level)
    return paired_bootstrap(values[None], against[None], groups=groups, level=level)


def sound(found: Difference) -> bool:
    """Whether the first is better, and not by chance."""
    return found.distinguishable and found.interval.value > 0


def undecidable(values: Floats, level: float) -> str:
    """Say why no rival could be told apart, however good; empty where one could.

    A rival can only be right where this one is wrong: with few such pictures a sign test cannot
    say at this level that it was no chance, even if every one is put right.

    >>> undecidable(np.arange(100) > 2, 0.997)
    '3 of 100 held-out pictures are answered wrong: even a perfect rival could not be told apart'
    """
    wrong = int((np.asarray(values, dtype=np.float64) < 1.0).sum())
    if wrong >= math.ceil(math.log2(2 / (1 - level))):
        return ""
    return (
        f"{wrong} of {len(values)} held-out pictures are answered wrong: even a perfect rival "
        "could not be told apart"
    )


def best_of(gains: Sequence[Difference | None]) -> int | None:
    """Place of the largest gain among those that are no chance; None without one."""
    found = [(one.interval.value, -i) for i, one in enumerate(gains) if one and sound(one)]
    return -max(found)[1] if found else None
