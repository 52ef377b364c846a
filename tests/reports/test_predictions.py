"""Files with every prediction: one row per image or object, for any names."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from headstart.data.dataset import Boxes
from headstart.evaluation.classification import evaluate_probabilities
from headstart.evaluation.detection import evaluate_detections
from headstart.metrics.selective import threshold_for_risk
from headstart.models.inference import Detections
from headstart.models.tasks import ClassificationTask, DetectionTask
from headstart.reports.predictions import class_csv, render_predictions

ANIMALS = ClassificationTask(classes=("ant", "bee", "cat"))
LABELS = ClassificationTask(classes=("red", "round"), kind="multilabel", thresholds=(0.3, 0.5))
NAMES = ("plain.png", "a,b.png", 'say "hi".png', "two\nlines.png", "ümlaut 图.png", " space .png")


def test_one_row_an_image_whatever_its_name():
    rng = np.random.default_rng(0)
    chances, targets = rng.dirichlet(np.ones(3), len(NAMES)), rng.integers(0, 3, len(NAMES))
    found = evaluate_probabilities(ANIMALS, chances, targets, names=NAMES)
    text = render_predictions(found)["predictions.csv"]
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["image"] for row in rows] == list(NAMES)
    assert [row["truth"] for row in rows] == [ANIMALS.classes[i] for i in targets]
    assert [row["prediction"] for row in rows] == [
        ANIMALS.classes[i] for i in chances.argmax(axis=1)
    ]
    assert [row["correct"] for row in rows] == [str(int(right)) for right in found.correct]
    told = np.array([[float(row[name]) for name in ANIMALS.classes] for row in rows])
    np.testing.assert_allclose(told, chances, atol=5e-7)
    assert "\r" not in text


def test_labels_are_listed_in_one_cell():
    chances = np.array([[0.9, 0.9], [0.1, 0.1], [0.4, 0.1]])
    targets = np.array([[1, 1], [0, 0], [0, 1]])
    found = evaluate_probabilities(LABELS, chances, targets, names=("a", "b", "c"))
    rows = list(csv.DictReader(io.StringIO(class_csv(found))))
    assert [row["truth"] for row in rows] == ["red|round", "", "round"]
    assert [row["prediction"] for row in rows] == ["red|round", "", "red"]
    assert [row["correct"] for row in rows] == ["1", "1", "0"]


def test_who_abstains_has_a_column_where_somebody_may():
    chosen = threshold_for_risk(np.linspace(0, 1, 999), np.arange(999) > 300, max_risk=0.05)
    task = replace(ANIMALS, max_risk=0.05, selected=replace(chosen, threshold=0.6))
    chances = np.array([[0.6, 0.4, 0.0], [0.59, 0.4, 0.01]])
    found = evaluate_probabilities(task, chances, np.array([0, 0]), names=("a", "b"))
    rows = list(csv.DictReader(io.StringIO(class_csv(found))))
    assert [row["abstains"] for row in rows] == ["0", "1"]
    assert [row["prediction"] for row in rows] == ["ant", "ant"]
    assert [row["bee"] for row in rows] == ["0.4"] * 2


@pytest.fixture
def boxes():
    found = [
        Detections(
            name="a,b.png",
            size=(100, 80),
            boxes=np.array([[1, 2, 11, 22], [50, 50, 60, 60.5]], np.float32),
            scores=np.array([0.75, 0.25], np.float32),
            labels=np.array([1, 0]),
        ),
        Detections(
            name="empty.png",
            size=(100, 80),
            boxes=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.intp),
        ),
    ]
    truths = [Boxes(corners=((1, 2, 11, 22),), labels=("rod",)), Boxes()]
    return evaluate_detections(DetectionTask(classes=("disc", "rod")), found, truths)


def test_the_table_of_boxes_has_what_is_named(boxes):
    assert list(csv.reader(io.StringIO(render_predictions(boxes)["predictions.csv"]))) == [
        ["image", "label", "score", "left", "top", "right", "bottom"],
        ["a,b.png", "rod", "0.75", "1.00", "2.00", "11.00", "22.00"],
    ]


def test_coco_reads_what_was_found(boxes, tmp_path, capsys):
    """pycocotools takes the file as results for an annotation file with the same ids."""
    coco = pytest.importorskip("pycocotools.coco")
    (tmp_path / "results.json").write_text(render_predictions(boxes)["predictions.json"])
    truth = {
        "images": [{"id": 1, "file_name": "a,b.png"}, {"id": 2, "file_name": "empty.png"}],
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "rod"}],
        "annotations": [],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    read = coco.COCO(str(tmp_path / "truth.json")).loadRes(str(tmp_path / "results.json"))
    capsys.readouterr()
    assert [(a["image_id"], a["category_id"], a["bbox"]) for a in read.anns.values()] == [
        (1, 2, [1.0, 2.0, 10.0, 20.0]),
        (1, 1, [50.0, 50.0, 10.0, 10.5]),
    ]
    told = json.loads(render_predictions(boxes)["predictions.json"])
    assert [(one["file_name"], one["category"]) for one in told] == [
        ("a,b.png", "rod"),
        ("a,b.png", "disc"),
    ]


def test_the_numbers_of_the_report_follow_from_the_file() -> None:
    """Six decimals made a certain mistake a probability of 0, and the log-loss infinite."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=12, size=(60, 3))
    chances, targets = softmax(logits, axis=1), rng.integers(0, 3, 60)
    task = ClassificationTask(classes=("ant", "bee", "cat"))
    names = tuple(f"{i}.png" for i in range(60))
    evaluation = evaluate_probabilities(task, chances, targets, names=names)
    rows = list(csv.DictReader(class_csv(evaluation).splitlines()))
    read = np.array([[float(row[name]) for name in task.classes] for row in rows])
    np.testing.assert_allclose(read, chances, rtol=1e-8)
    truth = np.array([task.classes.index(row["truth"]) for row in rows])
    mean_loss = -np.log(read[np.arange(60), truth]).mean()
    assert mean_loss == pytest.approx(evaluation.metrics["log_loss"].value, rel=1e-6)
