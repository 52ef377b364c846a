"""Accuracy of every method on the synthetic sets of ``headstart.data.demo.regimes``.

Checks that the expected method of each set is the best one. A seed determines the source, its
weights, the images and the training. Accuracy is measured on the 320 images of the part ``test``;
seconds are those of the training, with an empty cache and one core.

    python benchmarks/regimes.py [--seeds 10] [--weights FOLDER] [--out runs.jsonl]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for networks this small, several threads are slower

from headstart.runtime import prepare

prepare()  # as the command line does, before torch is imported

import numpy as np  # noqa: E402

from headstart.backbones.frozen import FrozenBackbone  # noqa: E402
from headstart.cache import Cache  # noqa: E402
from headstart.data.demo import regimes  # noqa: E402
from headstart.features.extractor import Extractor  # noqa: E402
from headstart.methods.finetune import Finetune  # noqa: E402
from headstart.methods.linear_probe import LinearProbe  # noqa: E402
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone, regime_backbone  # noqa: E402
from headstart.methods.scratch import Scratch  # noqa: E402
from headstart.models.build import create_model  # noqa: E402

FAST = {"learning_rate": 1e-3, "head_learning_rate": 1e-3}


def candidates(backbone, seed):
    """Return the method and the backbone of each column of the table."""
    return {
        "probe": (LinearProbe(seed=seed), backbone),
        "probe, random weights": (
            LinearProbe(seed=seed),
            random_backbone(SMALL_ARCHITECTURE, seed=seed),
        ),
        "last stage": (Finetune(seed=seed), backbone),
        "all stages": (Finetune(train_from="all", seed=seed), backbone),
        "all stages, 1e-3": (Finetune(train_from="all", seed=seed, **FAST), backbone),
        "scratch": (Scratch(seed=seed), backbone),
    }


def train_and_test(method, backbone, data):
    """Train on the part ``train``; return the accuracy on ``test`` and the seconds."""
    train, test = data.split("train"), data.split("test")
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        started_at = time.perf_counter()
        model = method.fit(create_model(backbone, train), train, extractor=extractor)
        seconds = time.perf_counter() - started_at
        predictions = list(
            model.predict_samples(test.samples, cache=cache, engine="fp32", device="cpu")
        )
    correct = [
        prediction.label == sample.target
        for prediction, sample in zip(predictions, test.samples, strict=True)
    ]
    return {"accuracy": float(np.mean(correct)), "seconds": round(seconds, 2)}


def run_all(seeds, weights, sets=tuple(regimes.EXPECTED_METHOD)):
    """Yield one result for each seed, set and method."""
    for seed in seeds:
        for name in sets:
            backbone = FrozenBackbone.open(regime_backbone(name, weights, seed=seed), offline=True)
            data = regimes.make(name, seed)
            for label, (method, source) in candidates(backbone, seed).items():
                result = train_and_test(method, source, data)
                yield {"set": name, "seed": seed, "method": label, **result}


def show(rows):
    """Print mean, minimum and maximum of the accuracy over the seeds, and the mean seconds."""
    for name in dict.fromkeys(row["set"] for row in rows):
        print(f"\n{name}: expected is {regimes.EXPECTED_METHOD[name]}")
        rows_of_set = [row for row in rows if row["set"] == name]
        for method in dict.fromkeys(row["method"] for row in rows_of_set):
            hits = [row["accuracy"] for row in rows_of_set if row["method"] == method]
            seconds = np.mean([row["seconds"] for row in rows_of_set if row["method"] == method])
            print(
                f"  {method:<22} {np.mean(hits):.3f}  ({min(hits):.3f} to {max(hits):.3f}, "
                f"{len(hits)} seeds)  {seconds:.1f} s"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--weights", help="folder that keeps the weights of the sources between calls"
    )
    parser.add_argument("--out", help="append a line of JSON for each training to this file")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for row in run_all(range(arguments.seeds), arguments.weights or temporary):
            rows.append(row)
            if arguments.out:
                with Path(arguments.out).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
