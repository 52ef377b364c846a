"""What it costs to start: `headstart --help` and `import headstart`, beside Python itself.

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
TIMES = 7


def seconds(command):
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main():
    found = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        seconds(command)  # bytecode and page cache
    for _ in range(TIMES):  # side by side, so that a noisy minute hits all alike
        for name, command in COMMANDS.items():
            found[name].append(seconds(command))
    print(f"| median of {TIMES} | seconds | least |\n|---|---:|---:|")
    for name, each in found.items():
        print(f"| `{name}` | {median(each):.3f} | {min(each):.3f} |")


if __name__ == "__main__":
    main()
