"""Start-up time of `headstart --help` and `import headstart`, compared with Python itself.

python benchmarks/startup.py
"""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import headstart'": [sys.executable, "-c", "import headstart"],
    "headstart --help": [str(Path(sys.executable).with_name("headstart")), "--help"],
}
REPEATS = 7


def measure(command):
    started_at = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started_at


def main():
    seconds = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        measure(command)  # fill the bytecode and page caches
    for _ in range(REPEATS):  # in turns, so that other load affects all commands alike
        for name, command in COMMANDS.items():
            seconds[name].append(measure(command))
    print(f"| median of {REPEATS} | seconds | minimum |\n|---|---:|---:|")
    for name, values in seconds.items():
        print(f"| `{name}` | {median(values):.3f} | {min(values):.3f} |")


if __name__ == "__main__":
    main()
