"""Precision of the likely label errors in a report, with artificial label errors.

Each seed gives 5 % of the images of an embedded set a wrong class. Precision is the share of
these images among the first k likely label errors of ``diagnose``, with k the number of wrong
labels, or 50 with ``--first 50``. The mean over the seeds has a 95 % interval (t).

    python benchmarks/label_noise.py [digits symbols textures all-digits] [--seeds 20] [--ways]

``all-digits`` are the 1,797 digits of scikit-learn, enlarged as in the set ``digits``. ``--ways``
compares several ways to find the errors, with the seconds of the search on one core.
"""

import argparse
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.weights import locate
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.demo.classification import load
from headstart.data.prepare import PreparedData, prepare
from headstart.data.splits import kfold
from headstart.evaluation.classification import evaluate_probabilities
from headstart.evaluation.insight import N_DIRECTIONS, PROBE_PENALTIES, diagnose
from headstart.features.extractor import Extractor
from headstart.metrics.label_errors import MEASURES, label_error_scores
from headstart.models.tasks import ClassificationTask
from headstart.training.logistic_regression import principal_basis
from headstart.training.penalty_search import PENALTIES, Problem, search_penalty

BACKBONE = "embedded/efficientnet_lite0"
WAYS = {
    "as the report": (N_DIRECTIONS, PROBE_PENALTIES),
    "64 directions": (64, PROBE_PENALTIES),
    "every direction": (None, PROBE_PENALTIES),
    "every direction, every penalty": (None, PENALTIES),
}


def all_digits():
    """Return all digits of scikit-learn, enlarged as in ``demo:digits``."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    samples = []
    for i, (grey, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        small = Image.fromarray(np.rint(grey * (255 / 16)).astype(np.uint8))
        pixels = np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC).convert("RGB"))
        samples.append(Sample(image=pixels, target=str(label), title=f"{i}"))
    return Dataset(samples=tuple(samples), classes=tuple("0123456789"), name="all-digits")


def add_label_errors(prepared, seed, share=0.05):
    """Give some images a wrong class; return the data and the rows of these images."""
    data, rng = prepared.data, np.random.default_rng(seed)
    samples = list(data.samples)
    rows = rng.choice(len(samples), round(share * len(samples)), replace=False)
    for row in rows:
        other_classes = [name for name in data.classes if name != samples[row].target]
        samples[row] = replace(samples[row], target=other_classes[rng.integers(len(other_classes))])
    return replace(data, samples=tuple(samples)), set(rows.tolist())


def find_label_errors(data, backbone, extractor, seed):
    """Return the rows of a report's likely label errors, the likeliest first."""
    prepared = PreparedData(data=data, records=(), findings=())
    test, task = prepared.test, ClassificationTask(classes=data.classes)
    probabilities = np.full((len(test), len(data.classes)), 1 / len(data.classes))
    names = tuple(sample.name for sample in test.samples)
    evaluation = evaluate_probabilities(task, probabilities, test.targets(), names=names)
    model = SimpleNamespace(backbone=backbone, record={})
    diagnostics = diagnose(
        backbone, model, prepared, evaluation, extractor=extractor, seed=seed, aspects=("labels",)
    )
    if diagnostics.notes:
        raise SystemExit(diagnostics.notes[0])
    return [error.row for error in diagnostics.label_errors]


def interval(values):
    """Format the mean over seeds with its 95 % interval."""
    from scipy.stats import t

    half_width = np.std(values, ddof=1) / np.sqrt(len(values)) * t.ppf(0.975, len(values) - 1)
    mean = np.mean(values)
    return (
        f"{mean:.3f} [{mean - half_width:.3f}, {min(mean + half_width, 1):.3f}], "
        f"minimum {min(values):.2f}"
    )


def compare_ways(name, data, features, wrong, seed):
    """Yield precision and seconds of every way to find label errors."""
    targets, groups = data.targets(), data.groups()
    problem = Problem.of(targets, n_classes=len(data.classes), kind="multiclass")
    folds = kfold(targets, 5, blocks=groups, seed=seed)
    for title, (directions, penalties) in WAYS.items():
        started_at = time.process_time()
        basis = principal_basis(features)
        projected = basis.apply(features)[:, -(directions or features.shape[1]) :]
        held_out = search_penalty(projected, problem, folds, penalties=penalties).held_out
        seconds = time.process_time() - started_at
        task = ClassificationTask(classes=data.classes).calibrated(held_out, targets)
        for measure in MEASURES:
            scores = label_error_scores(task.probabilities(held_out), targets, measure=measure)
            first = np.argsort(-scores, kind="stable")[: len(wrong)]
            precision = len(wrong & set(first.tolist())) / len(wrong)
            yield f"{name}: {title}, {measure}", precision, seconds


def main():
    """Print one line per set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="*", default=["digits", "symbols", "textures", "all-digits"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int)
    parser.add_argument("--ways", action="store_true")
    options = parser.parse_args()
    spec, cache = resolve(BACKBONE, offline=True), Cache()
    backbone = FrozenBackbone.read(spec, locate(spec, offline=True))
    extractor = Extractor(cache=cache, engine="fp32", device="cpu")
    for name in options.sets:
        clean = prepare(all_digits() if name == "all-digits" else load(name), cache=cache)
        precisions, results = [], {}
        for seed in range(options.seeds):
            data, wrong = add_label_errors(clean, seed)
            if options.ways:
                features = extractor.features(backbone, data.samples).values
                for way, precision, seconds in compare_ways(name, data, features, wrong, seed):
                    results.setdefault(way, []).append((precision, seconds))
            else:
                first = options.first or len(wrong)
                rows = find_label_errors(data, backbone, extractor, seed)[:first]
                precisions.append(len(wrong & set(rows)) / first)
        if precisions:
            counts = f"{len(clean.data)} images, {len(wrong)} wrong labels, first {first}"
            print(f"{name}: {counts}: precision {interval(precisions)}", flush=True)
        for way, pairs in results.items():
            hits, seconds = zip(*pairs, strict=True)
            print(f"{way}: {interval(hits)}, {np.mean(seconds):.2f} s", flush=True)


if __name__ == "__main__":
    main()
