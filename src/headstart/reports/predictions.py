"""Files with the prediction for every evaluated image."""

from __future__ import annotations

import numpy as np

from headstart.evaluation.classification import AnyEvaluation, Evaluation, Targets
from headstart.evaluation.detection import BoxEvaluation
from headstart.evaluation.segmentation import MaskEvaluation
from headstart.files import csv_text
from headstart.metrics.validation import json_text
from headstart.models.prediction_files import coco_results, objects_csv
from headstart.models.tasks import ClassificationTask

__all__ = ["box_json", "class_csv", "mask_csv", "render_predictions"]


def render_predictions(evaluation: AnyEvaluation) -> dict[str, str]:
    """Write every prediction as text, by file name.

    Parameters
    ----------
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation

    Returns
    -------
    dict of str to str
        ``predictions.csv``: for classes and masks one line per image; for boxes one line per object
        with at least the score threshold of its class. For boxes also ``predictions.json``: all
        objects, in the COCO results format.
    """
    if isinstance(evaluation, Evaluation):
        return {"predictions.csv": class_csv(evaluation)}
    if isinstance(evaluation, MaskEvaluation):
        return {"predictions.csv": mask_csv(evaluation)}
    task = evaluation.task
    confident = [detections.above(task.thresholds) for detections in evaluation.detections]
    return {
        "predictions.csv": objects_csv(confident, task.classes),
        "predictions.json": box_json(evaluation),
    }


def class_csv(evaluation: Evaluation) -> str:
    """CSV text with the label, the prediction and the probabilities of every image.

    Probabilities have 9 significant digits, however small they are: the report's log-loss follows
    from them. If the model can abstain, a column ``abstains`` of 0 and 1 follows ``correct``.

    >>> from headstart.evaluation.classification import evaluate_probabilities
    >>> task = ClassificationTask(classes=("cat", "dog"))
    >>> evaluation = evaluate_probabilities(
    ...     task, np.array([[0.9, 0.1]]), np.array([1]), names=("a.png",)
    ... )
    >>> class_csv(evaluation).splitlines()
    ['image,truth,prediction,correct,cat,dog', 'a.png,dog,cat,0,0.9,0.1']
    """
    task = evaluation.task
    truths = _label_names(task, evaluation.targets)
    predictions = _label_names(task, evaluation.predicted)
    abstains = task.abstains(evaluation.probabilities)
    flags = [[]] * len(truths) if abstains is None else [[int(flag)] for flag in abstains]
    rows = zip(evaluation.names, truths, predictions, evaluation.correct, flags, strict=True)
    flag_column = [] if abstains is None else ["abstains"]
    return csv_text(
        ["image", "truth", "prediction", "correct", *flag_column, *task.classes],
        (
            [name, truth, prediction, int(correct), *flag, *(f"{p:.9g}" for p in probabilities)]
            for (name, truth, prediction, correct, flag), probabilities in zip(
                rows, evaluation.probabilities, strict=True
            )
        ),
    )


def box_json(evaluation: BoxEvaluation) -> str:
    """All detected objects, whatever their score, in the COCO results format.

    Returns
    -------
    str
        JSON. Every result also has ``file_name`` and ``category``, so that it can be matched by
        name with an annotation file that has other ids.
    """
    return json_text(coco_results(evaluation.detections, evaluation.task.classes))


def mask_csv(evaluation: MaskEvaluation) -> str:
    """CSV text with the scores of every image; empty for a class that the image does not show."""
    classes = evaluation.task.classes
    numbers = np.column_stack(
        [evaluation.image_iou, evaluation.image_accuracy, evaluation.image_class_iou]
    )
    return csv_text(
        ["image", "mean_iou", "pixel_accuracy", *(f"iou {name}" for name in classes)],
        (
            [name, *("" if np.isnan(x) else f"{x:.9g}" for x in row)]
            for name, row in zip(evaluation.names, numbers, strict=True)
        ),
    )


def _label_names(task: ClassificationTask, targets: Targets) -> list[str]:
    if targets.ndim == 1:
        return [task.classes[index] for index in targets]
    return ["|".join(np.asarray(task.classes)[row.astype(bool)]) for row in targets]
