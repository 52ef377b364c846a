"""Race: choose backbone, depth and method on held-out training images.

Linear probes at several depths need one forward pass per image. Then trainings run on one hold-out
and the candidate that is expected to be best is chosen (expected_gain.py). With ``prove`` at most
two trainings race against the best probe, fold by fold. That race ends when one of them is
significantly better, when none of them gains, when the budget is used up, or after Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset
from headstart.errors import DataError, TrainingError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.method import Method
from headstart.metrics.confidence_intervals import Difference
from headstart.selection.candidates import (
    train_and_predict,
    training_candidates,
)
from headstart.selection.expected_gain import TrainedCandidate, race_on_holdout
from headstart.selection.probes import pretraining_is_useless, run_probes, select_best_probe
from headstart.selection.progress import (
    BudgetUsedUpError,
    FoldWatch,
    NextStep,
    RaceStoppedError,
    TimeLimit,
    capitalise,
    check_stop,
    first_sentence,
    format_folds,
    format_seconds,
)
from headstart.selection.race_context import (
    Fold,
    OnEvent,
    OnProgress,
    RaceContext,
    RaceEntry,
    create_context,
    format_gain,
    race_record,
)
from headstart.selection.rules import (
    BUDGET,
    TRAININGS_ALPHA,
    adjusted_level,
    index_of_best_gain,
)
from headstart.selection.trainings import (
    all_folds_seconds,
    assess_candidate,
    compare_with_probe,
    estimate_training,
    no_time_reason,
    skip_sentence,
    split_fold,
)

__all__ = ["Decision", "decide", "decide_with_proof"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """Chosen backbone and method, with the reasons.

    Parameters
    ----------
    method : Method
    backbone : FrozenBackbone
    engine : str
        Engine that computed the features.
    record : dict
        Plain values for the model's record and the report.
    trained : TrainedCandidate, optional
        The trained model, if the winner was trained on the images that were not held out.
    size : int
        Boxes and masks: longer side of the resized images; 0 for classes.
    """

    method: Method
    backbone: FrozenBackbone
    engine: str
    record: dict[str, Any]
    trained: TrainedCandidate | None = None
    size: int = 0


def decide(
    backbones: Sequence[FrozenBackbone],
    train: Dataset,
    val: Dataset | None = None,
    *,
    extractor: Extractor,
    budget: float | TimeLimit = BUDGET,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    notify: OnEvent | None = None,
) -> Decision:
    """Choose a method by a race on the training images.

    Parameters
    ----------
    backbones : sequence of FrozenBackbone
        Backbones to choose from. The first is chosen unless another is significantly better.
    train : Dataset
        Images with class labels. All scores are computed on held-out images of this set.
    val : Dataset, optional
        Validation images for early stopping. By default, a share of the training images.
    extractor : Extractor
    budget : float or TimeLimit
        Seconds for the race and the training of its winner, from the start of the race, or the
        limit of the whole run. 0 runs
        only the probes on the first backbone, whose features come from one pass.
    seed : int
        Seed of folds and trainings.
    on_progress : callable, optional
        Called with one line of text per step.
    notify : callable, optional
        Called with the events of the race, such as the first model. From the first model on,
        Ctrl-C ends the race at its next step and keeps the best candidate so far.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C before the first model, and after a second Ctrl-C.
    UsageError
        If there is no backbone, or the data have boxes or masks (``decide_objects``).
    DataError
        If a class has too few images or groups for two folds.

    Examples
    --------
    >>> from headstart import Cache, read_dataset
    >>> data, cache = read_dataset("demo:symbols"), Cache()  # doctest: +SKIP
    >>> backbone = FrozenBackbone.open("embedded/efficientnet_lite0")  # doctest: +SKIP
    >>> decide([backbone], data, extractor=Extractor(cache=cache)).method.name  # doctest: +SKIP
    'linear-probe'
    """
    _require_classes(train)
    context = create_context(
        backbones, (train, val), extractor, budget, seed, on_progress, notify or (lambda _: None)
    )
    return _decide(context, backbones)


def decide_with_proof(
    backbones: Sequence[FrozenBackbone],
    train: Dataset,
    val: Dataset | None = None,
    *,
    extractor: Extractor,
    budget: float | TimeLimit = BUDGET,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    notify: OnEvent | None = None,
) -> Decision:
    """Choose as ``decide``, but leave the probe only for a significantly better candidate.

    Trainings race fold by fold, and the winner is trained on all images afterwards. The parameters
    and exceptions are those of ``decide``.
    """
    _require_classes(train)
    context = create_context(
        backbones,
        (train, val),
        extractor,
        budget,
        seed,
        on_progress,
        notify or (lambda _: None),
        prove=True,
    )
    return _decide(context, backbones)


def _require_classes(train: Dataset) -> None:
    if train.is_dense:
        raise UsageError(
            f"A race of linear probes needs classes of images, but these labels are for "
            f"{train.kind}. Call `decide_objects`, or pass --method finetune."
        )


def _decide(context: RaceContext, backbones: Sequence[FrozenBackbone]) -> Decision:
    """Run probes and trainings, and choose by the rule of the context."""
    with context.stop:
        probe_entries = run_probes(context, backbones)
        best = select_best_probe(context, probe_entries)
        context.probing = context.elapsed
        trained = None
        if context.prove:
            race_entries, rejected = _select_candidates(context, best)
            winner = _race_candidates(context, best, race_entries) if race_entries else best
        else:
            result = race_on_holdout(context, best)
            race_entries, rejected = result.raced, result.skipped
            winner, trained = result.winner or best, result.trained
    if context.stop.is_requested:
        winner = winner if trained is not None else best  # else it must train on all images yet
        context.reasons.append(
            f"The race was stopped by {context.stop.source}. The best candidate that is ready is "
            "kept; candidates that were not compared, or not trained on all images, may be better."
        )
    winner.note(state="chosen")
    context.reasons.append(f"Chosen: {winner.row.name}.")
    entries = [*probe_entries, *race_entries, *rejected]
    estimates = [
        entry.row.estimated for entry in (*probe_entries, *race_entries) if entry.row.seconds
    ]
    context.estimated += context.measured + sum(estimates)
    return Decision(
        method=winner.candidate.method,
        backbone=winner.candidate.backbone,
        engine=_engine_of(context, winner),
        record=race_record(context, [entry.row for entry in entries]),
        trained=trained,
    )


def _engine_of(context: RaceContext, winner: RaceEntry) -> str:
    backbone, samples = winner.candidate.full_backbone, context.train.samples
    return context.extractor.plan_extraction(backbone, samples)[0].engine


def _select_candidates(
    context: RaceContext, best: RaceEntry
) -> tuple[list[RaceEntry], list[RaceEntry]]:
    """Return the trainings that race against the best probe, and the skipped ones."""
    if reason := _reason_for_no_training(context, best):
        context.reasons.append(reason)
    if reason or context.stop.is_requested:
        return [], []
    selected: list[RaceEntry] = []
    rejected: list[RaceEntry] = []
    try:
        _assess_candidates(context, best.candidate.full_backbone, selected, rejected)
    except RaceStoppedError:
        return [], rejected
    if selected:
        # An estimate, until the first fold of all of them has run.
        seconds = sum(
            all_folds_seconds(context, entry.candidate, entry.row.estimated) for entry in selected
        )
        context.notify(
            NextStep(
                names=tuple(entry.candidate.title for entry in selected),
                folds=len(context.folds),
                seconds=min(seconds, context.left),
            )
        )
    return selected, rejected


def _reason_for_no_training(context: RaceContext, best: RaceEntry) -> str:
    """Return why no training can run; empty if one can."""
    if rejection := context.scorer.undecidable_reason(best.values, _comparison_level(context)):
        return f"{rejection}. No training was run."
    return no_time_reason(context, best.candidate.full_backbone, n_trainings=2)


def _assess_candidates(
    context: RaceContext,
    backbone: FrozenBackbone,
    selected: list[RaceEntry],
    rejected: list[RaceEntry],
) -> None:
    """Append each training to the ones that race, or to the skipped ones."""
    for alternatives in training_candidates(
        backbone, context.seed, include_scratch=pretraining_is_useless(context, backbone)
    ):
        for candidate in alternatives:
            # Every selected candidate runs one fold before the first comparison.
            elapsed = context.elapsed + sum(running.row.estimated for running in selected)
            entry, rejection, (fold_seconds, full_seconds) = assess_candidate(
                context, candidate, elapsed
            )
            if not rejection:
                entry.note(estimated=fold_seconds)
                selected.append(entry)
                break
            total = elapsed + fold_seconds + full_seconds if full_seconds else 0.0
            context.reasons.append(skip_sentence("Skipped", candidate.name, rejection, total))
            rejected.append(entry)


def _race_candidates(
    context: RaceContext, best: RaceEntry, candidates: list[RaceEntry]
) -> RaceEntry:
    """Train fold by fold until one is better, none gains, or the time is up; return the winner."""
    active = list(candidates)
    for number, entry in enumerate(candidates, start=1):
        entry.title = f"candidate {number} of {len(candidates)}: {entry.candidate.title}"
    for fold_number, fold in enumerate(context.folds, start=1):
        active = [
            entry for entry in active if _train_fold(context, entry, active, fold_number, fold)
        ]
        gains = [_compare_folds(context, entry, best, fold_number) for entry in active]
        if (winner_index := index_of_best_gain(gains)) is not None:
            winner = active[winner_index]
            context.reasons.append(
                f"{capitalise(winner.row.name)} is significantly better than the {best.row.name}: "
                f"{format_gain(winner)} on {winner.row.images} held-out images."
            )
            return winner
        for entry, gain in zip(list(active), gains, strict=True):
            if gain.interval.high < 0 or (fold_number > 1 and gain.interval.value <= 0):
                entry.note(note=f"no gain after {format_folds(fold_number)}")
                active.remove(entry)
        if not active or context.stop.is_requested:
            break
    _explain_no_change(context, best, candidates)
    return best


def _explain_no_change(
    context: RaceContext, best: RaceEntry, candidates: Sequence[RaceEntry]
) -> None:
    """Say of every training why the probe stays the choice."""
    for entry in candidates:
        if entry.row.gain is None:
            entry.note(state=entry.row.state if entry.row.seconds else "left out")
            context.reasons.append(f"{capitalise(entry.row.name)} has no score: {entry.row.note}.")
        else:
            note = f" ({entry.row.note})" if entry.row.note else ""
            context.reasons.append(
                f"{capitalise(entry.row.name)} is not significantly better than the "
                f"{best.row.name}: {format_gain(entry)}{note}."
            )


def _train_fold(
    context: RaceContext, entry: RaceEntry, active: list[RaceEntry], fold_number: int, fold: Fold
) -> bool:
    """Train on one fold and predict its held-out images; False if it did not end."""
    train, held_out = split_fold(context, fold)
    n_rates = 1 + len(entry.candidate.alternatives)
    try:
        expected_seconds = _expected_fold_seconds(context, entry, train, held_out, fold_number)
    except RaceStoppedError:
        entry.note(note=f"stopped by {context.stop.source}")
        return False
    # The winner is trained on all images afterwards, which must fit into the budget too.
    needed = expected_seconds + max(other.expected_full_seconds for other in active)
    if context.elapsed + needed > context.limit:
        entry.note(note=_time_up_note(context, needed, fold_number))
        return False
    start = context.elapsed
    watch = FoldWatch(
        step=f"{entry.title}, fold {fold_number} of {len(context.folds)}",
        n_trainings=n_rates,
        progress=context.progress,
        stop=context.stop,
        # Without time for the final training the result of this fold would be of no use.
        seconds_left=lambda: context.limit - context.elapsed - entry.expected_full_seconds,
    )
    try:
        logits, entry.candidate = train_and_predict(
            entry.candidate, train, context.val, held_out, extractor=context.extractor, watch=watch
        )
    # A DataError comes from groups that cannot be split for early stopping.
    except (TrainingError, DataError, BudgetUsedUpError, RaceStoppedError) as error:
        note = {
            RaceStoppedError: f"stopped by {context.stop.source} in fold {fold_number}",
            BudgetUsedUpError: (
                f"fold {fold_number} took longer than expected and was stopped, because the "
                f"{format_seconds(context.budget)} budget was used up"
            ),
        }.get(type(error), first_sentence(str(error)))
        entry.note(note=note, seconds=entry.row.seconds + context.elapsed - start)
        return False
    entry.values[fold[1]] = context.scorer.correct(logits, fold[1])
    if entry.candidate.rate_scale < 1:
        context.reasons.append(
            f"{capitalise(entry.candidate.name)} diverged in fold {fold_number} and was trained "
            "again there with a tenth of its learning rates."
        )
    entry.last_fold_seconds = (context.elapsed - start) / n_rates
    estimated_before = entry.row.estimated if fold_number > 1 else 0.0
    entry.note(
        seconds=entry.row.seconds + context.elapsed - start,
        estimated=estimated_before + expected_seconds,
    )
    return True


def _expected_fold_seconds(
    context: RaceContext, entry: RaceEntry, train: Dataset, held_out: Dataset, fold_number: int
) -> float:
    """Estimate the seconds of a fold; sets those of the entry's final training."""
    check_stop(context.stop)
    if fold_number > 1:
        seconds = entry.last_fold_seconds
        entry.expected_full_seconds = seconds * len(context.train) / len(train)
        return seconds
    # Estimate again: another candidate may have used more time than expected.
    n_rates = 1 + len(entry.candidate.alternatives)
    seconds = estimate_training(context, entry.candidate, train, len(held_out)) * n_rates
    entry.expected_full_seconds = estimate_training(context, entry.candidate, context.train, 0)
    return seconds


def _time_up_note(context: RaceContext, needed: float, fold_number: int) -> str:
    n_done = fold_number - 1
    when = f"after {format_folds(n_done)}" if n_done else "before its first fold"
    return (
        f"the time was up {when}: needs about {format_seconds(needed)}; "
        f"{format_seconds(context.left)} of the {format_seconds(context.budget)} budget left"
    )


def _compare_folds(
    context: RaceContext, entry: RaceEntry, best: RaceEntry, n_folds: int
) -> Difference:
    """Compare a candidate with the best probe after some folds, and report it."""
    gain = compare_with_probe(context, entry, best, level=_comparison_level(context))
    context.on_progress(
        f"{entry.candidate.name}, {format_folds(n_folds)} of {len(context.folds)}: "
        f"{format_gain(entry)} over the probe, {entry.row.seconds:.1f} s"
        + ", diverged first: a tenth of the rates"
        * (entry.candidate.rate_scale < 1)
    )
    return gain


def _comparison_level(context: RaceContext) -> float:
    """Confidence level of each comparison: two trainings, each compared after every fold."""
    return adjusted_level(TRAININGS_ALPHA, 2 * len(context.folds))
