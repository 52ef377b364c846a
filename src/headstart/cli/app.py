"""Command line: the entry point ``main``, and most commands; the others are in commands.py.

Every command parses its arguments, calls one function of the Python API and prints the result.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headstart import __version__
from headstart.cli.commands import COMMANDS, cache_app, plan
from headstart.cli.data import data_app
from headstart.cli.episodes import print_episodes
from headstart.cli.findings import listed
from headstart.cli.options import (
    AllowOverlap,
    AsJson,
    Backbone,
    Backbones,
    BadFiles,
    BandRange,
    Bands,
    Bits,
    Budget,
    ClassAgnosticNms,
    ClassLevel,
    Config,
    Device,
    Engine,
    Episodes,
    EpisodeShots,
    GroupBy,
    HeadName,
    ImageColumn,
    ImagesFolder,
    LabelColumn,
    LabelFrom,
    LabelSeparator,
    MasksFolder,
    MaskThreshold,
    MaxBoxes,
    MaxPixels,
    MaxRisk,
    MethodCommand,
    MethodName,
    ModelFolder,
    NmsOverlap,
    NoCache,
    NoData,
    Offline,
    On,
    OpenReport,
    OutputFormat,
    Prove,
    Quiet,
    RequireLead,
    Resume,
    RunFolder,
    Seed,
    Size,
    Source,
    Task,
    TestFraction,
    TileSize,
    Track,
    Verbose,
    Ways,
    WeightColumn,
    Window,
    box_settings,
    open_cache,
    parse_bad_files,
    parse_detail,
    read_settings,
    run_recipe,
)
from headstart.cli.output import echo, emit, print_line, say, use_safe_streams, use_utf8_names
from headstart.cli.parser_errors import explain_parser_error
from headstart.errors import DataError, HeadstartError, SetupError

if TYPE_CHECKING:
    from headstart.cli.options import Detail
    from headstart.workflows.fit import Run

__all__ = ["app", "main"]

app = typer.Typer(
    name="headstart",
    help="Transfer learning for image classification, detection and segmentation.\n\n"
    "Other names: train is fit, val is evaluate.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(cache_app, name="cache")


def _print_version(is_set: bool) -> None:
    if is_set:
        echo(f"headstart {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[  # the callback reads it
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None: ...


# Base class of all errors of the argument parser; typer does not export it.
_ParserError: type[Exception] = typer.BadParameter.__bases__[0]


@app.command(cls=MethodCommand)
def fit(  # noqa: PLR0913 - one argument a flag
    ctx: typer.Context,
    source: Source,
    method: MethodName = None,
    task: Task = "auto",
    head: HeadName = "auto",
    size: Size = 0,
    out: RunFolder = None,
    backbone: Backbone = "embedded/efficientnet_lite0",
    backbones: Backbones = "",
    budget: Budget = None,
    prove: Prove = False,
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
    bad_files: BadFiles = "error",
    allow_overlap: AllowOverlap = False,
    test_fraction: TestFraction = 0.2,
    max_risk: MaxRisk = None,
    nms: NmsOverlap = None,
    class_agnostic_nms: ClassAgnosticNms = False,
    max_boxes: MaxBoxes = 100,
    engine: Engine = "auto",
    device: Device = "auto",
    offline: Offline = None,
    seed: Seed = 0,
    no_cache: NoCache = False,
    resume: Resume = False,
    track: Track = "",
    on: On = "",
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
    require_lead: RequireLead = False,
    open_report: OpenReport = False,
) -> None:
    """Train a model on your images, evaluate it, and write a report.

    Without --method, fit compares linear probes and fine-tuning on held-out training images, within
    the time of --budget, and keeps the candidate that is expected to be best. With --prove it keeps
    the linear probe unless another candidate is significantly better. The output
    folder holds the model, report.html and the predictions for the test images.
    """
    detail = parse_detail(quiet, verbose)
    run = _run_fit(
        ctx,
        out=out,
        on=on,
        track=track,
        no_cache=no_cache,
        resume=resume,
        as_json=as_json,
        detail=detail,
    )
    if open_report and not as_json:
        from headstart.cli.terminal import open_in_browser, plain_console

        open_in_browser(run.folder / "report.html", plain_console())
    if run.interrupted:
        sys.exit(130)
    _check_lead(run, require_lead)


def _run_fit(
    ctx: typer.Context,
    *,
    out: Path | None,
    on: str,
    track: str,
    no_cache: bool,
    resume: bool,
    as_json: bool,
    detail: Detail,
) -> Run:
    """Run ``fit`` with its progress on the terminal, and print the JSON document."""
    from headstart.cli.terminal import terminal

    command, source = _command_line(), ctx.params["source"]
    with ExitStack() as stack:
        display = stack.enter_context(terminal(as_json, detail))
        if os.environ.get("RANK", "0") == "0":
            display.progress("loading libraries", 0, 0)
        from headstart.distributed.processes import is_main, processes
        from headstart.workflows.events import Noted
        from headstart.workflows.fit import fit as run_fit
        from headstart.workflows.tracking import tracked

        recipe, note = run_recipe(ctx)
        stack.enter_context(processes(recipe.device))
        cache = stack.enter_context(open_cache(no_cache))
        observer = stack.enter_context(tracked(track, source, recipe, out=out, beside=display))
        if note and is_main():
            display(Noted(text=note))
        run = run_fit(
            source,
            recipe,
            out=out,
            cache=cache,
            observer=observer,
            progress=False,
            command=command,
            resume=resume,
            on=on,
        )
        if as_json and is_main():
            emit({"folder": str(run.folder), "summary": run.summary, **run.evaluation.as_dict()})
    return run


def _check_lead(run: Run, is_required: bool) -> None:
    """Exit with 4 if a lead is required and the model is not better than every baseline."""
    if not is_required:
        return
    from headstart.errors import LeadError
    from headstart.workflows.lead import check_lead

    try:
        check_lead(run.evaluation)
    except LeadError as error:
        say(str(error), err=True)
        raise typer.Exit(error.exit_code) from None


@app.command()
def predict(  # noqa: PLR0913 - one argument a flag
    ctx: typer.Context,
    model: ModelFolder,
    images: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    output: OutputFormat = "table",
    out: Annotated[
        Path | None, typer.Option(help="Output folder, new or empty. Default: predictions.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Minimum score of a box. Default: the threshold in the model."),
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(
            help="COCO file, such as instances_val.json, whose ids the results of --format coco "
            "use."
        ),
    ] = None,
    nms: NmsOverlap = None,
    class_agnostic_nms: ClassAgnosticNms = None,
    max_boxes: MaxBoxes = None,
    tile: TileSize = 0,
    bad_files: BadFiles = "error",
    engine: Annotated[
        str | None, typer.Option(help="Arithmetic of the backbone. Default: as in training.")
    ] = None,
    device: Device = "auto",
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Predict classes, boxes or masks of images with a saved model."""
    from headstart.cli.tables import show_predictions
    from headstart.cli.terminal import plain_console
    from headstart.models.prediction_files import as_csv
    from headstart.models.prediction_files import as_json as predictions_as_json
    from headstart.workflows.predict import PREDICT_SETTINGS, predict_images

    settings = {name: ctx.params[name] for name in PREDICT_SETTINGS}
    settings["bad_files"] = parse_bad_files(bad_files)
    output = "json" if as_json else output
    with open_cache(temporary=False) as store:
        found = predict_images(
            model, images, format=output, out=out, ids=ids, cache=store, **settings
        )
        if found.folder is not None:
            found.write()
            say(f"Wrote the predictions for {len(found.samples)} images to {found.folder}.")
        elif output == "json":
            emit(predictions_as_json(found.predictions, found.classes))
        elif output == "csv":
            echo(as_csv(found.predictions, found.classes), nl=False)
        else:
            show_predictions(plain_console(), found.predictions, found.classes)
        for finding in found.findings:
            say(f"headstart: {finding.message}.", err=True)


@app.command()
def evaluate(  # noqa: PLR0913 - one argument a flag
    ctx: typer.Context,
    model: ModelFolder,
    source: Source,
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
    bad_files: BadFiles = "error",
    allow_overlap: AllowOverlap = False,
    nms: NmsOverlap = None,
    class_agnostic_nms: ClassAgnosticNms = None,
    max_boxes: MaxBoxes = None,
    episodes: Episodes = None,
    ways: Ways = 5,
    shots: EpisodeShots = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder for report.html, report.json and the predictions."),
    ] = None,
    device: Device = "auto",
    no_cache: NoCache = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Evaluate a saved model on labelled images.

    Prints the scores, the most frequent confusions and the worst images. Images that the model was
    trained on are refused, unless --allow-overlap is set.
    """
    if episodes is not None:
        print_episodes(ctx, model, source)
        return
    from headstart.cli.tables import show_evaluation, show_findings, show_mistakes
    from headstart.cli.terminal import plain_console, terminal
    from headstart.evaluation.summary import summarise
    from headstart.workflows.evaluate import evaluate_model, require_reportable, write_report
    from headstart.workflows.run_folder import choose_folder

    if out is not None:
        require_reportable(model)
    target = None if out is None else choose_folder(out, source)
    started_at = time.perf_counter()
    with open_cache(no_cache) as cache, terminal(as_json) as display:
        evaluated = evaluate_model(
            model,
            source,
            **read_settings(ctx),
            **box_settings(ctx),
            bad_files=parse_bad_files(bad_files),
            allow_overlap=allow_overlap,
            device=device,
            cache=cache,
            seed=seed,
            on_progress=display.progress,
        )
    evaluation, summary = evaluated.evaluation, summarise(evaluated.evaluation)
    seconds = time.perf_counter() - started_at
    folder = target and write_report(evaluated, target, seconds, command=_command_line())
    if as_json:
        emit({**listed(evaluated, folder), "summary": summary, **evaluation.as_dict()})
        return
    console = plain_console()
    show_evaluation(console, evaluation, summary)
    show_mistakes(console, evaluation)
    show_findings(console, evaluated.prepared.findings, nothing="")
    if folder:
        files = ", ".join(sorted(path.name for path in folder.iterdir()))
        print_line(console, "[bold]Files[/] ", f"{folder}/: {files}")


@app.command()
def backbones(as_json: AsJson = False) -> None:
    """List the backbones with size, accuracy, licence and data.

    The column "top-1" is the accuracy on ImageNet-1k in percent, where the publisher of the
    weights states it. The column "here" shows whether the weights are on this machine; the
    others are downloaded on first use. Any other network of timm or of the Hugging Face Hub
    works too: timm/<name>, hf/<org>/<model>. Backbones of other packages are at the end; they are
    not imported, so only their name and version are known.
    """
    from headstart.backbones.catalog import names, published_accuracy, resolve
    from headstart.backbones.weights import is_on_disk
    from headstart.cli.tables import show_backbones
    from headstart.cli.terminal import plain_console
    from headstart.plugins import BACKBONES, installed

    rows = [
        {
            "name": spec.name,
            "trained_on": spec.data,
            "licence": spec.licence,
            "source": spec.source,
            "input": list(spec.preprocess.shape),
            "megabytes": spec.megabytes,
            "imagenet_top1": published_accuracy(spec.name),
            "on_disk": is_on_disk(spec),
        }
        for spec in map(resolve, names())
    ]
    rows += [
        {
            "name": plugin.full_name,
            "trained_on": "",
            "licence": "",
            "source": f"{plugin.package} {plugin.version}",
            "input": [],
            "megabytes": 0.0,
            "imagenet_top1": None,
            "on_disk": None,
        }
        for plugin in installed(BACKBONES)
    ]
    if as_json:
        emit(rows)
    else:
        show_backbones(plain_console(), rows)


for command in COMMANDS:
    app.command(cls=MethodCommand if command is plan else None)(command)
app.command("train", cls=MethodCommand, hidden=True)(fit)
app.command("val", hidden=True)(evaluate)


def main() -> None:
    """Run the command line; print an error as one message and set the exit code."""
    from headstart.runtime import prepare

    use_utf8_names()
    use_safe_streams()
    prepare()
    _handle_signals()
    try:
        code = app(prog_name="headstart", standalone_mode=False)
    except HeadstartError as error:
        code = _print_error(str(error), error.exit_code)
    except _ParserError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            echo(str(error.format_message()), err=True)  # type: ignore[attr-defined]
            code = 1
        else:
            code = _print_error(explain_parser_error(error, sys.argv[1:]), 1)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except UnicodeEncodeError as error:
        code = _print_error(str(_unwritable_name(error)), DataError.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        setup_error = SetupError(
            f"A file could not be read or written: {error}. Check the path, the permissions and "
            "the free disk space."
        )
        code = _print_error(str(setup_error), setup_error.exit_code)
    if code == 130:  # the parser turns Ctrl-C into this code as well
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to stop
        _print_error(
            "Stopped. Results in the cache are kept. To continue, run the same command again; add "
            "--resume to continue a training or a comparison.",
            130,
        )
    sys.exit(code if isinstance(code, int) else 0)


def _handle_signals() -> None:
    """Clean up after SIGTERM and SIGHUP as after Ctrl-C, except where they are ignored (nohup)."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _unwritable_name(error: UnicodeEncodeError) -> DataError:
    """Name the text that no file can hold: a file or class whose name is not UTF-8."""
    before, after = error.object[: error.start], error.object[error.start :]
    name = re.split(r"[\s<>\"']", before)[-1] + re.split(r"[\s<>\"']", after)[0]
    return DataError(
        f"The name {name!r} has bytes that are not UTF-8, so no report can be written. Rename the "
        "file or the folder of the class."
    )


def _print_error(message: str, code: int) -> int:
    say(f"headstart: {message}", err=True)
    return code


def _command_line() -> str:
    return shlex.join(["headstart", *sys.argv[1:]])
