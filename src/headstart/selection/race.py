"""The race: which backbone, how much of it, how to learn, shown on held-out training images.

Linear probes at several depths cost one look at every image. At most two trainings are promoted
and race against the best probe, fold by fold, until one is better beyond chance, nothing is
gained, or the time is up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset
from headstart.errors import DataError, TrainingError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.method import Method
from headstart.selection.candidates import (
    Candidate,
    depths,
    expected_features,
    expected_training,
    probe_of,
    raced,
    refusal,
    trainings,
)
from headstart.selection.probes import (
    Entry,
    RaceContext,
    best_probe,
    control_seconds,
    gained,
    is_useless,
    probes,
)
from headstart.selection.rules import (
    BUDGET,
    MEASURES,
    RULE,
    TRAININGS_SHARE,
    Row,
    best_of,
    level_of,
)

__all__ = ["Decision", "decide", "foretell"]

Told = Callable[[str], None]
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """What was chosen, and why.

    Parameters
    ----------
    method : Method
    backbone : FrozenBackbone
    engine : str
        What made the features.
    record : dict
        As plain values, for the model's record and the report.
    """

    method: Method
    backbone: FrozenBackbone
    engine: str
    record: dict[str, Any]


def decide(
    backbones: Sequence[FrozenBackbone],
    train: Dataset,
    val: Dataset | None = None,
    *,
    extractor: Extractor,
    budget: float = BUDGET,
    seed: int = 0,
    told: Told | None = None,
) -> Decision:
    """Race the ways to learn on the training images, and choose one.

    Parameters
    ----------
    backbones : sequence of FrozenBackbone
        Backbones to choose from; the first is kept unless another is better beyond chance.
    train : Dataset
        Classes of whole images. All scores are of held-out images of this part.
    val : Dataset, optional
        What trainings stop on; by default a share of what they learn from.
    extractor : Extractor
    budget : float
        Seconds for the race and the training of its winner; 0 for probes alone.
    seed : int
        Of folds and trainings.
    told : callable, optional
        Given a line for every step.

    Raises
    ------
    UsageError
        If there is no backbone, or boxes or masks are to be learned.
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
    ground = _ground(backbones, (train, val), extractor, budget, seed, told)
    found = probes(ground, backbones)
    best = best_probe(ground, found)
    racing, out = _promoted(ground, best)
    winner = _run(ground, best, racing) if racing else best
    winner.note(state="chosen")
    ground.why.append(f"Chosen: {winner.row.name}.")
    entries = [*found, *racing, *out]
    ran = [one.row.estimated for one in (*found, *racing) if one.row.seconds]
    ground.estimated += ground.measured + sum(ran)
    return Decision(
        method=winner.who.method,
        backbone=winner.who.backbone,
        engine=extractor.outlook(winner.who.whole, train.samples)[0].engine,
        record=_record(ground, [one.row for one in entries]),
    )


def foretell(
    backbones: Sequence[FrozenBackbone],
    train: Dataset,
    val: Dataset | None = None,
    *,
    extractor: Extractor,
    budget: float = BUDGET,
    seed: int = 0,
) -> dict[str, Any]:
    """Say what a race would do and what it would take, without learning anything.

    Returns
    -------
    dict
        As ``Decision.record``; a training's estimate is of all folds. ``estimated`` is what the
        race would take if all of them ran, with the dearest training afterwards, as far as the
        budget lets it.

    Raises
    ------
    UsageError, DataError
        As ``decide``.
    """
    ground = _ground(backbones, (train, val), extractor, budget, seed, None)
    rows = []
    for backbone in backbones:
        ends = depths(backbone)
        looking = expected_features(backbone, train.samples, train, extractor=extractor)
        for end in reversed(ends):
            who = probe_of(backbone, end, seed, named=len(backbones) > 1)
            solving = ground.probe_seconds(len(train), who.backbone.width)
            rows.append(Entry.of(who, _none(ground), estimated=looking / len(ends) + solving).row)
    taken = sum(row.estimated for row in rows)
    control = control_seconds(ground, backbones[0])
    if taken + control <= ground.budget:  # as for ``is_useless``
        taken += control
    ground.estimated, longest = taken, 0.0
    for place in trainings(backbones[0], seed, hopeless=False):
        for who in place:
            entry, reason, (fold, whole) = _considered(ground, who, taken)
            rows.append(entry.row)
            if reason:
                ground.why.append(f"{_capital(who.name)} would be left out: {reason}.")
            else:
                note = f"the first fold {_time(fold)}, the training afterwards {_time(whole)}"
                ground.why.append(f"{_capital(who.name)}: {note}.")
                folds = fold + fold / (1 + len(who.others)) * (len(ground.folds) - 1)
                rows[-1] = replace(rows[-1], estimated=folds, note=note)
                taken += fold
                longest = max(longest, whole)
                ground.estimated += folds
                break
    if longest:
        ground.estimated = min(ground.estimated + longest, ground.budget)
    ground.why.append(
        "Trainings take part where the best probe answers enough held-out images wrong, and only "
        "as long as they gain and the time lasts; those of another backbone, or from scratch, take "
        "their own time."
    )
    return _record(ground, rows)


def _ground(
    backbones: Sequence[FrozenBackbone],
    parts: tuple[Dataset, Dataset | None],
    extractor: Extractor,
    budget: float,
    seed: int,
    told: Told | None,
) -> RaceContext:
    train, val = parts
    if not backbones:
        raise UsageError("Expected a backbone to choose from, got none; do name one.")
    if train.is_dense:
        raise UsageError(
            f"Expected classes of whole images, got {train.kind}; do name the method, such as "
            "--method finetune."
        )
    probe_of(backbones[0], "", seed).method.check(train)
    return RaceContext(
        train=train,
        val=val,
        extractor=extractor,
        budget=budget,
        seed=seed,
        told=told or (lambda _: None),
    )


def _promoted(ground: RaceContext, best: Entry) -> tuple[list[Entry], list[Entry]]:
    """Who races against the best probe, and who is left out, with the reason."""
    if reason := ground.judge.undecidable(best.values, _level(ground)):
        ground.why.append(f"{reason}. Nothing was trained.")
        return [], []
    if ground.budget <= 0:
        ground.why.append("No time was given to train anything (--budget).")
        return [], []
    racing: list[Entry] = []
    out: list[Entry] = []
    backbone = best.who.whole
    for place in trainings(backbone, ground.seed, hopeless=is_useless(ground, backbone)):
        for who in place:
            # Each that takes part runs a fold before the first look at them.
            taken = ground.spent + sum(one.row.estimated for one in racing)
            entry, reason, (fold, _) = _considered(ground, who, taken)
            if not reason:
                entry.note(estimated=fold)
                racing.append(entry)
                break
            ground.why.append(f"{_capital(who.name)} was left out: {reason}.")
            out.append(entry)
    return racing, out


def _considered(
    ground: RaceContext, who: Candidate, taken: float
) -> tuple[Entry, str, tuple[float, float]]:
    """A contender for promotion, why not, and the seconds of a fold and of a whole training."""
    entry = Entry.of(who, _none(ground), state="promoted")
    learn, asked = _parts(ground, ground.folds[0])
    reason = refusal(who, [ground.train.subset(rows) for rows, _ in ground.folds])
    if reason := reason.split(";")[0].rstrip(" .,"):  # also of "a, b, ..."
        entry.note(state="left out", note=reason)
        return entry, reason, (0.0, 0.0)
    fold = _expected(ground, who, learn, len(asked)) * (1 + len(who.others))
    whole = _expected(ground, who, ground.train, 0)
    if taken + fold + whole > ground.budget:
        reason = (
            f"one fold would take {_time(fold)} and the training afterwards {_time(whole)}, which "
            f"is more than is left of {_time(ground.budget)} (--budget)"
        )
        entry.note(state="left out", note=reason)
    return entry, reason, (fold, whole)


def _run(ground: RaceContext, best: Entry, racing: list[Entry]) -> Entry:
    """Fold by fold, until one is better, none gains, or the time is up."""
    alive = list(racing)
    for number, fold in enumerate(ground.folds, start=1):
        alive = [one for one in alive if _lap(ground, one, alive, number, fold)]
        gains = [_look(ground, one, best, number) for one in alive]
        if (place := best_of(gains)) is not None:
            won = alive[place]
            ground.why.append(
                f"{_capital(won.row.name)} is better than the {best.row.name}: {gained(won)}, on "
                f"{won.row.images} held-out images."
            )
            return won
        for one, found in zip(list(alive), gains, strict=True):
            if found.interval.high < 0 or (number > 1 and found.interval.value <= 0):
                one.note(note=f"no gain after {_folds(number)}")
                alive.remove(one)
        if not alive:
            break
    for one in racing:
        if one.row.gain is None:
            one.note(state=one.row.state if one.row.seconds else "left out")
            ground.why.append(f"{_capital(one.row.name)} has no score: {one.row.note}.")
        else:
            tail = f" ({one.row.note})" if one.row.note else ""
            ground.why.append(
                f"{_capital(one.row.name)} is not better than the {best.row.name}, beyond chance: "
                f"{gained(one)}{tail}."
            )
    return best


def _lap(ground: RaceContext, one: Entry, alive: list[Entry], number: int, fold: Fold) -> bool:
    """Train on one fold's images and answer its others; False where the time is up."""
    learn, asked = _parts(ground, fold)
    rates = 1 + len(one.who.others)
    if number == 1:  # another, before it, may have taken more than was expected
        expected = _expected(ground, one.who, learn, len(asked)) * rates
        one.whole_seconds = _expected(ground, one.who, ground.train, 0)
    else:
        expected = one.lap_seconds
        one.whole_seconds = expected * len(ground.train) / len(learn)
    # Whoever wins is trained afterwards.
    if ground.spent + expected + max(other.whole_seconds for other in alive) > ground.budget:
        when = f"after {_folds(number - 1)}" if number > 1 else "before its first fold"
        one.note(note=f"the time was up {when}")
        return False
    begin = ground.spent
    try:
        logits, one.who = raced(one.who, learn, ground.val, asked, extractor=ground.extractor)
    except (TrainingError, DataError) as error:  # also groups that its own parts cannot be made of
        one.note(note=str(error).split(";")[0], seconds=one.row.seconds + ground.spent - begin)
        return False
    one.values[fold[1]] = ground.judge.worth(logits, fold[1])
    one.lap_seconds = (ground.spent - begin) / rates
    before = one.row.estimated if number > 1 else 0.0
    one.note(seconds=one.row.seconds + ground.spent - begin, estimated=before + expected)
    return True


def _look(ground: RaceContext, one: Entry, best: Entry, number: int) -> Any:
    """Compare one with the best probe on the images that it has answered."""
    found = ground.judge.gain(one.values, best.values, level=_level(ground))
    one.note(
        images=len(ground.judge.answered(one.values)),
        score=ground.judge.score(one.values),
        against=best.row.name,
        gain=found.interval,
        distinguishable=found.distinguishable,
    )
    ground.told(
        f"{one.who.name}, {_folds(number)} of {len(ground.folds)}: {gained(one)} over the probe, "
        f"{one.row.seconds:.1f} s"
    )
    return found


def _level(ground: RaceContext) -> float:
    """Two trainings, each looked at after every fold."""
    return level_of(TRAININGS_SHARE, 2 * len(ground.folds))


def _expected(ground: RaceContext, who: Candidate, data: Dataset, asked: int) -> float:
    with ground.measuring():
        return expected_training(
            who, data, ground.val, asked, extractor=ground.extractor, pace=ground.pace
        )


def _parts(ground: RaceContext, fold: Fold) -> tuple[Dataset, Dataset]:
    return ground.train.subset(fold[0]), ground.train.subset(fold[1])


def _none(ground: RaceContext) -> NDArray[np.float64]:
    return np.full(ground.judge.targets.shape, np.nan)


def _record(ground: RaceContext, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "measure": MEASURES[ground.train.kind],
        "rule": RULE,
        "why": list(ground.why),
        "budget": ground.budget,
        "estimated": ground.estimated,
        "seconds": ground.spent,
        "measured": ground.measured,
        "images": len(ground.train),
        "folds": len(ground.folds),
        "rows": [row.as_dict() for row in rows],
    }


def _folds(number: int) -> str:
    return f"{number} fold{'s' * (number != 1)}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
