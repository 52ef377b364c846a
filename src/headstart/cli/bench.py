"""Command ``bench``: time, throughput, size and score of models in several runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headstart.cli.options import AsJson
from headstart.cli.output import emit, say

if TYPE_CHECKING:
    from headstart.workflows.bench import Bench

__all__ = ["bench"]

Models = Annotated[list[Path], typer.Argument(help="Folders of saved models.")]
Labelled = Annotated[
    Path | None, typer.Option(help="Labelled images, as for evaluate, for the scores.")
]
Formats = Annotated[
    str, typer.Option(help="Runtimes, with commas between them: torch, onnx, onnx-int8, openvino.")
]
Target = Annotated[
    str | None,
    typer.Option(
        help="Largest accepted time for an image, such as 20ms. The best model within it is named."
    ),
]
Timed = Annotated[
    int, typer.Option(help="Images that are timed for each model and runtime, at least 20.")
]

Int8 = Annotated[
    Path | None,
    typer.Option(help="Labelled images for onnx-int8, as for export: they calibrate the file."),
]


def bench(
    models: Models,
    data: Labelled = None,
    formats: Formats = "torch,onnx",
    target: Target = None,
    images: Timed = 100,
    int8: Int8 = None,
    as_json: AsJson = False,
) -> None:
    """Measure time, throughput, size and score of models on the CPU.

    The time is that from an image file in memory to the prediction: decoding and preprocessing are
    included. Models and runtimes take turns.
    """
    from headstart.workflows.bench import bench as run_bench

    result = run_bench(
        models,
        data=data,
        formats=formats,
        target=target,
        images=images,
        int8=int8,
        progress=False if as_json else None,
    )
    if as_json:
        emit(result.as_dict())
    else:
        _print_bench(result)


def _print_bench(result: Bench) -> None:
    from rich.markup import escape
    from rich.table import Table

    from headstart.cli.terminal import plain_console

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("format")
    for title in ("p50 ms", "p95 ms", "p99 ms", "images/s", "MB"):
        table.add_column(title, justify="right", no_wrap=True)
    if result.measure is not None:
        table.add_column(result.measure, no_wrap=True)
    for row in result.rows:
        times = [f"{row.milliseconds[name]:.1f}" for name in ("p50", "p95", "p99")]
        score = [] if row.score is None else [str(row.score)]
        cells = [*times, f"{row.throughput:.0f}", f"{row.size / 1e6:.1f}", *score]
        table.add_row(escape(row.model), row.format, *cells)
    plain_console().print(table, highlight=False)
    for sentence in result.sentences():
        say(sentence)
