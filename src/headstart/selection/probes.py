"""Linear probes at several depths of several backbones, scored on the same held-out images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset
from headstart.data.splits import kfold, nested_fractions
from headstart.features.extractor import Extractor
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.pretraining import random_like
from headstart.selection.candidates import (
    Candidate,
    estimate_feature_seconds,
    image_costs,
    known_feature_seconds,
    probe_candidate,
    probe_depths,
)
from headstart.selection.progress import (
    BudgetUsedUpError,
    FirstModel,
    NextStep,
    RaceStoppedError,
    format_seconds,
)
from headstart.selection.race_context import (
    Floats,
    Floats32,
    Fold,
    RaceContext,
    RaceEntry,
    create_scorer_and_folds,
    format_gain,
)
from headstart.selection.rules import (
    PROBES_ALPHA,
    Scorer,
    adjusted_level,
    index_of_best_gain,
)
from headstart.training.penalty_search import PENALTIES, Problem, search_penalty

__all__ = [
    "estimate_control_seconds",
    "pretraining_is_useless",
    "run_probes",
    "select_best_probe",
]

QUICK_FOLDS, QUICK_PENALTY = 2, 1e-3
"""Of the linear probe where the features alone use up the budget. The penalty is one from the
middle of the usual ones; it is not chosen."""

WATCHED_IMAGES = 32
"""Images after which the time of all features is estimated."""

CONTROL_IMAGES = 500
"""Maximum number of training images for the control with random weights."""

MIN_CONTROL_IMAGES = 200
"""Minimum number of training images for this control."""


def run_probes(context: RaceContext, backbones: Sequence[FrozenBackbone]) -> list[RaceEntry]:
    """Probe every backbone at several depths; the full first backbone comes first.

    Nothing is measured before the first model. After Ctrl-C it returns the probes so far.
    """
    entries: list[RaceEntry] = []
    context.n_probes = sum(len(probe_depths(backbone)) for backbone in backbones)
    try:
        for backbone in backbones:
            if not entries:
                _probe_stages(context, backbone, entries, with_backbone=len(backbones) > 1)
                continue
            expected, skip_sentence = _assess_backbone(context, backbone)
            if skip_sentence:
                context.reasons.append(skip_sentence)
                continue
            name = f"linear probes on {backbone.spec.name}"
            context.notify(NextStep(names=(name,), seconds=expected or 0.0))
            _probe_stages(context, backbone, entries, with_backbone=True)
    except RaceStoppedError:
        pass
    return entries


def _assess_backbone(context: RaceContext, backbone: FrozenBackbone) -> tuple[float | None, str]:
    """Return the expected seconds of another backbone's features, and why it is skipped.

    The sentence is empty if the backbone is probed.
    """
    name = backbone.spec.name
    if context.budget <= 0:
        return None, (
            f"Skipped: {name} (its features need another pass over the images, and the time "
            "budget is 0 s). Try `--budget 2m`."
        )
    train, extractor = context.train, context.extractor
    expected = known_feature_seconds(backbone, train.samples, train, extractor=extractor)
    if expected is None and context.measuring_pays(1):
        with context.measuring():
            expected = estimate_feature_seconds(backbone, train.samples, train, extractor=extractor)
    start = context.elapsed
    if start + (expected or 0.0) <= context.limit:
        return expected, ""
    needed = f"its features need about {expected:.0f} s; " if expected else ""
    minutes = math.ceil(context.total(start + (expected or start)) / 60)
    return expected, (
        f"Skipped: {name} ({needed}{context.left:.0f} s of the {context.budget:.0f} s budget "
        f"left). Try `--budget {minutes}m`."
    )


def _probe_stages(
    context: RaceContext,
    backbone: FrozenBackbone,
    entries: list[RaceEntry],
    *,
    with_backbone: bool,
) -> None:
    """Append the probes of a backbone, which share one pass of the network; the full one first."""
    train, ends = context.train, probe_depths(backbone)
    expected = known_feature_seconds(backbone, train.samples, train, extractor=context.extractor)
    start = context.elapsed
    extractor = _limited(context) if entries else _watched(context)
    if not entries and expected is not None and 0 < context.limit < expected:
        hurry(context, expected)
    try:
        features, n_computed = extractor.stage_features(backbone, train.samples, ends)
    except BudgetUsedUpError:
        context.reasons.append(
            f"Stopped: {backbone.spec.name} (the {context.budget:.0f} s budget was used up before "
            f"its features were complete). Try `--budget {math.ceil(context.budget / 30)}m`."
        )
        return
    seconds = context.elapsed - start
    if not entries and n_computed:
        context.image_seconds = seconds / n_computed
    if not entries and context.budget > 0 and not context.is_hurried and context.left <= 0:
        hurry(context, seconds)
    # Without measured times the features count with the time that they took.
    shares = seconds / len(ends), (seconds if expected is None else expected) / len(ends)
    for end in reversed(ends):
        candidate = probe_candidate(backbone, end, context.seed, with_backbone=with_backbone)
        is_first = not entries
        if is_first and context.is_hurried:
            candidate = replace(candidate, method=_quick_probe(context.seed))
        entry = _probe(context, candidate, features[end], shares, is_first=is_first)
        if entry is None:
            continue
        entries.append(entry)
        if is_first:
            _report_first_answer(context, entry, ends[:-1])


def _probe(
    context: RaceContext,
    candidate: Candidate,
    features: Floats32,
    shares: tuple[float, float],
    *,
    is_first: bool,
) -> RaceEntry | None:
    """Cross-validate a probe; None if the budget is too short for it.

    ``shares`` are its shares of the actual and of the expected seconds of the features.
    """
    train, start = context.train, context.elapsed
    expected = context.probe_seconds(len(train), candidate.backbone.width)
    if not is_first and context.is_hurried:
        return None
    if not is_first and context.budget > 0 and context.limit < start + expected:
        context.reasons.append(
            f"Skipped: {candidate.name} (needs about {expected:.0f} s; {context.left:.0f} s of "
            f"the {context.budget:.0f} s budget left). Try "
            f"`--budget {math.ceil(context.total(start + expected) / 60)}m`."
        )
        return None
    context.progress(f"fitting the {candidate.name}", 0, 0)
    penalties = (QUICK_PENALTY,) if context.is_hurried else PENALTIES
    values = _probe_out_of_fold(train, features, context.folds, context.scorer, penalties)
    if is_first:
        context.first_probe_seconds = context.elapsed - start
        context.pace = 1.0 if context.is_hurried else context.first_probe_seconds / expected
    return RaceEntry.of(
        candidate,
        values,
        images=len(values),
        score=context.scorer.score(values),
        seconds=shares[0] + context.elapsed - start,
        estimated=shares[1] + expected,
    )


def _report_first_answer(context: RaceContext, entry: RaceEntry, ends: Sequence[str]) -> None:
    """Report the first score, and from now on let Ctrl-C end the race instead of the run."""
    context.stop.keep_model()
    if entry.row.score is not None:
        context.notify(
            FirstModel(
                measure=context.scorer.measure,
                score=entry.row.score,
                images=len(context.train),
                seconds=context.elapsed,
            )
        )
    if context.is_hurried:  # no other probe follows
        return
    backbone = entry.candidate.full_backbone
    widths = [backbone.until(end).width for end in ends]
    seconds = sum(context.probe_seconds(len(context.train), width) for width in widths)
    names = tuple(f"linear probe at {end}" for end in reversed(ends))
    context.notify(NextStep(names=names, seconds=seconds))


def hurry(context: RaceContext, seconds: float) -> None:
    """Run the fewest steps from now on, because the features alone use up the budget; say so."""
    context.is_hurried = True
    groups, targets = context.train.groups(), context.train.targets()
    context.folds = kfold(targets, QUICK_FOLDS, blocks=groups, seed=context.seed)
    minutes = math.ceil(max(context.total(seconds) * 1.5, 60) / 60)
    sentence = (
        f"The features of {len(context.train)} training images take about "
        f"{format_seconds(seconds)}; {format_seconds(context.limit)} of the "
        f"{format_seconds(context.budget)} budget are left for the race. Only one linear probe is "
        f"fitted, with a fixed penalty and {QUICK_FOLDS} folds. Try `--budget {minutes}m`."
    )
    context.reasons.append(sentence)
    context.on_progress(sentence)


def _quick_probe(seed: int) -> LinearProbe:
    return LinearProbe(folds=QUICK_FOLDS, penalties=(QUICK_PENALTY,), seed=seed)


def _watched(context: RaceContext) -> Extractor:
    """Extractor that estimates the time of all features from its first images."""
    start: dict[str, tuple[int, float]] = {}

    def progress(step: str, done: int, total: int) -> None:
        context.progress(step, done, total)
        first_done, started_at = start.setdefault(step, (done, context.elapsed))
        n_images = done - first_done
        if context.is_hurried or not context.budget or n_images < WATCHED_IMAGES:
            return
        expected = (context.elapsed - started_at) * (total - first_done) / n_images
        if started_at + expected > context.limit:
            hurry(context, expected)

    return replace(context.extractor, progress=progress)


def _limited(context: RaceContext) -> Extractor:
    """Extractor that stops when the budget is used up."""

    def progress(step: str, done: int, total: int) -> None:
        context.progress(step, done, total)
        if done < total and context.left <= 0:
            raise BudgetUsedUpError

    return replace(context.extractor, progress=progress)


def select_best_probe(context: RaceContext, entries: list[RaceEntry]) -> RaceEntry:
    """Return the first probe, unless another one is significantly better."""
    first, *alternatives = entries
    # After Ctrl-C fewer probes have run, but the level stays that of all planned ones.
    n_planned = context.n_probes - 1 if context.stop.is_requested else 0
    level = adjusted_level(PROBES_ALPHA, max(len(alternatives), n_planned))
    gains = []
    for entry in alternatives:
        gain = context.scorer.gain(entry.values, first.values, level=level)
        entry.note(against=first.row.name, gain=gain.interval, significant=gain.significant)
        gains.append(gain)
    best_index = index_of_best_gain(gains)
    if best_index is not None:
        best = alternatives[best_index]
        context.reasons.append(
            f"The {best.row.name} is significantly better than the {first.row.name}: "
            f"{format_gain(best)}."
        )
        return best
    if alternatives:
        context.reasons.append("No other linear probe is significantly better.")
    return first


def pretraining_is_useless(context: RaceContext, backbone: FrozenBackbone) -> bool:
    """Whether a probe on random weights is as good, so that the pretrained weights do not help."""
    train = context.train
    with context.measuring():
        expected_seconds = estimate_control_seconds(context, backbone)
    if not expected_seconds:
        return False
    if len(train) > CONTROL_IMAGES:
        share = CONTROL_IMAGES / len(train)
        rows = nested_fractions(train.targets(), (share,), blocks=train.groups(), seed=context.seed)
        train = train.subset(rows[share])
    start = context.elapsed
    if start + expected_seconds > context.limit:  # no training would fit into the budget either
        return False
    context.estimated += expected_seconds
    context.progress("comparing the pretrained weights with random weights", 0, 0)
    scorer, folds = create_scorer_and_folds(train, context.seed)
    learned_correct, random_correct = (
        _probe_out_of_fold(
            train,
            context.extractor.features(candidate_backbone, train.samples).values,
            folds,
            scorer,
        )
        for candidate_backbone in (backbone, random_like(backbone.spec, seed=context.seed))
    )
    difference = scorer.gain(learned_correct, random_correct, level=0.95)
    accuracies = [scorer.score(values).value for values in (random_correct, learned_correct)]
    scores = "{:.3f} with random weights, {:.3f} with the pretrained weights".format(*accuracies)
    context.on_progress(
        f"control, a probe on {len(train)} images: {scores}, {context.elapsed - start:.1f} s"
    )
    if difference.significant and difference.interval.value > 0:
        return False
    context.reasons.append(
        f"The pretrained weights do not help: a linear probe on {len(train)} images reaches "
        f"{scores}. Training from scratch is therefore a candidate."
    )
    return True


def estimate_control_seconds(context: RaceContext, backbone: FrozenBackbone) -> float:
    """Estimate the seconds of the control with random weights; 0 if it does not run."""
    train, count = context.train, min(len(context.train), CONTROL_IMAGES)
    if len(train) < MIN_CONTROL_IMAGES:
        return 0.0
    feature_seconds = count * image_costs(backbone, train, context.extractor).seconds
    return feature_seconds + 2 * context.probe_seconds(count, backbone.width)


def _probe_out_of_fold(
    data: Dataset,
    features: Any,
    folds: Sequence[Fold],
    scorer: Scorer,
    penalties: Sequence[float] = PENALTIES,
) -> Floats:
    """Cross-validate a probe and score its held-out predictions."""
    problem = Problem.of(scorer.targets, n_classes=len(data.classes), kind=data.kind)
    search = search_penalty(
        features, problem, folds, penalties=penalties, weighted=problem.is_weighted("auto")
    )
    return scorer.correct(np.asarray(search.held_out, dtype=np.float64))
