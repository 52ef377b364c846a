"""Whether training the backbone was worth it: what it gained over a probe, what it forgot."""

from __future__ import annotations

from dataclasses import replace

from headstart.data.dataset import Dataset
from headstart.evaluation.baselines import (
    PROBE,
    Baseline,
    correctness,
    majority_baseline,
    nearest_neighbour_baseline,
)
from headstart.evaluation.classification import AnyEvaluation, Evaluation, evaluate
from headstart.evaluation.drift import measure
from headstart.features.extractor import Extractor
from headstart.methods.linear_probe import LinearProbe
from headstart.metrics.confidence_intervals import paired_proportion_difference, proportion_interval
from headstart.models.transfer_model import TransferModel

__all__ = ["judge", "rivals", "with_gains"]


def judge(
    source: TransferModel,
    model: TransferModel,
    parts: tuple[Dataset, Dataset],
    *,
    extractor: Extractor,
    seed: int = 0,
) -> tuple[TransferModel, AnyEvaluation]:
    """Evaluate a model; a classifier whose backbone was trained also against it as it was.

    Nothing stands beside boxes and masks: what a frozen backbone reaches there takes a training
    of its own, not a probe.

    Parameters
    ----------
    source, model : TransferModel
        Before and after learning.
    parts : pair of Dataset
        What was learned from, and what to judge on.
    extractor : Extractor
    seed : int

    Returns
    -------
    TransferModel
        With gains in its record, if its backbone was trained.
    Evaluation, BoxEvaluation or MaskEvaluation
    """
    train, test = parts
    if model.backbone is source.backbone:
        return model, evaluate(model, test, extractor=extractor, train=train, seed=seed)
    exact = replace(extractor, engine=model.engine)  # the arithmetic that it learned in
    alone = evaluate(model, test, extractor=exact, seed=seed)
    if not isinstance(alone, Evaluation):
        return with_gains(source, model, alone, test, seed=seed), alone
    others = rivals(source, alone, parts, extractor=extractor, seed=seed)
    evaluation = replace(alone, baselines=others)
    return with_gains(source, model, evaluation, test, seed=seed), evaluation


def rivals(
    source: TransferModel,
    evaluation: Evaluation,
    parts: tuple[Dataset, Dataset],
    *,
    extractor: Extractor,
    seed: int = 0,
) -> tuple[Baseline, ...]:
    """Judge what the backbone as it was reaches on the same images, paired with the model.

    Parameters
    ----------
    source : TransferModel
        With the backbone as it was.
    evaluation : Evaluation
        Of the model whose backbone was trained, on the second part.
    parts : pair of Dataset
        What was learned from, and what was judged on.
    extractor : Extractor
    seed : int
        Of the probe's folds.

    Returns
    -------
    tuple of Baseline
        Majority class, nearest neighbours, and a linear probe on the frozen backbone.
    """
    train, test = parts
    learned, targets = source.aligned(train).targets(), evaluation.targets
    correct, groups = evaluation.correct, test.groups()
    known = extractor.features(source.backbone, train.samples).values
    asked = extractor.features(source.backbone, test.samples).values
    probe = LinearProbe(seed=seed).fit(source, train, extractor=extractor)
    chances = probe.task.probabilities(probe.linear_head().logits(asked))
    reached = correctness(targets, probe.task.predicted(chances))
    return (
        majority_baseline(learned, targets, correct, groups=groups),
        nearest_neighbour_baseline((known, learned), (asked, targets), correct, groups=groups),
        Baseline(
            name=PROBE,
            accuracy=proportion_interval(reached, groups),
            lead=paired_proportion_difference(correct, reached, groups),
        ),
    )


def with_gains(
    source: TransferModel,
    model: TransferModel,
    evaluation: AnyEvaluation,
    test: Dataset,
    *,
    seed: int,
) -> TransferModel:
    """Write into the model's record what it gained on the target and what it forgot.

    Of a backbone that is the same bit for bit, or that began with random weights, nothing is
    said to be forgotten.

    Parameters
    ----------
    source, model : TransferModel
        With the backbone as it was, and as it is.
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
        A classifier's with the baselines of ``rivals``.
    test : Dataset
        Images that neither has learned from.
    seed : int
        Which images are looked at, where there are more than 200.
    """
    record = dict(model.record)
    for baseline in evaluation.baselines:
        if baseline.name == PROBE:
            record["target_gain"] = baseline.lead.interval.as_dict()
    began_alike = model.backbone.origin["from"] == source.backbone.origin["from"]
    if began_alike and model.backbone.fingerprint != source.backbone.fingerprint:
        forgotten = measure(source.backbone, model.backbone, test.samples, seed=seed)
        record["forgetting"] = forgotten.as_dict()
    return replace(model, record=record)
