"""`headstart fit` beside the recipe of the field: same images, split, backbone and machine.

Cold (nothing kept), the recipe, cold again, then three times warm; seconds are wall time of
whole processes, scan, checks, cross-validation and report included.

    python benchmarks/main_job.py [FOLDER] [--weights resnet18.pth]

FOLDER holds one folder a class; by default HEADSTART_BENCH_DATA. The weights are those of
torchvision's ResNet-18; by default HEADSTART_BENCH_WEIGHTS.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from headstart.metrics.confidence_intervals import wilson_interval

HEADSTART = str(Path(sys.executable).with_name("headstart"))


def timed(command, **environment):
    """Wall seconds of a process, and the JSON it prints."""
    begin = time.perf_counter()
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, **environment}
    )
    return time.perf_counter() - begin, json.loads(done.stdout)


def fit(arguments, scratch, cache):
    backbone = f"file:{arguments.weights}@torchvision/resnet18"
    command = [HEADSTART, "fit", arguments.folder, "--backbone", backbone, "--offline", "--json"]
    command += ["--out", str(scratch / "runs" / "run"), *arguments.option]
    return timed(command, HEADSTART_CACHE=str(cache))


def seed_recipe(arguments, run):
    script = str(Path(__file__).with_name("seed_recipe.py"))
    command = [sys.executable, script, arguments.folder, "--weights", arguments.weights]
    command += ["--epochs", str(arguments.epochs)]
    command += ["--held-out", str(Path(run["folder"]) / "predictions.csv")]
    return timed(command)


def table(recipe, cold, warm):
    """Markdown: a row for each side; the ratio is that of the recipe to the median."""
    slow, reached = recipe
    n = reached["held_out"]
    rows = [(f"recipe, {len(reached['accuracies'])} epochs", [slow])]
    rows += [("headstart fit, cold", [s for s, _ in cold]), ("warm", [s for s, _ in warm])]
    accuracy = cold[0][1]["metrics"]["accuracy"]
    ours = f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
    theirs = str(wilson_interval(round(reached["accuracy"] * n), n))
    lines = [
        f"{reached['train']} images to learn from, {n} held out.",
        "",
        "| | seconds | median | times as fast | accuracy (95 %) |",
        "|---|---|---:|---:|---|",
    ]
    for (name, seconds), told in zip(rows, (theirs, ours, ours), strict=True):
        each = ", ".join(f"{s:.1f}" for s in seconds)
        middle = median(seconds)
        lines.append(f"| {name} | {each} | {middle:.1f} | {slow / middle:.1f} | {told} |")
    best = max(reached["accuracies"])
    return "\n".join([*lines, "", f"The recipe's best epoch on the held-out part: {best:.3f}."])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("HEADSTART_BENCH_DATA"))
    parser.add_argument("--weights", default=os.environ.get("HEADSTART_BENCH_WEIGHTS"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--option", action="append", default=[], help="passed on to headstart fit")
    arguments = parser.parse_args()
    if not (arguments.folder and arguments.weights):
        print("Skipped: set HEADSTART_BENCH_DATA and HEADSTART_BENCH_WEIGHTS.")
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        cold = [fit(arguments, scratch, scratch / "one")]
        recipe = seed_recipe(arguments, cold[0][1])
        cold.append(fit(arguments, scratch, scratch / "two"))
        warm = [fit(arguments, scratch, scratch / "two") for _ in range(3)]
    print(table(recipe, cold, warm))


if __name__ == "__main__":
    main()
