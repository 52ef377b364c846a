"""Estimate of a race: which candidates would run, and how long each would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset
from headstart.features.extractor import Extractor
from headstart.selection.candidates import (
    Candidate,
    estimate_feature_seconds,
    image_costs,
    probe_candidate,
    probe_depths,
    recipe_candidates,
    training_candidates,
)
from headstart.selection.expected_gain import plan_training
from headstart.selection.probes import estimate_control_seconds
from headstart.selection.progress import TimeLimit, capitalise, format_seconds
from headstart.selection.race_context import RaceContext, RaceEntry, create_context, race_record
from headstart.selection.rules import BUDGET, CandidateResult
from headstart.selection.trainings import (
    all_folds_seconds,
    assess_candidate,
    empty_scores,
    skip_sentence,
)

__all__ = ["estimate_holdouts", "estimate_race"]


def estimate_race(
    backbones: Sequence[FrozenBackbone],
    train: Dataset,
    val: Dataset | None = None,
    *,
    extractor: Extractor,
    budget: float | TimeLimit = BUDGET,
    seed: int = 0,
    prove: bool = False,
) -> dict[str, Any]:
    """Estimate what a race would run and how long it would take, without training.

    Returns
    -------
    dict
        Same form as ``Decision.record``. With ``prove`` the estimate of a training covers all
        folds; ``estimated`` then assumes that all candidates run and that the longest training
        follows, within the budget.

    Raises
    ------
    UsageError, DataError
        As in ``decide``.
    """
    context = create_context(
        backbones, (train, val), extractor, budget, seed, None, lambda _: None, prove=prove
    )
    if context.later_images:
        context.image_seconds = image_costs(backbones[0], train, extractor).seconds
    rows = _estimate_probes(context, backbones)
    elapsed = sum(row.estimated for row in rows)
    control_seconds = estimate_control_seconds(context, backbones[0])
    if elapsed + control_seconds <= context.limit:  # as for ``pretraining_is_useless``
        elapsed += control_seconds
    context.estimated = elapsed
    if prove:
        rows += _estimate_folds(context, backbones[0], elapsed)
    else:
        candidates = recipe_candidates(backbones[0], seed, include_scratch=False)
        rows += estimate_holdouts(context, candidates, elapsed)
    context.reasons.append(
        "Trainings run only if the best probe misclassifies enough held-out images, and only while "
        + ("they gain and " if prove else "")
        + "the budget lasts. Training another backbone, or training from scratch, takes a "
        "different time."
    )
    context.estimated += context.reserved
    return race_record(context, rows)


def estimate_holdouts(
    context: RaceContext, candidates: Sequence[Candidate], elapsed: float
) -> list[CandidateResult]:
    """Estimate the trainings of a choice by expected gain: one each, while the budget lasts."""
    rows = []
    for candidate in candidates:
        planned = plan_training(context, candidate, context.limit - elapsed)
        row = RaceEntry.of(planned.candidate, empty_scores(context)).row
        if planned.rejection:
            total = context.total(elapsed + planned.seconds) if planned.seconds else 0.0
            context.reasons.append(
                skip_sentence("Would be skipped", candidate.name, planned.rejection, total)
            )
            rows.append(replace(row, state="left out", note=planned.rejection))
            continue
        note = f"{planned.epochs}about {format_seconds(planned.seconds)}"
        shares = f" (trains {candidate.trains})" if candidate.trains else ""
        context.reasons.append(f"{capitalise(candidate.name)}{shares}: {note}.")
        rows.append(replace(row, state="promoted", estimated=planned.seconds, note=note))
        elapsed += planned.seconds
        context.estimated = elapsed
    return rows


def _estimate_folds(
    context: RaceContext, backbone: FrozenBackbone, elapsed: float
) -> list[CandidateResult]:
    """Estimate the trainings of a race that proves its choice: all folds, then the longest."""
    rows, longest_training = [], 0.0
    for alternatives in training_candidates(backbone, context.seed, include_scratch=False):
        for candidate in alternatives:
            entry, rejection, (fold_seconds, full_seconds) = assess_candidate(
                context, candidate, elapsed
            )
            rows.append(entry.row)
            if rejection:
                total = context.total(elapsed + fold_seconds + full_seconds) if full_seconds else 0
                context.reasons.append(
                    skip_sentence("Would be skipped", candidate.name, rejection, total)
                )
                continue
            note = (
                f"first fold {format_seconds(fold_seconds)}, final training "
                f"{format_seconds(full_seconds)}"
            )
            shares = f" (trains {candidate.trains})" if candidate.trains else ""
            context.reasons.append(f"{capitalise(candidate.name)}{shares}: {note}.")
            folds_seconds = all_folds_seconds(context, candidate, fold_seconds)
            rows[-1] = replace(rows[-1], estimated=folds_seconds, note=note)
            elapsed += fold_seconds
            longest_training = max(longest_training, full_seconds)
            context.estimated += folds_seconds
            break
    if longest_training:
        context.estimated = min(context.estimated + longest_training, context.limit)
    return rows


def _estimate_probes(
    context: RaceContext, backbones: Sequence[FrozenBackbone]
) -> list[CandidateResult]:
    """Estimate the duration of all probes, in the order of ``run_probes``."""
    rows = []
    train = context.train
    for backbone in backbones:
        ends = probe_depths(backbone)
        feature_seconds = estimate_feature_seconds(
            backbone, train.samples, train, extractor=context.extractor
        )
        for end in reversed(ends):
            candidate = probe_candidate(
                backbone, end, context.seed, with_backbone=len(backbones) > 1
            )
            probe_seconds = context.probe_seconds(len(train), candidate.backbone.width)
            estimated = feature_seconds / len(ends) + probe_seconds
            entry = RaceEntry.of(candidate, empty_scores(context), estimated=estimated)
            rows.append(entry.row)
    return rows
