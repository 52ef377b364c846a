"""A notebook that fits a model: its progress and its tables are stored with it."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

CELLS = (
    """
import numpy as np
import headstart

rng = np.random.default_rng(0)
colours = {"<b>red</b>": (200, 40, 40), "blue": (40, 40, 200)}
images = [
    ((colour + rng.normal(0, 60, (32, 32, 3))).clip(0, 255).astype(np.uint8), name)
    for name, colour in colours.items()
    for _ in range(10)
]
settings = dict(method="linear-probe", engine="fp32", device="cpu", no_cache=True)
run = headstart.fit(images, out="run", **settings)
""",
    'silent = headstart.fit(images, out="silent", progress=False, **settings)',
    "run",
    "run.evaluation",
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """Run the cells in a kernel, and return the outputs of each."""
    folder: Path = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in CELLS])
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    return [cell.outputs for cell in notebook.cells]


def test_the_progress_of_a_fit_is_one_output(outputs: list[list[Any]]) -> None:
    (progress,) = (output for output in outputs[0] if output.output_type == "display_data")
    lines = progress.data["text/plain"].splitlines()
    assert lines[0].startswith("Data: ")
    assert lines[0].endswith("for the test.")
    assert any(line.startswith("Test accuracy: ") for line in lines)
    assert lines[-1].startswith("Done after ")
    html = progress.data["text/html"]
    assert "report.html" in html
    assert "<progress" not in html


def test_a_kernel_without_ipywidgets_gets_no_warning(outputs: list[list[Any]]) -> None:
    streams = [one.text for cell in outputs for one in cell if one.output_type == "stream"]
    assert not [text for text in streams if "IProgress" in text or "tqdm" in text]


def test_progress_false_leaves_no_output(outputs: list[list[Any]]) -> None:
    assert outputs[1] == []


def test_a_run_and_an_evaluation_have_html(outputs: list[list[Any]]) -> None:
    (run,), (evaluation,) = outputs[2:]
    assert "report.html" in run.data["text/html"]
    assert "<img src=" in run.data["text/html"]
    html = evaluation.data["text/html"]
    assert "<table>" in html
    assert "<td>&lt;b&gt;red&lt;/b&gt;</td>" in html
