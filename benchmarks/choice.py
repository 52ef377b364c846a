"""The race's choice beside the best found by trying everything, on folders of real images.

For every set: each backbone with a linear probe at three depths, with its last stage and with all
stages fine-tuned (the rate chosen on images held out of the training part), each trained whole
and judged on the test part; and the race, which sees the training part alone, with what its choice
reaches on the same test images. Every training begins with an empty cache; subsets are by class,
from a fixed seed.

    python benchmarks/choice.py FOLDER... --backbones a,b,c,random:d [--train 150] [--test 200]

``random:NAME`` is a network with random weights, as a control.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from headstart.runtime import prepare as prepare_machine

prepare_machine()  # as the command line does, before torch is imported

import numpy as np  # noqa: E402

from headstart.backbones.catalog import resolve  # noqa: E402
from headstart.backbones.frozen import FrozenBackbone  # noqa: E402
from headstart.cache import Cache  # noqa: E402
from headstart.data.prepare import prepare  # noqa: E402
from headstart.data.readers import read_dataset  # noqa: E402
from headstart.data.splits import nested_fractions  # noqa: E402
from headstart.features.extractor import Extractor  # noqa: E402
from headstart.methods.linear_probe import LinearProbe  # noqa: E402
from headstart.methods.pretraining import random_like  # noqa: E402
from headstart.metrics.confidence_intervals import paired_proportion_difference, proportion_interval  # noqa: E402
from headstart.selection.candidates import Candidate, depths, probe_of, raced, trainings  # noqa: E402
from headstart.selection.race import decide  # noqa: E402


def opened(name):
    """A backbone by name, or one with random weights."""
    if name.startswith("random:"):
        return random_like(resolve(name.removeprefix("random:")))
    return FrozenBackbone.open(name, offline=True)


def some(data, wanted):
    """A stratified subset of about so many images."""
    if wanted >= len(data):
        return data
    share = wanted / len(data)
    return data.subset(nested_fractions(data.targets(), (share,), blocks=data.groups())[share])


def tried(contender, train, test):
    """Which test images are answered right after training on all others, and the seconds."""
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        extractor = Extractor(cache=cache, engine="fp32")
        begin = time.perf_counter()
        if isinstance(contender.method, LinearProbe):
            from headstart.models.build import create_model

            model = contender.method.fit(
                create_model(contender.backbone, train), train, extractor=extractor
            )
            features = extractor.features(contender.backbone, test.samples).values
            logits = model.linear_head().logits(features)
        else:
            logits, _ = raced(contender, train, None, test, extractor=extractor)
        return logits.argmax(axis=1) == test.targets(), time.perf_counter() - begin


def measured(folder, names, sizes):
    """Every way on one set, and the race."""
    with tempfile.TemporaryDirectory() as where, Cache(Path(where)) as cache:
        prepared = prepare(read_dataset(folder), cache=cache, allow_overlap=True)
    train, test = some(prepared.train, sizes[0]), some(prepared.test, sizes[1])
    yield {"set": Path(folder).name, "train": len(train), "test": len(test)}
    backbones = {name: opened(name) for name in names}
    right = {}
    for name, backbone in backbones.items():
        shown = name.rpartition("/")[2]
        ways = [(f"probe {end or 'whole'}", probe_of(backbone, end, 0)) for end in depths(backbone)]
        (last,), (whole, *_) = trainings(backbone, 0, hopeless=False)
        ways += [] if name.startswith("random:") else [("fine-tuning last stage", last)]
        ways += [("fine-tuning all stages", whole)]
        for way, contender in ways:
            right[shown, way], seconds = tried(contender, train, test)
            yield {
                "set": Path(folder).name,
                "backbone": shown,
                "way": way,
                "seconds": round(seconds, 1),
                "accuracy": proportion_interval(right[shown, way]).as_dict(),
            }
    yield race(Path(folder).name, backbones, train, test, right)


def race(name, backbones, train, test, right):
    """The choice, what it reaches, and how far that is from the best of all."""
    with tempfile.TemporaryDirectory() as where, Cache(Path(where)) as cache:
        begin = time.perf_counter()
        extractor = Extractor(cache=cache, engine="fp32")
        found = decide(
            list(backbones.values()), train, extractor=extractor, budget=ARGUMENTS.budget
        )
        seconds = time.perf_counter() - begin
    chosen = Candidate(
        name="chosen", backbone=found.backbone, whole=found.backbone, method=found.method
    )
    hits, training = tried(chosen, train, test)
    best = max(right, key=lambda way: right[way].mean())
    behind = paired_proportion_difference(hits, right[best])
    return {
        "set": name,
        "way": "race",
        "chosen": next(r["name"] for r in found.record["rows"] if r["state"] == "chosen"),
        "seconds": round(seconds, 1),
        "estimated": round(found.record["estimated"], 1),
        "training": round(training, 1),
        "accuracy": proportion_interval(hits).as_dict(),
        "best": " ".join(best),
        "best_accuracy": float(np.mean(right[best])),
        "against_best": behind.interval.as_dict(),
        "told_apart": behind.distinguishable,
        "why": found.record["why"],
    }


def main():
    for folder in ARGUMENTS.folders:
        for row in measured(
            folder, ARGUMENTS.backbones.split(","), (ARGUMENTS.train, ARGUMENTS.test)
        ):
            line = json.dumps(row)
            print(line, flush=True)
            if ARGUMENTS.out:
                with Path(ARGUMENTS.out).open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", default=["demo:symbols"])
    parser.add_argument("--backbones", default="embedded/efficientnet_lite0")
    parser.add_argument("--train", type=int, default=150)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--budget", type=float, default=300.0)
    parser.add_argument("--out", help="file that a line of JSON is appended to for each training")
    ARGUMENTS = parser.parse_args()
    main()
