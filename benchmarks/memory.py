"""Peak memory of `headstart fit` for few and for many images: it must not grow with them.

Small images are drawn for it, so no data are needed. What does grow are the features (float32,
as many as the backbone is wide), so the ratio is also told with one copy of them put aside.

    python benchmarks/memory.py [--sizes 2000 20000]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

HEADSTART = str(Path(sys.executable).with_name("headstart"))
WIDTH = 1280  # of embedded/efficientnet_lite0
SIDE = 96


def draw(rng, round_one):
    """A random low-frequency pattern (so that no two are alike) with a disc or a square."""
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pattern = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(pattern, dtype=np.int16) + rng.integers(-12, 13, (SIDE, SIDE, 3))
    y, x = np.mgrid[:SIDE, :SIDE] - rng.integers(30, SIDE - 30, (2, 1, 1))
    inside = np.hypot(x, y) < 22 if round_one else np.maximum(abs(x), abs(y)) < 20
    pixels[inside] = rng.integers(0, 256, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write(folder, n):
    rng = np.random.default_rng(0)
    for name in ("disc", "square"):
        (folder / name).mkdir(parents=True)
    for i in range(n):
        name = ("disc", "square")[i % 2]
        draw(rng, i % 2 == 0).save(folder / name / f"{i:06d}.jpg", quality=90)


def peak(folder, scratch):
    """Peak resident bytes of the process and of whatever it starts, and its wall seconds."""
    command = [HEADSTART, "fit", str(folder), "--offline", "--json"]
    command += ["--out", str(scratch / "runs" / "run")]
    begin = time.perf_counter()
    with (scratch / "output").open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, env={**os.environ, "HEADSTART_CACHE": str(scratch / "cache")}
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
    scale = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * scale, time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs=2, default=[2000, 20000])
    sizes = parser.parse_args().sizes
    peaks, features = [], []
    print("| images | peak MB | features MB | seconds |\n|---:|---:|---:|---:|")
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            write(scratch / "images", n)
            used, seconds = peak(scratch / "images", scratch)
        peaks.append(used / 1e6)
        features.append(n * WIDTH * 4 / 1e6)
        print(f"| {n} | {peaks[-1]:.0f} | {features[-1]:.0f} | {seconds:.0f} |", flush=True)
    aside = [p - f for p, f in zip(peaks, features, strict=True)]
    print(f"\nRatio {peaks[1] / peaks[0]:.2f}; with the features aside {aside[1] / aside[0]:.2f}.")


if __name__ == "__main__":
    main()
