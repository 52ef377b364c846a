"""Is the right method of each drawn set really the right one? Every method on every set and seed.

A seed draws the source, its weights, the images and the training. Accuracy is that on the 320
images of the part ``test``; seconds are those of the training, in an empty cache, on one core.

    python benchmarks/regimes.py [--seeds 10] [--weights FOLDER] [--out runs.jsonl]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # these networks are too small to share

from headstart.runtime import prepare

prepare()  # as the command line does, before torch is imported

import numpy as np  # noqa: E402

from headstart.backbones.frozen import FrozenBackbone  # noqa: E402
from headstart.cache import Cache  # noqa: E402
from headstart.data import regimes  # noqa: E402
from headstart.features.extractor import Extractor  # noqa: E402
from headstart.methods.finetune import Finetune  # noqa: E402
from headstart.methods.linear_probe import LinearProbe  # noqa: E402
from headstart.methods.pretraining import SMALL, random_backbone, regime_backbone  # noqa: E402
from headstart.methods.scratch import Scratch  # noqa: E402
from headstart.models.build import create_model  # noqa: E402

FAST = {"learning_rate": 1e-3, "head_learning_rate": 1e-3}


def candidates(backbone, seed):
    """Each column of the table: a method, and what it starts from."""
    return {
        "probe": (LinearProbe(seed=seed), backbone),
        "probe, random weights": (LinearProbe(seed=seed), random_backbone(SMALL, seed=seed)),
        "last stage": (Finetune(seed=seed), backbone),
        "all stages": (Finetune(train_from="all", seed=seed), backbone),
        "all stages, 1e-3": (Finetune(train_from="all", seed=seed, **FAST), backbone),
        "scratch": (Scratch(seed=seed), backbone),
    }


def measured(method, backbone, data):
    """Accuracy on the part to test on, and the seconds of the training."""
    train, test = data.split("train"), data.split("test")
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        begin = time.perf_counter()
        model = method.fit(create_model(backbone, train), train, extractor=extractor)
        seconds = time.perf_counter() - begin
        answers = model.answers(test.samples, cache=cache, engine="fp32", device="cpu")
    right = [one.label == sample.target for one, sample in zip(answers, test.samples, strict=True)]
    return {"accuracy": float(np.mean(right)), "seconds": round(seconds, 2)}


def rows(seeds, weights, only=tuple(regimes.RIGHT)):
    """Yield one value for each regime, seed and method."""
    for seed in seeds:
        for name in only:
            backbone = FrozenBackbone.open(regime_backbone(name, weights, seed=seed), offline=True)
            data = regimes.make(name, seed)
            for method, (how, start) in candidates(backbone, seed).items():
                yield {"set": name, "seed": seed, "method": method, **measured(how, start, data)}


def show(found):
    """Print mean, least and greatest accuracy over the seeds, and the mean of the seconds."""
    for name in dict.fromkeys(row["set"] for row in found):
        print(f"\n{name}: right is {regimes.RIGHT[name]}")
        mine = [row for row in found if row["set"] == name]
        for method in dict.fromkeys(row["method"] for row in mine):
            hits = [row["accuracy"] for row in mine if row["method"] == method]
            seconds = np.mean([row["seconds"] for row in mine if row["method"] == method])
            print(
                f"  {method:<22} {np.mean(hits):.3f}  ({min(hits):.3f} to {max(hits):.3f}, "
                f"{len(hits)} seeds)  {seconds:.1f} s"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--weights", help="where sources' weights are kept between calls")
    parser.add_argument("--out", help="file that a line of JSON is appended to for each training")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for row in rows(range(arguments.seeds), arguments.weights or temporary):
            found.append(row)
            if arguments.out:
                with Path(arguments.out).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    show(found)


if __name__ == "__main__":
    main()
