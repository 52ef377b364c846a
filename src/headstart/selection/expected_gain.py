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
from typing import Any

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
from headstart.selection.probes import pretraining_is_useless
from headstart.selection.progress import (
    BudgetUsedUpError,
    FirstModel,
    FoldWatch,
    NextStep,
    RaceStoppedError,
    capitalise,
    check_stop,
    first_sentence,
    format_seconds,
)
from headstart.selection.race_context import RaceContext, RaceEntry, format_gain
from headstart.selection.rules import LEAST_GAIN, adjusted_level
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
    "choose_candidate",
    "choose_epochs",
    "plan_training",
    "race_candidates",
    "race_on_holdout",
    "train_candidate",
]

INTERVAL_LEVEL = 0.95

PROVED_COMPARISONS = 5
"""Comparisons with the first training on boxes or masks, which share the error."""

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
        For boxes and masks the evaluation on these images.
    source : FrozenBackbone
        The pretrained backbone, for images of its own size.
    """

    model: TransferModel
    rows: NDArray[np.intp]
    logits: Any
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
    winner : RaceEntry or None
        None if there is no probe and no training had a score.
    trained : TrainedCandidate or None
        The winner's trained model; None if a probe won.
    raced, skipped : list of RaceEntry
    """

    winner: RaceEntry | None
    trained: TrainedCandidate | None
    raced: list[RaceEntry]
    skipped: list[RaceEntry]


def choose_epochs(
    seconds: tuple[float, float], left: float, epochs: tuple[int, int] = (LEAST_EPOCHS, EPOCHS)
) -> int:
    """Choose the largest number of epochs that fits; 0 if not even the smallest does.

    Parameters
    ----------
    seconds : pair of float
        Estimates for the smallest and for the largest number of epochs.
    left : float
        Seconds that are left.
    epochs : pair of int
        Smallest and largest number.

    Examples
    --------
    >>> [choose_epochs((30.0, 80.0), left) for left in (25, 35, 52, 200)]
    [0, 3, 5, 8]
    """
    (least, most), (fewest, all_epochs) = seconds, epochs
    if left < least:
        return 0
    per_epoch = (most - least) / max(all_epochs - fewest, 1)
    extra = math.inf if per_epoch <= 0 else (left - least) / per_epoch
    return min(all_epochs, fewest + int(min(extra, all_epochs)))


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
        fewest, all_epochs = candidate.epochs
        least, most = (
            _holdout_seconds(context, with_epochs(candidate, number), train, held_out)
            for number in candidate.epochs
        )
        epochs = choose_epochs((least, most), FINISHING_SHARE * left, candidate.epochs)
        per_epoch = (most - least) / max(all_epochs - fewest, 1)
        seconds = least + per_epoch * max(epochs - fewest, 0)
        candidate, text = with_epochs(candidate, epochs or all_epochs), f"{epochs} epochs, "
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
        backbone = best.candidate.full_backbone
        include_scratch = pretraining_is_useless(context, backbone)
        candidates = recipe_candidates(backbone, context.seed, include_scratch=include_scratch)
        race_candidates(context, candidates, best, result, models)
    return choose_candidate(context, best, result, models)


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


def race_candidates(
    context: RaceContext,
    candidates: Sequence[Candidate],
    best: RaceEntry | None,
    result: HoldoutResult,
    models: list[TrainedCandidate | None],
) -> None:
    """Append what was trained or skipped to the result, and the trained models.

    Without a probe, ``best`` is None: the first training with a score takes its place.
    """
    for candidate in candidates:
        check_stop(context.stop)
        planned = plan_training(context, candidate, context.left)
        entry = RaceEntry.of(planned.candidate, empty_scores(context), state="promoted")
        if planned.rejection:
            entry.note(state="left out", note=planned.rejection)
            total = context.total(context.elapsed + planned.seconds) if planned.seconds else 0.0
            context.reasons.append(
                skip_sentence("Skipped", candidate.name, planned.rejection, total)
            )
            result.skipped.append(entry)
            continue
        entry.note(estimated=planned.seconds)
        context.notify(NextStep(names=(entry.candidate.title,), seconds=planned.seconds))
        result.raced.append(entry)
        models.append(train_candidate(context, entry, best))
        if best is None and models[-1] is not None:
            best = entry


def train_candidate(
    context: RaceContext, entry: RaceEntry, best: RaceEntry | None
) -> TrainedCandidate | None:
    """Train one candidate and compare it with the best; None if the training failed.

    Without a best one it is the first model: it trains at least one epoch, and counts with its best
    epoch after Ctrl-C.
    """
    fold = context.folds[0]
    train, held_out = split_fold(context, fold)
    start = context.elapsed
    watch = FoldWatch(
        step=entry.candidate.title,
        n_trainings=1,
        progress=context.progress,
        stop=context.stop,
        seconds_left=lambda: math.inf,  # the session's deadline ends the training
        keeps_partial=best is None,
    )
    session = _first_session(context, watch.step)
    if best is not None:
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
    context.scorer.record(entry.values, fold[1], logits)
    if best is None:
        _report_first_training(context, entry, model)
    else:
        _compare(context, entry, best, model)
    source = entry.candidate.full_backbone
    return TrainedCandidate(model=model, rows=fold[1], logits=logits, source=source)


def _first_session(context: RaceContext, step: str) -> Session:
    """Let the first training end with the budget, after one epoch at least, or after Ctrl-C."""

    def on_epoch(epoch: Epoch, _: int) -> None:
        if epoch.number:
            context.stop.keep_model()

    return Session(
        on_epoch=on_epoch,
        progress=lambda _, done, total: context.report(step, done, total),
        deadline=time.perf_counter() + context.left,
        stop=context.stop,
    )


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


def _report_first_training(context: RaceContext, entry: RaceEntry, model: TransferModel) -> None:
    """Note the score of the first training where there is no probe; from now on it may be kept."""
    context.stop.keep_model()
    score, n_images = context.scorer.score(entry.values), len(context.folds[0][1])
    entry.note(score=score, images=n_images, note=_format_epochs(model))
    if entry.row.estimated:
        context.training_pace = entry.row.seconds / entry.row.estimated
    context.notify(
        FirstModel(
            measure=context.scorer.measure,
            score=score,
            images=n_images,
            seconds=context.elapsed,
            name=capitalise(entry.candidate.title),
            source=f"on {n_images} held-out training images",
        )
    )


def _format_epochs(model: TransferModel) -> str:
    """Count the epochs of a training, and say if it had diverged first."""
    n_epochs = len(model.record["epochs"]) - 1
    retried = ", diverged first: a tenth of the rates" * (model.record.get("rate_scale", 1) < 1)
    return f"{n_epochs} epoch{'s' * (n_epochs != 1)}{retried}"


def _compare(context: RaceContext, entry: RaceEntry, best: RaceEntry, model: TransferModel) -> None:
    """Note a training's score, and its gain over the probe on the same images."""
    level = INTERVAL_LEVEL
    if context.prove:  # boxes and masks: one test for each candidate
        level = adjusted_level(1 - INTERVAL_LEVEL, PROVED_COMPARISONS)
    compare_with_probe(context, entry, best, level=level)
    entry.expected_gain = context.scorer.expected_gain(entry.values, best.values)
    gained = _points(entry.expected_gain)
    entry.note(note=f"{_format_epochs(model)}, expected gain {gained}")
    reference = "first training" if context.train.is_dense else "probe"
    context.on_progress(
        f"{entry.candidate.name}: {format_gain(entry)} over the {reference}, "
        f"{entry.row.seconds:.1f} s"
    )


def choose_candidate(
    context: RaceContext,
    best: RaceEntry | None,
    result: HoldoutResult,
    models: Sequence[TrainedCandidate | None],
) -> HoldoutResult:
    """Choose the largest expected gain; of gains within half a point, the quickest candidate."""
    ready: dict[int, float] = {}
    if best is None:
        result = _with_reference(result, models)
        best = result.winner
    for i, entry in enumerate(result.raced):
        gain = entry.expected_gain
        if entry is best:
            continue
        context.reasons.append(_explain(context, entry, best, gain))
        is_proved = not context.prove or bool(entry.row.significant)
        if i < len(models) and models[i] is not None and gain > LEAST_GAIN and is_proved:
            ready[i] = gain
    if not ready:
        return result
    largest = max(ready.values())
    near = [i for i, gain in ready.items() if gain >= largest - LEAST_GAIN]
    index = min(near, key=lambda i: (result.raced[i].row.seconds, -ready[i]))
    return replace(result, winner=result.raced[index], trained=models[index])


def _with_reference(
    result: HoldoutResult, models: Sequence[TrainedCandidate | None]
) -> HoldoutResult:
    """Let the first training with a score take the place of a probe."""
    for entry, model in zip(result.raced, models, strict=False):
        if model is not None:
            return replace(result, winner=entry, trained=model)
    return result


def _explain(context: RaceContext, entry: RaceEntry, best: RaceEntry | None, gain: float) -> str:
    """Explain a training's part in the choice in one sentence."""
    name = capitalise(entry.row.name)
    if entry.row.gain is None or best is None:
        return f"{name} has no score: {entry.row.note}."
    verb = "is expected" if gain > LEAST_GAIN else "is not expected"
    proof = "" if entry.row.significant else ", not significantly different"
    control = context.scorer.explain_control(entry.values, best.values, best.row.name)
    return (
        f"{name} {verb} to be better than the {best.row.name} ({_points(gain)}): measured "
        f"{format_gain(entry)} on the same {entry.row.images} held-out images{proof}{control}."
    )


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f} points"
