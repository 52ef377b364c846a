"""Peak memory of `headstart fit` with few and with many images: it should not grow with them.

The images are drawn, so no dataset is needed. The features do grow with the images (float32, one
row of the backbone's width per image), so the ratio is also printed without one copy of them.

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


def draw(rng, is_disc):
    """Draw a disc or a square on a random low-frequency pattern; all images differ."""
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pattern = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(pattern, dtype=np.int16) + rng.integers(-12, 13, (SIDE, SIDE, 3))
    y, x = np.mgrid[:SIDE, :SIDE] - rng.integers(30, SIDE - 30, (2, 1, 1))
    inside = np.hypot(x, y) < 22 if is_disc else np.maximum(abs(x), abs(y)) < 20
    pixels[inside] = rng.integers(0, 256, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_images(folder, n):
    rng = np.random.default_rng(0)
    for name in ("disc", "square"):
        (folder / name).mkdir(parents=True)
    for i in range(n):
        name = ("disc", "square")[i % 2]
        draw(rng, i % 2 == 0).save(folder / name / f"{i:06d}.jpg", quality=90)


def measure(folder, scratch):
    """Peak resident bytes of the process and its children, and its wall-clock seconds."""
    command = [HEADSTART, "fit", str(folder), "--offline", "--json"]
    command += ["--out", str(scratch / "runs" / "run")]
    started_at = time.perf_counter()
    with (scratch / "output").open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, env={**os.environ, "HEADSTART_CACHE": str(scratch / "cache")}
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with exit code {process.returncode}. Run it to see the "
            "error."
        )
    scale = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * scale, time.perf_counter() - started_at


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs=2, default=[2000, 20000])
    sizes = parser.parse_args().sizes
    peaks, features = [], []
    print("| images | peak MB | features MB | seconds |\n|---:|---:|---:|---:|")
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            write_images(scratch / "images", n)
            peak, seconds = measure(scratch / "images", scratch)
        peaks.append(peak / 1e6)
        features.append(n * WIDTH * 4 / 1e6)
        print(f"| {n} | {peaks[-1]:.0f} | {features[-1]:.0f} | {seconds:.0f} |", flush=True)
    rest = [peak - size for peak, size in zip(peaks, features, strict=True)]
    print(f"\nRatio {peaks[1] / peaks[0]:.2f}; without the features {rest[1] / rest[0]:.2f}.")


if __name__ == "__main__":
    main()
