"""First screen of the page: the result in one sentence, the worst mistakes, links that lead on."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from headstart.data.dataset import Boxes, Dataset, Sample
from headstart.data.prepare import PreparedData
from headstart.evaluation.classification import Evaluation, evaluate_probabilities
from headstart.evaluation.detection import BoxEvaluation, evaluate_detections
from headstart.evaluation.segmentation import MaskEvaluation, PixelCounts, evaluate_counts
from headstart.metrics.segmentation import boundary_counts, pixel_counts
from headstart.models.inference import Detections
from headstart.models.tasks import ClassificationTask, DetectionTask, SegmentationTask
from headstart.reports.first_screen import headline, worst_confusion
from headstart.reports.page import page_template, thumbnails

CORNERS = (4.0, 6.0, 30.0, 28.0)


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def classifier(predicted: list[int], targets: list[int]) -> Evaluation:
    task = ClassificationTask(classes=("cat", "dog", "fox"))
    chances = np.where(np.eye(3)[predicted] == 1, 0.9, 0.05)
    names = tuple(f"{i}.png" for i in range(len(targets)))
    return evaluate_probabilities(task, chances, np.array(targets), names=names)


def labels(kind_of_error: str) -> Evaluation:
    task = ClassificationTask(classes=("disc", "rod"), kind="multilabel")
    targets = np.array([[1, 1], [1, 0], [0, 1], [1, 1]])
    chances = np.where(targets == 1, 0.9, 0.1)
    if kind_of_error == "missing":
        chances[0, 1] = 0.05
    return evaluate_probabilities(task, chances, targets, names=("a", "b", "c", "d"))


def detector(label: int | None, corners: tuple[float, ...] = CORNERS) -> BoxEvaluation:
    """Two images with a disc; the first is detected, the second as ``label``, or not at all."""
    truth = Boxes(corners=(CORNERS,), labels=("disc",))

    def detections(name: str, boxes: list[Any], indices: list[int]) -> Detections:
        return Detections(
            name=name,
            size=(80, 60),
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            scores=np.full(len(boxes), 0.9, np.float32),
            labels=np.array(indices, dtype=int),
        )

    second = detections("b", [] if label is None else [corners], [] if label is None else [label])
    return evaluate_detections(
        DetectionTask(classes=("disc", "rod")),
        [detections("a", [CORNERS], [0]), second],
        [truth, truth],
    )


def segmenter(n_wrong: int) -> MaskEvaluation:
    """A leaf of 20 pixels on 80 pixels of ground, ``n_wrong`` of the leaf missed."""
    true = np.zeros((10, 10), np.uint8)
    true[:2] = 1
    predicted = true.copy()
    predicted.ravel()[:n_wrong] = 0
    counts = PixelCounts(
        pixel_counts(predicted, true, 2)[None], boundary_counts(predicted, true, 2)[None]
    )
    task = SegmentationTask(classes=("ground", "leaf"))
    return evaluate_counts(task, counts, names=("a.png",))


def test_a_classifier_says_how_many_images_are_right() -> None:
    given = classifier([0] * 80 + [1] * 16, [0] * 96)
    assert plain(headline(given)) == "80 of 96 test images right (83 %, likely 75 to 90 %)"
    assert plain(headline(classifier([0], [0]))).startswith("1 of 1 test image right (100 %, ")


def test_the_most_frequent_confusion_is_named() -> None:
    given = classifier([0, 1, 1, 2, 1, 1], [0, 0, 0, 0, 1, 2])
    assert worst_confusion(given) == (
        "Most frequent mistake: 2 of 4 images of “cat” are predicted as “dog”."
    )
    one = classifier([0, 1], [0, 0])
    assert "1 of 2 images of “cat” is predicted" in worst_confusion(one)
    assert worst_confusion(classifier([0, 1], [0, 1])) == ""


def test_several_labels_must_all_be_right() -> None:
    assert "3 of 4 test images have all labels right (75 %" in plain(headline(labels("missing")))
    shown = plain(worst_confusion(labels("missing")))
    assert shown == "Weakest label: “rod”, predicted for 67 % of its images."
    assert worst_confusion(labels("none")) == ""


@pytest.mark.parametrize(
    ("given", "result", "mistake"),
    [
        (detector(0), "2 of 2 objects right, 0 boxes without an object (mAP 1.00", ""),
        (detector(None), "1 of 2 objects right, 0 boxes", "1 of 2 objects of “disc” is missed"),
        (detector(1), "1 of 2 objects right, 0 boxes", "“disc” is predicted as “rod”"),
    ],
)
def test_a_detector_counts_objects(given: BoxEvaluation, result: str, mistake: str) -> None:
    assert headline(given).startswith(result)
    assert mistake in worst_confusion(given)
    assert bool(mistake) is bool(worst_confusion(given))


def test_boxes_without_an_object_are_a_mistake_of_their_own() -> None:
    truth = Boxes(corners=(), labels=())
    boxes = np.array([CORNERS, (40, 30, 70, 58)], np.float32)
    found = Detections(
        name="a", size=(80, 60), boxes=boxes, scores=np.full(2, 0.9), labels=np.array([1, 1])
    )
    hit = Boxes(corners=(CORNERS,), labels=("rod",))
    given = evaluate_detections(
        DetectionTask(classes=("disc", "rod")), [found, found], [truth, hit]
    )
    assert worst_confusion(given) == "Most frequent mistake: 3 of 4 boxes of “rod” show no object."
    assert "3 boxes without an object" in headline(given)


def test_a_segmenter_names_the_largest_share_of_a_class() -> None:
    assert plain(headline(segmenter(5))).startswith(
        "95 % of the pixels right on 1 test image (mean"
    )
    assert plain(worst_confusion(segmenter(5))) == (
        "Largest confusion: 25 % of the pixels of “leaf” are predicted as “ground”."
    )
    assert worst_confusion(segmenter(0)) == ""


def test_images_to_enlarge_are_larger_and_open_without_a_script() -> None:
    import base64
    import io

    from PIL import Image

    def height(uri: str | None) -> int:
        with Image.open(io.BytesIO(base64.b64decode((uri or "").partition(",")[2]))) as image:
            return image.height

    samples = [Sample(image=np.zeros((n, 60, 3), np.uint8), target="cat") for n in (8, 200, 999)]
    uris = thumbnails(samples, height=288)
    assert [height(uri) for uri in uris] == [112, 200, 288]  # never larger than the image itself
    assert [height(uri) for uri in thumbnails(samples)] == [112, 112, 112]
    macro = page_template("parts.html.j2").module.image(uris[-1], "a cat")  # type: ignore[attr-defined]
    assert re.fullmatch(
        r'<details class="zoom" name="enlarged"><summary><img src="data:[^"]*" alt="a cat"[^>]*>'
        r"</summary></details>",
        str(macro).strip(),
    )


def test_wrong_labels_are_shown_with_what_is_missing() -> None:
    from headstart.reports.classification import _wrong_labels

    given = labels("missing")
    samples = tuple(
        Sample(image=np.zeros((8, 8, 3), np.uint8), target=("disc",), split="test", title=name)
        for name in given.names
    )
    data = Dataset(samples=samples, classes=("disc", "rod"), kind="multilabel")
    prepared = PreparedData(data=data, records=(), findings=())
    (wrong,) = _wrong_labels(given, prepared)
    assert (wrong["image"], wrong["label"], wrong["is_labelled"]) == ("a", "rod", True)
    assert wrong["probability"] == pytest.approx(0.05)
    assert wrong["thumbnail"].startswith("data:image/webp")
