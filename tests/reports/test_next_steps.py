"""Advice of a report: each rule fires on what was measured, and on nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from headstart.data.checks.images import Finding
from headstart.data.dataset import Boxes
from headstart.evaluation.baselines import PROBE, Baseline
from headstart.evaluation.classification import Evaluation, evaluate_probabilities
from headstart.evaluation.detection import BoxEvaluation, evaluate_detections
from headstart.evaluation.insight import Diagnostics, LabelError
from headstart.evaluation.learning_curve import CurvePoint
from headstart.evaluation.slices import Slice
from headstart.metrics.confidence_intervals import Difference, Interval, wilson_interval
from headstart.models.inference import Detections
from headstart.models.tasks import ClassificationTask, DetectionTask
from headstart.reports.first_screen import LINKS
from headstart.reports.next_steps import Step, images_for_precision, next_steps

COMMAND = "headstart fit 'my photos' --budget 0 --out runs/a"


def evaluation(n: int = 2000, wrong: int = 100, **values: Any) -> Evaluation:
    """A classifier that is right on all dogs and wrong on ``wrong`` of the cats."""
    targets = np.repeat([0, 1], n // 2)
    predicted = targets.copy()
    predicted[:wrong] = 1
    chances = np.where(np.eye(2)[predicted] == 1, 0.9, 0.1)
    task = ClassificationTask(classes=("cat", "dog"))
    names = tuple(f"{i}.png" for i in range(n))
    return evaluate_probabilities(task, chances, targets, names=names, **values)


def detector(n: int = 40) -> BoxEvaluation:
    truth = Boxes(corners=((4.0, 6.0, 30.0, 28.0),), labels=("cell",))
    detections = [
        Detections(
            name=f"{i}.png",
            size=(80, 60),
            boxes=np.array([truth.corners[0] if i % 2 else (40, 30, 70, 58)], np.float32),
            scores=np.array([0.9], np.float32),
            labels=np.array([0]),
        )
        for i in range(n)
    ]
    return evaluate_detections(DetectionTask(classes=("cell",)), detections, [truth] * n)


def steps(of: Any = None, command: str = COMMAND, **measured: Any) -> list[Step]:
    values = {"record": {}} | measured
    return list(next_steps(of or evaluation(), command=command, **values))


def baseline(name: str, lead: float, half: float, significant: bool) -> Baseline:
    interval = Interval(value=lead, low=lead - half, high=lead + half, method="")
    score = Interval(value=0.8, low=0.7, high=0.9, method="")
    return Baseline(
        name=name, accuracy=score, lead=Difference(interval=interval, significant=significant)
    )


def curve(*points: tuple[int, float]) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(images=n, score=Interval(value=v, low=v - 0.05, high=v + 0.05, method=""))
        for n, v in points
    )


DOUBT = LabelError(row=0, image="0.png", part="train", label="cat", likely="dog", score=0.9)


def test_a_good_run_without_a_problem_sends_to_new_images() -> None:
    perfect = evaluation(wrong=0)
    assert [step.text for step in steps(perfect)] == [
        "Try the model on new images: no problem was measured on the test images."
    ]
    assert steps(perfect)[0].command == "headstart predict . new-images/"


def test_without_another_problem_the_mistakes_are_worth_a_look() -> None:
    assert [step.section for step in steps()] == ["mistakes"]
    assert [step.section for step in steps(detector())][-1] == "worst"


def test_likely_label_errors_are_counted() -> None:
    (step, *_) = steps(diagnostics=Diagnostics(label_errors=(DOUBT,) * 9, labels_in_doubt=7))
    assert step.text.startswith("Look at 7 labels that may be wrong")
    assert step.section == "insight-label_errors"
    (step, *_) = steps(diagnostics=Diagnostics(label_errors=(DOUBT,) * 9))  # several labels
    assert step.text.startswith("Look at 9 labels")
    quiet = steps(diagnostics=Diagnostics(label_errors=(DOUBT,) * 9, labels_in_doubt=0))
    assert [step.section for step in quiet] == ["mistakes"]


def test_a_skipped_training_gets_the_exact_command() -> None:
    why = ["Skipped: a (2 min). Try `--budget 5m`.", "Skipped: b (9 min). Try `--budget 12m`."]
    (step, *_) = steps(record={"decision": {"why": why}})
    assert step.command == "headstart fit 'my photos' --out runs/a --budget 12m"
    assert step.section == "decision"
    assert "2 candidates were skipped" in step.text
    (step, *_) = steps(record={"decision": {"why": why[1:]}})
    assert "about 12m: b was skipped" in step.text
    (step, *_) = steps(
        record={"decision": {"why": ["Skipped all trainings: 0 s. Try `--budget 2m`."]}}
    )
    assert "about 2m: fine-tuning was skipped" in step.text
    (step, *_) = steps(record={"decision": {"why": why}}, command="headstart fit a --budget=0")
    assert step.command == "headstart fit a --budget 12m"
    (step, *_) = steps(record={"decision": {"why": why}}, command="it's broken")
    assert step.command == "it's broken --budget 12m"
    (step, *_) = steps(record={"decision": {"why": why}}, command="")  # from Python
    assert step.command == ""
    assert "12m" in step.text
    assert not any("--budget" in s.text for s in steps(record={"decision": {"why": ["Chosen."]}}))


def test_a_rising_curve_names_the_weakest_class() -> None:
    rising = curve((100, 0.6), (200, 0.7), (400, 0.8))
    (step, *_) = steps(diagnostics=Diagnostics(curve=rising))
    assert "“cat” (90\N{NO-BREAK SPACE}%" in step.text
    assert "with 200 images" in step.text
    assert "with 400" in step.text
    assert step.section == "insight-curve"


@pytest.mark.parametrize(
    "points",
    [
        ((400, 0.8),),
        ((200, 0.79), (400, 0.8)),  # less than 2 points
        ((100, 0.5), (300, 0.85), (400, 0.8)),  # falls at the end
        ((300, 0.6), (400, 0.8)),  # less than a doubling
    ],
)
def test_a_curve_that_does_not_rise_asks_for_nothing(points: Any) -> None:
    found = steps(diagnostics=Diagnostics(curve=curve(*points)))
    assert not any("learning curve" in step.text for step in found)


def test_rare_classes_need_images_where_no_curve_rises() -> None:
    rare = [
        Finding(kind="rare-class", severity="warning", message=f"class {c!r} has only 3 images")
        for c in "abc"
    ]
    (step, *_) = steps(findings=rare)
    assert step.text == ("Add training images: class 'a' has only 3 images (2 other classes too).")


@pytest.mark.parametrize(("right", "n"), [(80, 96), (20, 20), (12, 24), (490, 500)])
def test_the_number_of_test_images_gives_the_wanted_interval(right: int, n: int) -> None:
    needed = images_for_precision(wilson_interval(right, n), n)
    ends = binomtest(round(needed * right / n), needed).proportion_ci(method="wilson")
    assert ends.high - ends.low <= 0.1 + 1e-3
    fewer = math.floor(0.88 * needed) - 1  # rounding to two digits adds at most a tenth
    ends = binomtest(round(fewer * right / n), fewer).proportion_ci(method="wilson")
    assert ends.high - ends.low > 0.1


def test_other_intervals_shrink_with_the_square_root() -> None:
    wide = Interval(value=0.5, low=0.4, high=0.6, method="bca")
    assert images_for_precision(wide, 50) == 200  # half as wide: four times as many
    assert images_for_precision(wide, 50, precision=0.1) == 50


def test_a_wide_interval_asks_for_test_images_and_a_narrow_one_does_not() -> None:
    found = steps(evaluation(n=96, wrong=16))
    assert "220 instead of 96 would give the accuracy to ±5 points" in found[0].text
    assert found[0].command == "headstart evaluate . new-images/"
    assert not any("Label more" in step.text for step in steps(evaluation(n=1000)))
    grouped = steps(evaluation(n=96, wrong=16, groups=np.arange(96) // 8))
    assert "test groups" in grouped[0].text
    assert "instead of 12" in grouped[0].text


def test_few_images_with_boxes_are_too_few_for_an_interval() -> None:
    (step, *_) = steps(detector(n=24))
    assert step.text == (
        "Label more test images: 24 are too few for a reliable interval, use at least 30."
    )
    assert any("mAP to ±5 points" in step.text for step in steps(detector(n=40)))


def test_a_model_that_beats_its_baselines_hears_nothing_and_the_best_rival_is_named() -> None:
    beaten = baseline("majority class", 0.2, 0.1, significant=True)
    rival = baseline("5-nearest neighbours", 0.05, 0.1, significant=False)
    assert [s.section for s in steps(evaluation(baselines=(beaten,)))] == ["mistakes"]
    (step, *_) = steps(evaluation(baselines=(beaten, rival)))
    assert "not significantly better than 5-nearest neighbours (80" in step.text
    worse = baseline("majority class", -0.2, 0.1, significant=True)
    (step, *_) = steps(evaluation(baselines=(worse,)))
    assert "significantly worse than always predicting the most frequent class" in step.text
    (step, *_) = steps(evaluation(baselines=(baseline(PROBE, 0.0, 0.1, significant=False),)))
    assert step.text.startswith("Use --method linear-probe")
    of_masks = baseline("'sky' everywhere, mean IoU", 0.0, 0.1, significant=False)
    (step, *_) = steps(evaluation(baselines=(of_masks,)))
    assert "predicting 'sky' everywhere (mean IoU 0.800)" in step.text


def test_images_out_of_distribution_count_from_one_in_twenty() -> None:
    (step, *_) = steps(diagnostics=Diagnostics(out_of_distribution=0.06))
    assert step.text.startswith("Look at the 120 test images (6")
    for share in (0.01, math.nan):
        found = steps(diagnostics=Diagnostics(out_of_distribution=share))
        assert [s.section for s in found] == ["mistakes"]
    few = steps(evaluation(n=20, wrong=0), diagnostics=Diagnostics(out_of_distribution=0.1))
    assert not any("unlike" in step.text for step in few)  # two images


def test_findings_of_the_data_are_named_with_their_number() -> None:
    same = ("a.png", "b.png", "c.png")
    kinds = {"leak": "1 is in several", "label-conflict": "1 image has", "duplicate": "Remove 2 "}
    for kind, text in kinds.items():
        finding = Finding(kind=kind, severity="error", message="m", paths=same)  # type: ignore[arg-type]
        (step, *_) = steps(findings=(finding,))
        assert text in step.text
        assert step.section == "data"


def test_a_worse_subgroup_is_named_and_a_better_one_is_not() -> None:
    low = Interval(value=0.5, low=0.4, high=0.6, method="")
    worse = Slice(kind="size", name="small", images=30, score=low, rest=0.9, p_value=0.001)
    better = Slice(kind="size", name="large", images=30, score=low, rest=0.2, p_value=0.001)
    (step, *_) = steps(diagnostics=Diagnostics(slices=(better, worse)))
    assert "size “small”" in step.text
    assert "(50\N{NO-BREAK SPACE}%, others 90\N{NO-BREAK SPACE}%)" in step.text


def test_a_training_whose_last_epoch_was_the_best_goes_on() -> None:
    record = {"epochs": [{"number": i} for i in range(4)], "best_epoch": 3}
    fit = "headstart fit cells --method finetune --epochs 3"
    (step, *_) = steps(record=record, command=fit)
    assert step.command == "headstart fit cells --method finetune --epochs 6"
    (step, *_) = steps(record=record, command="headstart fit cells")  # the race has chosen it
    assert "--epochs 6" in step.text
    assert step.command == ""
    (step, *_) = steps(detector(), record=record, command="headstart fit cells")
    assert step.command == "headstart fit cells --epochs 6"
    assert not any("longer" in s.text for s in steps(record=record | {"best_epoch": 2}))


def test_a_stopped_training_comes_first() -> None:
    record = {"epochs": [{"number": 1}], "best_epoch": 1, "interrupted": True}
    found = steps(record=record, diagnostics=Diagnostics(label_errors=(DOUBT,)))
    assert found[0].command == COMMAND + " --resume"
    assert not any("longer" in step.text for step in found)


def test_a_stopped_race_comes_first_with_the_command_to_repeat() -> None:
    found = steps(record={"decision": {"stopped": True, "why": []}})

    assert found[0].text.startswith("Compare all candidates: the race was stopped by hand")
    assert found[0].command == COMMAND


def test_a_baseline_without_a_mistake_is_no_reason_to_look_for_another_backbone() -> None:
    rival = baseline("5-nearest neighbours", 0.0, 0.1, significant=False)
    perfect = replace(rival, accuracy=Interval(value=1.0, low=0.8, high=1.0, method=""))

    assert not any("nearest" in step.text for step in steps(evaluation(baselines=(perfect,))))


def test_there_are_at_most_four_and_every_link_has_a_text() -> None:
    low = Interval(value=0.5, low=0.4, high=0.6, method="")
    everything = Diagnostics(
        label_errors=(DOUBT,),
        curve=curve((100, 0.5), (200, 0.9)),
        out_of_distribution=0.5,
        slices=(Slice(kind="size", name="s", images=9, score=low, rest=0.9, p_value=0.001),),
    )
    finding = Finding(kind="duplicate", severity="warning", message="m", paths=("a", "b"))
    found = steps(evaluation(n=40, wrong=9), diagnostics=everything, findings=(finding,))
    assert len(found) == 4
    assert {step.section for step in found} <= set(LINKS)
