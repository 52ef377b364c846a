"""Does the race pick the right way to learn, and does it take as long as it says?

Every drawn set of ``headstart.data.demo.regimes`` and every seed, in an empty cache, on one core:
which method is chosen, on training images alone; what it reaches on the part ``test`` beside all
the others, trained whole; and the estimate beside the time.

    python benchmarks/race.py [--seeds 10] [--weights FOLDER] [--out runs.jsonl] [--only-choice]
"""

import argparse
import json
import os
import tempfile
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
from headstart.methods.pretraining import regime_backbone  # noqa: E402
from headstart.methods.scratch import Scratch  # noqa: E402
from headstart.metrics.confidence_intervals import wilson_interval  # noqa: E402
from headstart.selection.race import decide  # noqa: E402
from regimes import measured  # noqa: E402


def raced(name, seed, weights, only_choice):
    """One race, and what its choice and the others reach on new images."""
    backbone = FrozenBackbone.open(regime_backbone(name, weights, seed=seed), offline=True)
    data = regimes.make(name, seed)
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        found = decide([backbone], data.split("train"), extractor=extractor, seed=seed)
    row = {
        "set": name,
        "seed": seed,
        "chosen": found.method.name,
        "stage": found.backbone.spec.until,
        "seconds": round(found.record["seconds"], 2),
        "estimated": round(found.record["estimated"], 2),
        "why": found.record["why"],
    }
    if only_choice:
        return row
    ways = {
        "chosen": (found.method, found.backbone),
        "linear-probe": (LinearProbe(seed=seed), backbone),
        "finetune": (Finetune(train_from="all", learning_rate=3e-4, seed=seed), backbone),
        "scratch": (Scratch(seed=seed), backbone),
    }
    return row | {"test": {way: measured(*how, data)["accuracy"] for way, how in ways.items()}}


def show(rows):
    """Print the choices, the accuracies on new images, and the ratios of time."""
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == name]
        right = sum(row["chosen"] == regimes.RIGHT[name] for row in mine)
        share = wilson_interval(right, len(mine))
        print(f"\n{name}: {regimes.RIGHT[name]} chosen in {right} of {len(mine)} seeds, {share}")
        for way in mine[0].get("test", {}):
            hits = [row["test"][way] for row in mine]
            print(f"  {way:<13} {np.mean(hits):.3f}  ({min(hits):.3f} to {max(hits):.3f}) on test")
    ratios = np.array([row["seconds"] / row["estimated"] for row in rows])
    near = (abs(ratios - 1) <= 0.3).sum()
    print(
        f"\ntime / estimate: median {np.median(ratios):.2f}, {ratios.min():.2f} to "
        f"{ratios.max():.2f}; within 30 % in {near} of {len(ratios)} races"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--weights", help="where sources' weights are kept between calls")
    parser.add_argument("--out", help="file that a line of JSON is appended to for each race")
    parser.add_argument("--only-choice", action="store_true", help="train nothing but the race")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(arguments.seeds):
            for name in regimes.RIGHT:
                where = arguments.weights or temporary
                rows.append(raced(name, seed, where, arguments.only_choice))
                if arguments.out:
                    with Path(arguments.out).open("a", encoding="utf-8") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
