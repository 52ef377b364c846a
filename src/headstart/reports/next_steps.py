"""Advice of a report: the most useful next steps, derived from the measurements of a run."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headstart.data.checks.images import Finding
from headstart.evaluation.baselines import PROBE, Baseline
from headstart.evaluation.classification import AnyEvaluation, Evaluation
from headstart.evaluation.detection import BoxEvaluation
from headstart.evaluation.insight import Diagnostics
from headstart.evaluation.learning_curve import CurvePoint
from headstart.evaluation.summary import MIN_TEST_IMAGES
from headstart.metrics.confidence_intervals import Interval, wilson_interval
from headstart.reports.charts import percent

__all__ = ["Step", "images_for_precision", "next_steps"]

MAX_STEPS = 4
PRECISION = 0.05
"""Half of the width of a confidence interval that is narrow enough: 5 points."""

MIN_RISE = 0.02
"""Gain over the last doubling of the training images from which a learning curve still rises."""

MIN_OUTLIERS, MIN_OUTLIER_SHARE = 3, 0.05
"""Number and share of out-of-distribution test images that are worth a look; 1 % is expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A next step in one sentence.

    Parameters
    ----------
    text : str
    section : str
        Id of the section of the report that shows the details, or empty.
    command : str
        Command line, or empty. A dot in it is the folder of the report.
    """

    text: str
    section: str = ""
    command: str = ""


def next_steps(
    evaluation: AnyEvaluation,
    *,
    record: Mapping[str, Any],
    findings: Sequence[Finding] = (),
    diagnostics: Diagnostics | None = None,
    command: str = "",
) -> tuple[Step, ...]:
    """Derive one to four next steps from the measurements of a run, the most important first.

    Parameters
    ----------
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
    record : mapping
        Of the model.
    findings : sequence of Finding
        Of the data checks.
    diagnostics : Diagnostics, optional
    command : str
        Command line of the run.

    Examples
    --------
    >>> import numpy as np
    >>> from headstart.evaluation.classification import evaluate_probabilities
    >>> from headstart.models.tasks import ClassificationTask
    >>> task = ClassificationTask(classes=("cat", "dog"))
    >>> chances, targets = np.tile([0.9, 0.1], (20, 1)), np.zeros(20, dtype=int)
    >>> evaluation = evaluate_probabilities(task, chances, targets, names=("a.png",) * 20)
    >>> print(next_steps(evaluation, record={})[0].text)
    Label more test images: about 35 instead of 20 would give the accuracy to ±5 points.
    """
    problems = (
        _finish_training(record, command),
        _remove_leaks(findings),
        _correct_conflicts(findings),
        _train_longer(evaluation, record, command),
        _beat_baselines(evaluation.baselines),
        _check_labels(diagnostics),
        _raise_budget(record, command),
        _add_images(evaluation, findings, diagnostics),
        _enlarge_test_set(evaluation),
        _improve_subgroup(diagnostics),
        _check_outliers(evaluation, diagnostics),
        _remove_duplicates(findings),
    )
    steps = [step for step in problems if step is not None]
    if len(steps) < 2:
        steps += _check_mistakes(evaluation)
    if not steps:
        text = "Try the model on new images: no problem was measured on the test images."
        steps = [Step(text=text, command="headstart predict . new-images/")]
    return tuple(steps[:MAX_STEPS])


def images_for_precision(score: Interval, n: int, *, precision: float = PRECISION) -> int:
    """Estimate how many test images make an interval as narrow as ``± precision``.

    Wilson's formula for a share of images; for other scores, the width falls with the square root
    of the number of images. Above 100 the number is rounded up to two digits.

    Parameters
    ----------
    score : Interval
        Score on ``n`` images, with a known interval.
    n : int
        Number of test images, or of groups.
    precision : float
        Half of the width of the interval, above 0.

    Examples
    --------
    >>> images_for_precision(wilson_interval(80, 96), 96)
    220
    """
    if score.method == "wilson":
        needed = _wilson_size(score, precision)
    else:
        needed = math.ceil(n * ((score.high - score.low) / (2 * precision)) ** 2)
    step = int(10 ** max(len(str(needed)) - 2, 0))
    return math.ceil(needed / step) * step


def _wilson_size(score: Interval, precision: float) -> int:
    """Find the smallest number of images by bisection: the width falls with the number."""
    too_few, enough = 0, 10_000_000
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        interval = wilson_interval(score.value * middle, middle, score.level)
        if interval.high - interval.low <= 2 * precision:
            enough = middle
        else:
            too_few = middle
    return enough


# ------------------------------------------------------------------------------------- training


def _finish_training(record: Mapping[str, Any], command: str) -> Step | None:
    if (record.get("decision") or {}).get("stopped"):
        return Step(
            text="Compare all candidates: the race was stopped by hand, and this is the best "
            "model so far.",
            command=command,
        )
    if not record.get("interrupted"):
        return None
    return Step(
        text="Finish the training: it was stopped by hand, and this is the best model so far.",
        command=_with_option(command, "--resume"),
    )


def _beat_baselines(baselines: Sequence[Baseline]) -> Step | None:
    """Report the best baseline that the model is not significantly better than.

    A baseline without a mistake is left out: no model can be better.
    """
    rivals = [each for each in baselines if not _is_beaten(each) and each.accuracy.value < 1]
    if not rivals:
        return None
    rival = max(rivals, key=lambda baseline: baseline.accuracy.value)
    is_worse = rival.lead.significant and rival.lead.interval.value < 0
    result = "significantly worse" if is_worse else "not significantly better"
    if rival.name == PROBE:
        advice = "Use --method linear-probe: fine-tuning is"
    else:
        advice = "Check the images and their labels, or try another backbone: the model is"
    return Step(text=f"{advice} {result} than {_describe_baseline(rival)}.", section="scores")


def _describe_baseline(baseline: Baseline) -> str:
    """Name a baseline with its score; those of masks end with their measure."""
    name, _, measure = baseline.name.rpartition(", ")
    if name:
        return f"predicting {name} ({measure} {baseline.accuracy.value:.3f})"
    phrase = {"majority class": "always predicting the most frequent class"}
    score = percent(baseline.accuracy.value)
    return f"{phrase.get(baseline.name, baseline.name)} ({score})"


def _is_beaten(baseline: Baseline) -> bool:
    return baseline.lead.significant and baseline.lead.interval.value > 0


def _raise_budget(record: Mapping[str, Any], command: str) -> Step | None:
    """Name the budget that the reasons of the race ask for, and the candidates skipped for time."""
    reasons = [
        (int(match[1]), sentence)
        for sentence in (record.get("decision") or {}).get("why", ())
        if (match := re.search(r"`--budget (\d+)m`", sentence))
    ]
    if not reasons:
        return None
    budget = f"{max(reasons)[0]}m"
    names = [re.match(r"(?:Skipped|Stopped): (.+?) \(", sentence) for _, sentence in reasons]
    candidates = [name[1] for name in names if name]
    skipped = "fine-tuning"
    if len(candidates) == len(reasons):
        skipped = candidates[0] if len(candidates) == 1 else f"{len(candidates)} candidates"
    verb = "were" if len(candidates) == len(reasons) > 1 else "was"
    return Step(
        text=f"Allow more time, about {budget}: {skipped} {verb} skipped, because time was short.",
        section="decision",
        command=_with_option(command, "--budget", budget),
    )


def _train_longer(
    evaluation: AnyEvaluation, record: Mapping[str, Any], command: str
) -> Step | None:
    """Advise more epochs if the last one was the best."""
    epochs, best = record.get("epochs") or (), record.get("best_epoch")
    if not epochs or not best or best != epochs[-1]["number"] or record.get("interrupted"):
        return None
    doubled = str(2 * int(best))
    is_explicit = "--method" in command or not isinstance(evaluation, Evaluation)
    return Step(
        text=f"Train longer, with --epochs {doubled}: the last epoch, {best}, was the best.",
        section="training",
        command=_with_option(command, "--epochs", doubled) if is_explicit else "",
    )


def _with_option(command: str, *option: str) -> str:
    """Set an option of a command line; an empty command stays empty.

    >>> _with_option("headstart fit 'my photos' --budget 0 --seed 1", "--budget", "2m")
    "headstart fit 'my photos' --seed 1 --budget 2m"
    """
    if not command:
        return ""
    try:
        words = shlex.split(command)
    except ValueError:  # not written by shlex.join
        return " ".join((command, *option))
    flag, n_values = option[0], len(option) - 1
    words = [word for word in words if not word.startswith(f"{flag}=")]
    if flag in words:
        start = words.index(flag)
        del words[start : start + 1 + n_values]
    return shlex.join([*words, *option])


# --------------------------------------------------------------------------------------- images


def _remove_leaks(findings: Sequence[Finding]) -> Step | None:
    n = sum(finding.kind == "leak" for finding in findings)
    if not n:
        return None
    text = (
        "Keep each image or group in one split: "
        f"{_count(n, 'is', 'are')} in several splits, which makes the scores too high."
    )
    return Step(text=text, section="data")


def _correct_conflicts(findings: Sequence[Finding]) -> Step | None:
    n = sum(finding.kind == "label-conflict" for finding in findings)
    if not n:
        return None
    text = f"Correct contradicting labels: {_count(n, 'image has', 'images have')} two of them."
    return Step(text=text, section="data")


def _remove_duplicates(findings: Sequence[Finding]) -> Step | None:
    groups = [f.paths for f in findings if f.kind in {"duplicate", "near-duplicate"}]
    n = sum(max(len(paths) - 1, 1) for paths in groups)
    if not n:
        return None
    text = f"Remove {_count(n, 'duplicate image')}: each repeats another image of the same split."
    return Step(text=text, section="data")


def _check_labels(diagnostics: Diagnostics | None) -> Step | None:
    if diagnostics is None or not diagnostics.label_errors:
        return None
    n = diagnostics.labels_in_doubt
    n = len(diagnostics.label_errors) if n is None else n
    if not n:
        return None
    text = f"Look at {_count(n, 'label')} that may be wrong, correct the errors, and train again."
    return Step(text=text, section="insight-label_errors")


def _add_images(
    evaluation: AnyEvaluation, findings: Sequence[Finding], diagnostics: Diagnostics | None
) -> Step | None:
    """Advise more training images if the learning curve rises, or if a class has few."""
    rise = _rising_ends(() if diagnostics is None else diagnostics.curve)
    if rise is not None:
        first, last = rise
        text = (
            f"Add training images{_weakest_class(evaluation)}: the learning curve still rises, "
            f"from {percent(first.score.value)} with {first.images:,} images to "
            f"{percent(last.score.value)} with {last.images:,}."
        )
        return Step(text=text, section="insight-curve")
    rare = [finding.message for finding in findings if finding.kind == "rare-class"]
    if not rare:
        return None
    others = f" ({_count(len(rare) - 1, 'other class', 'other classes')} too)" if rare[1:] else ""
    return Step(text=f"Add training images: {rare[0]}{others}.", section="data")


def _rising_ends(curve: Sequence[CurvePoint]) -> tuple[CurvePoint, CurvePoint] | None:
    """Return the last point and the one with at most half of its images, if the curve rises."""
    if len(curve) < 2:
        return None
    last = curve[-1]
    earlier = [point for point in curve if 2 * point.images <= last.images]
    if not earlier or last.score.value < curve[-2].score.value:
        return None
    first = max(earlier, key=lambda point: point.images)
    return (first, last) if last.score.value - first.score.value >= MIN_RISE else None


def _weakest_class(evaluation: AnyEvaluation) -> str:
    """Name the class with the lowest recall, AP or IoU, if several classes have one."""
    scores: list[tuple[float, str]]
    if isinstance(evaluation, Evaluation):
        scores = [(row.recall.value, row.name) for row in evaluation.per_class]
    elif isinstance(evaluation, BoxEvaluation):
        scores = [(row.ap.value, row.name) for row in evaluation.per_class]
    else:
        scores = [(row.iou.value, row.name) for row in evaluation.per_class]
    measured = [pair for pair in scores if not math.isnan(pair[0])]
    if len(measured) < 2 or min(measured)[0] == max(measured)[0]:
        return ""
    value, name = min(measured)
    if isinstance(evaluation, Evaluation):
        return f", most of all of “{name}” ({percent(value)} of them are recognised)"
    measure = "AP" if isinstance(evaluation, BoxEvaluation) else "IoU"
    return f", most of all of “{name}” ({measure} {value:.2f})"


def _enlarge_test_set(evaluation: AnyEvaluation) -> Step | None:
    """Compute how many test images give the main score to ``PRECISION``."""
    metric, score = next(iter(evaluation.metrics.items()))
    title = {"map": "mAP", "mean_iou": "mean IoU"}.get(metric, metric)
    unit = "images" if evaluation.n_groups is None else "groups"
    n = len(evaluation.names) if evaluation.n_groups is None else evaluation.n_groups
    command = "headstart evaluate . new-images/"
    if not isinstance(evaluation, Evaluation) and n < MIN_TEST_IMAGES:
        text = f"{n:,} are too few for a reliable interval, use at least {MIN_TEST_IMAGES}."
        return Step(text=f"Label more test {unit}: {text}", section="scores", command=command)
    if math.isnan(score.low) or score.high - score.low <= 2 * PRECISION:
        return None
    needed = images_for_precision(score, n)
    text = f"about {needed:,} instead of {n:,} would give the {title} to ±5 points."
    return Step(text=f"Label more test {unit}: {text}", section="scores", command=command)


def _improve_subgroup(diagnostics: Diagnostics | None) -> Step | None:
    """Name the subgroup that is significantly worse than the other images, the lowest first."""
    slices = () if diagnostics is None else diagnostics.slices
    worse = [each for each in slices if each.significant and each.score.value < each.rest]
    if not worse:
        return None
    lowest = min(worse, key=lambda each: each.score.value)
    text = (
        f"Add training images like the subgroup {lowest.kind} “{lowest.name}”: its score is "
        f"significantly lower ({percent(lowest.score.value)}, others {percent(lowest.rest)})."
    )
    return Step(text=text, section="insight-slices")


def _check_outliers(evaluation: AnyEvaluation, diagnostics: Diagnostics | None) -> Step | None:
    share = math.nan if diagnostics is None else diagnostics.out_of_distribution
    if math.isnan(share) or share < MIN_OUTLIER_SHARE:
        return None
    n = round(share * len(evaluation.names))
    if n < MIN_OUTLIERS:
        return None
    text = (
        f"Look at the {n:,} test images ({percent(share)}) that are unlike the training images: "
        "add training images like them, or remove them if they do not belong to the task."
    )
    return Step(text=text, section="insight-outliers")


def _check_mistakes(evaluation: AnyEvaluation) -> Iterable[Step]:
    if not isinstance(evaluation, Evaluation):
        if not evaluation.worst(1):
            return ()
        text = "Look at the worst images: a wrong or missing annotation counts as a mistake."
        return (Step(text=text, section="worst"),)
    if evaluation.task.kind == "multilabel" or evaluation.correct.all():
        return ()
    text = "Look at the most confident mistakes: often the label is wrong, not the model."
    return (Step(text=text, section="mistakes"),)


def _count(number: int, unit: str, units: str = "") -> str:
    """Return a number with its unit.

    >>> _count(1, "label"), _count(2, "label"), _count(1000, "other class", "other classes")
    ('1 label', '2 labels', '1,000 other classes')
    """
    return f"{number:,} {unit if number == 1 else units or unit + 's'}"
