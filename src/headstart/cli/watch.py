"""Command ``watch``: predictions of a folder that grows, or of a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headstart.cli.options import Device, MaxPixels, ModelFolder
from headstart.cli.output import echo, say

__all__ = ["watch"]

Growing = Annotated[Path, typer.Argument(help="Folder that gets images, or a video file.")]
Every = Annotated[
    float, typer.Option(help="Seconds between two looks at the folder, or two frames of the video.")
]
Idle = Annotated[
    float | None,
    typer.Option(
        help="Folders only: end after so many seconds without a new image. Default: never."
    ),
]


def watch(
    model: ModelFolder,
    source: Growing,
    every: Every = 1.0,
    idle: Idle = None,
    device: Device = "auto",
    max_pixels: MaxPixels = None,
) -> None:
    """Predict new images of a folder, or the frames of a video.

    Ends at Ctrl-C, or with the video. Prints one line of JSON for each image, as predict --json;
    for an image that cannot be read, its name and the error. A file is read when its size and time
    have not changed for one look.
    """
    from headstart.metrics.validation import json_text
    from headstart.workflows.watch import watch as run_watch

    number = 0
    try:
        for row in run_watch(
            model, source, every=every, idle=idle, device=device, max_pixels=max_pixels
        ):
            echo(json_text(row))
            number += 1
    except KeyboardInterrupt:
        pass  # the usual end
    say(f"Stopped after {number} images.", err=True)
