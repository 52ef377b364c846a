"""Arguments and flags of the commands.

The flags of ``fit`` for methods are derived from the fields of the method classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cache, partial
from inspect import Parameter, Signature
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from headstart.cli.output import say

if TYPE_CHECKING:
    from headstart.cache import Cache
    from headstart.workflows.recipe import Recipe

__all__ = [
    "AllowOverlap",
    "AsJson",
    "Backbone",
    "Backbones",
    "BadFiles",
    "Budget",
    "ClassAgnosticNms",
    "ClassLevel",
    "Config",
    "Detail",
    "Device",
    "Engine",
    "EpisodeShots",
    "Episodes",
    "GroupBy",
    "HeadName",
    "ImageColumn",
    "ImagesFolder",
    "LabelColumn",
    "LabelFrom",
    "LabelSeparator",
    "MaskThreshold",
    "MasksFolder",
    "MaxBoxes",
    "MaxRisk",
    "MethodCommand",
    "MethodName",
    "ModelFolder",
    "NmsOverlap",
    "NoCache",
    "Offline",
    "OpenReport",
    "OutputFormat",
    "Prove",
    "Quiet",
    "RaceBudget",
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
    "Verbose",
    "WeightColumn",
    "box_settings",
    "open_cache",
    "parse_bad_files",
    "parse_detail",
    "run_recipe",
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
        "classification), linear-probe, finetune (the default for boxes and masks), scratch or "
        "few-shot."
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
    str | None,
    typer.Option(
        help="Time for the whole run, from reading the images to the report: 90s, 10m, 1h. If "
        "the features of the images alone take longer, one linear probe is fitted. 0: linear "
        "probes only. Default: 2m for classes. For boxes and masks, fit compares candidates only "
        "if it is given."
    ),
]
RaceBudget = Annotated[
    str | None,
    typer.Option(
        help="Time for each race of the method auto: 90s, 10m, 1h. 0: linear probes only. Default: "
        "2m."
    ),
]
Prove = Annotated[
    bool,
    typer.Option(
        "--prove",
        help="Keep the linear probe unless another candidate is significantly better in "
        "cross-validation. Default: the candidate that is expected to be best.",
    ),
]
Backbones = Annotated[
    str,
    typer.Option(
        help="Several backbones, separated by commas. The first is used unless another is "
        "significantly better. auto: the best two of those on this machine."
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
MasksFolder = Annotated[
    str | None,
    typer.Option(
        "--masks",
        help="Folder of the masks, if names do not tell: a path in the data, or elsewhere.",
    ),
]
MaskThreshold = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Read masks as two classes: values from this on are the object, such as 128 for masks "
        "that were saved as JPEG or resized.",
    ),
]
ClassLevel = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Level of the folders that are classes: 1 for the folders in the data, or in its "
        "splits; 2 for the folders in these.",
    ),
]
LabelFrom = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="Regular expression that finds the class in the relative path of each image: the "
        "group called label, or the first group, such as '([a-z]+)_[0-9]+'.",
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Largest width times height of an image. Larger ones are refused before they are "
        "decoded. Default: 178956970.",
    ),
]
Bits = Annotated[
    int | None,
    typer.Option(
        min=9,
        max=16,
        help="Bits that the values of 16-bit images use, such as 12 for values up to 4095.",
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        help="DICOM images: center and width of the values that are shown, such as 40,400. "
        "Default: the window in the file.",
    ),
]
Bands = Annotated[
    str | None,
    typer.Option(
        help="TIFF: bands that become red, green and blue, counted from 1, such as 4,3,2; one "
        "band is grey.",
    ),
]
BandRange = Annotated[
    str | None,
    typer.Option(
        help="With --bands: values of black and white, such as 0,3000, or percentiles of every "
        "image and band. Default: 2%,98%.",
    ),
]
NoData = Annotated[
    float | None,
    typer.Option(
        help="With --bands: value of pixels without data, which become black. Default: the tag "
        "GDAL_NODATA.",
    ),
]
ImagesFolder = Annotated[
    str | None,
    typer.Option("--images", help="Folder of the images that have masks, if names do not tell."),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(help="Column of the images in a table, if its name is not a usual one."),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(help="Column of the labels in a table, if its name is not a usual one."),
]
LabelSeparator = Annotated[
    str | None,
    typer.Option(
        help='Text between several labels in one cell of a table, such as ",". none: each cell is '
        "one label. Recognised without the flag: | and ; and lists."
    ),
]
WeightColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the images' weights in a table: numbers of 0 or more, by which training "
        "multiplies the loss of an image. Images of weight 0 are left out."
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
NmsOverlap = Annotated[
    float | None,
    typer.Option(
        "--nms",
        help="For boxes: of two boxes that overlap by more than this IoU, the one with the lower "
        "score is removed. Default: as in the model; 0.5 to 0.6 by the head.",
    ),
]
ClassAgnosticNms = Annotated[
    bool | None,
    typer.Option(
        help="For boxes: compare boxes of all classes in the suppression. Default: as in the "
        "model; only boxes of the same class.",
    ),
]
Episodes = Annotated[
    int | None,
    typer.Option(help="Evaluate few-shot heads on this many episodes of classes that are new."),
]
Ways = Annotated[int, typer.Option(help="Classes of an episode.")]
EpisodeShots = Annotated[
    int, typer.Option("--shots", help="Training images of each class of an episode.")
]
MaxBoxes = Annotated[
    int | None,
    typer.Option(min=1, help="For boxes: most boxes of an image. Default: as in the model; 100."),
]
OpenReport = Annotated[
    bool, typer.Option("--open", help="Open the report in the browser, on a terminal only.")
]
Track = Annotated[
    str,
    typer.Option(
        help="Log to tensorboard, mlflow, or both, separated by a comma. log.jsonl is always "
        "written."
    ),
]
On = Annotated[
    str,
    typer.Option(
        help="Compute on a Ray cluster: ray for the cores of this machine, ray:ADDRESS to join "
        "one.",
        metavar="ray[:ADDRESS]",
    ),
]
Offline = Annotated[
    bool | None,
    typer.Option("--offline", help="Never use the network. Same as HEADSTART_OFFLINE=1."),
]
Detail = Literal["quiet", "normal", "verbose"]
"""How much a command prints."""

Config = Annotated[
    Path | None,
    typer.Option(
        help="Settings of an earlier run: its resolved.yaml. Flags replace single settings of it."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only the summary and the files.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Print every epoch and step with its time.")
]


@contextmanager
def open_cache(temporary: bool) -> Iterator[Cache]:
    """Open the user's cache, or an empty one that is deleted afterwards; print its notes."""
    from headstart import cache

    with cache.open_cache(no_cache=temporary) as store:
        try:
            yield store
        finally:
            for note in store.notes:
                say(note, err=True)


def read_settings(context: typer.Context) -> dict[str, Any]:
    """Values of the flags of a command that say how the data are read."""
    from headstart.data.readers import READ_SETTINGS

    return {name: context.params[name] for name in READ_SETTINGS}


def box_settings(context: typer.Context) -> dict[str, Any]:
    """Values of the flags of a command that choose the boxes of a detector."""
    from headstart.models.heads.detection_config import SELECTION_SETTINGS

    return {name: context.params[name] for name in SELECTION_SETTINGS}


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


def parse_detail(quiet: bool, verbose: bool) -> Detail:
    """Return how much a command prints, from the two flags.

    Raises
    ------
    UsageError
        If both flags are set.

    Examples
    --------
    >>> parse_detail(False, True)
    'verbose'
    """
    from headstart.errors import UsageError

    if quiet and verbose:
        both = " and ".join(("--quiet", "--verbose"))
        raise UsageError(f"{both} are both set. Remove one of them.")
    return "quiet" if quiet else "verbose" if verbose else "normal"


def run_recipe(context: typer.Context) -> tuple[Recipe, str]:
    """Make the recipe from the flags of a command, and from the file of ``--config``.

    Parameters
    ----------
    context : typer.Context
        Of a `MethodCommand`.

    Returns
    -------
    Recipe
    str
        A note if flags have chosen the method; else empty.

    Raises
    ------
    DataError
        If the file of ``--config`` cannot be read.
    UsageError
        If a flag, or a setting in that file, is invalid.
    """
    from headstart.workflows.config import read_recipe
    from headstart.workflows.recipe import Recipe, make_recipe, parse_method
    from headstart.workflows.resolve import task_of_source

    names = {field.name for field in fields(Recipe)} | {"backbones"}
    settings = {name: value for name, value in context.params.items() if name in names}
    flag_values = {name: value for name, value in context.obj.items() if value is not None}
    method, config = settings["method"], context.params.get("config")
    find_task = partial(task_of_source, context.params["source"])
    if method is not None and "?" in method:
        data_recipe = make_recipe({**settings, "method": None})
        task = data_recipe.task if data_recipe.task != "auto" else find_task(data_recipe)
        settings["method"] = parse_method(method, task, seed=settings["seed"])
    settings |= flag_values
    if config is not None:
        explicit = {name: value for name, value in settings.items() if _is_set(context, name)}
        return read_recipe(config, explicit, find_task=find_task), ""
    recipe = make_recipe(settings, find_task=find_task)
    is_added = method is None and recipe.method is not None
    return recipe, _method_note(recipe, flag_values) if is_added else ""


def _is_set(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in {"DEFAULT", "DEFAULT_MAP"}


def _method_note(recipe: Recipe, flag_values: Mapping[str, Any]) -> str:
    options = ", ".join(f"--{name.replace('_', '-')}" for name in flag_values)
    name = recipe.method.name if recipe.method else "auto"
    return (
        f"Added --method {name}, because {options} {'is' if len(flag_values) == 1 else 'are'} set. "
        "Without flags of a method, candidates are compared."
    )


NAMED_METHOD = "headstart.method"
"""Key of the context's values: the method that the arguments name."""


class MethodCommand(TyperCommand):
    """A command with the flags of all methods.

    They are read only when the command runs, because this imports the methods. A method of another
    package is imported only if --method names it.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the name of the method first, because it decides which flags there are."""
        ctx.meta[NAMED_METHOD] = _named_method(args)
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """Append the flags of the methods to those of the run."""
        return [*super().get_params(ctx), *_method_options(ctx.meta.get(NAMED_METHOD, ""))]

    def invoke(self, ctx: Any) -> Any:
        """Pass the flags of the methods as one mapping: the context's object."""
        names = {option.name for option in _method_options(ctx.meta.get(NAMED_METHOD, ""))}
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


def _named_method(args: list[str]) -> str:
    """Return the last value of ``--method`` among arguments, without options; else empty.

    >>> _named_method(["photos", "--method", "finetune?epochs=5"])
    'finetune'
    """
    name = ""
    for flag, value in zip_longest(args, args[1:], fillvalue=""):
        if flag == "--":
            break
        if flag == "--method":
            name = value
        elif flag.startswith("--method="):
            name = flag.partition("=")[2]
    return name.partition("?")[0]


@cache
def _method_options(method: str) -> tuple[Any, ...]:
    """Create the parser's options from a function signature, as typer requires."""
    from headstart.methods.flags import flags

    parameters = []
    for flag in flags(method):
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
