"""Record of forgetting: how fine-tuning changed a backbone, with a summary in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from headstart.errors import UsageError
from headstart.evaluation.baselines import format_percent, format_points
from headstart.metrics.confidence_intervals import Difference, Interval
from headstart.metrics.validation import to_jsonable

__all__ = ["Forgetting", "SourceChange", "StageDrift", "summarise_forgetting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDrift:
    """Change of one stage.

    Parameters
    ----------
    stage : str
    cka : float
        Linear CKA of the features before and after, 0 to 1; 1 if they differ by a rotation and a
        scale only. NaN if the features are the same for all images.
    cosine : float
        Mean cosine between each image's features before and after, -1 to 1.
    relative_weight_change : float
        ``||after - before|| / ||before||`` over the stage's parameters. BatchNorm statistics are
        not parameters; their effect shows in the other two values.
    """

    stage: str
    cka: float
    cosine: float
    relative_weight_change: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceChange:
    """Predictions of the original classifier before and after fine-tuning.

    Parameters
    ----------
    name : str
        Name of the source data.
    images : int
    agreement : Interval
        Share of the images with the same predicted class.
    before, after : Interval or None
        Accuracy of the original classifier, if the source classes of the images are known.
    change : Difference or None
        Accuracy after minus accuracy before, on the same images.
    """

    name: str
    images: int
    agreement: Interval
    before: Interval | None = None
    after: Interval | None = None
    change: Difference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgetting:
    """Drift of every stage, and the predictions of the original classifier if there is one.

    Parameters
    ----------
    stages : tuple of StageDrift
        In the order of the forward pass.
    source : SourceChange or None
    images : int
        Number of images.
    note : str
        Why ``source`` is None; otherwise empty.

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
        values: dict[str, Any] = to_jsonable(self)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``as_dict`` wrote.

        Raises
        ------
        UsageError
            If a value is missing or invalid.
        """
        try:
            stages = tuple(
                StageDrift(
                    stage=str(stage_values["stage"]),
                    cka=_parse_number(stage_values["cka"]),
                    cosine=_parse_number(stage_values["cosine"]),
                    relative_weight_change=_parse_number(stage_values["relative_weight_change"]),
                )
                for stage_values in values["stages"]
            )
            source = None if values["source"] is None else _parse_source_change(values["source"])
            images, note = int(values["images"]), str(values["note"])
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"The record of forgetting in model.json is damaged ({error!r}). Copy the model "
                "folder again, or train again."
            ) from error
        return cls(stages=stages, source=source, images=images, note=note)


def summarise_forgetting(
    forgetting: Forgetting, target_gain: Interval | None = None
) -> tuple[str, ...]:
    """Summarise transfer gain and forgetting in sentences.

    Parameters
    ----------
    forgetting : Forgetting
    target_gain : Interval, optional
        Gain of the fine-tuned model over the linear probe, on the target data.

    Returns
    -------
    tuple of str
        The most important sentence first.

    Examples
    --------
    >>> stage = StageDrift(stage="layer4", cka=0.5, cosine=0.75, relative_weight_change=0.125)
    >>> from headstart.metrics.confidence_intervals import proportion_interval
    >>> agreement = proportion_interval([True] * 93 + [False] * 7)
    >>> forgetting = Forgetting(
    ...     stages=(stage,),
    ...     source=SourceChange(name="ImageNet", images=100, agreement=agreement),
    ...     images=100,
    ... )
    >>> gain = Interval(value=0.021, low=0.003, high=0.04, method="")
    >>> for sentence in summarise_forgetting(forgetting, gain):
    ...     sentence
    'Transfer gain over the linear probe: +2.1 points [0.3, 4.0].'
    'Forgetting: the original ImageNet classifier gives the same answer for 93 of 100 images.'
    'Changed most: layer4 (CKA 0.500, cosine 0.750, weights changed by 12.5 %).'
    """
    sentences = []
    if target_gain is not None:
        sentences.append(f"Transfer gain over the linear probe: {format_points(target_gain)}.")
    source = forgetting.source
    if source is None:
        sentences += [forgetting.note] if forgetting.note else []
    else:
        sentences.append(
            f"Forgetting: the original {source.name.removeprefix('the ')} classifier gives the "
            f"same answer for {round(source.agreement.value * source.images)} of "
            f"{source.images} images."
        )
        if source.before is not None and source.after is not None and source.change is not None:
            note = "" if source.change.significant else " (not significant)"
            sentences.append(
                f"Its accuracy changes by {format_points(source.change.interval)}{note}: "
                f"{format_percent(source.before)} before, {format_percent(source.after)} after."
            )
    return (*sentences, *_summarise_drift(forgetting.stages))


def _summarise_drift(stages: tuple[StageDrift, ...]) -> tuple[str, ...]:
    changed = [
        stage
        for stage in stages
        if (stage.cka, stage.cosine, stage.relative_weight_change) != (1, 1, 0)
    ]
    if not changed:
        return ("No stage of the backbone has changed.",)
    most_changed = min(
        changed, key=lambda stage: (math.inf if math.isnan(stage.cka) else stage.cka, stage.cosine)
    )
    cka, cosine = _format_number(most_changed.cka), _format_number(most_changed.cosine)
    weight_change = _format_number(100 * most_changed.relative_weight_change, "{:.1f} %")
    unchanged = [stage.stage for stage in stages if stage not in changed]
    tail = f" Unchanged: {', '.join(unchanged)}." if unchanged else ""
    sentence = (
        f"Changed most: {most_changed.stage} (CKA {cka}, cosine {cosine}, weights changed by "
        f"{weight_change}).{tail}"
    )
    return (sentence,)


def _format_number(number: float, form: str = "{:.3f}") -> str:
    return "unknown" if math.isnan(number) else form.format(number)


def _parse_number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _parse_interval(value: Mapping[str, Any] | None) -> Interval | None:
    if value is None:
        return None
    numbers = {name: _parse_number(value[name]) for name in ("value", "low", "high", "level")}
    return Interval(**numbers, method=str(value["method"]))


def _parse_source_change(value: Mapping[str, Any]) -> SourceChange:
    agreement, change = _parse_interval(value["agreement"]), value["change"]
    if agreement is None:
        raise ValueError("no agreement")
    interval, significant = None, False
    if change is not None:
        interval = _parse_interval(change["interval"])
        # Older model folders have the key "distinguishable".
        significant = bool(change["significant" if "significant" in change else "distinguishable"])
    return SourceChange(
        name=str(value["name"]),
        images=int(value["images"]),
        agreement=agreement,
        before=_parse_interval(value["before"]),
        after=_parse_interval(value["after"]),
        change=None if interval is None else Difference(interval=interval, significant=significant),
    )
