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
from headstart.data.splits import holdout, kfold, nested_fractions
from headstart.errors import UsageError
from headstart.features.engines import measuring_pays
from headstart.features.extractor import Extractor
from headstart.methods.pretraining import random_like
from headstart.runtime import cores
from headstart.selection.candidates import (
    Candidate,
    estimate_feature_seconds,
    image_costs,
    known_feature_seconds,
    measuring_seconds,
    probe_candidate,
    probe_depths,
)
from headstart.selection.object_scores import ObjectScorer
from headstart.selection.progress import (
    BudgetUsedUpError,
    FirstModel,
    NextStep,
    RaceEvent,
    RaceStoppedError,
    check_stop,
)
from headstart.selection.rules import (
    OBJECTS_PROVED_RULE,
    OBJECTS_RULE,
    PROBES_ALPHA,
    PROVED_RULE,
    RULE,
    CandidateResult,
    Scorer,
    adjusted_level,
    index_of_best_gain,
)
from headstart.training.interruption import StopRequest
from headstart.training.penalty_search import Problem, search_penalty
from headstart.training.time_estimate import probe_seconds

__all__ = [
    "OnEvent",
    "OnProgress",
    "RaceContext",
    "RaceEntry",
    "create_context",
    "estimate_control_seconds",
    "format_gain",
    "pretraining_is_useless",
    "race_record",
    "run_probes",
    "select_best_probe",
]

N_FOLDS = 5

CONTROL_IMAGES = 500
"""Maximum number of training images for the control with random weights."""

MIN_CONTROL_IMAGES = 200
"""Minimum number of training images for this control."""

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]
OnProgress = Callable[[str], None]
OnEvent = Callable[[RaceEvent], None]


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
    title : str
        Name for progress, such as ``candidate 1 of 2: fine-tuning all stages``.
    expected_gain : float
        Gain over the probe that is expected on new images.
    """

    candidate: Candidate
    values: Floats
    row: CandidateResult
    last_fold_seconds: float = 0.0
    expected_full_seconds: float = 0.0
    title: str = ""
    expected_gain: float = 0.0

    @classmethod
    def of(cls, candidate: Candidate, values: Floats, **fields: Any) -> RaceEntry:
        """Create the entry of a candidate; ``fields`` are fields of its row."""
        row = CandidateResult(
            name=candidate.name,
            backbone=candidate.backbone.spec.name,
            stage=candidate.backbone.spec.until,
            method=candidate.method.name,
            megabytes=candidate.megabytes,
            trains=candidate.trains,
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
    notify : callable
        Called with the events of the race.
    stop : StopRequest
        Whether Ctrl-C was pressed after the first model.
    progress : callable
        Called with the name of a step, the amount done, and the total (0 if it is not known).
        It ends the step after Ctrl-C.
    started_at : float
    reasons : list of str
        Sentences that explain the decision.
    estimated : float
        Estimated seconds of the steps so far.
    pace : float
        Actual over estimated duration of the first probe. It scales the later estimates.
    measured : float
        Seconds spent on measuring this machine for the estimates.
    image_seconds : float or None
        Seconds per image of the first extraction; None if all features were cached.
    n_probes : int
        Number of probes that were planned.
    probing : float
        Seconds that all probes took, measuring included.
    prove : bool
        Leave the probe only if another candidate is significantly better.
    training_pace : float
        Actual over estimated duration of the first training on boxes or masks. It scales the later
        estimates.
    report : callable
        As ``progress``, but it never ends the step.
    """

    train: Dataset
    val: Dataset | None
    extractor: Extractor
    budget: float
    seed: int
    on_progress: Callable[[str], None]
    notify: Callable[[RaceEvent], None]
    stop: StopRequest
    progress: Callable[[str, int, int], None]
    started_at: float = field(default_factory=time.perf_counter)
    reasons: list[str] = field(default_factory=list)
    estimated: float = 0.0
    pace: float = 1.0
    measured: float = 0.0
    image_seconds: float | None = None
    n_probes: int = 0
    probing: float = 0.0
    prove: bool = False
    training_pace: float = 1.0
    report: Callable[[str, int, int], None] = lambda *_: None

    def __post_init__(self) -> None:
        self.scorer: Any
        self.folds: Sequence[Fold]
        if self.train.is_dense:
            self.folds = [_fixed_holdout(self.train, self.seed)]
            rows = self.folds[0][1]
            self.scorer = ObjectScorer(held_out=self.train.subset(rows), rows=rows)
        else:
            self.scorer, self.folds = _create_scorer_and_folds(self.train, self.seed)

    @property
    def elapsed(self) -> float:
        """Seconds since the race began."""
        return time.perf_counter() - self.started_at

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return max(self.budget - self.elapsed, 0.0)

    def probe_seconds(self, n: int, width: int) -> float:
        """Estimate the seconds of a probe on n images."""
        return self.pace * probe_seconds(n, width, len(self.train.classes))

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Add the block's seconds to ``measured``, because no estimate contains them."""
        start = self.elapsed
        self.progress("measuring the speed of this machine", 0, 0)
        yield
        self.measured += self.elapsed - start

    def measuring_pays(self, n_candidates: int) -> bool:
        """Whether to measure the costs of ``n_candidates`` for the rest of the budget."""
        return measuring_pays(self.expected_measuring(n_candidates), self.left)

    def expected_measuring(self, n_candidates: int) -> float:
        """Expected seconds of that measurement; 0 if nothing is known, as with cached features."""
        return n_candidates * measuring_seconds(self.image_seconds or 0.0, cores())


def create_context(
    backbones: Sequence[FrozenBackbone],
    parts: tuple[Dataset, Dataset | None],
    extractor: Extractor,
    budget: float,
    seed: int,
    on_progress: OnProgress | None,
    notify: OnEvent,
    *,
    prove: bool = False,
) -> RaceContext:
    """Create the context of a race; refuse data that it cannot be run on.

    Raises
    ------
    UsageError
        If there is no backbone.
    DataError
        If a class has too few images or groups for two folds.
    """
    train, val = parts
    if not backbones:
        raise UsageError("Expected at least one backbone, got none. Pass --backbone NAME.")
    if not train.is_dense:
        probe_candidate(backbones[0], "", seed).method.check(train)
    stop, report = StopRequest(notify), extractor.progress

    def progress(step: str, done: int, total: int) -> None:
        check_stop(stop)
        if report is not None:
            report(step, done, total)

    return RaceContext(
        train=train,
        val=val,
        extractor=replace(extractor, progress=progress),
        budget=budget,
        seed=seed,
        on_progress=on_progress or (lambda _: None),
        notify=notify,
        stop=stop,
        progress=progress,
        prove=prove,
        report=report or (lambda *_: None),
    )


def race_record(context: RaceContext, rows: Sequence[CandidateResult]) -> dict[str, Any]:
    """Return the result of a race as plain values.

    Boxes and masks have one fold, and the number of held-out images.
    """
    is_dense = context.train.is_dense
    return {
        "measure": context.scorer.measure,
        "rule": _rule(context),
        "why": list(context.reasons),
        "budget": context.budget,
        "estimated": context.estimated,
        "seconds": context.elapsed,
        "measured": context.measured,
        "probing": context.probing,
        "stopped": context.stop.is_requested,
        "images": len(context.folds[0][1]) if is_dense else len(context.train),
        "folds": len(context.folds),
        "rows": [row.as_dict() for row in rows],
    }


def _rule(context: RaceContext) -> str:
    if context.train.is_dense:
        return OBJECTS_PROVED_RULE if context.prove else OBJECTS_RULE
    return PROVED_RULE if context.prove else RULE


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
    if start + (expected or 0.0) <= context.budget:
        return expected, ""
    needed = f"its features need about {expected:.0f} s; " if expected else ""
    minutes = math.ceil((start + (expected or start)) / 60)
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
    extractor = _limited(context) if entries else context.extractor
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
    # Without measured times the features count with the time that they took.
    shares = seconds / len(ends), (seconds if expected is None else expected) / len(ends)
    for end in reversed(ends):
        candidate = probe_candidate(backbone, end, context.seed, with_backbone=with_backbone)
        is_first = not entries
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
    if not is_first and 0 < context.budget < start + expected:  # with very many images
        context.reasons.append(
            f"Skipped: {candidate.name} (needs about {expected:.0f} s; {context.left:.0f} s of "
            f"the {context.budget:.0f} s budget left). Try "
            f"`--budget {math.ceil((start + expected) / 60)}m`."
        )
        return None
    context.progress(f"fitting the {candidate.name}", 0, 0)
    values = _probe_out_of_fold(train, features, context.folds, context.scorer)
    if is_first:
        context.pace = (context.elapsed - start) / expected
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
    backbone = entry.candidate.full_backbone
    widths = [backbone.until(end).width for end in ends]
    seconds = sum(context.probe_seconds(len(context.train), width) for width in widths)
    names = tuple(f"linear probe at {end}" for end in reversed(ends))
    context.notify(NextStep(names=names, seconds=seconds))


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
    if start + expected_seconds > context.budget:  # no training would fit into the budget either
        return False
    context.estimated += expected_seconds
    context.progress("comparing the pretrained weights with random weights", 0, 0)
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


def _fixed_holdout(data: Dataset, seed: int) -> Fold:
    """Hold out a fifth of images with boxes or masks, in whole groups."""
    return holdout(data.targets(), fraction=1 / N_FOLDS, blocks=data.groups(), seed=seed)


def _create_scorer_and_folds(data: Dataset, seed: int) -> tuple[Scorer, Sequence[Fold]]:
    groups, targets = data.groups(), data.targets()
    problem = Problem.of(targets, n_classes=len(data.classes), kind=data.kind)
    weighted = problem.is_weighted("auto")  # as every candidate is trained
    scorer = Scorer(kind=data.kind, targets=targets, groups=groups, weighted=weighted)
    return scorer, kfold(targets, N_FOLDS, blocks=groups, seed=seed)


def _probe_out_of_fold(
    data: Dataset, features: Any, folds: Sequence[Fold], scorer: Scorer
) -> Floats:
    """Cross-validate a probe and score its held-out predictions."""
    problem = Problem.of(scorer.targets, n_classes=len(data.classes), kind=data.kind)
    search = search_penalty(features, problem, folds, weighted=problem.is_weighted("auto"))
    return scorer.correct(np.asarray(search.held_out, dtype=np.float64))
