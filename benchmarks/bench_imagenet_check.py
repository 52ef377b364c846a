"""Do the weights still know their own classes? Wrong preprocessing or padding costs 7-19 points.

Usage: python benchmarks/bench_imagenet_check.py [--data FOLDER]

FOLDER (default: $HEADSTART_BENCH_DATA) has ``imagenet_check/images/*.jpg``,
``imagenet_check/labels.csv`` (columns file, class_index) and, where there are any,
``weights/*.pth``. Prints one line for each set of weights: top-1 with a 95 % interval.
"""

import argparse
import csv
import os
from pathlib import Path

import numpy as np
import torch

from headstart.backbones.backbone import load, original_head
from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import constant
from headstart.backbones.weights import locate
from headstart.data.dataset import Sample
from headstart.data.loader import load_batch
from headstart.metrics.confidence_intervals import wilson_interval

FILES = {
    "resnet18_in1k_vq.pth": "@torchvision/resnet18",
    "mobilenetv2_100_same_in1k_deq.pth": "@timm/mobilenetv2_100?pad_type=same&mean=0.5&std=0.5",
}


def top1(name: str, samples: list[Sample], truth: np.ndarray) -> int:
    """Right answers of the weights' own classifier, through Headstart's pixels and backbone."""
    spec = resolve(name)
    backbone = constant(load(spec))
    head = original_head(spec, locate(spec))
    weight = next(tensor for key, tensor in head.items() if key.endswith("weight"))
    bias = next(tensor for key, tensor in head.items() if key.endswith("bias"))
    right = 0
    for start in range(0, len(samples), 20):
        rows = slice(start, start + 20)
        pixels = torch.from_numpy(load_batch(samples[rows], spec.preprocess)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            features = backbone.pooled(spec.preprocess.normalise(pixels))
            answers = (features @ weight.flatten(1).float().T + bias.float()).argmax(1).numpy()
        right += int((answers == truth[rows]).sum())
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("HEADSTART_BENCH_DATA"))
    folder = Path(parser.parse_args().data or parser.error("give --data or HEADSTART_BENCH_DATA"))
    with (folder / "imagenet_check" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    samples = [Sample(image=folder / "imagenet_check" / "images" / row["file"]) for row in rows]
    truth = np.asarray([int(row["class_index"]) for row in rows])
    weights = folder / "weights"
    found = [
        f"file:{weights / file}{rest}" for file, rest in FILES.items() if (weights / file).exists()
    ]
    print("| weights | top-1 right | share, 95 % interval |\n|---|---|---|")
    for name in ["embedded/efficientnet_lite0", *found]:
        right = top1(name, samples, truth)
        label = name.replace(f"{weights}/", "")
        print(f"| `{label}` | {right} of {len(rows)} | {wilson_interval(right, len(rows))} |")


if __name__ == "__main__":
    main()
