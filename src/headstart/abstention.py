"""What a model's abstaining brought on pictures that it was judged on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.intervals import Interval, proportion_interval
from headstart.resampling import Groups
from headstart.selective import Selected

__all__ = ["Abstention", "judge_abstention"]


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """How much was answered of the judged pictures, and how much of that was wrong.

    Parameters
    ----------
    selected : Selected
        The threshold, chosen on other pictures.
    coverage, risk : Interval or None
        None where no threshold could be chosen. The risk has NaN where nothing was answered.
    """

    selected: Selected
    coverage: Interval | None = None
    risk: Interval | None = None

    def sentence(self) -> str:
        """Say in words what it brought, and whether that is what was wanted.

        >>> from headstart.selective import threshold_for_risk
        >>> sure = np.linspace(0.5, 1, 400)
        >>> chosen = threshold_for_risk(sure, sure > 0.55, max_risk=0.05)
        >>> print(judge_abstention(chosen, sure[::20], sure[::20] > 0.55).sentence()[:90])
        Abstains below 0.540: it answers 0.900 [0.699, 0.972] of the pictures, and 0.000 [0.000, 0
        """
        if self.coverage is None or self.risk is None or self.selected.threshold is None:
            return self.selected.sentence()
        wanted = f"at most {self.selected.max_risk:g} was wanted"
        if np.isnan(self.risk.value):
            judged = f"none of these pictures, so that nothing can be said of its answers; {wanted}"
            return f"Abstains below {self.selected.threshold:.3f}: it answers {judged}."
        if self.risk.low > self.selected.max_risk:
            judged = "which is EXCEEDED: do not rely on it for pictures such as these"
        elif self.risk.high <= self.selected.max_risk:
            judged = "which is kept"
        else:
            judged = "which these pictures can neither confirm nor refute"
        least = self.selected.threshold
        where = f"Abstains below {least:.3f}" if least > 0 else "Abstains nowhere"
        return (
            f"{where}: it answers {self.coverage} of the pictures, and {self.risk} of these "
            f"answers are wrong; {wanted}, {judged}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Every number as plain values, for report.json."""
        return {
            "selected": self.selected.as_dict(),
            "coverage": None if self.coverage is None else self.coverage.as_dict(),
            "risk": None if self.risk is None else self.risk.as_dict(),
        }


def judge_abstention(
    selected: Selected | None,
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    groups: Groups = None,
) -> Abstention | None:
    """Hold a threshold against pictures that it was not chosen on.

    Parameters
    ----------
    selected : Selected or None
    confidence : array, shape (n,)
    correct : array of bool, shape (n,)
    groups : n hashables, optional
        Groups count as in ``proportion_interval``.

    Returns
    -------
    Abstention or None
        None where no risk was wanted.
    """
    if selected is None or selected.threshold is None:
        return None if selected is None else Abstention(selected=selected)
    answered = confidence >= selected.threshold
    names = None if groups is None else np.fromiter(groups, dtype=object)
    return Abstention(
        selected=selected,
        coverage=proportion_interval(answered, names),
        risk=proportion_interval(~correct[answered], None if names is None else names[answered]),
    )
