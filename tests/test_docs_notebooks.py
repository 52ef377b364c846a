"""The notebooks of docs/notebooks: executed, small, valid, and their cheap cells run."""

import ast
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells_of(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in document["cells"] if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    """The code of a cell."""
    return "".join(cell["source"])


def script() -> ModuleType:
    """Import docs/make_notebooks.py."""
    path = ROOT / "docs" / "make_notebooks.py"
    spec = importlib.util.spec_from_file_location("make_notebooks", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_notebook_to_begin_with() -> None:
    assert "first_model" in [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_executed_and_small(path: Path) -> None:
    cells = cells_of(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert "error" not in kinds
    assert kinds
    streams = {output.get("name") for cell in cells for output in cell["outputs"]}
    assert "stderr" not in streams
    assert path.stat().st_size < 300_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_of_a_notebook_are_valid(path: Path) -> None:
    for cell in cells_of(path):
        ast.parse(source(cell))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cheap_cells_of_a_notebook_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cheap = [cell for cell in cells_of(path) if "cheap" in cell["metadata"].get("tags", [])]
    assert cheap
    namespace: dict[str, Any] = {"__name__": path.stem}
    for cell in cheap:
        exec(compile(source(cell), path.name, "exec"), namespace)


def test_the_script_runs_a_notebook_in_its_folder(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cell = nbformat.v4.new_code_cell("import os\nprint(os.getcwd())\n1 + 1")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    path, folder = tmp_path / "small.ipynb", tmp_path / "work"
    folder.mkdir()
    nbformat.write(notebook, path)
    script().execute(path, folder)
    (cell,) = cells_of(path)
    printed, value = cell["outputs"]
    assert cell["execution_count"] == 1
    assert "execution" not in cell["metadata"]
    assert "".join(printed["text"]).strip() == ""  # the folder's path is not part of the outputs
    assert value["data"]["text/plain"] == ["2"]
