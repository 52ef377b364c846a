"""Trainings of a race: estimated seconds, the comparison with the probe, and the sentences."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset
from headstart.metrics.confidence_intervals import Difference
from headstart.selection.candidates import (
    Candidate,
    estimate_training_seconds,
    has_training_costs,
    rejection_reason,
    with_epochs,
)
from headstart.selection.progress import first_sentence, format_seconds
from headstart.selection.race_context import Fold, RaceContext, RaceEntry

__all__ = [
    "all_folds_seconds",
    "assess_candidate",
    "compare_with_probe",
    "empty_scores",
    "estimate_training",
    "no_time_reason",
    "skip_sentence",
    "split_fold",
]


def assess_candidate(
    context: RaceContext, candidate: Candidate, elapsed: float
) -> tuple[RaceEntry, str, tuple[float, float]]:
    """Return a candidate's entry, why it is skipped, and the seconds of a fold and a training.

    The reason is empty if the candidate may race.
    """
    candidate_entry = RaceEntry.of(candidate, empty_scores(context), state="promoted")
    train, held_out = split_fold(context, context.folds[0])
    rejection = rejection_reason(
        candidate, [context.train.subset(rows) for rows, _ in context.folds]
    )
    if rejection := first_sentence(rejection):
        candidate_entry.note(state="left out", note=rejection)
        return candidate_entry, rejection, (0.0, 0.0)
    fold_seconds = estimate_training(context, candidate, train, len(held_out)) * (
        1 + len(candidate.alternatives)
    )
    full_seconds = estimate_training(context, candidate, context.train, 0)
    if elapsed + fold_seconds + full_seconds > context.limit:
        rejection = (
            f"needs about {format_seconds(fold_seconds + full_seconds)}; "
            f"{format_seconds(max(context.limit - elapsed, 0.0))} of the "
            f"{format_seconds(context.budget)} budget left"
        )
        candidate_entry.note(state="left out", note=rejection)
    return candidate_entry, rejection, (fold_seconds, full_seconds)


def estimate_training(
    context: RaceContext, candidate: Candidate, data: Dataset, n_predictions: int
) -> float:
    """Estimate the seconds of a training and of predictions; measuring has its own account."""
    measured, factor = candidate, 1.0
    if candidate.measured_as is not None:
        epochs = candidate.method.training.epochs  # type: ignore[attr-defined]
        measured = with_epochs(candidate.measured_as, epochs)
        factor = candidate.relative_seconds * context.training_pace
    with context.measuring():
        seconds = estimate_training_seconds(
            measured,
            data,
            context.val,
            n_predictions,
            extractor=context.extractor,
            start=measured.start(data),
            pace=context.pace,
        )
    return factor * seconds


def split_fold(context: RaceContext, fold: Fold) -> tuple[Dataset, Dataset]:
    """Return the training and the held-out images of a fold."""
    return context.train.subset(fold[0]), context.train.subset(fold[1])


def empty_scores(context: RaceContext) -> NDArray[np.float64]:
    """Return an array for the results of every training image, without any."""
    values: NDArray[np.float64] = context.scorer.empty()
    return values


def skip_sentence(start: str, name: str, rejection: str, total_seconds: float) -> str:
    """Report a skipped training; ``total_seconds`` is the budget that it needs, 0 for no advice."""
    advice = f" Try `--budget {math.ceil(total_seconds / 60)}m`." if total_seconds else ""
    return f"{start}: {name} ({rejection}).{advice}"


def all_folds_seconds(context: RaceContext, candidate: Candidate, first_fold: float) -> float:
    """Estimate all folds from the first one, the only one that trains with every learning rate."""
    n_rates = 1 + len(candidate.alternatives)
    return first_fold + first_fold / n_rates * (len(context.folds) - 1)


def no_time_reason(context: RaceContext, backbone: FrozenBackbone, n_trainings: int) -> str:
    """Return why the budget has no place for trainings; empty if it has.

    The speed of this machine must be known, or cheap to measure: at most a tenth of what is left.
    """
    if context.budget <= 0:
        return "Skipped all trainings: the time budget is 0 s. Try `--budget 2m`."
    if context.is_hurried:
        return "Skipped all trainings: the features alone use up the budget."
    is_remembered = has_training_costs(backbone, context.train, context.extractor)
    if is_remembered or context.measuring_pays(n_trainings):
        return ""
    needed = context.elapsed + 10 * context.expected_measuring(n_trainings)
    return (
        f"Skipped all trainings: {format_seconds(context.left)} of the "
        f"{format_seconds(context.budget)} budget left, of which measuring the speed of this "
        "machine would take more than a tenth. Try `--budget "
        f"{math.ceil(context.total(needed) / 60)}m`."
    )


def compare_with_probe(
    context: RaceContext, entry: RaceEntry, best: RaceEntry, *, level: float
) -> Difference:
    """Compare a candidate with the best probe on the images that it has predicted so far.

    The entry gets the score and the gain. ``level`` is the confidence level of the comparison.
    """
    gain: Difference = context.scorer.gain(entry.values, best.values, level=level)
    entry.note(
        images=len(context.scorer.predicted_rows(entry.values)),
        score=context.scorer.score(entry.values),
        against=best.row.name,
        gain=gain.interval,
        significant=gain.significant,
    )
    return gain
