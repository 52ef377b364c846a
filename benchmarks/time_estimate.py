"""Duration of a race compared with its own estimate, for `headstart fit` as users run it.

    python benchmarks/time_estimate.py [SOURCE ...] [--budgets 20s,2m] [--repeats 1]
                                       [--out runs.jsonl]

Every source (by default the embedded sets) is fitted with every budget, in a process of its own
with an empty cache. Prints the seconds of the race and the estimate in its table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DEMOS = ("demo:symbols", "demo:digits", "demo:textures")


def run_race(source, budget, seed):
    """Run one race with `headstart fit`; return its times."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        arguments = ["fit", source, "--budget", budget, "--seed", str(seed), "--out", str(out)]
        command = [
            sys.executable,
            "-m",
            "headstart",
            *arguments,
            "--offline",
            "--no-cache",
            "--json",
        ]
        subprocess.run(command, check=True, capture_output=True)
        decision = json.loads((out / "model.json").read_text())["record"]["decision"]
    ran = [row["name"] for row in decision["rows"] if row["seconds"]]
    return {
        "source": Path(source).name,
        "budget": budget,
        "seed": seed,
        "ran": ran,
        "seconds": round(decision["seconds"], 2),
        "estimated": round(decision["estimated"], 2),
        "rows": [
            (row["name"], round(row["seconds"], 2), round(row["estimated"], 2))
            for row in decision["rows"]
            if row["seconds"]
        ],
    }


def main():
    """Print one line per run, and how many estimates are within 30 %."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", default=DEMOS)
    parser.add_argument("--budgets", default="20s,2m")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    ratios = []
    for seed in range(arguments.repeats):
        for source in arguments.sources:
            for budget in arguments.budgets.split(","):
                row = run_race(source, budget, seed)
                ratios.append(row["seconds"] / row["estimated"])
                print(
                    f"{row['source']:<16} budget {budget:>4}: {row['seconds']:6.1f} s, estimated "
                    f"{row['estimated']:6.1f} s, ratio {ratios[-1]:.2f}; "
                    f"ran: {', '.join(row['ran'])}",
                    flush=True,
                )
                if arguments.out:
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    within = sum(0.7 <= ratio <= 1.3 for ratio in ratios)
    print(f"within 30 %: {within} of {len(ratios)}")


if __name__ == "__main__":
    main()
