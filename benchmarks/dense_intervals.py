"""How often the intervals of boxes and masks hold the truth, on simulated images.

    python benchmarks/dense_intervals.py [draws]

A large population of images is made up, each with a difficulty of its own; the metrics of all
of it are the truth. Small sets are drawn from it and evaluated. The table in docs/intervals.md
is what this prints.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np

from headstart.data.dataset import Boxes
from headstart.evaluation.detection import evaluate_detections, places
from headstart.evaluation.segmentation import PixelCounts, evaluate_counts
from headstart.metrics import detection as box_metrics
from headstart.metrics import segmentation as mask_metrics
from headstart.models.inference import Detections
from headstart.models.tasks import DetectionTask, SegmentationTask

CLASSES, SHARES = ("a", "b", "c"), (0.6, 0.3, 0.1)
POPULATION, DRAWS = 4000, 300


def image(rng):
    """Five objects or so; of a hard image fewer are found, and more that are not there."""
    ease, count = rng.beta(4, 2), rng.poisson(5)
    corner = rng.uniform(0, 400, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(30, 120, (count, 2))], axis=1)
    labels = rng.choice(3, count, p=SHARES)
    hit, beside = rng.random(count) < ease, rng.poisson(4 * (1 - ease) + 0.5)
    near = boxes[hit] + rng.normal(0, 4, (hit.sum(), 4))
    corner = rng.uniform(0, 450, (beside, 2))
    found = np.concatenate([near, np.concatenate([corner, corner + 60], axis=1)])
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    scores = np.concatenate([rng.beta(5, 2, hit.sum()), rng.beta(2, 4, beside)])
    said = np.concatenate([labels[hit], rng.choice(3, beside, p=SHARES)])
    truth = Boxes(
        corners=tuple(map(tuple, boxes.tolist())), labels=tuple(CLASSES[i] for i in labels)
    )
    return truth, Detections(
        name="",
        size=(520, 520),
        boxes=found.astype(np.float32),
        scores=scores.astype(np.float32),
        labels=said,
    )


def pixels(rng):
    """Four classes of very different size; the rare one is in few images large."""
    right = rng.beta(6, 2, 4)
    total = (rng.dirichlet((6, 3, 1, 0.3)) * 40_000).astype(int)
    hits = (total * right).astype(int)
    counts = np.diag(hits)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        counts[i, others] = rng.multinomial(total[i] - hits[i], (0.6, 0.3, 0.1))
    edge = (4 * np.sqrt(total)).astype(int) + 1
    near = (edge * right).astype(int)
    return counts, np.stack([(1.1 * edge).astype(int), near, edge, near], axis=1)


def boxes_held(n, draws, rng):
    population = [image(rng) for _ in range(POPULATION)]
    plain = [(d.boxes, d.scores, d.labels) for _, d in population]
    there = [(t.array(), places(t, CLASSES), t.is_hard()) for t, _ in population]
    truth = box_metrics.box_scores(box_metrics.match_boxes(plain, there, 3))
    held, bias = defaultdict(list), defaultdict(list)
    for draw in range(draws):
        rows = rng.choice(POPULATION, n, replace=False)
        truths, found = zip(*(population[i] for i in rows), strict=True)
        one = evaluate_detections(DetectionTask(classes=CLASSES), found, truths, seed=draw)
        for name, number in one.metrics.items():
            held[name].append(number.low <= truth[name] <= number.high)
            bias[name].append(number.value - truth[name])
    return held, bias


def masks_held(n, draws, rng):
    counts, edges = map(np.stack, zip(*(pixels(rng) for _ in range(POPULATION)), strict=True))
    truth = {
        "mean_iou": mask_metrics.mean_iou_score(counts),
        "pixel_accuracy": mask_metrics.pixel_accuracy_score(counts),
        "boundary_f": mask_metrics.mean_boundary_f_score(edges),
    }
    held, bias = defaultdict(list), defaultdict(list)
    for draw in range(draws):
        rows = rng.choice(POPULATION, n, replace=False)
        drawn = PixelCounts(counts[rows], edges[rows])
        names = tuple(map(str, rows))
        one = evaluate_counts(
            SegmentationTask(classes=tuple("abcd")), drawn, names=names, seed=draw
        )
        for name, value in truth.items():
            number = one.metrics[name]
            held[name].append(number.low <= value <= number.high)
            bias[name].append(number.value - value)
    return held, bias


def main():
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else DRAWS
    print("| metric | images | intervals that hold the truth, % | mean error |")
    print("| --- | ---: | ---: | ---: |")
    for n in (30, 80):
        for simulate in (boxes_held, masks_held):
            held, bias = simulate(n, draws, np.random.default_rng(n))
            for name, hits in held.items():
                print(f"| {name} | {n} | {100 * np.mean(hits):.1f} | {np.mean(bias[name]):+.3f} |")


if __name__ == "__main__":
    main()
