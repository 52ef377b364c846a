"""ImageNet accuracy of the weights' own classifiers; wrong preprocessing costs 7-19 points.

Usage: python benchmarks/imagenet_check.py [--data FOLDER]

FOLDER (default: $HEADSTART_BENCH_DATA) has ``imagenet_check/images/*.jpg``,
``imagenet_check/labels.csv`` (columns file, class_index) and, optionally, ``weights/*.pth``.
Prints one line for each set of weights: top-1 accuracy with a 95 % confidence interval.
"""

import argparse
import csv
import os
from pathlib import Path

import numpy as np
import torch

from headstart.backbones.backbone import load, original_head
from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import freeze
from headstart.backbones.weights import locate
from headstart.data.dataset import Sample
from headstart.data.loader import load_batch
from headstart.metrics.confidence_intervals import wilson_interval

FILES = {
    "resnet18_in1k_vq.pth": "@torchvision/resnet18",
    "mobilenetv2_100_same_in1k_deq.pth": "@timm/mobilenetv2_100?pad_type=same&mean=0.5&std=0.5",
}


def count_correct(name: str, samples: list[Sample], targets: np.ndarray) -> int:
    """Correct predictions of the weights' own classifier, with Headstart's preprocessing."""
    spec = resolve(name)
    backbone = freeze(load(spec))
    head = original_head(spec, locate(spec))
    weight = next(tensor for key, tensor in head.items() if key.endswith("weight"))
    bias = next(tensor for key, tensor in head.items() if key.endswith("bias"))
    correct = 0
    for start in range(0, len(samples), 20):
        rows = slice(start, start + 20)
        pixels = torch.from_numpy(load_batch(samples[rows], spec.preprocess)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            features = backbone.pooled(spec.preprocess.normalise(pixels))
            predictions = (features @ weight.flatten(1).float().T + bias.float()).argmax(1).numpy()
        correct += int((predictions == targets[rows]).sum())
    return correct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("HEADSTART_BENCH_DATA"))
    folder = Path(
        parser.parse_args().data or parser.error("Pass --data FOLDER or set HEADSTART_BENCH_DATA.")
    )
    with (folder / "imagenet_check" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    samples = [Sample(image=folder / "imagenet_check" / "images" / row["file"]) for row in rows]
    targets = np.asarray([int(row["class_index"]) for row in rows])
    weights = folder / "weights"
    file_names = [
        f"file:{weights / file}{architecture}"
        for file, architecture in FILES.items()
        if (weights / file).exists()
    ]
    print("| weights | top-1 correct | share, 95 % interval |\n|---|---|---|")
    for name in ["embedded/efficientnet_lite0", *file_names]:
        correct = count_correct(name, samples, targets)
        label = name.replace(f"{weights}/", "")
        print(f"| `{label}` | {correct} of {len(rows)} | {wilson_interval(correct, len(rows))} |")


if __name__ == "__main__":
    main()
