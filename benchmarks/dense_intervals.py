"""Coverage of the confidence intervals for detection and segmentation, on simulated images.

    python benchmarks/dense_intervals.py [draws]

The population is a large set of simulated images of different difficulty; its metrics are the
true values. Small sets are drawn from it and evaluated. The output is the table in
docs/intervals.md.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np

from headstart.data.dataset import Boxes
from headstart.evaluation.detection import class_indices, evaluate_detections
from headstart.evaluation.segmentation import PixelCounts, evaluate_counts
from headstart.metrics import detection as box_metrics
from headstart.metrics import segmentation as mask_metrics
from headstart.models.inference import Detections
from headstart.models.tasks import DetectionTask, SegmentationTask

CLASSES, SHARES = ("a", "b", "c"), (0.6, 0.3, 0.1)
POPULATION, DRAWS = 4000, 300


def simulate_detections(rng):
    """Simulate about five objects; in a hard image more are missed and more are false."""
    ease, count = rng.beta(4, 2), rng.poisson(5)
    corner = rng.uniform(0, 400, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(30, 120, (count, 2))], axis=1)
    labels = rng.choice(3, count, p=SHARES)
    hit, n_false = rng.random(count) < ease, rng.poisson(4 * (1 - ease) + 0.5)
    near = boxes[hit] + rng.normal(0, 4, (hit.sum(), 4))
    corner = rng.uniform(0, 450, (n_false, 2))
    predicted = np.concatenate([near, np.concatenate([corner, corner + 60], axis=1)])
    predicted[:, 2:] = np.maximum(predicted[:, 2:], predicted[:, :2] + 1)
    scores = np.concatenate([rng.beta(5, 2, hit.sum()), rng.beta(2, 4, n_false)])
    predicted_labels = np.concatenate([labels[hit], rng.choice(3, n_false, p=SHARES)])
    truth = Boxes(
        corners=tuple(map(tuple, boxes.tolist())), labels=tuple(CLASSES[i] for i in labels)
    )
    return truth, Detections(
        name="",
        size=(520, 520),
        boxes=predicted.astype(np.float32),
        scores=scores.astype(np.float32),
        labels=predicted_labels,
    )


def simulate_pixels(rng):
    """Simulate four classes of very different size; the rare one is large in few images."""
    recall = rng.beta(6, 2, 4)
    total = (rng.dirichlet((6, 3, 1, 0.3)) * 40_000).astype(int)
    hits = (total * recall).astype(int)
    counts = np.diag(hits)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        counts[i, others] = rng.multinomial(total[i] - hits[i], (0.6, 0.3, 0.1))
    edge = (4 * np.sqrt(total)).astype(int) + 1
    near = (edge * recall).astype(int)
    return counts, np.stack([(1.1 * edge).astype(int), near, edge, near], axis=1)


def cover_detection(n, draws, rng):
    """Return for each metric whether each interval contains the true value, and its errors."""
    population = [simulate_detections(rng) for _ in range(POPULATION)]
    detections = [(d.boxes, d.scores, d.labels) for _, d in population]
    objects = [(t.array(), class_indices(t, CLASSES), t.is_hard()) for t, _ in population]
    truth = box_metrics.box_scores(box_metrics.match_boxes(detections, objects, 3))
    covered, errors = defaultdict(list), defaultdict(list)
    for draw in range(draws):
        rows = rng.choice(POPULATION, n, replace=False)
        truths, predictions = zip(*(population[i] for i in rows), strict=True)
        evaluation = evaluate_detections(
            DetectionTask(classes=CLASSES), predictions, truths, seed=draw
        )
        for name, metric in evaluation.metrics.items():
            covered[name].append(metric.low <= truth[name] <= metric.high)
            errors[name].append(metric.value - truth[name])
    return covered, errors


def cover_segmentation(n, draws, rng):
    """Return for each metric whether each interval contains the true value, and its errors."""
    counts, edges = map(
        np.stack, zip(*(simulate_pixels(rng) for _ in range(POPULATION)), strict=True)
    )
    truth = {
        "mean_iou": mask_metrics.mean_iou_score(counts),
        "pixel_accuracy": mask_metrics.pixel_accuracy_score(counts),
        "boundary_f": mask_metrics.mean_boundary_f_score(edges),
    }
    covered, errors = defaultdict(list), defaultdict(list)
    for draw in range(draws):
        rows = rng.choice(POPULATION, n, replace=False)
        sample = PixelCounts(counts[rows], edges[rows])
        names = tuple(map(str, rows))
        evaluation = evaluate_counts(
            SegmentationTask(classes=tuple("abcd")), sample, names=names, seed=draw
        )
        for name, value in truth.items():
            metric = evaluation.metrics[name]
            covered[name].append(metric.low <= value <= metric.high)
            errors[name].append(metric.value - value)
    return covered, errors


def main():
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else DRAWS
    print("| metric | images | intervals with the true value, % | mean error |")
    print("| --- | ---: | ---: | ---: |")
    for n in (30, 80):
        for cover in (cover_detection, cover_segmentation):
            covered, errors = cover(n, draws, np.random.default_rng(n))
            for name, hits in covered.items():
                share, error = 100 * np.mean(hits), np.mean(errors[name])
                print(f"| {name} | {n} | {share:.1f} | {error:+.3f} |")


if __name__ == "__main__":
    main()
