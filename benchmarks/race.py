"""Choices and time estimates of the race on synthetic sets.

For every set of ``headstart.data.demo.regimes`` and every seed, with an empty cache and one core:
the method that the race chooses from the training images, its accuracy and that of all other
methods on the part ``test``, and the estimated and measured time.

    python benchmarks/race.py [--seeds 10] [--weights FOLDER] [--out runs.jsonl] [--only-choice]
"""

import argparse
import json
import os
import tempfile
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
from headstart.methods.pretraining import regime_backbone  # noqa: E402
from headstart.methods.scratch import Scratch  # noqa: E402
from headstart.metrics.confidence_intervals import wilson_interval  # noqa: E402
from headstart.selection.race import decide  # noqa: E402
from regimes import train_and_test  # noqa: E402


def run_race(name, seed, weights, only_choice):
    """Run one race; return the test accuracies of its choice and of all methods."""
    backbone = FrozenBackbone.open(regime_backbone(name, weights, seed=seed), offline=True)
    data = regimes.make(name, seed)
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        decision = decide([backbone], data.split("train"), extractor=extractor, seed=seed)
    row = {
        "set": name,
        "seed": seed,
        "chosen": decision.method.name,
        "stage": decision.backbone.spec.until,
        "seconds": round(decision.record["seconds"], 2),
        "estimated": round(decision.record["estimated"], 2),
        "why": decision.record["why"],
    }
    if only_choice:
        return row
    candidates = {
        "chosen": (decision.method, decision.backbone),
        "linear-probe": (LinearProbe(seed=seed), backbone),
        "finetune": (Finetune(train_from="all", learning_rate=3e-4, seed=seed), backbone),
        "scratch": (Scratch(seed=seed), backbone),
    }
    accuracies = {
        label: train_and_test(method, source, data)["accuracy"]
        for label, (method, source) in candidates.items()
    }
    return row | {"test": accuracies}


def show(rows):
    """Print the choices, the test accuracies, and the ratios of time to estimate."""
    for name in dict.fromkeys(row["set"] for row in rows):
        rows_of_set = [row for row in rows if row["set"] == name]
        expected, n = regimes.EXPECTED_METHOD[name], len(rows_of_set)
        correct = sum(row["chosen"] == expected for row in rows_of_set)
        print(
            f"\n{name}: {expected} chosen in {correct} of {n} seeds, {wilson_interval(correct, n)}"
        )
        for label in rows_of_set[0].get("test", {}):
            scores = [row["test"][label] for row in rows_of_set]
            print(
                f"  {label:<13} {np.mean(scores):.3f}  ({min(scores):.3f} to {max(scores):.3f}) "
                "on test"
            )
    ratios = np.array([row["seconds"] / row["estimated"] for row in rows])
    within = (abs(ratios - 1) <= 0.3).sum()
    print(
        f"\ntime / estimate: median {np.median(ratios):.2f}, {ratios.min():.2f} to "
        f"{ratios.max():.2f}; within 30 % in {within} of {len(ratios)} races"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--weights", help="folder that keeps the weights of the sources between calls"
    )
    parser.add_argument("--out", help="append a line of JSON for each race to this file")
    parser.add_argument("--only-choice", action="store_true", help="run only the race")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(arguments.seeds):
            for name in regimes.EXPECTED_METHOD:
                weights = arguments.weights or temporary
                rows.append(run_race(name, seed, weights, arguments.only_choice))
                if arguments.out:
                    with Path(arguments.out).open("a", encoding="utf-8") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
