"""What the commands take: arguments and flags; those of the methods are read off the methods."""

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
    "RequireLead",
    "Resume",
    "RunFolder",
    "Seed",
    "Size",
    "Source",
    "Task",
    "TestFraction",
    "Track",
    "in_seconds",
    "listed",
    "opened_cache",
    "policy_of",
    "racing",
]

Source = Annotated[
    str,
    typer.Argument(
        help="Class folders, a CSV or Parquet manifest, images with boxes (COCO, VOC, YOLO) or "
        "masks, or demo:<name>."
    ),
]
Task = Annotated[
    str,
    typer.Option(
        help="What is learned: classification, detection or segmentation; auto is what the data "
        "say, anything else is held against them."
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        help="How to learn: auto races the ways on held-out training images (the default for "
        "classes); linear-probe, finetune (the default for boxes and masks) or scratch."
    ),
]
RunFolder = Annotated[Path | None, typer.Option(help="Folder to write; default runs/<name>.")]
Backbone = Annotated[
    str, typer.Option(help="What the images are seen with; see `headstart backbones`.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Take up a training of this command that was stopped.")
]
RequireLead = Annotated[
    bool, typer.Option("--require-lead", help="Exit with 4 unless every baseline is beaten.")
]
Budget = Annotated[
    str,
    typer.Option(
        help="Time for the race and the training of its winner, as in 90s, 10m or 1h; 0 for linear "
        "probes alone."
    ),
]
Backbones = Annotated[
    str,
    typer.Option(
        help="With commas between: they race, and the first is kept unless another is better."
    ),
]
HeadName = Annotated[
    str,
    typer.Option(
        help="For boxes: faster-rcnn, retinanet, fcos, ssdlite; for masks: unet, unetplusplus, "
        "deeplabv3plus, fpn, deeplabv3; auto is the first. With options as in "
        "faster-rcnn?channels=64; or published with its backbone, such as "
        "torchvision/fasterrcnn_resnet50_fpn."
    ),
]
Size = Annotated[
    int,
    typer.Option(
        min=0,
        help="Longer side, in pixels, at which boxes and masks are learned, rounded up to a "
        "multiple of 32; 0 is 320.",
    ),
]
ModelFolder = Annotated[Path, typer.Argument(help="A run's folder, such as runs/photos.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]
GroupBy = Annotated[
    str | None,
    typer.Option(help="Column or regular expression that names each image's group (a patient)."),
]
BadFiles = Annotated[
    str, typer.Option(help="Files that cannot be decoded: error refuses, skip leaves them out.")
]
AllowOverlap = Annotated[
    bool,
    typer.Option("--allow-overlap", help="Go on although an image is learned from and tested on."),
]
Engine = Annotated[
    str,
    typer.Option(
        help="Arithmetic of the frozen backbone: auto, fp32, bf16, openvino, openvino-bf16."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Compute everything anew and keep nothing.")
]
Seed = Annotated[int, typer.Option(min=0, help="Decides the split, the folds and the bootstrap.")]
TestFraction = Annotated[
    float, typer.Option(help="Share of the images to test on, where the data bring no split.")
]
MaxRisk = Annotated[
    float | None,
    typer.Option(
        help="Share of the answers that may be wrong, such as 0.02: the model abstains where it is "
        "not sure enough."
    ),
]
Track = Annotated[
    str,
    typer.Option(
        help="Tell the run's numbers to tensorboard, mlflow, or both with a comma; log.jsonl is "
        "always written."
    ),
]
Offline = Annotated[
    bool | None, typer.Option("--offline", help="Open no socket (or set HEADSTART_OFFLINE=1).")
]


@contextmanager
def opened_cache(throwaway: bool) -> Iterator[Cache]:
    """The user's cache, or one that is gone afterwards."""
    from headstart.cache import Cache

    if not throwaway:
        yield Cache()
        return
    with tempfile.TemporaryDirectory(prefix="headstart-") as folder, Cache(Path(folder)) as cache:
        yield cache


def policy_of(bad_files: str) -> Literal["error", "skip"]:
    """What to do with files that cannot be decoded, by its name.

    Raises
    ------
    UnknownNameError
        If there is none of that name.
    """
    from headstart.errors import UnknownNameError

    match bad_files:
        case "error" | "skip":
            return bad_files
    raise UnknownNameError("bad-files", bad_files, ["error", "skip"])


def in_seconds(text: str) -> float:
    """Read a time as it is typed.

    Raises
    ------
    UsageError
        If it is none.

    Examples
    --------
    >>> [in_seconds(text) for text in ("90s", "10m", "1.5h", "0")]
    [90.0, 600.0, 5400.0, 0.0]
    """
    from headstart.errors import UsageError

    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        seconds = float(text if unit is None else text[:-1]) * (unit or 1.0)
    except ValueError:
        seconds = float("nan")
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"Expected a time such as 90s, 10m or 1h, got {text!r}; do write one.")
    return seconds


def listed(text: str) -> tuple[str, ...]:
    """Names with commas between; a number after one belongs to the options of the name before.

    Examples
    --------
    >>> listed("resnet18?mean=0.5,0.5,0.5&std=0.2, vgg16")
    ('resnet18?mean=0.5,0.5,0.5&std=0.2', 'vgg16')
    """
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if found and "?" in found[-1] and _is_number(part.partition("&")[0]):
            found[-1] += f",{part}"
        else:
            found.append(part)
    return tuple(found)


def racing(backbone: str, backbones: str) -> tuple[str, tuple[str, ...]]:
    """The backbone of a run, and others that race against it.

    Raises
    ------
    UsageError
        If both flags name some.

    Examples
    --------
    >>> racing("resnet18", "")
    ('resnet18', ())
    >>> racing("embedded/efficientnet_lite0", "vgg16,resnet18")
    ('vgg16', ('resnet18',))
    """
    from headstart.errors import UsageError
    from headstart.workflows.recipe import DEFAULT_BACKBONE

    if not backbones:
        return backbone, ()
    if backbone != DEFAULT_BACKBONE:
        raise UsageError(
            f"Expected --backbone or --backbones, got both; do write --backbones "
            f"{backbone},{backbones}."
        )
    first, *rivals = listed(backbones) or (backbone,)
    return first, tuple(rivals)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class FitCommand(TyperCommand):
    """``fit`` with the flags of all methods, which are read when the command is chosen."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Put the methods' flags behind those of the run."""
        *own, last = super().get_params(ctx)  # the last one is --help
        return [*own, last, *_method_options()]

    def invoke(self, ctx: Any) -> Any:
        """Hand the methods' flags over as one mapping: the context's object."""
        names = {option.name for option in _method_options()}
        ctx.obj = {name: value for name, value in ctx.params.items() if name in names}
        ctx.params = {name: value for name, value in ctx.params.items() if name not in names}
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Show the flags under headings."""
        groups: dict[str, list[Any]] = {}
        for param in self.get_params(ctx):
            is_option = param.param_type_name == "option"
            title = (param.rich_help_panel or "Options") if is_option else "Arguments"
            if (record := param.get_help_record(ctx)) is not None:
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


@cache
def _method_options() -> tuple[Any, ...]:
    """Options for the parser, through typer's own door: a function with a signature."""
    from headstart.methods.flags import flags

    found = []
    for flag in flags():
        is_switch = flag.kind == "switch"
        option = typer.Option(
            f"{flag.option}/--no-{flag.option[2:]}" if is_switch else flag.option,
            help=" ".join(filter(None, (flag.help, flag.default and f"[{flag.default}]"))),
            metavar=None if is_switch else "|".join(flag.choices) or f"<{flag.kind}>",
            rich_help_panel=flag.group,
        )
        kind: Any = Annotated[(bool if is_switch else str) | None, option]
        found.append(Parameter(flag.name, Parameter.KEYWORD_ONLY, default=None, annotation=kind))

    def takes(**_: Any) -> None: ...

    takes.__signature__ = Signature(found)  # type: ignore[attr-defined]
    takes.__annotations__ = {one.name: one.annotation for one in found}
    made = typer.Typer(rich_markup_mode=None, add_completion=False)
    made.command()(takes)
    return tuple(typer.main.get_command(made).params)
