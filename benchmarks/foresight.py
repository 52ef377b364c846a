"""Does a race take as long as it says, where people run it: one `fit` a process, nothing kept?

    python benchmarks/foresight.py [SOURCE ...] [--budgets 20s,2m] [--repeats 1] [--out runs.jsonl]

Every source (default: the embedded sets) is fitted with every budget, as a command of its own with
an empty cache. Printed: the race's seconds beside what its table expected.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DEMOS = ("demo:symbols", "demo:digits", "demo:textures")


def fitted(source, budget, seed):
    """The record of one race, run by the command."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        given = ["fit", source, "--budget", budget, "--seed", str(seed), "--out", str(out)]
        command = [sys.executable, "-m", "headstart", *given, "--offline", "--no-cache", "--json"]
        subprocess.run(command, check=True, capture_output=True)
        found = json.loads((out / "model.json").read_text())["record"]["decision"]
    ran = [row["name"] for row in found["rows"] if row["seconds"]]
    return {
        "source": Path(source).name,
        "budget": budget,
        "seed": seed,
        "ran": ran,
        "seconds": round(found["seconds"], 2),
        "estimated": round(found["estimated"], 2),
        "rows": [
            (row["name"], round(row["seconds"], 2), round(row["estimated"], 2))
            for row in found["rows"]
            if row["seconds"]
        ],
    }


def main():
    """Print one line a run, and how many are within 30 %."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sources", nargs="*", default=DEMOS)
    parser.add_argument("--budgets", default="20s,2m")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    ratios = []
    for seed in range(given.repeats):
        for source in given.sources:
            for budget in given.budgets.split(","):
                row = fitted(source, budget, seed)
                ratios.append(row["seconds"] / row["estimated"])
                print(
                    f"{row['source']:<16} budget {budget:>4}: {row['seconds']:6.1f} s, expected "
                    f"{row['estimated']:6.1f} s, ratio {ratios[-1]:.2f}; "
                    f"ran: {', '.join(row['ran'])}",
                    flush=True,
                )
                if given.out:
                    with given.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    near = sum(0.7 <= ratio <= 1.3 for ratio in ratios)
    print(f"within 30 %: {near} of {len(ratios)}")


if __name__ == "__main__":
    main()
