"""Race for boxes and masks: backbones, rungs and image sizes, scored on one fixed hold-out.

It is the race of `expected_gain` with other candidates and another score. No linear probe exists
for boxes and masks, so the first training takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.rungs import Rung, find_rungs
from headstart.data.dataset import Dataset
from headstart.errors import TrainingError
from headstart.features.extractor import Extractor
from headstart.methods.finetune import Finetune
from headstart.models.build import LONG_SIDE
from headstart.selection.candidates import Candidate, rejection_reason, with_epochs
from headstart.selection.expected_gain import (
    HoldoutResult,
    PlannedTraining,
    TrainedCandidate,
    choose_candidate,
    plan_training,
    race_candidates,
    train_candidate,
)
from headstart.selection.progress import (
    NextStep,
    RaceStoppedError,
    TimeLimit,
    capitalise,
    format_seconds,
)
from headstart.selection.race import Decision
from headstart.selection.race_context import (
    OnEvent,
    OnProgress,
    RaceContext,
    RaceEntry,
    create_context,
    race_record,
)
from headstart.selection.race_estimate import estimate_holdouts
from headstart.selection.trainings import estimate_training, split_fold
from headstart.training.optim import Training

__all__ = ["ObjectRace", "decide_objects", "estimate_objects", "object_candidates"]

SMALL_SHARE, LEAST_SIDE, SIDE_STEP = 0.7, 192, 32
"""Second image size as a share of the first, the smallest size that has a second one, and the
multiple that sizes are rounded to."""

FEWEST_SHARE, FEWEST_EPOCHS = 0.25, 3
"""A training has at least this share of its usual epochs, and this number."""

HEAD_COST = 1.0
"""Cost of the head's forward pass, relative to the backbone's, for the estimates of candidates
that were not measured."""


@dataclass(frozen=True, kw_only=True)
class ObjectRace:
    """Settings of a race for boxes or masks.

    Parameters
    ----------
    budget : float or TimeLimit
        Seconds, or the limit of the whole run.
    seed : int
    prove : bool
        Leave the first training only for one that is significantly better.
    options : mapping
        Of ``create_model``: head, size, offline and selection.
    """

    budget: float | TimeLimit
    seed: int = 0
    prove: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def image_sizes(size: int) -> tuple[int, ...]:
    """List the image sizes that race: the requested one, and a smaller one.

    Examples
    --------
    >>> image_sizes(0), image_sizes(640), image_sizes(160)
    ((320, 224), (640, 448), (160,))
    """
    largest = size or LONG_SIDE
    smaller = SIDE_STEP * round(SMALL_SHARE * largest / SIDE_STEP)
    return (largest, smaller) if largest >= LEAST_SIDE else (largest,)


def object_candidates(
    backbones: Sequence[FrozenBackbone], train: Dataset, settings: ObjectRace
) -> tuple[Candidate, ...]:
    """List the trainings that race, in their order: the default one first.

    The backbones take turns: the first rung of each, then the second of each. Every rung at the
    requested size comes before the smaller size. All epochs run along a cosine,
    and the last one is kept: the best of many epochs on the few images of the hold-out would have
    too high a score.

    Parameters
    ----------
    backbones : sequence of FrozenBackbone
        The first one is the default.
    train : Dataset
        Images that a candidate trains on.
    settings : ObjectRace
    """
    most = Training().for_kind(train.kind).for_images(len(train)).epochs
    fewest = min(most, max(FEWEST_EPOCHS, math.ceil(FEWEST_SHARE * most)))
    one_of_several = len(backbones) > 1
    by_backbone = [
        _candidates_of(backbone, settings, (fewest, most), with_backbone=one_of_several)
        for backbone in backbones
    ]
    in_turns = [one for turn in zip_longest(*by_backbone) for one in turn if one is not None]
    largest = image_sizes(int(settings.options.get("size", 0)))[0]
    return tuple(sorted(in_turns, key=lambda candidate: candidate.options["size"] != largest))


def _candidates_of(
    backbone: FrozenBackbone,
    settings: ObjectRace,
    epochs: tuple[int, int],
    *,
    with_backbone: bool,
) -> list[Candidate]:
    """List the trainings of one backbone; the seconds of the others follow from the first one's."""
    rungs = [rung for rung in find_rungs(backbone.module) if rung.name != "head"]
    sizes = image_sizes(int(settings.options.get("size", 0)))
    of_backbone = f" of {backbone.spec.name}" if with_backbone else ""
    candidates: list[Candidate] = []
    for size in sizes:
        for rung in rungs:
            relative = (size / sizes[0]) ** 2 * _cost(rung) / _cost(rungs[0])
            method = Finetune(
                train_from=rung.name,
                training=Training(epochs=epochs[1], patience=0),
                seed=settings.seed,
            )
            candidates.append(
                Candidate(
                    name=f"fine-tuning {rung.name}{of_backbone} at {size} px",
                    backbone=backbone,
                    full_backbone=backbone,
                    method=method,
                    trains=rung.shares,
                    options={**settings.options, "size": size, "seed": settings.seed},
                    epochs=epochs,
                    measured_as=candidates[0] if candidates else None,
                    relative_seconds=relative,
                    with_backbone=with_backbone,
                )
            )
    return candidates


def _cost(rung: Rung) -> float:
    """Cost of a step relative to the backbone's forward pass; a frozen part may be cached."""
    return 3 * rung.flop_share + 3 * HEAD_COST


def decide_objects(
    backbones: Sequence[FrozenBackbone],
    parts: tuple[Dataset, Dataset | None],
    settings: ObjectRace,
    *,
    extractor: Extractor,
    on_progress: OnProgress | None = None,
    notify: OnEvent | None = None,
) -> Decision:
    """Choose backbone, rung and image size for boxes or masks by a race on the training images.

    The weights of the winner are the model. The first training runs at least one epoch; Ctrl-C
    after that keeps the best candidate so far.

    Parameters
    ----------
    backbones : sequence of FrozenBackbone
        The first one is the default.
    parts : pair of Dataset
        Training images, and validation images or None.
    settings : ObjectRace
    extractor : Extractor
    on_progress : callable, optional
        Called with one line of text per step.
    notify : callable, optional
        Called with the events of the race.

    Raises
    ------
    DataError
        If there are too few images.
    KeyboardInterrupt
        After Ctrl-C before the first model, and after a second Ctrl-C.
    TrainingError
        If every training has failed.

    Examples
    --------
    >>> race = ObjectRace(budget=600)
    >>> decide_objects([backbone], (train, None), race, extractor=extractor)  # doctest: +SKIP
    """
    context = _create_context(backbones, parts, settings, extractor, on_progress, notify)
    train, _ = split_fold(context, context.folds[0])
    candidates = object_candidates(backbones, train, settings)
    candidates[0].method.check(context.train)
    if rejection_reason(candidates[0], [train]):
        return _without_race(context, candidates[0])
    result = HoldoutResult(winner=None, trained=None, raced=[], skipped=[])
    models: list[TrainedCandidate | None] = []
    measure_images(context, candidates[0])
    with context.stop:
        with suppress(RaceStoppedError):
            race_candidates(context, candidates, None, result, models)
        if not result.raced:
            _train_fewest(context, candidates, result, models)
        result = choose_candidate(context, None, result, models)
    if result.winner is None or result.trained is None:
        notes = "; ".join(f"{entry.row.name}: {entry.row.note}" for entry in result.raced)
        raise TrainingError(
            f"Every training of the race failed ({notes}). Pass --method finetune and a lower "
            "--learning-rate."
        )
    return _decision(context, result.winner, result)


def _create_context(
    backbones: Sequence[FrozenBackbone],
    parts: tuple[Dataset, Dataset | None],
    settings: ObjectRace,
    extractor: Extractor,
    on_progress: OnProgress | None = None,
    notify: OnEvent | None = None,
) -> RaceContext:
    return create_context(
        backbones,
        parts,
        extractor,
        settings.budget,
        settings.seed,
        on_progress,
        notify or (lambda _: None),
        prove=settings.prove,
    )


def measure_images(context: RaceContext, candidate: Candidate) -> None:
    """Measure the seconds of a prediction, for the test images that follow the race."""
    if context.later_images:
        train, _ = split_fold(context, context.folds[0])
        seconds = [estimate_training(context, candidate, train, n) for n in (0, 100)]
        context.image_seconds = (seconds[1] - seconds[0]) / 100


def _without_race(context: RaceContext, first: Candidate) -> Decision:
    """Return the default training: a hold-out would leave too few images."""
    context.reasons.append(
        f"No race: {len(context.train)} training images are too few to hold a fifth of them out."
    )
    entry = RaceEntry.of(first, context.scorer.empty(), state="chosen")
    return Decision(
        method=Finetune(seed=context.seed),
        backbone=first.full_backbone,
        engine=context.extractor.engine,
        record=race_record(context, [entry.row]),
        size=int(first.options["size"]),
    )


def _decision(context: RaceContext, winner: RaceEntry, result: HoldoutResult) -> Decision:
    if context.stop.is_requested:
        context.reasons.append(
            f"The race was stopped by {context.stop.source}. The best candidate that is ready is "
            "kept; candidates that were not compared may be better."
        )
    winner.note(state="chosen")
    context.reasons.append(f"Chosen: {winner.row.name}.")
    context.estimated += context.measured + sum(
        entry.row.estimated for entry in result.raced if entry.row.seconds
    )
    return Decision(
        method=winner.candidate.method,
        backbone=winner.candidate.full_backbone,
        engine=context.extractor.engine,
        record=race_record(context, [entry.row for entry in (*result.raced, *result.skipped)]),
        trained=result.trained,
        size=int(winner.candidate.options["size"]),
    )


def _train_fewest(
    context: RaceContext,
    candidates: Sequence[Candidate],
    result: HoldoutResult,
    models: list[TrainedCandidate | None],
) -> None:
    """Train the quickest candidate for the epochs that fit, one at least: nothing else fits."""
    planned = _plan_fewest(context, candidates)
    entry = RaceEntry.of(planned.candidate, context.scorer.empty(), state="promoted")
    entry.note(estimated=planned.seconds)
    skipped = [row for row in result.skipped if row.row.name != entry.row.name]
    result.skipped[:] = skipped
    context.notify(NextStep(names=(entry.candidate.title,), seconds=planned.seconds))
    result.raced.append(entry)
    models.append(train_candidate(context, entry, None))


def _plan_fewest(context: RaceContext, candidates: Sequence[Candidate]) -> PlannedTraining:
    """Plan the quickest candidate for the epochs that fit, one at least, and say so."""
    quickest = min(candidates, key=lambda one: plan_training(context, one, 0.0).seconds)
    planned = plan_training(context, quickest, 0.0)
    seconds = planned.seconds / quickest.epochs[0]
    n_epochs = max(1, min(quickest.epochs[0], int(context.left / max(seconds, 1e-9))))
    context.reasons.append(
        f"No training fits into {format_seconds(context.budget)} with the epochs that it needs. "
        f"{capitalise(quickest.name)}, the quickest, is trained for {n_epochs} "
        f"epoch{'s' * (n_epochs != 1)}: expect a poor model."
    )
    candidate = with_epochs(quickest, n_epochs)
    return replace(planned, candidate=candidate, seconds=seconds * n_epochs, rejection="")


def estimate_objects(
    backbones: Sequence[FrozenBackbone],
    parts: tuple[Dataset, Dataset | None],
    settings: ObjectRace,
    *,
    extractor: Extractor,
) -> dict[str, Any]:
    """Estimate what a race for boxes or masks would run, without training.

    Returns
    -------
    dict
        Same form as ``Decision.record``.
    """
    context = _create_context(backbones, parts, settings, extractor)
    train, _ = split_fold(context, context.folds[0])
    candidates = object_candidates(backbones, train, settings)
    candidates[0].method.check(context.train)
    measure_images(context, candidates[0])
    rows = estimate_holdouts(context, candidates, 0.0)
    if not any(row.estimated for row in rows):
        planned = _plan_fewest(context, candidates)
        context.estimated = planned.seconds
        rows = [
            replace(row, estimated=planned.seconds, state="promoted", note="")
            if row.name == planned.candidate.name
            else row
            for row in rows
        ]
    context.estimated += context.reserved
    context.reasons.append("Trainings run in this order while the budget lasts.")
    return race_record(context, rows)
