"""`headstart fit` against the standard recipe: same images, split, backbone and machine.

Order: `headstart fit` with an empty cache (cold), the recipe, cold again, then three times with a
full cache (warm). Seconds are wall-clock times of complete processes, including the scan of the
images, the checks, the cross-validation and the report.

    python benchmarks/fit_speed.py [FOLDER] [--weights resnet18.pth]

FOLDER contains one folder per class; by default HEADSTART_BENCH_DATA. The weights are
torchvision's for ResNet-18; by default HEADSTART_BENCH_WEIGHTS.
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


def run_timed(command, **environment):
    """Wall-clock seconds of a process, and the JSON that it prints."""
    started_at = time.perf_counter()
    process = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, **environment}
    )
    return time.perf_counter() - started_at, json.loads(process.stdout)


def fit(arguments, scratch, cache):
    backbone = f"file:{arguments.weights}@torchvision/resnet18"
    command = [HEADSTART, "fit", arguments.folder, "--backbone", backbone, "--offline", "--json"]
    command += ["--out", str(scratch / "runs" / "run"), *arguments.option]
    return run_timed(command, HEADSTART_CACHE=str(cache))


def run_recipe(arguments, run):
    script = str(Path(__file__).with_name("standard_recipe.py"))
    command = [sys.executable, script, arguments.folder, "--weights", arguments.weights]
    command += ["--epochs", str(arguments.epochs)]
    command += ["--held-out", str(Path(run["folder"]) / "predictions.csv")]
    return run_timed(command)


def table(recipe, cold, warm):
    """Markdown table; the ratio is the time of the recipe divided by the median."""
    recipe_seconds, result = recipe
    n = result["held_out"]
    rows = [(f"recipe, {len(result['accuracies'])} epochs", [recipe_seconds])]
    rows += [("headstart fit, cold", [s for s, _ in cold]), ("warm", [s for s, _ in warm])]
    metric = cold[0][1]["metrics"]["accuracy"]
    ours = f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
    theirs = str(wilson_interval(round(result["accuracy"] * n), n))
    lines = [
        f"{result['train']} training images, {n} test images.",
        "",
        "| | seconds | median | speed-up | accuracy (95 %) |",
        "|---|---|---:|---:|---|",
    ]
    for (name, seconds), accuracy in zip(rows, (theirs, ours, ours), strict=True):
        values = ", ".join(f"{s:.1f}" for s in seconds)
        middle = median(seconds)
        ratio = recipe_seconds / middle
        lines.append(f"| {name} | {values} | {middle:.1f} | {ratio:.1f} | {accuracy} |")
    best = max(result["accuracies"])
    return "\n".join([*lines, "", f"The recipe's best epoch on the test images: {best:.3f}."])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("HEADSTART_BENCH_DATA"))
    parser.add_argument("--weights", default=os.environ.get("HEADSTART_BENCH_WEIGHTS"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--option", action="append", default=[], help="passed on to headstart fit")
    arguments = parser.parse_args()
    if not (arguments.folder and arguments.weights):
        print("Skipped. Set HEADSTART_BENCH_DATA and HEADSTART_BENCH_WEIGHTS.")
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        cold = [fit(arguments, scratch, scratch / "one")]
        recipe = run_recipe(arguments, cold[0][1])
        cold.append(fit(arguments, scratch, scratch / "two"))
        warm = [fit(arguments, scratch, scratch / "two") for _ in range(3)]
    print(table(recipe, cold, warm))


if __name__ == "__main__":
    main()
