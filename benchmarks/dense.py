"""Boxes on BCCD and masks on CamVid: how much of a pretrained network should learn.

Rows: from scratch, a frozen backbone with and without the activation cache, its last stage,
the whole. All learn from the same images with the same head, image size, epochs and batch size,
stop on the data's val part (the best epoch is kept) and are judged on its test part, whose images
are resampled for the intervals. Seconds are those of the training, extraction and judging of every
epoch included, each with an empty cache; head rates 1e-3, backbone 1e-4 (scratch 1e-3). A line of
JSON is appended for each run, so a run that was stopped goes on where it was.

    python benchmarks/dense.py bccd DATA [--head fcos] [--size 320] [--epochs 20] [--out runs.jsonl]
    python benchmarks/dense.py camvid DATA [--head deeplabv3plus] [--size 256]

DATA (by default HEADSTART_BENCH_DATA) has ``detection/bccd_voc``, ``segmentation/camvid`` and
``weights/resnet18_in1k_vq.pth``.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from headstart.runtime import prepare

prepare()  # as the command line does, before torch is imported

import accelerate  # noqa: E402, F401 - imports of many seconds are not part of a training
import torch._dynamo  # noqa: E402, F401 - as above: the first optimiser would

from headstart.backbones.frozen import FrozenBackbone  # noqa: E402
from headstart.cache import Cache  # noqa: E402
from headstart.data import prepare as data_prepare  # noqa: E402
from headstart.evaluation.classification import evaluate  # noqa: E402
from headstart.features.extractor import Extractor  # noqa: E402
from headstart.methods.finetune import Finetune  # noqa: E402
from headstart.methods.scratch import Scratch  # noqa: E402
from headstart.models.build import create_model  # noqa: E402
from headstart.training.optim import Training  # noqa: E402

SETS = {
    "bccd": ("detection/bccd_voc", "faster-rcnn?channels=64", 256, 16),
    "camvid": ("segmentation/camvid", "deeplabv3plus", 256, 12),
}
SHOWN = {
    "bccd": ("map", "map50"),
    "camvid": ("mean_iou", "pixel_accuracy"),
}
BACKBONE = "file:{data}/weights/resnet18_in1k_vq.pth@torchvision/resnet18"


def method_of(name, training, seed):
    """What each row of the table means."""
    if name == "scratch":
        return Scratch(training=training, learning_rate=1e-3, seed=seed)
    train_from = {"last stage": "last:1", "full": "all"}.get(name, "head")
    return Finetune(
        train_from=train_from,
        activation_cache="off" if name == "frozen, uncached" else "on",
        training=training,
        seed=seed,
    )


ROWS = ("frozen, cached", "frozen, uncached", "last stage", "full", "scratch")


def run(name, arguments, seed):
    """Train and judge one row; numbers as plain values."""
    folder, head, size, epochs = SETS[arguments.set]
    head, size = arguments.head or head, arguments.size or size
    training = Training(
        epochs=arguments.epochs or epochs, batch_size=arguments.batch_size, patience=99
    )
    with tempfile.TemporaryDirectory() as kept:
        cache = Cache(Path(kept))
        # Two images of BCCD are nearly the same in train and val; the test part is clean.
        found = data_prepare.prepare(
            Path(arguments.data, folder), cache=cache, seed=0, allow_overlap=True
        )
        module = arguments.backbone.format(data=arguments.data)
        backbone = FrozenBackbone.open(module, offline=True)
        model = create_model(backbone, found.train, head=head, size=size, seed=seed)
        model.backbone.module  # noqa: B018 - built before the clock runs
        extractor = Extractor(cache=cache, engine="fp32")
        begin = time.perf_counter()
        method = method_of(name, training, seed)
        if name == "full":
            method = replace(method, activation_cache="auto")
        fitted = method.fit(model, found.train, found.val, extractor=extractor)
        seconds = time.perf_counter() - begin
        judged = evaluate(fitted, found.test, extractor=extractor, seed=0)
    return {
        "set": arguments.set,
        "name": name,
        "seed": seed,
        "head": head,
        "canvas": list(model.backbone.spec.preprocess.shape),
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "backbone": arguments.backbone.partition("@")[2] or arguments.backbone,
        "seconds": seconds,
        "best_epoch": fitted.record["best_epoch"],
        "metrics": {key: value.as_dict() for key, value in judged.metrics.items()},
        "val": [epoch["score"] for epoch in fitted.record["epochs"]],
    }


def table(lines, which):
    """Print the rows of one set."""
    first, second = SHOWN[which]
    print(f"| {which} | {first} | {second} | best epoch | seconds |\n|---|---|---|---:|---:|")
    for name in ROWS:
        for line in lines:
            if (line["set"], line["name"]) == (which, name):
                shown = [
                    f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
                    for value in (line["metrics"][first], line["metrics"][second])
                ]
                label = name + (f", seed {line['seed']}" if line["seed"] else "")
                numbers = f"{line['best_epoch']} of {line['epochs']} | {line['seconds']:.0f}"
                print(f"| {label} | {' | '.join(shown)} | {numbers} |")


def main():
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", nargs="?", choices=SETS, default="bccd")
    parser.add_argument("data", nargs="?", default=os.environ.get("HEADSTART_BENCH_DATA"))
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--head", default="")
    parser.add_argument("--size", type=int, default=0, help="longer side, pixels")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", action="append", choices=ROWS)
    parser.add_argument("--out", default="dense.jsonl")
    arguments = parser.parse_args()
    if not arguments.data:
        print("Skipped: set HEADSTART_BENCH_DATA.")
        return
    out = Path(arguments.out)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(line["set"], line["name"], line["seed"]) for line in lines}
    for seed in range(arguments.seeds):
        for name in arguments.only or ROWS:
            if (arguments.set, name, seed) in done:
                continue
            lines.append(run(name, arguments, seed))
            with out.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(f"{name}/{seed}: {lines[-1]['seconds']:.0f} s", flush=True)
    table(lines, arguments.set)


if __name__ == "__main__":
    main()
