"""What was answered to every evaluated image, as the texts of files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence

import numpy as np

from headstart.evaluation.classification import AnyEvaluation, Evaluation, Targets
from headstart.evaluation.detection import BoxEvaluation
from headstart.evaluation.segmentation import MaskEvaluation
from headstart.models.prediction_files import coco_results, objects_csv
from headstart.models.tasks import ClassificationTask

__all__ = ["answer_files", "box_json", "class_csv", "mask_csv"]


def answer_files(evaluation: AnyEvaluation) -> dict[str, str]:
    """Every answer, as the texts of files by their names.

    Parameters
    ----------
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation

    Returns
    -------
    dict of str to str
        ``predictions.csv``: of classes and masks a line for each image, of boxes one for each
        object from the task's threshold on. Of boxes also ``predictions.json``: all of them, in
        COCO's format of results.
    """
    if isinstance(evaluation, Evaluation):
        return {"predictions.csv": class_csv(evaluation)}
    if isinstance(evaluation, MaskEvaluation):
        return {"predictions.csv": mask_csv(evaluation)}
    task = evaluation.task
    named = [one.above(task.threshold) for one in evaluation.found]
    return {
        "predictions.csv": objects_csv(named, task.classes),
        "predictions.json": box_json(evaluation),
    }


def class_csv(evaluation: Evaluation) -> str:
    """Every image with its truth, answer and probabilities, as the text of a CSV file.

    A model that may abstain has a column for it, 0 or 1, behind ``correct``.

    >>> from headstart.evaluation.classification import evaluate_probabilities
    >>> task = ClassificationTask(classes=("cat", "dog"))
    >>> one = evaluate_probabilities(
    ...     task, np.array([[0.9, 0.1]]), np.array([1]), names=("a.png",)
    ... )
    >>> class_csv(one).splitlines()
    ['image,truth,answer,correct,cat,dog', 'a.png,dog,cat,0,0.900000,0.100000']
    """
    task = evaluation.task
    truth = _by_name(task, evaluation.targets)
    answer = _by_name(task, evaluation.predicted)
    unsure = task.abstains(evaluation.probabilities)
    left_out = [[]] * len(truth) if unsure is None else [[int(one)] for one in unsure]
    rows = zip(evaluation.names, truth, answer, evaluation.correct, left_out, strict=True)
    may = [] if unsure is None else ["abstains"]
    return _table(
        ["image", "truth", "answer", "correct", *may, *task.classes],
        (
            [name, true, said, int(right), *out, *(f"{chance:.6f}" for chance in chances)]
            for (name, true, said, right, out), chances in zip(
                rows, evaluation.probabilities, strict=True
            )
        ),
    )


def box_json(evaluation: BoxEvaluation) -> str:
    """Everything that was found, whatever the score, as COCO's format of results has it.

    Returns
    -------
    str
        JSON. To every result ``file_name`` and ``category`` are added, so that the ids of another
        file can be found by name.
    """
    found, classes = evaluation.found, evaluation.task.classes
    results = [
        one
        | {
            "file_name": found[one["image_id"] - 1].name,
            "category": classes[one["category_id"] - 1],
        }
        for one in coco_results(found)
    ]
    return json.dumps(results, allow_nan=False)


def mask_csv(evaluation: MaskEvaluation) -> str:
    """Every image with its scores, as the text of a CSV file; of a class not there nothing."""
    classes = evaluation.task.classes
    numbers = np.column_stack(
        [evaluation.image_iou, evaluation.image_accuracy, evaluation.image_class_iou]
    )
    return _table(
        ["image", "mean_iou", "pixel_accuracy", *(f"iou {name}" for name in classes)],
        (
            [name, *("" if np.isnan(x) else f"{x:.6f}" for x in row)]
            for name, row in zip(evaluation.names, numbers, strict=True)
        ),
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return table.getvalue()


def _by_name(task: ClassificationTask, targets: Targets) -> list[str]:
    if targets.ndim == 1:
        return [task.classes[index] for index in targets]
    return ["|".join(np.asarray(task.classes)[row.astype(bool)]) for row in targets]
