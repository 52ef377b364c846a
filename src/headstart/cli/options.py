"""Arguments and flags of the commands.

The flags of ``fit`` for methods are derived from the fields of the method classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from headstart.cache import Cache

__all__ = [
    "AllowOverlap",
    "AsJson",
    "Backbone",
    "Backbones",
    "BadFiles",
    "Budget",
    "Device",
    "Engine",
    "FitCommand",
    "GroupBy",
    "HeadName",
    "MaxRisk",
    "MethodName",
    "ModelFolder",
    "NoCache",
    "Offline",
    "OutputFormat",
    "RequireLead",
    "Resume",
    "RunFolder",
    "Seed",
    "Size",
    "Source",
    "Task",
    "TestFraction",
    "TileSize",
    "Track",
    "open_cache",
    "parse_backbones",
    "parse_bad_files",
    "parse_duration",
    "parse_names",
]

Source = Annotated[
    str,
    typer.Argument(
        help="Dataset: a folder with one subfolder per class, a CSV or Parquet table, images with "
        "boxes (COCO, VOC, YOLO) or masks, or demo:<name>."
    ),
]
Task = Annotated[
    str,
    typer.Option(
        help="classification, detection, segmentation or auto (detected from the data). It is an "
        "error if the data do not match."
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        help="auto (compares candidates on held-out training images; the default for "
        "classification), linear-probe, finetune (the default for boxes and masks) or scratch."
    ),
]
RunFolder = Annotated[Path | None, typer.Option(help="Output folder. Default: runs/<name>.")]
Backbone = Annotated[
    str, typer.Option(help="Pretrained backbone; `headstart backbones` lists them.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a training that was stopped.")]
RequireLead = Annotated[
    bool,
    typer.Option(
        "--require-lead",
        help="Exit with code 4 unless the model is significantly better than every baseline.",
    ),
]
Budget = Annotated[
    str,
    typer.Option(
        help="Time for comparing candidates and training the chosen one: 90s, 10m, 1h. 0: linear "
        "probes only."
    ),
]
Backbones = Annotated[
    str,
    typer.Option(
        help="Several backbones, separated by commas. The first is used unless another is "
        "significantly better."
    ),
]
HeadName = Annotated[
    str,
    typer.Option(
        help="Boxes: faster-rcnn, retinanet, fcos, ssdlite. Masks: unet, unetplusplus, "
        "deeplabv3plus, fpn, deeplabv3. auto is the first. Options follow a question mark: "
        "faster-rcnn?channels=64. A pretrained detector: torchvision/fasterrcnn_resnet50_fpn."
    ),
]
Size = Annotated[
    int,
    typer.Option(
        min=0,
        help="For boxes and masks: longer side of the input in pixels, rounded up to a multiple of "
        "32. 0: 320.",
    ),
]
OutputFormat = Annotated[
    str,
    typer.Option(
        "--format",
        help="Output format: table, json or csv; for boxes also coco, yolo, overlay; for masks "
        "also masks, overlay. Formats other than table, json and csv always write files.",
    ),
]
TileSize = Annotated[
    int,
    typer.Option(
        min=0,
        help="For masks: process large images in overlapping windows of this side, in pixels. "
        "0: the whole image at once.",
    ),
]
ModelFolder = Annotated[Path, typer.Argument(help="Folder of a saved model, such as runs/photos.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
GroupBy = Annotated[
    str | None,
    typer.Option(
        help="Column or regular expression that gives the group of each image, such as a patient. "
        "Images of one group stay in one split."
    ),
]
BadFiles = Annotated[str, typer.Option(help="Files that cannot be decoded: error (stop) or skip.")]
AllowOverlap = Annotated[
    bool,
    typer.Option(
        "--allow-overlap", help="Allow images that are in both the training and the test set."
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="Arithmetic of the frozen backbone: auto, fp32, bf16, openvino, openvino-bf16."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Do not read or write the cache.")]
Seed = Annotated[
    int, typer.Option(min=0, help="Seed of the split, the folds, the training and the bootstrap.")
]
TestFraction = Annotated[
    float, typer.Option(help="Fraction of test images, if the data have no split of their own.")
]
MaxRisk = Annotated[
    float | None,
    typer.Option(
        help="Maximum share of wrong predictions, such as 0.02. The model abstains where it is not "
        "confident enough."
    ),
]
Track = Annotated[
    str,
    typer.Option(
        help="Log to tensorboard, mlflow, or both, separated by a comma. log.jsonl is always "
        "written."
    ),
]
Offline = Annotated[
    bool | None,
    typer.Option("--offline", help="Never use the network. Same as HEADSTART_OFFLINE=1."),
]


@contextmanager
def open_cache(temporary: bool) -> Iterator[Cache]:
    """Open the user's cache, or an empty one that is deleted afterwards."""
    from headstart.cache import Cache

    if not temporary:
        yield Cache()
        return
    with tempfile.TemporaryDirectory(prefix="headstart-") as folder, Cache(Path(folder)) as cache:
        yield cache


def parse_bad_files(bad_files: str) -> Literal["error", "skip"]:
    """Check the value of ``--bad-files``.

    Raises
    ------
    UnknownNameError
        If it is neither ``error`` nor ``skip``.
    """
    from headstart.errors import UnknownNameError

    match bad_files:
        case "error" | "skip":
            return bad_files
    raise UnknownNameError("bad-files", bad_files, ["error", "skip"])


def parse_duration(text: str) -> float:
    """Convert a duration such as ``10m`` to seconds.

    Raises
    ------
    UsageError
        If it is not a duration.

    Examples
    --------
    >>> [parse_duration(text) for text in ("90s", "10m", "1.5h", "0")]
    [90.0, 600.0, 5400.0, 0.0]
    """
    from headstart.errors import UsageError

    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        seconds = float(text if unit is None else text[:-1]) * (unit or 1.0)
    except ValueError:
        seconds = float("nan")
    if not 0 <= seconds < float("inf"):
        raise UsageError(
            f"--budget must be a duration such as 90s, 10m or 1h, got {text!r}. Write --budget 10m."
        )
    return seconds


def parse_names(text: str) -> tuple[str, ...]:
    """Split names at commas; a number after a comma belongs to the options of the name before it.

    Examples
    --------
    >>> parse_names("resnet18?mean=0.5,0.5,0.5&std=0.2, vgg16")
    ('resnet18?mean=0.5,0.5,0.5&std=0.2', 'vgg16')
    """
    names: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if names and "?" in names[-1] and _is_number(part.partition("&")[0]):
            names[-1] += f",{part}"
        else:
            names.append(part)
    return tuple(names)


def parse_backbones(backbone: str, backbones: str) -> tuple[str, tuple[str, ...]]:
    """Return the first backbone of a run and its rivals, from the two flags.

    Raises
    ------
    UsageError
        If both flags are set.

    Examples
    --------
    >>> parse_backbones("resnet18", "")
    ('resnet18', ())
    >>> parse_backbones("embedded/efficientnet_lite0", "vgg16,resnet18")
    ('vgg16', ('resnet18',))
    """
    from headstart.errors import UsageError
    from headstart.workflows.recipe import DEFAULT_BACKBONE

    if not backbones:
        return backbone, ()
    if backbone != DEFAULT_BACKBONE:
        raise UsageError(
            f"--backbone and --backbones are both set, to {backbone} and {backbones}. Pass "
            f"--backbones {backbone},{backbones}."
        )
    first, *rivals = parse_names(backbones) or (backbone,)
    return first, tuple(rivals)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class FitCommand(TyperCommand):
    """``fit`` with the flags of all methods.

    They are read only when the command runs, because this imports the methods.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Append the flags of the methods to those of the run."""
        return [*super().get_params(ctx), *_method_options()]

    def invoke(self, ctx: Any) -> Any:
        """Pass the flags of the methods as one mapping: the context's object."""
        names = {option.name for option in _method_options()}
        ctx.obj = {name: value for name, value in ctx.params.items() if name in names}
        ctx.params = {name: value for name, value in ctx.params.items() if name not in names}
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Print the flags under a heading for each method."""
        groups: dict[str, list[Any]] = {}
        for param in self.get_params(ctx):
            is_option = param.param_type_name == "option"
            panel = getattr(param, "rich_help_panel", None)  # click's own --help has none
            title = (panel or "Options") if is_option else "Arguments"
            if (record := param.get_help_record(ctx)) is not None:
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


@cache
def _method_options() -> tuple[Any, ...]:
    """Create the parser's options from a function signature, as typer requires."""
    from headstart.methods.flags import flags

    parameters = []
    for flag in flags():
        is_switch = flag.kind == "switch"
        option = typer.Option(
            f"{flag.option}/--no-{flag.option[2:]}" if is_switch else flag.option,
            help=" ".join(filter(None, (flag.help, flag.default and f"[{flag.default}]"))),
            metavar=None if is_switch else "|".join(flag.choices) or f"<{flag.kind}>",
            rich_help_panel=flag.group,
        )
        annotation: Any = Annotated[(bool if is_switch else str) | None, option]
        parameters.append(
            Parameter(flag.name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )

    def command(**_: Any) -> None: ...

    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    method_app = typer.Typer(rich_markup_mode=None, add_completion=False)
    method_app.command()(command)
    return tuple(typer.main.get_command(method_app).params)
