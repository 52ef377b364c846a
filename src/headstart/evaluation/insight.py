"""What a run's features tell beside its numbers: doubtful labels, foreign images, weak places.

Everything is computed from pooled features that the run has put into the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.prepare import Prepared
from headstart.data.splits import evenly, kfold
from headstart.errors import HeadstartError, UnknownNameError
from headstart.evaluation.classification import AnyEvaluation, Evaluation
from headstart.evaluation.detection import BoxEvaluation
from headstart.evaluation.embeddings import (
    KEPT,
    MOST,
    Known,
    Neighbourhood,
    Outlier,
    Place,
    farthest,
    neighbourhoods,
    placed,
)
from headstart.evaluation.learning_curve import CurvePoint, probe_curve
from headstart.evaluation.slices import FEWEST, Slice, compare_slices, size_thirds
from headstart.features.extractor import Extractor
from headstart.metrics.label_errors import confident_label_errors, label_error_scores
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.runtime import timed
from headstart.training.logistic_regression import Problem, principal_basis, search_penalty

__all__ = ["ASPECTS", "Diagnostics", "LabelError", "diagnose"]

ASPECTS = ("slices", "curve", "labels", "outliers", "neighbours", "map")
"""What can be looked into; boxes and masks have slices alone."""

TITLES = {
    "slices": "Better or worse parts",
    "curve": "What more images would bring",
    "labels": "Labels that are likely wrong",
    "outliers": "Images unlike those learned from",
    "neighbours": "What the model sees as alike",
    "map": "A map of the images",
}

DIRECTIONS = 128
"""Of the features, those that vary most: the probes here read no others. They find about as many
wrong labels in a third of the time (docs/insight.md)."""

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4)
"""Penalties of the probes here: none weaker, for the same reason."""

SEEN_AGAIN = 500
"""Images learned from that a trained backbone looks at once more, at most."""

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelError:
    """A label that is likely wrong; ``row`` is the image's in the data."""

    row: int
    image: str
    part: str
    given: str
    likely: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """What was looked into; empty where it was not, or where ``notes`` say why.

    Parameters
    ----------
    features : str
        Of which backbone.
    measure : str
        What slices are judged by.
    slices : tuple of Slice
    curve : tuple of CurvePoint
    labels_looked_at, labels_in_doubt : int
        In doubt are those whose image confidently is of another class; of several labels None.
    label_errors : tuple of LabelError
    outliers : tuple of Outlier
        The farthest first.
    foreign : float
        Share of the judged images farther from those learned from than 99 in 100 of these are
        from each other; NaN where it is not known.
    neighbourhoods : tuple of Neighbourhood
    places : tuple of Place
    map_by : str
    notes : tuple of str
    seconds : mapping of str to float
        By aspect.
    """

    features: str = ""
    measure: str = "accuracy"
    slices: tuple[Slice, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    labels_looked_at: int = 0
    labels_in_doubt: int | None = None
    label_errors: tuple[LabelError, ...] = ()
    outliers: tuple[Outlier, ...] = ()
    foreign: float = float("nan")
    neighbourhoods: tuple[Neighbourhood, ...] = ()
    places: tuple[Place, ...] = ()
    map_by: str = ""
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Every number as plain values, for report.json."""
        found = asdict(self) | {"slices": [one.as_dict() for one in self.slices]}
        found["curve"] = [
            {"images": point.images, "score": point.score.as_dict()} for point in self.curve
        ]
        return found


Look = Callable[[Diagnostics, str, Callable[[], dict[str, Any]]], Diagnostics]


def diagnose(
    source: FrozenBackbone,
    model: TransferModel,
    prepared: Prepared,
    evaluation: AnyEvaluation,
    *,
    extractor: Extractor,
    seed: int = 0,
    aspects: Collection[str] = ASPECTS,
) -> Diagnostics:
    """Look into what a run has learned, from features that it has cached.

    Doubtful labels and the learning curve are told by the backbone as it was before training,
    since one that has learned a wrong label confirms it; all else by the model's own.

    Parameters
    ----------
    source : FrozenBackbone
        The backbone before any training.
    model : TransferModel
    prepared : Prepared
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
        Of ``prepared.test``.
    extractor : Extractor
    seed : int
        Of folds, map and bootstrap.
    aspects : collection of str
        Some of ``ASPECTS``; nothing else is computed.

    Returns
    -------
    Insight

    Raises
    ------
    UnknownNameError
        If there is no such aspect.
    """
    for name in aspects:
        if name not in ASPECTS:
            raise UnknownNameError("aspect", name, list(ASPECTS))
    clock: dict[str, float] = {}
    look = partial(_looked, aspects=aspects, clock=clock)
    found = Diagnostics(measure=_measure(evaluation))
    found = look(found, "slices", lambda: {"slices": _slices(prepared, evaluation, seed)})
    if isinstance(evaluation, Evaluation) and set(aspects) - {"slices"}:
        backbones = source, model
        try:
            found = _from_features(found, look, backbones, prepared, evaluation, extractor, seed)
        except HeadstartError as error:
            found = replace(found, notes=(*found.notes, f"Features were not looked at. {error}"))
    return replace(found, seconds=clock)


def _looked(
    found: Diagnostics,
    aspect: str,
    see: Callable[[], dict[str, Any]],
    *,
    aspects: Collection[str],
    clock: dict[str, float],
) -> Diagnostics:
    """Add an aspect if it is asked for; one that cannot be seen is a note with the reason."""
    if aspect not in aspects:
        return found
    try:
        with timed(clock, aspect):
            return replace(found, **see())
    # A model that is trained and judged is not lost because one look at it fails.
    except (HeadstartError, ValueError, ArithmeticError) as error:
        return replace(found, notes=(*found.notes, f"{TITLES[aspect]}: left out. {error}"))


def _from_features(
    found: Diagnostics,
    look: Look,
    backbones: tuple[FrozenBackbone, TransferModel],
    prepared: Prepared,
    evaluation: Evaluation,
    extractor: Extractor,
    seed: int,
) -> Diagnostics:
    """What cross-validated probes tell, then what the places of the features tell."""
    source, model = backbones
    trained = model.backbone.identity != source.identity
    found = replace(found, features="trained backbone" if trained else "frozen backbone")
    before = Known.of(source, prepared, extractor)
    penalty = max(float(model.record.get("penalty") or STRENGTHS[2]), STRENGTHS[-1])
    coarse = replace(before, values=_main_directions(before.values))
    found = look(found, "curve", lambda: {"curve": _curve(coarse, penalty, seed)})
    found = look(found, "labels", lambda: _label_errors(coarse, seed))
    after = before
    if trained:
        exact = replace(extractor, engine=model.engine)  # in which the judged part is cached
        after = Known.of(model.backbone, prepared, exact, most=SEEN_AGAIN)
    correct = evaluation.correct
    found = look(found, "outliers", lambda: _outliers(after, correct))
    found = look(found, "neighbours", lambda: {"neighbourhoods": neighbourhoods(after, evaluation)})
    return look(
        found,
        "map",
        lambda: dict(zip(("places", "map_by"), placed(after, correct, seed), strict=True)),
    )


def _measure(evaluation: AnyEvaluation) -> str:
    if isinstance(evaluation, Evaluation):
        several = evaluation.task.kind == "multilabel"
        return "all labels right" if several else "accuracy"
    boxes = isinstance(evaluation, BoxEvaluation)
    return "share of objects right" if boxes else "mean IoU of an image"


def _slices(prepared: Prepared, evaluation: AnyEvaluation, seed: int) -> tuple[Slice, ...]:
    """By group, size and class; of boxes and masks by size."""
    test, records = prepared.test, prepared.records
    of_record = {record.digest: (record.width, record.height) for record in records}
    sizes = [of_record.get(sample.digest or "", (0, 0)) for sample in test.samples]
    groupings: dict[str, Sequence[str | None]] = {"size": size_thirds(sizes)}
    groups = test.groups()
    if not isinstance(evaluation, Evaluation):
        return compare_slices(_each(evaluation), groupings, groups=groups, seed=seed)
    if evaluation.task.kind == "multiclass":
        groupings["class"] = [evaluation.task.classes[target] for target in evaluation.targets]
    if groups is not None:
        counts = np.bincount(groups)
        named = [str(sample.group) for sample in test.samples]
        groupings["group"] = [
            n if counts[g] >= FEWEST else None for n, g in zip(named, groups, strict=True)
        ]
    return compare_slices(evaluation.correct, groupings, groups=groups, seed=seed)


def _each(evaluation: AnyEvaluation) -> Floats:
    """A number for every image with boxes or a mask; NaN where there is nothing to judge."""
    if isinstance(evaluation, BoxEvaluation):
        errors = evaluation.errors.astype(np.float64)
        total = errors.sum(axis=1)
        return np.asarray(np.where(total > 0, errors[:, 0] / np.maximum(total, 1), np.nan))
    if isinstance(evaluation, Evaluation):
        return evaluation.correct.astype(np.float64)
    return np.asarray(evaluation.image_iou, dtype=np.float64)


def _main_directions(values: NDArray[np.floating[Any]]) -> Floats:
    """Features in the directions in which they vary most, ``DIRECTIONS`` at most."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # for few images quicker than many threads
        main = principal_basis(values).apply(values)[:, -DIRECTIONS:]
    return np.asarray(main, dtype=np.float64)


def _curve(known: Known, penalty: float, seed: int) -> tuple[CurvePoint, ...]:
    rows = known.train[evenly(len(known.train), MOST)]
    part = known.data.subset(rows)
    return probe_curve(
        known.values[rows],
        part.targets(),
        kind=part.kind,
        groups=known.groups(rows),
        penalty=penalty,
        seed=seed,
    )


def _label_errors(known: Known, seed: int) -> dict[str, Any]:
    data, rows = known.data, np.asarray(evenly(len(known.data), MOST), dtype=np.intp)
    targets = data.subset(rows).targets()
    problem = Problem.of(targets, n_classes=len(data.classes), kind=data.kind)
    search = search_penalty(
        known.values[rows],
        problem,
        kfold(targets, 5, blocks=known.groups(rows), seed=seed),
        penalties=STRENGTHS,
        weighted=problem.is_weighted("auto"),
    )
    task = ClassificationTask(classes=data.classes, kind=data.kind)
    chances = task.calibrated(search.held_out, targets).probabilities(search.held_out)
    scores = label_error_scores(chances, targets)
    several = data.kind == "multilabel"
    doubted = None if several else int(confident_label_errors(chances, targets).sum())
    order = np.argsort(-scores, axis=None, kind="stable")[:KEPT]
    places = [np.unravel_index(at, scores.shape) for at in order]
    errors = []
    for at in places:
        if scores[at] <= 0.5:  # the given label is the likeliest
            break
        row, sample = int(rows[at[0]]), data.samples[int(rows[at[0]])]
        given, likely = _said(data.classes, at, targets, chances)
        errors.append(
            LabelError(
                row=row,
                image=sample.name,
                part=sample.split or "",
                given=given,
                likely=likely,
                score=float(scores[at]),
            )
        )
    return {
        "label_errors": tuple(errors),
        "labels_in_doubt": doubted,
        "labels_looked_at": len(rows),
    }


def _said(
    classes: Sequence[str], at: tuple[Any, ...], targets: Rows, chances: Floats
) -> tuple[str, str]:
    """Given and likely label in words."""
    if len(at) == 1:
        return classes[targets[at]], classes[int(chances[at[0]].argmax())]
    name = classes[at[1]]
    return (name, f"not {name}") if targets[at] else (f"not {name}", name)


def _outliers(known: Known, correct: NDArray[np.bool_]) -> dict[str, Any]:
    outliers, foreign = farthest(known, correct)
    return {"outliers": outliers, "foreign": foreign}
