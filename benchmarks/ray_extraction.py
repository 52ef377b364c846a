"""Feature extraction in the workers of a local Ray against the same in one process.

Both sides compute the features of the same images with an empty cache, in turns. Printed are the
seconds of the start and of each round, the images per second of both sides with their ratio, and
from how many images on the start is less than a tenth of the time. The features must be equal.

    python benchmarks/ray_extraction.py FOLDER [--rounds 3] [--images 1000]
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

import headstart
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Sample
from headstart.distributed.ray import cluster
from headstart.features.extractor import Extractor

NAME = "embedded/efficientnet_lite0"


def extract(backbone: FrozenBackbone, samples: list[Sample]) -> tuple[float, NDArray[np.float32]]:
    """Compute the features with an empty cache; return the seconds and the values."""
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        started_at = time.perf_counter()
        values = Extractor(cache=cache, engine="openvino").features(backbone, samples).values
        return time.perf_counter() - started_at, values


def main(arguments: argparse.Namespace) -> None:
    data = headstart.read_dataset(str(arguments.folder), labels_required=False)
    samples = list(data.samples[: arguments.images])
    backbone = FrozenBackbone.open(NAME, offline=True)
    extract(backbone, samples[:64])  # loads libraries
    here, there = [], []
    started_at = time.perf_counter()
    with cluster("ray"):
        extract(backbone, samples[:256])  # each worker loads libraries and compiles
        start = time.perf_counter() - started_at
        for number in range(arguments.rounds):
            seconds, expected = extract(backbone, samples)
            here.append(seconds)
            seconds, values = extract(backbone, samples)
            there.append(seconds)
            assert np.array_equal(values, expected), "the features differ"
            print(f"round {number + 1}: one process {here[-1]:.1f} s, Ray {there[-1]:.1f} s")
    ratios = [one / two for one, two in zip(here, there, strict=True)]
    rate = len(samples) / median(there)
    print(f"{len(samples)} images, start of Ray and its workers {start:.1f} s")
    print(f"one process {len(samples) / median(here):.0f} images/s, Ray {rate:.0f} images/s")
    print(f"ratio {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    print(f"the start is a tenth of the time from {9 * start * rate:.0f} images on")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    main(parser.parse_args())
