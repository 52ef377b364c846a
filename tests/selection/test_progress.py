"""Sentences of a race, and the watch over its trainings."""

import signal

import pytest

from headstart.metrics.confidence_intervals import Interval
from headstart.selection.progress import (
    BudgetUsedUpError,
    FirstModel,
    FoldWatch,
    NextStep,
    RaceStoppedError,
)
from headstart.training.interruption import StopRequest, StopRequested
from headstart.training.job import Epoch


def epoch(number):
    return Epoch(number=number, loss=0.5, score=0.5, held_out_loss=0.5, seconds=1.0, best=0)


def watch(reports, *, seconds_left=1.0):
    return FoldWatch(
        step="fold 1",
        n_trainings=2,
        progress=lambda *report: reports.append(report),
        stop=StopRequest(reports.append),
        seconds_left=lambda: seconds_left,
    )


def test_another_measure_than_accuracy_is_named():
    score = Interval(value=0.5, low=0.25, high=0.75, method="test")
    answer = FirstModel(measure="mean average precision", score=score, images=9, seconds=1.0)
    assert "features: mean average precision 0.50 [0.25, 0.75] (cross" in answer.sentence()


def test_what_is_next_says_how_long_it_takes_if_that_is_known():
    names = ("fine-tuning the last resolution (last:1)", "fine-tuning all stages")
    both = NextStep(names=names, folds=5, seconds=300.0)
    assert both.sentence() == (
        "Next: fine-tuning the last resolution (last:1) and fine-tuning all stages, 5 folds "
        "each, about 5 min."
    )
    assert NextStep(names=("a",)).sentence() == "Next: a."
    assert NextStep(names=("a",), seconds=0.2).sentence() == "Next: a, about 1 s."


def test_the_steps_of_all_learning_rates_are_one_step():
    reports = []
    fold = watch(reports)
    for number in range(2):
        for done in (1, 2):
            fold.session(number).progress("training", done, 2)
    assert reports == [("fold 1", done, 4) for done in (1, 2, 3, 4)]


def test_a_training_ends_after_the_epoch_in_which_the_budget_was_used_up():
    watch([], seconds_left=1.0).session(0).on_epoch(epoch(1), 3)
    late = watch([], seconds_left=0.0).session(0)
    with pytest.raises(BudgetUsedUpError):
        late.on_epoch(epoch(1), 3)
    late.on_epoch(epoch(3), 3)  # the last epoch is complete: its result is used


def test_after_ctrl_c_a_step_ends_at_once():
    reports = []
    fold = watch(reports)
    with fold.stop as stop:
        stop.keep_model()
        signal.raise_signal(signal.SIGINT)
        for end in (
            lambda: fold.session(0).progress("training", 1, 2),
            lambda: fold.session(0).on_epoch(epoch(1), 3),
            lambda: fold.report_scoring(3),
        ):
            with pytest.raises(RaceStoppedError):
                end()
    assert reports == [StopRequested()]
