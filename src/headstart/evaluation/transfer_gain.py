"""Transfer gain: compare a fine-tuned model with the frozen backbone, and record forgetting."""

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
from headstart.evaluation.drift import measure_drift
from headstart.features.extractor import Extractor
from headstart.methods.linear_probe import LinearProbe
from headstart.metrics.confidence_intervals import paired_proportion_difference, proportion_interval
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel

__all__ = ["evaluate_with_transfer_gain", "frozen_baselines", "record_transfer_gain"]


def evaluate_with_transfer_gain(
    source: TransferModel,
    model: TransferModel,
    parts: tuple[Dataset, Dataset],
    *,
    extractor: Extractor,
    seed: int = 0,
) -> tuple[TransferModel, AnyEvaluation]:
    """Evaluate a model, and compare a fine-tuned classifier with its frozen backbone.

    Detectors and segmenters have no such comparison: with a frozen backbone they would need a
    training of their own, not a linear probe.

    Parameters
    ----------
    source, model : TransferModel
        Before and after training.
    parts : pair of Dataset
        Training set and test set.
    extractor : Extractor
    seed : int

    Returns
    -------
    TransferModel
        The model; if its backbone was trained, its record has the transfer gain and forgetting.
    Evaluation, BoxEvaluation or MaskEvaluation
    """
    train, test = parts
    if model.backbone is source.backbone:
        return model, evaluate(model, test, extractor=extractor, train=train, seed=seed)
    training_extractor = replace(extractor, engine=model.engine)  # same engine as in training
    model_evaluation = evaluate(model, test, extractor=training_extractor, seed=seed)
    if not isinstance(model_evaluation, Evaluation):
        return record_transfer_gain(
            source, model, model_evaluation, test, seed=seed
        ), model_evaluation
    baselines = frozen_baselines(source, model_evaluation, parts, extractor=extractor, seed=seed)
    evaluation = replace(model_evaluation, baselines=baselines)
    return record_transfer_gain(source, model, evaluation, test, seed=seed), evaluation


def frozen_baselines(
    source: TransferModel,
    evaluation: Evaluation,
    parts: tuple[Dataset, Dataset],
    *,
    extractor: Extractor,
    seed: int = 0,
) -> tuple[Baseline, ...]:
    """Evaluate baselines on the frozen backbone, paired with the fine-tuned model by image.

    Parameters
    ----------
    source : TransferModel
        Model with the pretrained backbone.
    evaluation : Evaluation
        Evaluation of the fine-tuned model on the test set.
    parts : pair of Dataset
        Training set and test set.
    extractor : Extractor
    seed : int
        Seed of the probe's folds.

    Returns
    -------
    tuple of Baseline
        Majority class, nearest neighbours, and a linear probe on the frozen backbone.
    """
    train, test = parts
    train_targets, targets = source.align_classes(train).targets(), evaluation.targets
    correct, groups = evaluation.correct, test.groups()
    train_features = extractor.features(source.backbone, train.samples).values
    test_features = extractor.features(source.backbone, test.samples).values
    probe = LinearProbe(seed=seed).fit(source, train, extractor=extractor)
    task = probe.require_task(ClassificationTask)
    probabilities = task.probabilities(probe.linear_head().logits(test_features))
    probe_correct = correctness(targets, task.predicted(probabilities))
    return (
        majority_baseline(train_targets, targets, correct, groups=groups),
        nearest_neighbour_baseline(
            (train_features, train_targets), (test_features, targets), correct, groups=groups
        ),
        Baseline(
            name=PROBE,
            accuracy=proportion_interval(probe_correct, groups),
            lead=paired_proportion_difference(correct, probe_correct, groups),
        ),
    )


def record_transfer_gain(
    source: TransferModel,
    model: TransferModel,
    evaluation: AnyEvaluation,
    test: Dataset,
    *,
    seed: int,
) -> TransferModel:
    """Write transfer gain and forgetting into the model's record.

    Forgetting is not measured if the backbone did not change, or if it started with random
    weights.

    Parameters
    ----------
    source, model : TransferModel
        Before and after training.
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
        For a classifier, with the baselines of ``frozen_baselines``.
    test : Dataset
        Images that were not used for training.
    seed : int
        Seed that selects images, if there are more than 200.
    """
    record = dict(model.record)
    for baseline in evaluation.baselines:
        if baseline.name == PROBE:
            record["target_gain"] = baseline.lead.interval.as_dict()
    same_origin = model.backbone.origin["from"] == source.backbone.origin["from"]
    if same_origin and model.backbone.fingerprint != source.backbone.fingerprint:
        forgetting = measure_drift(source.backbone, model.backbone, test.samples, seed=seed)
        record["forgetting"] = forgetting.as_dict()
    return replace(model, record=record)
