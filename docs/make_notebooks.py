"""Run the notebooks of docs/notebooks and store their outputs.

    python docs/make_notebooks.py [NAME ...]

Each notebook runs in an empty folder, with a cache of its own, and without the network. Change the
cells in the notebook itself, then run this script. It fails if a cell fails, or if a notebook
becomes larger than 300 kB.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parent / "notebooks"
MAX_BYTES = 300_000
SECONDS_PER_CELL = 900


def execute(path: Path, folder: Path) -> None:
    """Run all cells of a notebook in a folder, and write the notebook with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    notebook: Any = nbformat.read(path, as_version=4)
    os.environ.update(HEADSTART_CACHE=str(folder / "cache"), HEADSTART_OFFLINE="1")
    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    tidy(notebook, folder)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)


def tidy(notebook: Any, folder: Path) -> None:
    """Remove what belongs to this run: times, paths of the folder, and warnings on stderr."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if "text" in output:
                output["text"] = relative(output["text"], folder)


def relative(text: str, folder: Path) -> str:
    """Replace the paths of the folder that the notebook ran in."""
    return re.sub(re.escape(str(folder)) + "/?", "", text)


def main() -> None:
    """Run the notebooks with the given names, or all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    for name in names:
        path, started_at = NOTEBOOKS / f"{name}.ipynb", time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            execute(path, Path(folder))
        size, seconds = path.stat().st_size, time.perf_counter() - started_at
        sys.stdout.write(f"{name}: {size / 1000:.0f} kB, {seconds:.0f} s\n")
        if size > MAX_BYTES:
            sys.exit(f"{path} has {size} bytes, more than {MAX_BYTES}. Make its figures smaller.")


if __name__ == "__main__":
    main()
