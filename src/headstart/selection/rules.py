"""Which way to learn wins, by what each answered right on the same held-out images: pure rules.

Whatever costs more than a linear probe, or reads another stage than the last, has to be shown to
be better. The chance of leaving the plain probe for nothing is held below 5 % over all rivals and
all looks at them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.metrics.classification import mean_average_precision_score
from headstart.metrics.confidence_intervals import (
    Difference,
    Groups,
    Interval,
    paired_proportion_difference,
    proportion_interval,
    resamples,
    units,
)
from headstart.metrics.significance import Contrast, hierarchical

if TYPE_CHECKING:
    from headstart.data.dataset import Kind

__all__ = [
    "BUDGET",
    "MEASURES",
    "PROBES_SHARE",
    "RULE",
    "TRAININGS_SHARE",
    "Judge",
    "Row",
    "best_of",
    "level_of",
    "sound",
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
    "multilabel": "mean average precision",
}
"""What is compared, by the kind of data."""

DRAWS = 1000
"""Of the images anew, where several labels an image are judged."""

WITNESSES = 5
"""Images (or groups) with a label from which on it tells one rival from another: on fewer, the
bootstrap takes its average precision for more certain than it is."""

RULE = (
    "A linear probe on the whole backbone is taken unless another way to learn is better on the "
    "same held-out training images, beyond what chance explains: at most 5 % over all rivals "
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
    images : int
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
    images: int = 0
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


def level_of(share: float, looks: int) -> float:
    """Level of each interval, so that all looks together are wrong in a share of all cases.

    >>> round(level_of(0.03, 10), 3)
    0.997
    """
    return 1.0 - share / max(looks, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """What answers to the same held-out images are worth, one beside the other.

    Answers that are not there yet are NaN; only images that both have answered are compared.

    Parameters
    ----------
    kind : {"multiclass", "multilabel"}
    targets : array, shape (n,) or (n, n_classes)
    groups : n hashables, optional
        Images of one group are no independent witnesses.

    Examples
    --------
    >>> judge = Judge(kind="multiclass", targets=np.zeros(200, dtype=int))
    >>> print(judge.score(np.ones(200)))
    1.000 [0.981, 1.000]
    >>> judge.gain(np.arange(200) < 190, np.arange(200) < 120, level=0.997).distinguishable
    True
    """

    kind: Kind
    targets: NDArray[np.integer[Any]]
    groups: Groups = None

    def worth(self, logits: Floats, rows: NDArray[np.intp] | None = None) -> Floats:
        """What is kept of answers: of classes right or wrong, (n,); of labels chances, (n, k).

        Parameters
        ----------
        logits : array, shape (m, n_classes)
        rows : array, shape (m,), optional
            The images that they answer; by default all.
        """
        if self.kind == "multilabel":
            return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))
        targets = self.targets if rows is None else self.targets[rows]
        return np.asarray(logits.argmax(axis=1) == targets, dtype=np.float64)

    def score(self, values: Floats) -> Interval:
        """Accuracy, or mean average precision, with its 95 % interval."""
        there, groups = self._shared(values)
        if self.kind != "multilabel":
            return proportion_interval(values[there] > 0.5, groups)
        found = self._contrast(values, None, there).interval()
        low, high = np.clip([found.low, found.high], 0, 1).tolist()
        return Interval(value=found.value, low=low, high=high, method=found.method)

    def gain(self, values: Floats, against: Floats, *, level: float) -> Difference:
        """How much better one is than another, at the level that decides.

        Of several labels those count that at least five images (or groups) show.
        """
        there, groups = self._shared(values, against)
        if self.kind != "multilabel":
            one, two = values[there] > 0.5, against[there] > 0.5
            return paired_proportion_difference(one, two, groups, level=level)
        told = [label for label in range(self.targets.shape[1]) if self._witnessed(there, label)]
        if told:
            fewer = replace(self, targets=self.targets[:, told])
            return fewer._contrast(values[:, told], against[:, told], there).difference(level)
        found = self._contrast(values, against, there).interval(level)
        unknown = replace(found, low=math.nan, high=math.nan)
        return Difference(interval=unknown, distinguishable=False)

    def undecidable(self, values: Floats, level: float) -> str:
        """Say why no rival could be told apart, however good; empty where one could.

        A rival can only be right where this one is wrong: with few such images a sign test
        cannot say at this level that it was no chance, even if every one is put right.

        Examples
        --------
        >>> judge = Judge(kind="multiclass", targets=np.zeros(100, dtype=int))
        >>> judge.undecidable(np.arange(100) > 2, 0.997)[:44]
        '3 of 100 held-out images are answered wrong:'
        """
        right = np.asarray(values, dtype=np.float64) > 0.5
        if self.kind == "multilabel":
            right = (right == (self.targets == 1)).all(axis=1)
            there = self.answered(values)
            if not any(self._witnessed(there, k) for k in range(self.targets.shape[1])):
                return f"No label is shown by {WITNESSES} held-out images (or groups)"
        wrong = int((~right).sum())
        if wrong >= math.ceil(math.log2(2 / (1 - level))):
            return ""
        return (
            f"{wrong} of {len(right)} held-out images are answered wrong: even a perfect rival "
            "could not be told apart"
        )

    def answered(self, values: Floats) -> NDArray[np.intp]:
        """Return the images that have an answer."""
        return np.flatnonzero(
            ~np.isnan(np.asarray(values, np.float64).reshape(len(values), -1)[:, 0])
        )

    def _witnessed(self, there: NDArray[np.intp], label: int) -> bool:
        shown = there[self.targets[there, label] == 1]
        count = len(shown) if self.groups is None else len(set(np.asarray(self.groups)[shown]))
        return count >= WITNESSES

    def _shared(self, *answers: Floats) -> tuple[NDArray[np.intp], Groups]:
        there = self.answered(answers[0])
        for other in answers[1:]:
            there = np.intersect1d(there, self.answered(other))
        groups = None if self.groups is None else np.asarray(self.groups)[there]
        return there, groups

    def _contrast(
        self, values: Floats, against: Floats | None, there: NDArray[np.intp]
    ) -> Contrast:
        """Mean average precision, or a difference of two, on images that are drawn anew."""
        groups = None if self.groups is None else np.asarray(self.groups)[there]
        codes, count = units(len(there), groups)
        targets = self.targets[there]
        if not targets.any():  # of no label there is an image
            nan = math.nan
            return Contrast(value=nan, error=nan, freedom=nan, method="bootstrap-images")

        def precision(weights: Floats) -> Floats:
            found = mean_average_precision_score(targets, values[there], sample_weight=weights)
            if against is not None:
                other = mean_average_precision_score(targets, against[there], sample_weight=weights)
                found = found - other
            return np.ravel(found)

        blocks = resamples(codes, count, DRAWS, np.random.default_rng(0))
        draws = np.concatenate([precision(block) for block in blocks])
        whole = precision(np.ones((1, len(there))))
        return hierarchical(whole, draws[None], units=count)


def sound(found: Difference) -> bool:
    """Whether the first is better, and not by chance."""
    return found.distinguishable and found.interval.value > 0


def best_of(gains: Sequence[Difference | None]) -> int | None:
    """Place of the largest gain among those that are no chance; None without one."""
    found = [(one.interval.value, -i) for i, one in enumerate(gains) if one and sound(one)]
    return -max(found)[1] if found else None
