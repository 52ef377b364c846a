"""Commands ``data check``, ``data view`` and ``data convert``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from headstart.cli.findings import require_new_file, write_findings
from headstart.cli.options import (
    AsJson,
    BandRange,
    Bands,
    Bits,
    ClassLevel,
    GroupBy,
    ImageColumn,
    ImagesFolder,
    LabelColumn,
    LabelFrom,
    LabelSeparator,
    MasksFolder,
    MaskThreshold,
    MaxPixels,
    NoCache,
    NoData,
    Source,
    Task,
    WeightColumn,
    Window,
    open_cache,
    read_settings,
)
from headstart.cli.output import emit, say

__all__ = ["data_app"]

data_app = typer.Typer(
    help="Check, view and convert images and labels before training.", no_args_is_help=True
)


@data_app.command("check")
def data_check(  # noqa: PLR0913 - one argument a flag
    ctx: typer.Context,
    source: Source,
    task: Task = "auto",
    group_by: GroupBy = None,
    masks: MasksFolder = None,
    images: ImagesFolder = None,
    mask_threshold: MaskThreshold = None,
    class_level: ClassLevel = None,
    label_from: LabelFrom = None,
    max_pixels: MaxPixels = None,
    bits: Bits = None,
    window: Window = None,
    bands: Bands = None,
    band_range: BandRange = None,
    no_data: NoData = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    label_separator: LabelSeparator = None,
    weight_column: WeightColumn = None,
    out: Annotated[
        Path | None, typer.Option(help="CSV file, new, for all findings and their images.")
    ] = None,
    no_cache: NoCache = False,
    as_json: AsJson = False,
) -> None:
    """Report unreadable images, duplicates, and leaks between splits.

    Decodes every image. Prints at most 10 findings of a kind. The exit code is 2 if there is an
    error.
    """
    from headstart.cli.tables import show_data, show_findings
    from headstart.cli.terminal import plain_console, terminal
    from headstart.data.prepare import inspect_dataset
    from headstart.data.readers import kind_of_task, read_dataset

    require_new_file(out)
    with open_cache(no_cache) as cache, terminal(as_json) as display:
        data = read_dataset(source, task_kind=kind_of_task(task), **read_settings(ctx))
        data, findings = inspect_dataset(data, cache=cache, progress=display.progress)
    errors = sum(finding.severity == "error" for finding in findings)
    write_findings(out, findings)
    if as_json:
        rows = [
            {"kind": f.kind, "severity": f.severity, "message": f.message, "paths": f.paths}
            for f in findings
        ]
        emit({"images": len(data), "classes": data.counts(), "findings": rows})
    else:
        console = plain_console()
        show_data(console, data, {"images": data})
        rest_in = f"all in {out}" if out else "pass --out findings.csv for a file with all"
        show_findings(console, findings, limit=200, rest_in=rest_in)
    if errors:
        raise typer.Exit(2)


@data_app.command("view")
def data_view(  # noqa: PLR0913 - one argument a flag
    ctx: typer.Context,
    source: Source,
    task: Task = "auto",
    group_by: GroupBy = None,
    masks: MasksFolder = None,
    images: ImagesFolder = None,
    mask_threshold: MaskThreshold = None,
    class_level: ClassLevel = None,
    label_from: LabelFrom = None,
    max_pixels: MaxPixels = None,
    bits: Bits = None,
    window: Window = None,
    bands: Bands = None,
    band_range: BandRange = None,
    no_data: NoData = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    label_separator: LabelSeparator = None,
    weight_column: WeightColumn = None,
    out: Annotated[
        Path | None, typer.Option(help="HTML file, new. Default: runs/data-<name>.html.")
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser, on a terminal only.")
    ] = False,
    no_cache: NoCache = False,
    as_json: AsJson = False,
) -> None:
    """Write a page with samples, findings, sizes and similar images.

    Decodes every image. The page is one file that works offline. It shows the boxes and masks of
    some images, and similar images side by side.
    """
    from headstart.cli.terminal import open_in_browser, plain_console, terminal
    from headstart.data.readers import kind_of_task, read_dataset
    from headstart.workflows.view import new_page_path, write_page

    page = new_page_path(out, source)
    with open_cache(no_cache) as cache, terminal(as_json) as display:
        data = read_dataset(source, task_kind=kind_of_task(task), **read_settings(ctx))
        command = shlex.join(["headstart", *sys.argv[1:]])
        write_page(data, page, cache=cache, on_progress=display.progress, command=command)
    if as_json:
        emit({"page": str(page), "images": len(data)})
        return
    say(f"Wrote {page} ({page.stat().st_size / 1e6:.1f} MB).")
    if open_page:
        open_in_browser(page, plain_console())


@data_app.command("convert")
def data_convert(  # noqa: PLR0913 - one argument a flag
    ctx: typer.Context,
    source: Source,
    out: Annotated[Path, typer.Argument(help="Output folder, new or empty.")],
    to: Annotated[
        str,
        typer.Option(
            help="Format: coco (boxes, masks), yolo (boxes), folders (classes, masks) or parquet "
            "(one or several labels per image)."
        ),
    ],
    link: Annotated[
        bool, typer.Option("--link", help="Make hard links instead of copies of the images.")
    ] = False,
    task: Task = "auto",
    group_by: GroupBy = None,
    masks: MasksFolder = None,
    images: ImagesFolder = None,
    mask_threshold: MaskThreshold = None,
    class_level: ClassLevel = None,
    max_pixels: MaxPixels = None,
    bits: Bits = None,
    window: Window = None,
    bands: Bands = None,
    band_range: BandRange = None,
    no_data: NoData = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    label_separator: LabelSeparator = None,
    label_from: LabelFrom = None,
    weight_column: WeightColumn = None,
    as_json: AsJson = False,
) -> None:
    """Write a data set in another format.

    Images are copied without change. What the format cannot hold is printed before anything is
    written. Nothing is overwritten.
    """
    from headstart.cli.terminal import terminal
    from headstart.workflows.convert import convert_data

    with terminal(as_json) as display:
        converted = convert_data(
            source,
            out,
            to=to,
            link=link,
            task=task,
            observer=display,
            progress=False,
            **read_settings(ctx),
        )
    if as_json:
        emit(converted.as_dict())
    else:
        say(f"Wrote {converted.images} images and their labels to {converted.folder}.")
