"""CPU seconds of feature extraction in torch's float32 and in another engine, in turns.

    python benchmarks/engines.py [FOLDER] --engine openvino --images 300 --rounds 5

CPU seconds of this process count decoding, preprocessing and the network, and depend less on other
work on the machine than wall time. Prints the median ratio and its range, the seconds of the
conversion, and the largest relative distance of an image's features from float32.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Sample
from headstart.data.images import digest
from headstart.data.readers import list_images
from headstart.features.engines import compile_engine
from headstart.features.extractor import Extractor


def extract(backbone, samples, engine, cache):
    """CPU seconds and features; features of earlier rounds are removed first."""
    cache.clear("features")
    started_at = time.process_time()
    values = Extractor(cache=cache, engine=engine, device="cpu").features(backbone, samples).values
    return time.process_time() - started_at, values


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("HEADSTART_BENCH_DATA"))
    parser.add_argument("--backbone", default="embedded/efficientnet_lite0")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not arguments.folder:
        print("Skipped. Set HEADSTART_BENCH_DATA or pass FOLDER.")
        return
    paths = list_images(arguments.folder)[: arguments.images]
    samples = [Sample(image=path, digest=digest(path.read_bytes())) for path in paths]
    backbone = FrozenBackbone.open(arguments.backbone, offline=True)
    network = backbone.module
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        seconds = []
        for _ in range(2):  # the first converts the network, the second reads the graph
            started_at = time.process_time()
            compile_engine(network, arguments.engine, device="cpu", cache=cache)
            seconds.append(time.process_time() - started_at)
        print(f"building the engine: {seconds[0]:.2f} CPU s, then {seconds[1]:.2f}")
        ratios = []
        for number in range(arguments.rounds):
            exact, expected = extract(backbone, samples, "fp32", cache)
            quick, values = extract(backbone, samples, arguments.engine, cache)
            ratios.append(exact / quick)
            print(f"round {number}: fp32 {exact:.2f}, {arguments.engine} {quick:.2f} CPU s")
        distances = np.linalg.norm(values - expected, axis=1) / np.linalg.norm(expected, axis=1)
    print(
        f"{len(samples)} images: {statistics.median(ratios):.2f} times as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f}); largest distance {distances.max():.1e}"
    )


if __name__ == "__main__":
    main()
