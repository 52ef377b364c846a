"""How many of the labels that a report doubts first are wrong, where wrong ones were planted?

A seed gives 5 % of the images of an embedded set a class that is not theirs, anywhere in the
set. Precision is the share of planted labels among the first k doubts of ``diagnose``, with k
the number planted, or 50 with ``--first 50``. The mean over the seeds has a 95 % interval (t).

    python benchmarks/label_noise.py [digits symbols textures all-digits] [--seeds 20] [--ways]

``all-digits`` are the 1,797 digits that scikit-learn ships, enlarged as the set ``digits`` is.
``--ways`` compares ways to find them, with the seconds of the search on one core.
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
from headstart.data.prepare import Prepared, prepare
from headstart.data.splits import kfold
from headstart.evaluation.classification import evaluate_probabilities
from headstart.evaluation.insight import DIRECTIONS, STRENGTHS, diagnose
from headstart.features.extractor import Extractor
from headstart.metrics.label_errors import MEASURES, label_error_scores
from headstart.models.tasks import ClassificationTask
from headstart.training.logistic_regression import (
    PENALTIES,
    Problem,
    principal_basis,
    search_penalty,
)

BACKBONE = "embedded/efficientnet_lite0"
WAYS = {
    "as the report": (DIRECTIONS, STRENGTHS),
    "64 directions": (64, STRENGTHS),
    "every direction": (None, STRENGTHS),
    "every direction, every penalty": (None, PENALTIES),
}


def all_digits():
    """Every digit that scikit-learn ships, enlarged as ``demo:digits`` does it."""
    from PIL import Image
    from sklearn.datasets import load_digits

    shipped = load_digits()
    samples = []
    for i, (grey, label) in enumerate(zip(shipped.images, shipped.target, strict=True)):
        small = Image.fromarray(np.rint(grey * (255 / 16)).astype(np.uint8))
        pixels = np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC).convert("RGB"))
        samples.append(Sample(image=pixels, target=str(label), title=f"{i}"))
    return Dataset(samples=tuple(samples), classes=tuple("0123456789"), name="all-digits")


def planted(prepared, seed, share=0.05):
    """Give some images a class that is not theirs; return the data and their rows."""
    data, rng = prepared.data, np.random.default_rng(seed)
    samples = list(data.samples)
    rows = rng.choice(len(samples), round(share * len(samples)), replace=False)
    for row in rows:
        others = [name for name in data.classes if name != samples[row].target]
        samples[row] = replace(samples[row], target=others[rng.integers(len(others))])
    return replace(data, samples=tuple(samples)), set(rows.tolist())


def doubted(data, backbone, extractor, seed):
    """Rows of the images whose labels a report doubts, the most doubtful first."""
    prepared = Prepared(data=data, records=(), findings=())
    test, task = prepared.test, ClassificationTask(classes=data.classes)
    chances = np.full((len(test), len(data.classes)), 1 / len(data.classes))
    names = tuple(sample.name for sample in test.samples)
    judged = evaluate_probabilities(task, chances, test.targets(), names=names)
    model = SimpleNamespace(backbone=backbone, record={})
    found = diagnose(
        backbone, model, prepared, judged, extractor=extractor, seed=seed, aspects=("labels",)
    )
    if found.notes:
        raise SystemExit(found.notes[0])
    return [one.row for one in found.label_errors]


def interval(values):
    """Mean and 95 % interval over seeds."""
    from scipy.stats import t

    spread = np.std(values, ddof=1) / np.sqrt(len(values)) * t.ppf(0.975, len(values) - 1)
    mean = np.mean(values)
    return f"{mean:.3f} [{mean - spread:.3f}, {min(mean + spread, 1):.3f}], least {min(values):.2f}"


def ways(name, data, values, wrong, seed):
    """Yield precision and seconds of every way to find them."""
    targets, groups = data.targets(), data.groups()
    problem = Problem.of(targets, n_classes=len(data.classes), kind="multiclass")
    folds = kfold(targets, 5, blocks=groups, seed=seed)
    for title, (directions, penalties) in WAYS.items():
        begin = time.process_time()
        main = principal_basis(values).apply(values)[:, -(directions or values.shape[1]) :]
        held_out = search_penalty(main, problem, folds, penalties=penalties).held_out
        seconds = time.process_time() - begin
        task = ClassificationTask(classes=data.classes).calibrated(held_out, targets)
        for measure in MEASURES:
            scores = label_error_scores(task.probabilities(held_out), targets, measure=measure)
            first = np.argsort(-scores, kind="stable")[: len(wrong)]
            hit = len(wrong & set(first.tolist())) / len(wrong)
            yield f"{name}: {title}, {measure}", hit, seconds


def main():
    """Print a line for each set."""
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
        rows, lines = [], {}
        for seed in range(options.seeds):
            data, wrong = planted(clean, seed)
            if options.ways:
                values = extractor.features(backbone, data.samples).values
                for line, hit, seconds in ways(name, data, values, wrong, seed):
                    lines.setdefault(line, []).append((hit, seconds))
            else:
                first = options.first or len(wrong)
                named = doubted(data, backbone, extractor, seed)[:first]
                rows.append(len(wrong & set(named)) / first)
        if rows:
            told = f"{len(clean.data)} images, {len(wrong)} wrong labels, first {first}"
            print(f"{name}: {told}: precision {interval(rows)}", flush=True)
        for line, found in lines.items():
            hits, seconds = zip(*found, strict=True)
            print(f"{line}: {interval(hits)}, {np.mean(seconds):.2f} s", flush=True)


if __name__ == "__main__":
    main()
