"""What a backbone has kept and lost by fine-tuning: the record, and what it means in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from headstart.errors import UsageError
from headstart.metrics.confidence_intervals import Difference, Interval

__all__ = ["Forgetting", "SourceChange", "StageDrift", "sentences"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDrift:
    """How far one stage has moved.

    Parameters
    ----------
    stage : str
    cka : float
        Linear CKA of the answers before and after, 0 to 1; 1 where they differ by a rotation
        and a scale at most. NaN where the images give no answer that varies.
    cosine : float
        Mean cosine of each image's answer before and after, -1 to 1.
    relative_weight_change : float
        ``||after - before|| / ||before||`` over the stage's parameters; BatchNorm's statistics
        are no parameters, but what they change shows in the other two.
    """

    stage: str
    cka: float
    cosine: float
    relative_weight_change: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceChange:
    """What the original classifier makes of the backbone as it was and as it is.

    Parameters
    ----------
    name : str
        What the original classifier was trained on.
    images : int
    agreement : Interval
        Share of the images that it gives the same class as before.
    before, after : Interval or None
        Its accuracy, where the images' classes of the source are known.
    change : Difference or None
        After less before, on the same images.
    """

    name: str
    images: int
    agreement: Interval
    before: Interval | None = None
    after: Interval | None = None
    change: Difference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgetting:
    """Drift of every stage and, where it can be asked, the original classifier's answers.

    Parameters
    ----------
    stages : tuple of StageDrift
        In the order in which they run.
    source : SourceChange or None
    images : int
        How many were looked at.
    note : str
        Why ``source`` is None; else empty.

    Examples
    --------
    >>> stage = StageDrift(stage="layer4", cka=0.5, cosine=0.75, relative_weight_change=math.nan)
    >>> found = Forgetting(stages=(stage,), source=None, images=2, note="No classifier.")
    >>> found.as_dict()["stages"][0]["relative_weight_change"] is None
    True
    >>> Forgetting.from_dict(found.as_dict()).stages[0].cka
    0.5
    """

    stages: tuple[StageDrift, ...]
    source: SourceChange | None
    images: int
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: NaN becomes None."""
        plain: dict[str, Any] = _without_nan(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``as_dict`` wrote.

        Raises
        ------
        UsageError
            If a value is missing or cannot be meant.
        """
        try:
            stages = tuple(
                StageDrift(
                    stage=str(one["stage"]),
                    cka=_number(one["cka"]),
                    cosine=_number(one["cosine"]),
                    relative_weight_change=_number(one["relative_weight_change"]),
                )
                for one in values["stages"]
            )
            source = None if values["source"] is None else _source(values["source"])
            images, note = int(values["images"]), str(values["note"])
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"Expected a record of forgetting, got one that is damaged ({error!r}); do "
                "measure again."
            ) from error
        return cls(stages=stages, source=source, images=images, note=note)


def sentences(forgetting: Forgetting, target_gain: Interval | None = None) -> tuple[str, ...]:
    """Say in words what was gained and what was lost.

    Parameters
    ----------
    forgetting : Forgetting
    target_gain : Interval, optional
        Of the fine-tuned model over the one with the backbone as it was, on the target.

    Returns
    -------
    tuple of str
        The most important first.

    Examples
    --------
    >>> stage = StageDrift(stage="layer4", cka=0.5, cosine=0.75, relative_weight_change=0.125)
    >>> from headstart.metrics.confidence_intervals import proportion_interval
    >>> agreement = proportion_interval([True] * 93 + [False] * 7)
    >>> found = Forgetting(
    ...     stages=(stage,),
    ...     source=SourceChange(name="ImageNet-1k", images=100, agreement=agreement),
    ...     images=100,
    ... )
    >>> gain = Interval(value=0.021, low=0.003, high=0.04, method="")
    >>> for sentence in sentences(found, gain):
    ...     sentence
    'Target +0.021 [+0.003, +0.040].'
    'Source: the old head answers 0.930 [0.863, 0.966] of 100 images as before.'
    'Most moved: layer4, CKA 0.500, cosine 0.750, weights changed by 12.5 %.'
    """
    found = [] if target_gain is None else [f"Target {_signed(target_gain)}."]
    source = forgetting.source
    if source is None:
        found += [forgetting.note] if forgetting.note else []
    else:
        found.append(
            f"Source: the old head answers {source.agreement} of {source.images} images as before."
        )
        if source.before is not None and source.after is not None and source.change is not None:
            told = "" if source.change.distinguishable else ", not distinguishable from none"
            found.append(
                f"Source accuracy {_signed(source.change.interval)}{told}: {source.before} "
                f"before, {source.after} after."
            )
    return (*found, *_of_stages(forgetting.stages))


def _of_stages(stages: tuple[StageDrift, ...]) -> tuple[str, ...]:
    moved = [
        one for one in stages if (one.cka, one.cosine, one.relative_weight_change) != (1, 1, 0)
    ]
    if not moved:
        return ("No stage of the backbone has moved.",)
    most = min(moved, key=lambda one: (math.inf if math.isnan(one.cka) else one.cka, one.cosine))
    still = [one.stage for one in stages if one not in moved]
    kept = f"Unmoved: {', '.join(still)}; most" if still else "Most"
    cka, cosine = _shown(most.cka), _shown(most.cosine)
    by = _shown(100 * most.relative_weight_change, "{:.1f} %")
    return (f"{kept} moved: {most.stage}, CKA {cka}, cosine {cosine}, weights changed by {by}.",)


def _shown(number: float, form: str = "{:.3f}") -> str:
    return "unknown" if math.isnan(number) else form.format(number)


def _signed(interval: Interval) -> str:
    bounds = "unknown" if math.isnan(interval.low) else f"{interval.low:+.3f}, {interval.high:+.3f}"
    return f"{interval.value:+.3f} [{bounds}]"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _interval(value: Mapping[str, Any] | None) -> Interval | None:
    if value is None:
        return None
    numbers = {name: _number(value[name]) for name in ("value", "low", "high", "level")}
    return Interval(**numbers, method=str(value["method"]))


def _source(value: Mapping[str, Any]) -> SourceChange:
    agreement, change = _interval(value["agreement"]), value["change"]
    interval = None if change is None else _interval(change["interval"])
    if agreement is None:
        raise ValueError("no agreement")
    return SourceChange(
        name=str(value["name"]),
        images=int(value["images"]),
        agreement=agreement,
        before=_interval(value["before"]),
        after=_interval(value["after"]),
        change=None
        if interval is None
        else Difference(interval=interval, distinguishable=bool(change["distinguishable"])),
    )
