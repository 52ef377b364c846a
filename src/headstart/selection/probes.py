"""Linear probes at several depths of several backbones, scored on the same held-out images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset
from headstart.data.splits import kfold, nested_fractions
from headstart.features.extractor import Extractor
from headstart.methods.pretraining import random_like
from headstart.selection.candidates import (
    Candidate,
    estimate_feature_seconds,
    image_costs,
    probe_candidate,
    probe_depths,
)
from headstart.selection.rules import (
    PROBES_ALPHA,
    CandidateResult,
    Scorer,
    adjusted_level,
    index_of_best_gain,
)
from headstart.training.logistic_regression import Problem, search_penalty
from headstart.training.time_estimate import probe_seconds

__all__ = [
    "RaceContext",
    "RaceEntry",
    "estimate_control_seconds",
    "format_gain",
    "pretraining_is_useless",
    "run_probes",
    "select_best_probe",
]

N_FOLDS = 5

CONTROL_IMAGES = 500
"""Maximum number of training images for the control with random weights."""

MIN_CONTROL_IMAGES = 200
"""Minimum number of training images for this control."""

Floats = NDArray[np.float64]
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(kw_only=True, eq=False)
class RaceEntry:
    """State of one candidate during a race.

    Parameters
    ----------
    candidate : Candidate
    values : array, shape (n,) or (n, n_classes)
        Output of ``Scorer.correct`` for each image; NaN before the image is predicted.
    row : CandidateResult
    last_fold_seconds : float
        Duration of one training on the last fold.
    expected_full_seconds : float
        Estimated duration of the training on all images.
    """

    candidate: Candidate
    values: Floats
    row: CandidateResult
    last_fold_seconds: float = 0.0
    expected_full_seconds: float = 0.0

    @classmethod
    def of(cls, candidate: Candidate, values: Floats, **fields: Any) -> RaceEntry:
        """Create the entry of a candidate; ``fields`` are fields of its row."""
        row = CandidateResult(
            name=candidate.name,
            backbone=candidate.backbone.spec.name,
            stage=candidate.backbone.spec.until,
            method=candidate.method.name,
            megabytes=candidate.megabytes,
            **fields,
        )
        return cls(candidate=candidate, values=values, row=row)

    def note(self, **changes: Any) -> None:
        """Change fields of the row."""
        self.row = replace(self.row, **changes)


@dataclass(kw_only=True, eq=False)
class RaceContext:
    """Images, folds, clock and notes that all candidates share.

    Parameters
    ----------
    train : Dataset
    val : Dataset or None
        Validation images for early stopping.
    extractor : Extractor
    budget : float
        Seconds.
    seed : int
    on_progress : callable
        Called with one line of text per step.
    started_at : float
    reasons : list of str
        Sentences that explain the decision.
    estimated : float
        Estimated seconds of the steps so far.
    pace : float
        Actual over estimated duration of the first probe. It scales the later estimates.
    measured : float
        Seconds spent on measuring this machine for the estimates.
    """

    train: Dataset
    val: Dataset | None
    extractor: Extractor
    budget: float
    seed: int
    on_progress: Callable[[str], None]
    started_at: float = field(default_factory=time.perf_counter)
    reasons: list[str] = field(default_factory=list)
    estimated: float = 0.0
    pace: float = 1.0
    measured: float = 0.0

    def __post_init__(self) -> None:
        self.scorer, self.folds = _create_scorer_and_folds(self.train, self.seed)

    @property
    def elapsed(self) -> float:
        """Seconds since the race began."""
        return time.perf_counter() - self.started_at

    def probe_seconds(self, n: int, width: int) -> float:
        """Estimate the seconds of a probe on n images."""
        return self.pace * probe_seconds(n, width, len(self.train.classes))

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Add the block's seconds to ``measured``, because no estimate contains them."""
        start = self.elapsed
        yield
        self.measured += self.elapsed - start


def run_probes(context: RaceContext, backbones: Sequence[FrozenBackbone]) -> list[RaceEntry]:
    """Probe every backbone at several depths; the full first backbone comes first."""
    entries: list[RaceEntry] = []
    train = context.train
    for backbone in backbones:
        with context.measuring():
            ends = probe_depths(backbone)
            expected_features = estimate_feature_seconds(
                backbone, train.samples, train, extractor=context.extractor
            )
        start = context.elapsed
        if entries and 0 < context.budget < start + expected_features:
            name = backbone.spec.name
            context.reasons.append(
                f"Skipped: {name} (its features need about {expected_features:.0f} s; "
                f"{max(context.budget - start, 0.0):.0f} s of the {context.budget:.0f} s budget "
                f"left). Try `--budget {math.ceil((start + expected_features) / 60)}m`."
            )
            continue
        features, _ = context.extractor.stage_features(backbone, train.samples, ends)
        feature_seconds = (context.elapsed - start) / len(ends)
        for end in reversed(ends):
            start = context.elapsed
            candidate = probe_candidate(
                backbone, end, context.seed, with_backbone=len(backbones) > 1
            )
            solver_seconds = context.probe_seconds(len(train), candidate.backbone.width)
            if entries and 0 < context.budget < start + solver_seconds:  # with very many images
                context.reasons.append(
                    f"Skipped: {candidate.name} (needs about {solver_seconds:.0f} s; "
                    f"{max(context.budget - start, 0.0):.0f} s of the {context.budget:.0f} s "
                    f"budget left). Try `--budget {math.ceil((start + solver_seconds) / 60)}m`."
                )
                continue
            values = _probe_out_of_fold(train, features[end], context.folds, context.scorer)
            if not entries:
                context.pace = (context.elapsed - start) / solver_seconds
            entry = RaceEntry.of(
                candidate,
                values,
                images=len(values),
                score=context.scorer.score(values),
                seconds=feature_seconds + context.elapsed - start,
                estimated=expected_features / len(ends) + solver_seconds,
            )
            entries.append(entry)
    return entries


def select_best_probe(context: RaceContext, entries: list[RaceEntry]) -> RaceEntry:
    """Return the first probe, unless another one is significantly better."""
    first, *alternatives = entries
    level = adjusted_level(PROBES_ALPHA, len(alternatives))
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
    if start + expected_seconds > context.budget:  # no training would fit into the budget either
        return False
    context.estimated += expected_seconds
    scorer, folds = _create_scorer_and_folds(train, context.seed)
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


def format_gain(entry: RaceEntry) -> str:
    """Format the gain and its interval."""
    gain = entry.row.gain
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" if gain else "not measured"


def _create_scorer_and_folds(data: Dataset, seed: int) -> tuple[Scorer, Sequence[Fold]]:
    groups, targets = data.groups(), data.targets()
    scorer = Scorer(kind=data.kind, targets=targets, groups=groups)
    return scorer, kfold(targets, N_FOLDS, blocks=groups, seed=seed)


def _probe_out_of_fold(
    data: Dataset, features: Any, folds: Sequence[Fold], scorer: Scorer
) -> Floats:
    """Cross-validate a probe and score its held-out predictions."""
    problem = Problem.of(scorer.targets, n_classes=len(data.classes), kind=data.kind)
    search = search_penalty(features, problem, folds, weighted=problem.is_weighted("auto"))
    return scorer.correct(np.asarray(search.held_out, dtype=np.float64))
