"""Command ``export``: a model as a file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headstart.cli.options import AsJson, ModelFolder
from headstart.cli.output import emit, say

if TYPE_CHECKING:
    from headstart.workflows.export import Export

__all__ = ["export"]

Format = Annotated[
    str, typer.Option(help="Format of the file: onnx, openvino or pt2 (torch.export).")
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="The new file. Default: model.onnx, model.xml or model.pt2 in the model's folder."
    ),
]
Input = Annotated[
    str | None,
    typer.Option(
        help="What the file takes. image: one image, uint8, of any size; the preprocessing is in "
        "the file. batch: any number of images that are resized and normalised already. Default: "
        "image for onnx, batch for the others."
    ),
]
CheckImages = Annotated[
    list[Path] | None,
    typer.Option(
        help="Images or folders on which the file is compared with the model, in addition to the "
        "built-in ones. Repeat the flag for several."
    ),
]

Int8 = Annotated[
    Path | None,
    typer.Option(
        help="Write 8-bit integers. Labelled images: training images of the model calibrate the "
        "file, the others compare its accuracy with float32. Only with --to onnx."
    ),
]
AllowLoss = Annotated[
    bool,
    typer.Option(
        "--allow-loss",
        help="Keep an 8-bit file that loses more than 1 point of accuracy beyond chance.",
    ),
]


def export(
    model: ModelFolder,
    to: Format = "onnx",
    out: Out = None,
    input: Input = None,  # noqa: A002 - the flag's name
    images: CheckImages = None,
    int8: Int8 = None,
    allow_loss: AllowLoss = False,
    as_json: AsJson = False,
) -> None:
    """Export a classifier as a file that runs without Headstart.

    The file's predictions are compared with those of the model, on photographs of odd sizes and
    modes; the result is in a .certificate.json beside the file. If they disagree, no file is kept
    and the exit code is 2.
    """
    from headstart.cli.terminal import terminal
    from headstart.workflows.export import export as run_export

    with terminal(as_json) as display:
        display.progress(f"exporting {model} to {to}", 0, 0)
        exported = run_export(
            model, to, out=out, input=input, images=images, int8=int8, allow_loss=allow_loss
        )
    if as_json:
        emit(exported.as_dict())
    else:
        _print_export(exported)


def _print_export(exported: Export) -> None:
    names = ", ".join([str(exported.path), *(file.name for file in exported.files[1:])])
    say(exported.certificate.sentence())
    for sentence in () if exported.int8 is None else exported.int8.sentences():
        say(sentence)
    say(f"Written: {names} ({exported.size / 1e6:.1f} MB) and {exported.certificate_path.name}")
    if exported.path.suffix != ".pt2":
        say(f"Next: `headstart predict {exported.path} IMAGES`")
