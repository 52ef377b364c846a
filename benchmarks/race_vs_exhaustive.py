"""The choice of the race compared with the best of all combinations, on folders of images.

For every set, each backbone is combined with a linear probe at three depths and with fine-tuning
of the last resolution and of all stages (the learning rate is selected on images held out of the
training part). Each combination is trained on the complete training part and scored on the test
part. The race uses only the training part; its choice is scored on the same test images. Every
training starts with an empty cache. Subsets are stratified, with a fixed seed.

    python benchmarks/race_vs_exhaustive.py FOLDER... --backbones a,b,c,random:d
                                            [--train 150] [--test 200]

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
from headstart.selection.candidates import (  # noqa: E402
    Candidate,
    probe_candidate,
    probe_depths,
    train_and_predict,
    training_candidates,
)
from headstart.selection.race import decide  # noqa: E402


def open_backbone(name):
    """Open a backbone by name, or one with random weights."""
    if name.startswith("random:"):
        return random_like(resolve(name.removeprefix("random:")))
    return FrozenBackbone.open(name, offline=True)


def stratified_subset(data, n_images):
    """Return a stratified subset of about ``n_images`` images."""
    if n_images >= len(data):
        return data
    share = n_images / len(data)
    return data.subset(nested_fractions(data.targets(), (share,), blocks=data.groups())[share])


def train_and_test(candidate, train, test):
    """Train one candidate; return which test images are correct, and the seconds."""
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        extractor = Extractor(cache=cache, engine="fp32")
        started_at = time.perf_counter()
        if isinstance(candidate.method, LinearProbe):
            from headstart.models.build import create_model

            model = candidate.method.fit(
                create_model(candidate.backbone, train), train, extractor=extractor
            )
            features = extractor.features(candidate.backbone, test.samples).values
            logits = model.linear_head().logits(features)
        else:
            logits, _ = train_and_predict(candidate, train, None, test, extractor=extractor)
        return logits.argmax(axis=1) == test.targets(), time.perf_counter() - started_at


def run_set(folder, names, sizes):
    """Yield the result of every combination on one set, then that of the race."""
    with tempfile.TemporaryDirectory() as cache_folder, Cache(Path(cache_folder)) as cache:
        prepared = prepare(read_dataset(folder), cache=cache, allow_overlap=True)
    train = stratified_subset(prepared.train, sizes[0])
    test = stratified_subset(prepared.test, sizes[1])
    yield {"set": Path(folder).name, "train": len(train), "test": len(test)}
    backbones = {name: open_backbone(name) for name in names}
    correct = {}
    for name, backbone in backbones.items():
        label = name.rpartition("/")[2]
        candidates = [
            (f"probe {end or 'full'}", probe_candidate(backbone, end, 0))
            for end in probe_depths(backbone)
        ]
        (last_resolution,), (all_stages, *_) = training_candidates(
            backbone, 0, include_scratch=False
        )
        if not name.startswith("random:"):
            candidates += [(last_resolution.name, last_resolution)]
        candidates += [(all_stages.name, all_stages)]
        for way, candidate in candidates:
            correct[label, way], seconds = train_and_test(candidate, train, test)
            yield {
                "set": Path(folder).name,
                "backbone": label,
                "way": way,
                "seconds": round(seconds, 1),
                "accuracy": proportion_interval(correct[label, way]).as_dict(),
            }
    yield run_race(Path(folder).name, backbones, train, test, correct)


def run_race(name, backbones, train, test, correct):
    """Run the race; return its choice, the accuracy and the difference from the best."""
    with tempfile.TemporaryDirectory() as cache_folder, Cache(Path(cache_folder)) as cache:
        started_at = time.perf_counter()
        extractor = Extractor(cache=cache, engine="fp32")
        decision = decide(
            list(backbones.values()), train, extractor=extractor, budget=ARGUMENTS.budget
        )
        seconds = time.perf_counter() - started_at
    chosen = Candidate(
        name="chosen",
        backbone=decision.backbone,
        full_backbone=decision.backbone,
        method=decision.method,
    )
    hits, training = train_and_test(chosen, train, test)
    best = max(correct, key=lambda combination: correct[combination].mean())
    difference = paired_proportion_difference(hits, correct[best])
    return {
        "set": name,
        "way": "race",
        "chosen": next(row["name"] for row in decision.record["rows"] if row["state"] == "chosen"),
        "seconds": round(seconds, 1),
        "estimated": round(decision.record["estimated"], 1),
        "training": round(training, 1),
        "accuracy": proportion_interval(hits).as_dict(),
        "best": " ".join(best),
        "best_accuracy": float(np.mean(correct[best])),
        "against_best": difference.interval.as_dict(),
        "significant": difference.significant,
        "why": decision.record["why"],
    }


def main():
    for folder in ARGUMENTS.folders:
        for row in run_set(
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
    parser.add_argument("--out", help="append a line of JSON for each training to this file")
    ARGUMENTS = parser.parse_args()
    main()
