"""Speed of feature extraction, compared with the bare forward pass of the same backbone.

Bare: normalised pixels in memory, in the engine's precision and channels_last; the faster of one
stream with all threads and one single-threaded stream per core. Extraction: JPEG files in the
page cache, an empty feature cache and everything that a run does per image; printed with and
without the time to build the engine, which does not depend on the number of images. Both run in
turns.

    python benchmarks/extraction.py [FOLDER] [--backbone NAME] [--engine auto] [--images 512]

FOLDER contains images at any depth; by default HEADSTART_BENCH_DATA.
"""

import argparse
import copy
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from headstart.runtime import cores, device, prepare

prepare()  # as the command line does, before torch is imported

import torch  # noqa: E402

from headstart.backbones.frozen import FrozenBackbone  # noqa: E402
from headstart.cache import Cache  # noqa: E402
from headstart.data.dataset import Sample  # noqa: E402
from headstart.data.images import digest  # noqa: E402
from headstart.data.loader import load_batch  # noqa: E402
from headstart.data.readers import list_images  # noqa: E402
from headstart.features.engines import compile_engine  # noqa: E402
from headstart.features.extractor import Extractor  # noqa: E402

BATCHES = (4, 16)
"""Batch sizes of the bare forward pass; the fastest counts."""


def bare_forward(backbone, engine, pixels):
    """Return a function of a batch's number that runs only the backbone on it."""
    # Other engines take pixels: there the call itself, which normalises them, is the minimum.
    if engine.startswith("openvino") or device() != "cpu":
        forward = compile_engine(backbone.module, engine, device=device()).forward
        return lambda i: forward(pixels[i % len(pixels)])
    dtype = torch.bfloat16 if engine == "bf16" else torch.float32
    module = copy.deepcopy(backbone.module).to(dtype=dtype, memory_format=torch.channels_last)
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.float()
    batches = [
        backbone.spec.preprocess.normalise(torch.from_numpy(batch).permute(0, 3, 1, 2))
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
        for batch in pixels
    ]

    def forward(i):
        with torch.inference_mode():
            return module.pooled(batches[i % len(batches)])

    return forward


def all_threads(forward, n, batch):
    torch.set_num_threads(cores())
    started_at = time.perf_counter()
    for i in range(n):
        forward(i)
    return n * batch / (time.perf_counter() - started_at)


def stream_per_core(forward, n, batch):
    with ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(forward, range(2 * cores())))  # start the threads and make their first call
        started_at = time.perf_counter()
        list(pool.map(forward, range(n)))
        return n * batch / (time.perf_counter() - started_at)


def extraction(backbone, engine, samples):
    """Images per second in total, and from the first batch on (without building the engine)."""
    times = []
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        extractor = Extractor(
            cache=cache,
            engine=engine,
            progress=lambda step, done, total: times.append((time.perf_counter(), done)),
        )
        features = extractor.features(backbone, samples)
    (started_at, first), (ended_at, last) = times[0], times[-1]
    return features.computed / features.seconds, (last - first) / (ended_at - started_at)


BARE = {"bare, all threads": all_threads, "bare, a stream per core": stream_per_core}
STEADY, TOTAL = "extraction, from the first batch on", "extraction, with building the engine"


def choose_engine(backbone, samples):
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        choice, _ = Extractor(cache=cache).plan_extraction(backbone, samples)
    print(f"Engine: {choice.describe()}")
    return choice.engine


def measure(arguments):
    paths = list_images(arguments.folder)[: arguments.images // 16 * 16]
    samples = [Sample(image=path, digest=digest(path.read_bytes())) for path in paths]
    backbone = FrozenBackbone.open(arguments.backbone, offline=True)
    engine = choose_engine(backbone, samples) if arguments.engine == "auto" else arguments.engine
    loaded = [
        load_batch(samples[start : start + 16], backbone.spec.preprocess)
        for start in range(0, 256, 16)
    ]
    sides = {}
    for batch in BATCHES:
        batches = [
            pixels[start : start + batch]
            for pixels in loaded
            for start in range(0, len(pixels), batch)
        ]
        forward = bare_forward(backbone, engine, batches)
        all_threads(forward, 2, batch)
        for name, side in BARE.items():
            sides[f"{name}, batches of {batch}"] = (side, forward, len(samples) // batch, batch)
    rates = {name: [] for name in (*sides, STEADY, TOTAL)}
    for _ in range(arguments.rounds):
        for name, (side, *arguments_of_side) in sides.items():
            rates[name].append(side(*arguments_of_side))
        total, steady = extraction(backbone, engine, samples)
        rates[STEADY].append(steady)
        rates[TOTAL].append(total)
    return engine, len(samples), rates


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("HEADSTART_BENCH_DATA"))
    parser.add_argument("--backbone", default="embedded/efficientnet_lite0")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not arguments.folder:
        print("Skipped. Set HEADSTART_BENCH_DATA or pass FOLDER.")
        return
    engine, n, rates = measure(arguments)
    print(f"{arguments.backbone}, {engine}, {n} images, {cores()} cores\n")
    print("| | images/s | median |\n|---|---|---:|")
    for name, values in rates.items():
        print(f"| {name} | {', '.join(f'{rate:.1f}' for rate in values)} | {median(values):.1f} |")
    middle = {name: median(values) for name, values in rates.items()}
    bare = max(rate for name, rate in middle.items() if name.startswith("bare"))
    shares = f"{middle[STEADY] / bare:.1%} ({middle[TOTAL] / bare:.1%} with building the engine)"
    print(f"\nExtraction reaches {shares} of the fastest bare forward pass.")


if __name__ == "__main__":
    main()
