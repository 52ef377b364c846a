"""Recipes of fine-tuning compared on small sets: a base recipe, and one change at a time.

Every recipe trains on the same images of a set, which the seed selects, and is scored on the same
test images, which select nothing. A line of JSON is appended after each run, so a stopped
benchmark continues where it stopped. Recipes without patience train on all images; those with
patience hold 15 % of them out. ``--table`` prints accuracies and the mean regret of each
recipe: the accuracy that it loses to the best recipe of the set and backbone.

    python benchmarks/recipes.py DATA --out recipes.jsonl [--until 22:15] [--only base,probe]
    python benchmarks/recipes.py --out recipes.jsonl --table

DATA (by default HEADSTART_BENCH_DATA) has the folders ``classification``, ``domain_adaptation``,
``fewshot``, ``ssl_kd_pruning`` and ``weights``. Runs are ordered by seed, then recipe, then set,
so that the first runs of a benchmark that ends early are the most important ones.
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import mean

from headstart.runtime import prepare

prepare()  # as the command line does, before torch is imported

import accelerate  # noqa: E402, F401 - imports of many seconds are not part of a training
import numpy as np  # noqa: E402
import torch._dynamo  # noqa: E402, F401 - as above: the first optimiser would

from headstart.backbones.frozen import FrozenBackbone  # noqa: E402
from headstart.cache import Cache  # noqa: E402
from headstart.data.demo.regimes import make  # noqa: E402
from headstart.data.images import digest  # noqa: E402
from headstart.data.readers import read_dataset  # noqa: E402
from headstart.data.splits import holdout  # noqa: E402
from headstart.data.transforms.augment import Augmentation  # noqa: E402
from headstart.features.extractor import Extractor  # noqa: E402
from headstart.methods.finetune import Finetune  # noqa: E402
from headstart.methods.linear_probe import LinearProbe  # noqa: E402
from headstart.models.build import create_model  # noqa: E402
from headstart.training.optim import Training  # noqa: E402

SETS = {
    "ants_bees": "classification/ants_bees",
    "chest_xray": "classification/chest_xray",
    "omniglot": "fewshot/omniglot_small/evaluation/Tagalog",
    "cifar10": "ssl_kd_pruning/cifar10_small",
    "webcam": "domain_adaptation/office_caltech10/webcam",
    "amazon": "domain_adaptation/office_caltech10/amazon",
    "mnist": "domain_adaptation/digits/mnist",
    "cats_dogs": "classification/cats_dogs",
    "drawn": "",
}
BACKBONES = {
    "lite0": "embedded/efficientnet_lite0",
    "resnet18": "file:{data}/weights/resnet18_in1k_vq.pth@torchvision/resnet18",
}
BASE = {
    "train_from": "all",
    "learning_rate": 3e-4,
    "pixels": 160,
    "augment": "light",
    "epochs": 8,
    "batch_norm": "frozen",
    "patience": 0,
}
"""All stages at 3e-4, images of 160 pixels, light augmentation, 8 epochs of a cosine schedule; the
last epoch is kept, and all images train."""

CHANGES = {
    "probe": None,
    "before": {
        "train_from": "conv_head|layer4",
        "learning_rate": 3e-5,
        "pixels": 224,
        "augment": "none",
        "epochs": 0,
        "patience": 5,
    },
    "last:1 before": {
        "train_from": "last:1",
        "learning_rate": 3e-5,
        "pixels": 224,
        "augment": "none",
        "epochs": 0,
        "patience": 5,
    },
    "last:1; 224 pixels": {"train_from": "last:1", "pixels": 224},
    "base": {},
    "best of epochs": {"patience": 1000},
    "no augmentation": {"augment": "none"},
    "last:1": {"train_from": "last:1"},
    "rate 1e-4": {"learning_rate": 1e-4},
    "rate 1e-3": {"learning_rate": 1e-3},
    "16 epochs": {"epochs": 16},
    "last:2": {"train_from": "last:2"},
    "BatchNorm train": {"batch_norm": "train"},
    "last:1, rate 1e-3": {"train_from": "last:1", "learning_rate": 1e-3},
    "224 pixels": {"pixels": 224},
    "decay 0.7": {"layer_decay": 0.7},
    "one-cycle": {"schedule": "one-cycle"},
    "ema": {"ema": 0.98},
    "medium": {"augment": "medium"},
    "start random": {"start": "random"},
}
"""Recipes by name, as changes of the base; None is the linear probe. ``before`` and
``last:1 before`` are defaults of earlier releases; "last:1; 224 pixels" is today's
``--method finetune``. "best of epochs" holds 15 % of the images out to choose one."""


def read_set(name, data_folder, seed, sizes):
    """Return the training and the test images: a class-stratified subset of each part."""
    if not SETS[name]:
        data = make("shifted", seed=0)
    else:
        data = read_dataset(Path(data_folder) / SETS[name])
        samples = tuple(replace(s, digest=digest(s.image.read_bytes())) for s in data.samples)
        data = replace(data, samples=samples)
    tests = [data.split_indices(part) for part in ("test", "val")]
    rows = next((rows for rows in tests if len(rows)), None)
    if rows is None:
        train_rows, rows = holdout(data.targets(), fraction=0.4, seed=0)
        train = data.subset(train_rows)
    else:
        train = data.split("train")
    return subset(train, sizes[0], seed), subset(data.subset(rows), sizes[1], 0)


def subset(data, n_images, seed):
    """Return about ``n_images`` images, as many of each class as its share."""
    if n_images >= len(data):
        return data
    _, rows = holdout(data.targets(), fraction=n_images / len(data), seed=seed)
    return data.subset(rows)


def open_backbone(name, pixels, data_folder):
    """Open a backbone that reads images of ``pixels`` pixels."""
    backbone = FrozenBackbone.open(BACKBONES[name].format(data=data_folder), offline=True)
    default = backbone.spec.preprocess
    resize = round(pixels * default.resize / default.crop)
    preprocess = replace(default, crop=pixels, resize=resize)
    return replace(backbone, spec=replace(backbone.spec, preprocess=preprocess))


def method_of(settings, backbone, seed):
    """Return the method of a recipe."""
    options = dict(settings)
    options.pop("pixels")
    names = [stage.name for stage in backbone.module.stages]
    stages = options["train_from"].split("|")
    options["train_from"] = next((name for name in stages if name in names), stages[0])
    training = {
        k: options.pop(k) for k in ("epochs", "patience", "schedule", "ema") if k in options
    }
    return Finetune(
        training=Training(**training),
        augmentation=Augmentation.named(options.pop("augment")),
        seed=seed,
        **options,
    )


def run(combination, arguments):
    """Train and test one combination; return a line of the file."""
    seed, change = combination["seed"], CHANGES[combination["recipe"]]
    sizes = arguments.train, arguments.test
    train, test = read_set(combination["set"], arguments.data, seed, sizes)
    settings = BASE | (change or {"pixels": 224})
    backbone = open_backbone(combination["backbone"], settings["pixels"], arguments.data)
    method = LinearProbe(seed=seed) if change is None else method_of(settings, backbone, seed)
    # With patience 0 the images of ``val`` choose nothing: they only calibrate the temperature.
    val = test.subset(range(16)) if change is not None and settings["patience"] == 0 else None
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        started_at = time.process_time()
        model = method.fit(create_model(backbone, train), train, val, extractor=extractor)
        seconds = time.process_time() - started_at
        features = extractor.features(model.backbone, test.samples).values
        correct = model.linear_head().logits(features).argmax(axis=1) == test.targets()
    return combination | {
        "n_train": len(train),
        "n_test": len(test),
        "accuracy": float(np.mean(correct)),
        "cpu_seconds": round(seconds, 1),
    }


def print_table(lines):
    """Print the accuracies by set and the mean regret over the sets that every row has."""
    cells = defaultdict(list)
    for line in lines:
        cells[line["recipe"], line["backbone"], line["set"]].append(line)
    for backbone in dict.fromkeys(line["backbone"] for line in lines):
        sets = [s for s in SETS if any(key[1:] == (backbone, s) for key in cells)]
        best = {
            s: max(
                mean(r["accuracy"] for r in v) for k, v in cells.items() if k[1:] == (backbone, s)
            )
            for s in sets
        }
        print(f"\n| {backbone} | {' | '.join(sets)} | regret | CPU seconds |")
        print("|---" * (len(sets) + 3) + "|")
        for recipe in CHANGES:
            rows = {s: cells.get((recipe, backbone, s)) for s in sets}
            found = {s: mean(r["accuracy"] for r in v) for s, v in rows.items() if v}
            if not found:
                continue
            regret = mean(best[s] - value for s, value in found.items())
            seconds = mean(r["cpu_seconds"] for v in rows.values() if v for r in v)
            texts = [f"{found[s]:.3f}" if s in found else "" for s in sets]
            note = "" if len(found) == len(sets) else f" ({len(found)} sets)"
            print(f"| {recipe} | {' | '.join(texts)} | {regret:.3f}{note} | {seconds:.0f} |")


def main():
    """Run what is missing, or print the table."""
    out = Path(ARGUMENTS.out)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if ARGUMENTS.table:
        print_table(lines)
        return
    axes = ("seed", "backbone", "recipe", "set")
    done = {tuple(line[axis] for axis in axes) for line in lines}
    recipes = ARGUMENTS.only.split(",") if ARGUMENTS.only else list(CHANGES)
    for seed in range(ARGUMENTS.seeds):
        for backbone in ARGUMENTS.backbones.split(","):
            for recipe in recipes:
                for name in ARGUMENTS.sets.split(","):
                    combination = dict(zip(axes, (seed, backbone, recipe, name), strict=True))
                    if tuple(combination.values()) in done:
                        continue
                    if ARGUMENTS.until and f"{datetime.now():%H:%M}" >= ARGUMENTS.until:
                        return
                    line = json.dumps(run(combination, ARGUMENTS))
                    print(line, flush=True)
                    with out.open("a", encoding="utf-8") as file:
                        file.write(line + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default=os.environ.get("HEADSTART_BENCH_DATA", ""))
    parser.add_argument("--out", default="recipes.jsonl")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--backbones", default="lite0")
    parser.add_argument("--only", help="names of recipes, with commas")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--train", type=int, default=160, help="training images of a set")
    parser.add_argument("--test", type=int, default=150, help="test images of a set")
    parser.add_argument("--until", help="begin no run after this time of day, such as 22:15")
    parser.add_argument("--table", action="store_true", help="print the table of --out")
    ARGUMENTS = parser.parse_args()
    main()
