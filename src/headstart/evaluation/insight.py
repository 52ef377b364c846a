"""Diagnostics: subgroups, learning curve, likely label errors, outliers, neighbours and map.

All of them use pooled features that the run has stored in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.prepare import PreparedData
from headstart.data.splits import evenly_spaced, kfold
from headstart.errors import HeadstartError, UnknownNameError
from headstart.evaluation.classification import AnyEvaluation, Evaluation
from headstart.evaluation.detection import BoxEvaluation
from headstart.evaluation.embeddings import (
    MAX_IMAGES,
    MAX_REPORTED,
    EmbeddedDataset,
    MapPoint,
    NearestImages,
    Outlier,
    find_nearest_images,
    find_outliers,
    map_images,
)
from headstart.evaluation.learning_curve import CurvePoint, probe_curve
from headstart.evaluation.slices import MIN_SLICE_IMAGES, Slice, compare_slices, size_thirds
from headstart.features.extractor import Extractor
from headstart.metrics.label_errors import (
    another_is_likelier,
    confident_label_errors,
    label_error_scores,
)
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.runtime import timed
from headstart.training.logistic_regression import principal_basis
from headstart.training.penalty_search import Problem, search_penalty

__all__ = ["ASPECTS", "Diagnostics", "LabelError", "diagnose"]

ASPECTS = ("slices", "curve", "labels", "outliers", "neighbours", "map")
"""Parts of the diagnostics; for boxes and masks only "slices" is available."""

TITLES = {
    "slices": "Subgroups",
    "curve": "Learning curve",
    "labels": "Likely label errors",
    "outliers": "Out-of-distribution images",
    "neighbours": "Nearest images",
    "map": "Map",
}

N_DIRECTIONS = 128
"""Number of principal components for the probes here. They find about as many wrong labels as all
features, in a third of the time (docs/insight.md)."""

PROBE_PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Penalties of the probes here; weaker ones would take longer."""

MAX_RECOMPUTED_IMAGES = 500
"""Maximum number of training images that a fine-tuned backbone processes again."""

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelError:
    """A likely label error; ``row`` is the row of the image in the dataset."""

    row: int
    image: str
    part: str
    label: str
    likely: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """Diagnostics of a run. A part is empty if it was not requested; ``notes`` list failures.

    Parameters
    ----------
    features : str
        Backbone of the features.
    measure : str
        Score of the slices.
    slices : tuple of Slice
    curve : tuple of CurvePoint
    labels_looked_at, labels_in_doubt : int
        Number of labels checked, and of images that confidently belong to another class (None for
        multilabel).
    label_errors : tuple of LabelError
    outliers : tuple of Outlier
        The farthest first.
    out_of_distribution : float
        Share of test images farther from the training images than 99 % of the training images are
        from each other. NaN if it is unknown.
    neighbourhoods : tuple of NearestImages
    places : tuple of MapPoint
        Points of the map.
    map_by : str
        Method of the map.
    notes : tuple of str
    seconds : mapping of str to float
        Duration by aspect.
    """

    features: str = ""
    measure: str = "accuracy"
    slices: tuple[Slice, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    labels_looked_at: int = 0
    labels_in_doubt: int | None = None
    label_errors: tuple[LabelError, ...] = ()
    outliers: tuple[Outlier, ...] = ()
    out_of_distribution: float = float("nan")
    neighbourhoods: tuple[NearestImages, ...] = ()
    places: tuple[MapPoint, ...] = ()
    map_by: str = ""
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"Diagnostics({self.features!r}, labels_in_doubt={self.labels_in_doubt}, "
            f"out_of_distribution={self.out_of_distribution:.3g}, {len(self.slices)} slices)"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all values as plain types, for report.json."""
        values = asdict(self) | {"slices": [slice_result.as_dict() for slice_result in self.slices]}
        values["curve"] = [
            {"images": point.images, "score": point.score.as_dict()} for point in self.curve
        ]
        return values


RunAspect = Callable[[Diagnostics, str, Callable[[], dict[str, Any]]], Diagnostics]


def diagnose(
    source: FrozenBackbone,
    model: TransferModel,
    prepared: PreparedData,
    evaluation: AnyEvaluation,
    *,
    extractor: Extractor,
    seed: int = 0,
    aspects: Collection[str] = ASPECTS,
) -> Diagnostics:
    """Compute the diagnostics of a run from its cached features.

    Label errors and the learning curve use the backbone before training, because a backbone that
    has learned a wrong label confirms it. The other aspects use the model's own backbone.

    Parameters
    ----------
    source : FrozenBackbone
        The backbone before training.
    model : TransferModel
    prepared : PreparedData
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
        Evaluation of ``prepared.test``.
    extractor : Extractor
    seed : int
        Seed of folds, map and bootstrap.
    aspects : collection of str
        Aspects to compute, from ``ASPECTS``.

    Returns
    -------
    Diagnostics

    Raises
    ------
    UnknownNameError
        If there is no such aspect.
    """
    for name in aspects:
        if name not in ASPECTS:
            raise UnknownNameError("aspect", name, list(ASPECTS))
    clock: dict[str, float] = {}
    run_aspect = partial(_run_aspect, aspects=aspects, clock=clock)
    diagnostics = Diagnostics(measure=_slice_measure(evaluation))
    diagnostics = run_aspect(
        diagnostics, "slices", lambda: {"slices": _slices(prepared, evaluation, seed)}
    )
    if isinstance(evaluation, Evaluation) and set(aspects) - {"slices"}:
        backbones = source, model
        try:
            diagnostics = _diagnose_features(
                diagnostics, run_aspect, backbones, prepared, evaluation, extractor, seed
            )
        except HeadstartError as error:
            diagnostics = replace(
                diagnostics,
                notes=(*diagnostics.notes, f"Diagnostics of features failed. {error}"),
            )
    return replace(diagnostics, seconds=clock)


def _run_aspect(
    diagnostics: Diagnostics,
    aspect: str,
    compute: Callable[[], dict[str, Any]],
    *,
    aspects: Collection[str],
    clock: dict[str, float],
) -> Diagnostics:
    """Compute an aspect if it is requested; a failure becomes a note."""
    if aspect not in aspects:
        return diagnostics
    try:
        with timed(clock, aspect):
            return replace(diagnostics, **compute())
    # The model is already trained and evaluated: a failed diagnosis must not stop the run.
    except (HeadstartError, ValueError, ArithmeticError) as error:
        return replace(
            diagnostics, notes=(*diagnostics.notes, f"{TITLES[aspect]}: failed. {error}")
        )


def _diagnose_features(
    diagnostics: Diagnostics,
    run_aspect: RunAspect,
    backbones: tuple[FrozenBackbone, TransferModel],
    prepared: PreparedData,
    evaluation: Evaluation,
    extractor: Extractor,
    seed: int,
) -> Diagnostics:
    """Run the aspects that use features: first probes, then distances and the map."""
    source, model = backbones
    is_finetuned = model.backbone.identity != source.identity
    diagnostics = replace(
        diagnostics, features="trained backbone" if is_finetuned else "frozen backbone"
    )
    source_embedded = EmbeddedDataset.of(source, prepared, extractor)
    penalty = max(float(model.record.get("penalty") or PROBE_PENALTIES[2]), PROBE_PENALTIES[-1])
    reduced = replace(source_embedded, values=_project_to_main_directions(source_embedded.values))
    diagnostics = run_aspect(
        diagnostics, "curve", lambda: {"curve": _learning_curve(reduced, penalty, seed)}
    )
    diagnostics = run_aspect(diagnostics, "labels", lambda: _label_errors(reduced, seed))
    embedded = source_embedded
    if is_finetuned:
        training_extractor = replace(
            extractor, engine=model.engine
        )  # the test features are cached for this engine
        embedded = EmbeddedDataset.of(
            model.backbone, prepared, training_extractor, max_train=MAX_RECOMPUTED_IMAGES
        )
    correct = evaluation.correct
    diagnostics = run_aspect(diagnostics, "outliers", lambda: _outliers(embedded, correct))
    diagnostics = run_aspect(
        diagnostics,
        "neighbours",
        lambda: {"neighbourhoods": find_nearest_images(embedded, evaluation)},
    )
    return run_aspect(
        diagnostics,
        "map",
        lambda: dict(zip(("places", "map_by"), map_images(embedded, correct, seed), strict=True)),
    )


def _slice_measure(evaluation: AnyEvaluation) -> str:
    if isinstance(evaluation, Evaluation):
        is_multilabel = evaluation.task.kind == "multilabel"
        return "all labels correct" if is_multilabel else "accuracy"
    is_detection = isinstance(evaluation, BoxEvaluation)
    return "share of correct objects" if is_detection else "mean IoU per image"


def _slices(prepared: PreparedData, evaluation: AnyEvaluation, seed: int) -> tuple[Slice, ...]:
    """Compare subgroups by image size, class and group; for boxes and masks by size only."""
    test, records = prepared.test, prepared.records
    size_by_digest = {record.digest: (record.width, record.height) for record in records}
    sizes = [size_by_digest.get(sample.digest or "", (0, 0)) for sample in test.samples]
    groupings: dict[str, Sequence[str | None]] = {"size": size_thirds(sizes)}
    groups = test.groups()
    if not isinstance(evaluation, Evaluation):
        return compare_slices(_image_scores(evaluation), groupings, groups=groups, seed=seed)
    if evaluation.task.kind == "multiclass":
        groupings["class"] = [evaluation.task.classes[target] for target in evaluation.targets]
    if groups is not None:
        counts = np.bincount(groups)
        group_names = [str(sample.group) for sample in test.samples]
        groupings["group"] = [
            name if counts[group] >= MIN_SLICE_IMAGES else None
            for name, group in zip(group_names, groups, strict=True)
        ]
    return compare_slices(evaluation.correct, groupings, groups=groups, seed=seed)


def _image_scores(evaluation: AnyEvaluation) -> Floats:
    """Return one score per image; NaN for images without objects or labelled pixels."""
    if isinstance(evaluation, BoxEvaluation):
        errors = evaluation.errors.astype(np.float64)
        total = errors.sum(axis=1)
        return np.asarray(np.where(total > 0, errors[:, 0] / np.maximum(total, 1), np.nan))
    if isinstance(evaluation, Evaluation):
        return evaluation.correct.astype(np.float64)
    return np.asarray(evaluation.image_iou, dtype=np.float64)


def _project_to_main_directions(values: NDArray[np.floating[Any]]) -> Floats:
    """Reduce features to their ``N_DIRECTIONS`` principal components."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # faster than many threads for few images
        projected = principal_basis(values).apply(values)[:, -N_DIRECTIONS:]
    return np.asarray(projected, dtype=np.float64)


def _learning_curve(embedded: EmbeddedDataset, penalty: float, seed: int) -> tuple[CurvePoint, ...]:
    rows = embedded.train[evenly_spaced(len(embedded.train), MAX_IMAGES)]
    train_data = embedded.data.subset(rows)
    return probe_curve(
        embedded.values[rows],
        train_data.targets(),
        kind=train_data.kind,
        groups=embedded.groups(rows),
        penalty=penalty,
        seed=seed,
    )


def _label_errors(embedded: EmbeddedDataset, seed: int) -> dict[str, Any]:
    data, rows = (
        embedded.data,
        np.asarray(evenly_spaced(len(embedded.data), MAX_IMAGES), dtype=np.intp),
    )
    targets = data.subset(rows).targets()
    problem = Problem.of(targets, n_classes=len(data.classes), kind=data.kind)
    search = search_penalty(
        embedded.values[rows],
        problem,
        kfold(targets, 5, blocks=embedded.groups(rows), seed=seed),
        penalties=PROBE_PENALTIES,
        weighted=problem.is_weighted("auto"),
    )
    task = ClassificationTask(classes=data.classes, kind=data.kind)
    probabilities = task.calibrated(search.held_out, targets).probabilities(search.held_out)
    scores = label_error_scores(probabilities, targets)
    is_multilabel = data.kind == "multilabel"
    n_confident = (
        None if is_multilabel else int(confident_label_errors(probabilities, targets).sum())
    )
    doubted = np.flatnonzero(another_is_likelier(probabilities, targets))
    order = doubted[np.argsort(-scores.ravel()[doubted], kind="stable")][:MAX_REPORTED]
    errors = []
    for position in (np.unravel_index(index, scores.shape) for index in order):
        row, sample = int(rows[position[0]]), data.samples[int(rows[position[0]])]
        label, likely = _label_names(data.classes, position, targets, probabilities)
        errors.append(
            LabelError(
                row=row,
                image=sample.name,
                part=sample.split or "",
                label=label,
                likely=likely,
                score=float(scores[position]),
            )
        )
    return {
        "label_errors": tuple(errors),
        "labels_in_doubt": n_confident,
        "labels_looked_at": len(rows),
    }


def _label_names(
    classes: Sequence[str], position: tuple[Any, ...], targets: Rows, probabilities: Floats
) -> tuple[str, str]:
    """Return the given and the likely label as text."""
    if len(position) == 1:
        return classes[targets[position]], classes[int(probabilities[position[0]].argmax())]
    name = classes[position[1]]
    return (name, f"not {name}") if targets[position] else (f"not {name}", name)


def _outliers(embedded: EmbeddedDataset, correct: NDArray[np.bool_]) -> dict[str, Any]:
    outliers, out_of_distribution = find_outliers(embedded, correct)
    return {"outliers": outliers, "out_of_distribution": out_of_distribution}
