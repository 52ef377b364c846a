"""Detection on BCCD and segmentation on CamVid, by number of trained stages.

Rows: from scratch, a frozen backbone with and without the activation cache, training of the last
stage, training of all stages. All have the same training images, head, image size, epochs and
batch size. The val part selects the best epoch; the test part is used for the scores, and its
images are resampled for the intervals. Seconds are those of the training, including extraction
and the evaluation of every epoch, each with an empty cache. Learning rates: head 1e-3, backbone
1e-4 (from scratch 1e-3). A line of JSON is appended after each run, so a stopped benchmark
continues where it stopped.

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
METRICS = {
    "bccd": ("map", "map50"),
    "camvid": ("mean_iou", "pixel_accuracy"),
}
BACKBONE = "file:{data}/weights/resnet18_in1k_vq.pth@torchvision/resnet18"


def method_of(name, training, seed):
    """Return the method of a row of the table."""
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
    """Train and evaluate one row; return a dictionary for JSON."""
    folder, head, size, epochs = SETS[arguments.set]
    head, size = arguments.head or head, arguments.size or size
    training = Training(
        epochs=arguments.epochs or epochs, batch_size=arguments.batch_size, patience=99
    )
    with tempfile.TemporaryDirectory() as cache_folder:
        cache = Cache(Path(cache_folder))
        # Two images of BCCD are near duplicates in train and val; the test part has none.
        prepared = data_prepare.prepare(
            Path(arguments.data, folder), cache=cache, seed=0, allow_overlap=True
        )
        backbone_name = arguments.backbone.format(data=arguments.data)
        backbone = FrozenBackbone.open(backbone_name, offline=True)
        model = create_model(backbone, prepared.train, head=head, size=size, seed=seed)
        model.backbone.module  # noqa: B018 - build it before the time is measured
        extractor = Extractor(cache=cache, engine="fp32")
        started_at = time.perf_counter()
        method = method_of(name, training, seed)
        if name == "full":
            method = replace(method, activation_cache="auto")
        fitted = method.fit(model, prepared.train, prepared.val, extractor=extractor)
        seconds = time.perf_counter() - started_at
        evaluation = evaluate(fitted, prepared.test, extractor=extractor, seed=0)
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
        "metrics": {key: value.as_dict() for key, value in evaluation.metrics.items()},
        "val": [epoch["score"] for epoch in fitted.record["epochs"]],
    }


def print_table(lines, name_of_set):
    """Print the rows of one set."""
    first, second = METRICS[name_of_set]
    print(f"| {name_of_set} | {first} | {second} | best epoch | seconds |\n|---|---|---|---:|---:|")
    for name in ROWS:
        for line in lines:
            if (line["set"], line["name"]) == (name_of_set, name):
                scores = [
                    f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
                    for value in (line["metrics"][first], line["metrics"][second])
                ]
                label = name + (f", seed {line['seed']}" if line["seed"] else "")
                numbers = f"{line['best_epoch']} of {line['epochs']} | {line['seconds']:.0f}"
                print(f"| {label} | {' | '.join(scores)} | {numbers} |")


def main():
    """Run the missing rows, then print the table."""
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
        print("Skipped. Set HEADSTART_BENCH_DATA or pass DATA.")
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
    print_table(lines, arguments.set)


if __name__ == "__main__":
    main()
