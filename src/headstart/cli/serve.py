"""Command ``serve``: saved models over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headstart.cli.options import Device
from headstart.cli.output import say

__all__ = ["serve"]

LOOPBACK = ("127.0.0.1", "::1", "localhost")

Models = Annotated[
    list[str],
    typer.Argument(
        help="Model folder or exported file; several as NAME=FOLDER. The first is the default."
    ),
]
Host = Annotated[
    str,
    typer.Option(
        help="Address to listen on. The default is for this machine only; 0.0.0.0 is for all "
        "networks: set --api-key-file then."
    ),
]
Port = Annotated[int, typer.Option(help="Port to listen on; 0: any free port.")]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="Text file with one key in each line. Clients must send one of them in the header "
        "X-API-Key."
    ),
]
Batch = Annotated[int, typer.Option(help="Most images that are predicted together.")]
MaxBody = Annotated[int, typer.Option(help="Largest body of a request, in MB.")]
MaxImages = Annotated[int, typer.Option(help="Most images in one request.")]
PixelLimit = Annotated[
    int | None,
    typer.Option(
        help="Largest width times height of an image. Larger ones are refused before they are "
        "decoded. Default: 50000000, or that of the training, if it is less."
    ),
]
Timeout = Annotated[
    float,
    typer.Option(help="Most seconds to receive a request, and again to predict its images."),
]
Queue = Annotated[
    int, typer.Option(help="Most images that wait; further requests get the status 429.")
]


def serve(  # noqa: PLR0913 - one argument a flag
    models: Models,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: ApiKeyFile = None,
    batch: Batch = 4,
    device: Device = "auto",
    max_body: MaxBody = 32,
    max_images: MaxImages = 64,
    max_pixels: PixelLimit = None,
    timeout: Timeout = 30.0,
    queue: Queue = 256,
) -> None:
    """Serve models over HTTP, until Ctrl-C.

    POST /predict takes images and returns what predict --json prints. A model whose files change
    is loaded again. The endpoints are listed at /docs.
    """
    from headstart.workflows.serve import serve as run_serve

    def announce(address: str) -> None:
        say(f"Serving {', '.join(models)} at {address} (endpoints: {address}/docs). Stop: Ctrl-C.")
        if api_key_file is None and host not in LOOPBACK:
            say(
                f"Everybody who reaches {host} can send images. Pass --api-key-file to require a "
                "key.",
                err=True,
            )

    run_serve(
        models,
        host=host,
        port=port,
        api_key_file=api_key_file,
        batch=batch,
        device=device,
        on_start=announce,
        max_body=max_body,
        max_images=max_images,
        max_pixels=max_pixels,
        timeout=timeout,
        queue=queue,
    )
    say("Stopped. All requests that had begun are answered.")
