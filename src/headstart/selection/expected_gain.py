"""Choice by expected gain: one training for each rung that fits, on one fixed hold-out.

A training is scored on the images of the first fold, against the probe's predictions for the same
images. Its weights are the model: nothing is trained twice. The epochs are scaled to what is left
of the budget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset
from headstart.errors import DataError, TrainingError
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.selection.candidates import (
    EPOCHS,
    LEAST_EPOCHS,
    Candidate,
    recipe_candidates,
    rejection_reason,
    train_on_holdout,
    with_epochs,
)
from headstart.selection.probes import (
    RaceContext,
    RaceEntry,
    format_gain,
    pretraining_is_useless,
)
from headstart.selection.progress import (
    BudgetUsedUpError,
    FoldWatch,
    NextStep,
    RaceStoppedError,
    capitalise,
    check_stop,
    first_sentence,
    format_seconds,
)
from headstart.selection.rules import LEAST_GAIN
from headstart.selection.trainings import (
    compare_with_probe,
    empty_scores,
    estimate_training,
    no_time_reason,
    skip_sentence,
    split_fold,
)
from headstart.training.job import Epoch, Session

__all__ = [
    "HoldoutResult",
    "PlannedTraining",
    "TrainedCandidate",
    "choose_epochs",
    "plan_training",
    "race_on_holdout",
]

INTERVAL_LEVEL = 0.95

FINISHING_SHARE = 0.95
"""Share of the budget that is left which a training may fill by its estimate."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedTraining:
    """A training with the number of epochs that fits, or the reason to skip it.

    Parameters
    ----------
    candidate : Candidate
    seconds : float
        Estimate; of the smallest training if it is skipped, 0 if it is impossible.
    epochs : str
        Number of epochs for a sentence, with a comma; empty where the method decides.
    rejection : str
        Empty if the training fits.
    """

    candidate: Candidate
    seconds: float
    epochs: str = ""
    rejection: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedCandidate:
    """A trained model, and its predictions for images that it was not trained on.

    Parameters
    ----------
    model : TransferModel
    rows : array, shape (n,)
        The held-out training images.
    logits : array, shape (n, n_classes)
    source : FrozenBackbone
        The pretrained backbone, for images of its own size.
    """

    model: TransferModel
    rows: NDArray[np.intp]
    logits: NDArray[np.float64]
    source: FrozenBackbone

    def calibrated_model(self, train: Dataset, max_risk: float | None) -> TransferModel:
        """Return the model, with a confidence threshold for ``max_risk`` if there is one.

        The threshold is chosen on the held-out images of ``train``.
        """
        if max_risk is None:
            return self.model
        held_out = train.subset(self.rows)
        task = self.model.require_task(ClassificationTask)
        task = replace(task, temperature=1.0, max_risk=max_risk)
        calibrated = task.calibrated(self.logits, held_out.targets(), groups=held_out.groups())
        return replace(self.model, task=calibrated)


@dataclass(frozen=True, kw_only=True, eq=False)
class HoldoutResult:
    """Result of a choice by expected gain.

    Parameters
    ----------
    winner : RaceEntry
    trained : TrainedCandidate or None
        The winner's trained model; None if a probe won.
    raced, skipped : list of RaceEntry
    """

    winner: RaceEntry
    trained: TrainedCandidate | None
    raced: list[RaceEntry]
    skipped: list[RaceEntry]


def choose_epochs(seconds: tuple[float, float], left: float) -> int:
    """Choose the largest number of epochs that fits; 0 if not even the smallest does.

    Parameters
    ----------
    seconds : pair of float
        Estimates for ``LEAST_EPOCHS`` and for ``EPOCHS`` epochs.
    left : float
        Seconds that are left.

    Examples
    --------
    >>> [choose_epochs((30.0, 80.0), left) for left in (25, 35, 52, 200)]
    [0, 3, 5, 8]
    """
    least, most = seconds
    if left < least:
        return 0
    per_epoch = (most - least) / (EPOCHS - LEAST_EPOCHS)
    extra = math.inf if per_epoch <= 0 else (left - least) / per_epoch
    return min(EPOCHS, LEAST_EPOCHS + int(min(extra, EPOCHS)))


def plan_training(context: RaceContext, candidate: Candidate, left: float) -> PlannedTraining:
    """Scale the epochs of a candidate to the seconds that are left, or say why it is skipped."""
    train, held_out = split_fold(context, context.folds[0])
    if rejection := first_sentence(rejection_reason(candidate, [train])):
        return PlannedTraining(candidate=candidate, seconds=0.0, rejection=rejection)
    left = max(left, 0.0)
    if candidate.method.name != "finetune":
        seconds = _holdout_seconds(context, candidate, train, held_out)
        epochs, text = 0, ""
    else:
        least, most = (
            _holdout_seconds(context, with_epochs(candidate, number), train, held_out)
            for number in (LEAST_EPOCHS, EPOCHS)
        )
        epochs = choose_epochs((least, most), FINISHING_SHARE * left)
        per_epoch = (most - least) / (EPOCHS - LEAST_EPOCHS)
        seconds = least + per_epoch * max(epochs - LEAST_EPOCHS, 0)
        candidate, text = with_epochs(candidate, epochs or EPOCHS), f"{epochs} epochs, "
    if seconds <= left and text != "0 epochs, ":
        return PlannedTraining(candidate=candidate, seconds=seconds, epochs=text)
    rejection = (
        f"needs about {format_seconds(seconds)}; {format_seconds(left)} of the "
        f"{format_seconds(context.budget)} budget left"
    )
    return PlannedTraining(candidate=candidate, seconds=seconds, rejection=rejection)


def _holdout_seconds(
    context: RaceContext, candidate: Candidate, train: Dataset, held_out: Dataset
) -> float:
    """Estimate a training that scores the held-out images after every epoch and at the end."""
    validated = replace(context, val=held_out) if context.val is not held_out else context
    return estimate_training(validated, candidate, train, len(held_out))


def race_on_holdout(context: RaceContext, best: RaceEntry) -> HoldoutResult:
    """Train the rungs that fit, the one with the largest expected gain first; choose the best."""
    result = HoldoutResult(winner=best, trained=None, raced=[], skipped=[])
    if reason := _reason_for_no_training(context, best):
        context.reasons.append(reason)
        return result
    models: list[TrainedCandidate | None] = []
    with suppress(RaceStoppedError):
        _race(context, best, result, models)
    return _choose(context, best, result, models)


def _reason_for_no_training(context: RaceContext, best: RaceEntry) -> str:
    """Return why no training can run; empty if one can."""
    if context.stop.is_requested:
        return ""
    score = context.scorer.score(best.values)
    if context.train.kind == "multiclass" and 1 - score.value <= LEAST_GAIN:
        return (
            f"The {best.row.name} has {context.scorer.measure} {score} on the held-out images: "
            "even a perfect model could not gain half a point. No training was run."
        )
    return no_time_reason(context, best.candidate.full_backbone, n_trainings=1)


def _race(
    context: RaceContext,
    best: RaceEntry,
    result: HoldoutResult,
    models: list[TrainedCandidate | None],
) -> None:
    """Append what was trained or skipped to the result, and the trained models."""
    backbone: FrozenBackbone = best.candidate.full_backbone
    include_scratch = pretraining_is_useless(context, backbone)
    for candidate in recipe_candidates(backbone, context.seed, include_scratch=include_scratch):
        check_stop(context.stop)
        planned = plan_training(context, candidate, context.left)
        entry = RaceEntry.of(planned.candidate, empty_scores(context), state="promoted")
        if planned.rejection:
            entry.note(state="left out", note=planned.rejection)
            total = context.elapsed + planned.seconds if planned.seconds else 0.0
            context.reasons.append(
                skip_sentence("Skipped", candidate.name, planned.rejection, total)
            )
            result.skipped.append(entry)
            continue
        entry.note(estimated=planned.seconds)
        context.notify(NextStep(names=(entry.candidate.title,), seconds=planned.seconds))
        result.raced.append(entry)
        models.append(_train(context, entry, best))


def _train(context: RaceContext, entry: RaceEntry, best: RaceEntry) -> TrainedCandidate | None:
    """Train one candidate and compare it with the probe; None if the training failed."""
    fold = context.folds[0]
    train, held_out = split_fold(context, fold)
    start = context.elapsed
    watch = FoldWatch(
        step=entry.candidate.title,
        n_trainings=1,
        progress=context.progress,
        stop=context.stop,
        seconds_left=lambda: math.inf,  # the session's deadline ends the training
    )
    session = _within_budget(context, watch.session(0))
    try:
        logits, model = train_on_holdout(
            entry.candidate,
            train,
            held_out,
            extractor=context.extractor,
            session=session,
            watch=watch,
        )
    except (TrainingError, DataError) as error:
        note = first_sentence(str(error))
        entry.note(note=note, state="left out", seconds=context.elapsed - start)
        return None
    except BudgetUsedUpError:
        entry.note(
            note="the budget was used up in its first epoch", seconds=context.elapsed - start
        )
        return None
    except RaceStoppedError:
        entry.note(note=f"stopped by {context.stop.source}", seconds=context.elapsed - start)
        raise
    entry.note(seconds=context.elapsed - start)
    entry.values[fold[1]] = context.scorer.correct(logits, fold[1])
    _compare(context, entry, best, model)
    source = entry.candidate.full_backbone
    return TrainedCandidate(model=model, rows=fold[1], logits=logits, source=source)


def _within_budget(context: RaceContext, session: Session) -> Session:
    """Let a training end at the end of the budget, even within its first epoch."""
    n_epochs, report, on_epoch = [0], session.progress, session.on_epoch

    def count(epoch: Epoch, most: int) -> None:
        n_epochs[0] = epoch.number
        if on_epoch is not None:
            on_epoch(epoch, most)

    def report_step(step: str, done: int, total: int) -> None:
        if not n_epochs[0] and context.left <= 0:
            raise BudgetUsedUpError
        if report is not None:
            report(step, done, total)

    deadline = time.perf_counter() + context.left
    return replace(session, on_epoch=count, progress=report_step, deadline=deadline)


def _compare(context: RaceContext, entry: RaceEntry, best: RaceEntry, model: TransferModel) -> None:
    """Note a training's score, and its gain over the probe on the same images."""
    compare_with_probe(context, entry, best, level=INTERVAL_LEVEL)
    n_epochs = len(model.record["epochs"]) - 1
    retried = ", diverged first: a tenth of the rates" * (model.record.get("rate_scale", 1) < 1)
    entry.expected_gain = context.scorer.expected_gain(entry.values, best.values)
    gained = _points(entry.expected_gain)
    entry.note(note=f"{n_epochs} epochs{retried}, expected gain {gained}")
    context.on_progress(
        f"{entry.candidate.name}: {format_gain(entry)} over the probe, {entry.row.seconds:.1f} s"
    )


def _choose(
    context: RaceContext,
    best: RaceEntry,
    result: HoldoutResult,
    models: Sequence[TrainedCandidate | None],
) -> HoldoutResult:
    """Choose the largest expected gain; of gains within half a point, the quickest candidate."""
    ready: dict[int, float] = {}
    for i, entry in enumerate(result.raced):
        gain = entry.expected_gain
        context.reasons.append(_explain(context, entry, best, gain))
        if i < len(models) and models[i] is not None and gain > LEAST_GAIN:
            ready[i] = gain
    if not ready:
        return result
    largest = max(ready.values())
    near = [i for i, gain in ready.items() if gain >= largest - LEAST_GAIN]
    index = min(near, key=lambda i: (result.raced[i].row.seconds, -ready[i]))
    return replace(result, winner=result.raced[index], trained=models[index])


def _explain(context: RaceContext, entry: RaceEntry, best: RaceEntry, gain: float) -> str:
    """Explain a training's part in the choice in one sentence."""
    name = capitalise(entry.row.name)
    if entry.row.gain is None:
        return f"{name} has no score: {entry.row.note}."
    verb = "is expected" if gain > LEAST_GAIN else "is not expected"
    proof = "" if entry.row.significant else ", not significantly different"
    shared = np.full(best.values.shape, np.nan)
    rows = context.scorer.predicted_rows(entry.values)
    shared[rows] = best.values[rows]
    scores = [context.scorer.score(values).value for values in (shared, best.values)]
    return (
        f"{name} {verb} to be better than the {best.row.name}: {format_gain(entry)} on "
        f"{entry.row.images} held-out images{proof}, expected gain {_points(gain)} (the "
        f"{best.row.name} has {scores[0]:.3f} on these images and {scores[1]:.3f} on all)."
    )


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f} points"
