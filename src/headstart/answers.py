"""What was answered to every evaluated picture, as the texts of files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.dense import Detections
from headstart.evaluation import AnyEvaluation, Evaluation, Targets
from headstart.tasks.classification import Classification

if TYPE_CHECKING:
    from headstart.box_evaluation import BoxEvaluation
    from headstart.mask_evaluation import MaskEvaluation

__all__ = ["answer_files", "box_csv", "class_csv", "coco_results", "mask_csv"]


def answer_files(evaluation: AnyEvaluation) -> dict[str, str]:
    """Every answer, as the texts of files by their names.

    Parameters
    ----------
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation

    Returns
    -------
    dict of str to str
        ``predictions.csv``; of boxes also ``predictions.json``, in COCO's format of results.
    """
    if isinstance(evaluation, Evaluation):
        return {"predictions.csv": class_csv(evaluation)}
    if evaluation.task.kind == "segmentation":
        return {"predictions.csv": mask_csv(evaluation)}  # type: ignore[arg-type]
    results = coco_results(evaluation.found, evaluation.task.classes)  # type: ignore[union-attr]
    return {
        "predictions.csv": box_csv(evaluation),  # type: ignore[arg-type]
        "predictions.json": json.dumps(results, allow_nan=False),
    }


def class_csv(evaluation: Evaluation) -> str:
    """Every picture with its truth, answer and probabilities, as the text of a CSV file.

    >>> from headstart.evaluation import evaluate_probabilities
    >>> task = Classification(classes=("cat", "dog"))
    >>> one = evaluate_probabilities(
    ...     task, np.array([[0.9, 0.1]]), np.array([1]), names=("a.png",)
    ... )
    >>> class_csv(one).splitlines()
    ['picture,truth,answer,correct,cat,dog', 'a.png,dog,cat,0,0.900000,0.100000']
    """
    task = evaluation.task
    truth = _by_name(task, evaluation.targets)
    answer = _by_name(task, evaluation.predicted)
    rows = zip(evaluation.names, truth, answer, evaluation.correct, strict=True)
    return _table(
        ["picture", "truth", "answer", "correct", *task.classes],
        (
            [name, true, said, int(right), *(f"{chance:.6f}" for chance in chances)]
            for (name, true, said, right), chances in zip(
                rows, evaluation.probabilities, strict=True
            )
        ),
    )


def box_csv(evaluation: BoxEvaluation) -> str:
    """Every object that is named, from the task's threshold on, as the text of a CSV file.

    Pictures in which nothing is named have no row. Corners are in the picture's pixels.
    """
    task = evaluation.task
    named = (one.above(task.threshold) for one in evaluation.found)
    return _table(
        ["picture", "class", "score", "left", "top", "right", "bottom"],
        (
            [one.name, task.classes[label], f"{score:.4f}", *(f"{side:.2f}" for side in box)]
            for one in named
            for box, score, label in zip(one.boxes, one.scores, one.labels, strict=True)
        ),
    )


def coco_results(found: Sequence[Detections], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Everything that was found, whatever the score, as COCO's format of results has it.

    Parameters
    ----------
    found : sequence of Detections
    classes : sequence of str

    Returns
    -------
    list of dict
        ``image_id`` counts the pictures and ``category_id`` the classes, both from 1; ``bbox``
        is left, top, width, height in pixels. ``file_name`` and ``category`` are added, so that
        the ids of another file can be found by name.

    Examples
    --------
    >>> one = Detections(
    ...     name="a.png",
    ...     size=(20, 10),
    ...     boxes=np.array([[1, 2, 5, 8]], np.float32),
    ...     scores=np.array([0.5], np.float32),
    ...     labels=np.array([0]),
    ... )
    >>> coco_results([one], ["cell"])[0]["bbox"]
    [1.0, 2.0, 4.0, 6.0]
    """
    return [
        {
            "image_id": number,
            "category_id": int(label) + 1,
            "bbox": [round(float(x), 2) for x in (*box[:2], *(box[2:] - box[:2]))],
            "score": round(float(score), 5),
            "file_name": one.name,
            "category": classes[label],
        }
        for number, one in enumerate(found, start=1)
        for box, score, label in zip(one.boxes, one.scores, one.labels, strict=True)
    ]


def mask_csv(evaluation: MaskEvaluation) -> str:
    """Every picture with its scores, as the text of a CSV file; of a class not there nothing."""
    classes = evaluation.task.classes
    numbers = np.column_stack(
        [evaluation.picture_iou, evaluation.picture_accuracy, evaluation.picture_class_iou]
    )
    return _table(
        ["picture", "mean_iou", "pixel_accuracy", *(f"iou {name}" for name in classes)],
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


def _by_name(task: Classification, targets: Targets) -> list[str]:
    if targets.ndim == 1:
        return [task.classes[index] for index in targets]
    return ["|".join(np.asarray(task.classes)[row.astype(bool)]) for row in targets]
