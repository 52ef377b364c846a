"""State that the steps of a race share: images, folds, clock, candidates and the record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset
from headstart.data.splits import holdout, kfold
from headstart.errors import UsageError
from headstart.features.engines import measuring_pays
from headstart.features.extractor import Extractor
from headstart.runtime import cores
from headstart.selection.candidates import (
    Candidate,
    measuring_seconds,
    probe_candidate,
)
from headstart.selection.object_scores import ObjectScorer
from headstart.selection.progress import (
    RaceEvent,
    TimeLimit,
    check_stop,
)
from headstart.selection.rules import (
    OBJECTS_PROVED_RULE,
    OBJECTS_RULE,
    PROVED_RULE,
    RULE,
    CandidateResult,
    Scorer,
)
from headstart.training.interruption import StopRequest
from headstart.training.penalty_search import Problem
from headstart.training.time_estimate import probe_seconds

__all__ = [
    "Floats",
    "Floats32",
    "Fold",
    "OnEvent",
    "OnProgress",
    "RaceContext",
    "RaceEntry",
    "create_context",
    "create_scorer_and_folds",
    "format_gain",
    "race_record",
]

N_FOLDS = 5

LATER_PASSES, FINISHING_SECONDS, FINISHING_SHARE = 3, 4.0, 0.1
"""After a race: passes over the test images (predictions, comparison with the frozen backbone,
forgetting), and seconds for diagnostics and files, but at most this share of the budget."""

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
    before : float
        Seconds of the run before the race, which count as part of the budget.
    later_images : int
        Test images, which are computed after the race.
    first_probe_seconds : float
        Duration of the fit of the first probe.
    is_hurried : bool
        Whether the features alone use up the budget, so that the fewest steps are run.
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
    before: float = 0.0
    later_images: int = 0
    first_probe_seconds: float = 0.0
    is_hurried: bool = False

    def __post_init__(self) -> None:
        self.scorer: Any
        self.folds: Sequence[Fold]
        if self.train.is_dense:
            self.folds = [_fixed_holdout(self.train, self.seed)]
            rows = self.folds[0][1]
            self.scorer = ObjectScorer(held_out=self.train.subset(rows), rows=rows)
        else:
            self.scorer, self.folds = create_scorer_and_folds(self.train, self.seed)

    @property
    def elapsed(self) -> float:
        """Seconds since the race began."""
        return time.perf_counter() - self.started_at

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return max(self.limit - self.elapsed, 0.0)

    @property
    def limit(self) -> float:
        """Seconds from the start of the race after which nothing may be trained."""
        return max(self.budget - self.before - self.reserved, 0.0)

    @property
    def reserved(self) -> float:
        """Seconds of the budget for what follows the race: the test images and the report."""
        if not self.later_images:
            return 0.0
        images = self.later_images * LATER_PASSES * (self.image_seconds or 0.0)
        seconds = FINISHING_SECONDS * (2 if self.train.is_dense else 1)  # figures of images
        fixed = min(seconds, FINISHING_SHARE * self.budget)
        return fixed + images + 2 * self.first_probe_seconds

    def total(self, elapsed: float) -> float:
        """Return the seconds of the whole run, if the race takes ``elapsed`` seconds."""
        return self.before + elapsed + self.reserved

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
    budget: float | TimeLimit,
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
    time_limit = budget if isinstance(budget, TimeLimit) else TimeLimit(seconds=budget)
    before = 0.0
    if time_limit.started_at is not None:
        before = time.perf_counter() - time_limit.started_at

    def progress(step: str, done: int, total: int) -> None:
        check_stop(stop)
        if report is not None:
            report(step, done, total)

    return RaceContext(
        train=train,
        val=val,
        extractor=replace(extractor, progress=progress),
        budget=time_limit.seconds,
        before=before,
        later_images=time_limit.later_images,
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
        "left": context.left,
        "stopped": context.stop.is_requested,
        "images": len(context.folds[0][1]) if is_dense else len(context.train),
        "folds": len(context.folds),
        "rows": [row.as_dict() for row in rows],
    }


def _rule(context: RaceContext) -> str:
    if context.train.is_dense:
        return OBJECTS_PROVED_RULE if context.prove else OBJECTS_RULE
    return PROVED_RULE if context.prove else RULE


def format_gain(entry: RaceEntry) -> str:
    """Format the gain and its interval."""
    gain = entry.row.gain
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" if gain else "not measured"


def _fixed_holdout(data: Dataset, seed: int) -> Fold:
    """Hold out a fifth of images with boxes or masks, in whole groups."""
    return holdout(data.targets(), fraction=1 / N_FOLDS, blocks=data.groups(), seed=seed)


def create_scorer_and_folds(data: Dataset, seed: int) -> tuple[Scorer, Sequence[Fold]]:
    """Create the scorer of classes or labels, and the folds of the cross-validation."""
    groups, targets = data.groups(), data.targets()
    problem = Problem.of(targets, n_classes=len(data.classes), kind=data.kind)
    weighted = problem.is_weighted("auto")  # as every candidate is trained
    scorer = Scorer(kind=data.kind, targets=targets, groups=groups, weighted=weighted)
    return scorer, kfold(targets, N_FOLDS, blocks=groups, seed=seed)
