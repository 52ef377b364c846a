"""Settings and result of an adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from headstart.data.dataset import html_table
from headstart.data.prepare import BadFiles
from headstart.errors import UnknownNameError
from headstart.evaluation.domain_change import ClassMove, DomainMap
from headstart.methods.adaptation import ADAPTATIONS
from headstart.metrics.confidence_intervals import Interval
from headstart.models.transfer_model import TransferModel
from headstart.workflows.duration import parse_duration

__all__ = ["SOURCE", "AdaptSettings", "Adaptation", "AdaptationResult"]

SOURCE = "source"
"""Name of the model before the adaptation."""


@dataclass(frozen=True, kw_only=True)
class AdaptSettings:
    """Settings of an adaptation.

    Parameters
    ----------
    budget : str or float
        Time for all methods, such as 90s or 5m, or seconds. A method that has begun finishes its
        epoch.
    train_from : str, optional
        First stage that trains; by default each method's own.
    learning_rate : float, optional
    epochs : int
        0 chooses by the number of images.
    batch_norm : str, optional
        frozen, train or adapt, for the stages that train.
    bad_files : {"error", "skip"}
    device : str
    seed : int
    resume : bool
        Continue from the checkpoints beside the output folder. Otherwise they are deleted.

    Raises
    ------
    UsageError
        If a value is out of its range.
    """

    budget: str | float = "5m"
    train_from: str | None = None
    learning_rate: float | None = None
    epochs: int = 0
    batch_norm: str | None = None
    bad_files: BadFiles = "error"
    device: str = "auto"
    seed: int = 0
    resume: bool = False

    @property
    def seconds(self) -> float:
        """The budget in seconds."""
        return parse_duration(self.budget)

    def method(self, name: str) -> Any:
        """Create a method with these settings; those that it does not have are left out.

        Raises
        ------
        UnknownNameError
            If there is no such method.
        """
        if name not in ADAPTATIONS:
            raise UnknownNameError("method", name, ("auto", *ADAPTATIONS))
        method: Any = ADAPTATIONS[name]()
        known = {field.name for field in fields(method)}
        values: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("train_from", "learning_rate", "batch_norm", "seed")
            if key in known and getattr(self, key) is not None
        }
        if self.epochs and "training" in known:
            values["training"] = replace(method.training, epochs=self.epochs)
        return replace(method, **values)


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptationResult:
    """One method: its scores, and the reasons against it.

    Parameters
    ----------
    method : str
        "source" for the model before the adaptation.
    scores : mapping of str to float
        Label-free criteria on the target.
    gain : Interval or None
        Of the mutual information over the source model, paired; None for the source model.
    objections : tuple of str
        Why the model is not accepted; empty if it is.
    seconds : float
    oracle : Interval or None
        Accuracy on labelled target images, if there are any. Never used to choose.
    """

    method: str
    scores: Mapping[str, float]
    gain: Interval | None = None
    objections: tuple[str, ...] = ()
    seconds: float = 0.0
    oracle: Interval | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "method": self.method,
            "scores": dict(self.scores),
            "information_gain": None if self.gain is None else self.gain.as_dict(),
            "objections": list(self.objections),
            "seconds": self.seconds,
            "oracle_accuracy": None if self.oracle is None else self.oracle.as_dict(),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Adaptation:
    """What ``adapt`` returns.

    Parameters
    ----------
    model : TransferModel
        The chosen model, or the source model if none was accepted.
    chosen : str
        Name of the method, or "source".
    results : tuple of AdaptationResult
        The source model first.
    distances : mapping
        Between source and target before and after; empty without source images.
    summary : tuple of str
    seconds : float
    folder : Path or None
        Where the model was written.
    moves : tuple of ClassMove
        Classes before and after; empty if the source model is kept.
    maps : mapping
        Of both domains before and after; empty without source images.
    """

    model: TransferModel
    chosen: str
    results: tuple[AdaptationResult, ...]
    distances: Mapping[str, Mapping[str, float]]
    summary: tuple[str, ...]
    seconds: float
    folder: Path | None = None
    moves: tuple[ClassMove, ...] = ()
    maps: Mapping[str, DomainMap] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Adaptation({self.chosen!r}, {len(self.results) - 1} methods tried)"

    def _repr_html_(self) -> str:
        rows = {r.method: " ".join(r.objections) or "accepted" for r in self.results[1:]}
        return html_table(f"Adaptation: {self.chosen}", rows)

    @property
    def is_better(self) -> bool:
        """Whether an adapted model was chosen."""
        return self.chosen != SOURCE

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "chosen": self.chosen,
            "is_better": self.is_better,
            "summary": list(self.summary),
            "results": [result.as_dict() for result in self.results],
            "distances": {key: dict(value) for key, value in self.distances.items()},
            "moves": [asdict(move) for move in self.moves],
            "seconds": self.seconds,
        }
