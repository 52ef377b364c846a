"""Command line: fit, predict, evaluate, and the entry point ``main``.

Every command parses its arguments, calls one function of the Python API and prints the result.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart import __version__
from headstart.cli.commands import COMMANDS, cache_app, emit
from headstart.cli.options import (
    AllowOverlap,
    AsJson,
    Backbone,
    Backbones,
    BadFiles,
    Budget,
    Device,
    Engine,
    FitCommand,
    GroupBy,
    HeadName,
    MaxRisk,
    MethodName,
    ModelFolder,
    NoCache,
    Offline,
    OutputFormat,
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
    open_cache,
    parse_backbones,
    parse_bad_files,
    parse_duration,
)
from headstart.errors import HeadstartError, SetupError, UsageError

if TYPE_CHECKING:
    from headstart.workflows.fit import Run
    from headstart.workflows.recipe import Recipe

__all__ = ["app", "main"]

app = typer.Typer(
    name="headstart",
    help="Transfer learning for image classification, detection and segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Check images and labels before training.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(cache_app, name="cache")


def _print_version(is_set: bool) -> None:
    if is_set:
        typer.echo(f"headstart {__version__}")
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


@app.command(cls=FitCommand)
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
    budget: Budget = "2m",
    group_by: GroupBy = None,
    bad_files: BadFiles = "error",
    allow_overlap: AllowOverlap = False,
    test_fraction: TestFraction = 0.2,
    max_risk: MaxRisk = None,
    engine: Engine = "auto",
    device: Device = "auto",
    offline: Offline = None,
    seed: Seed = 0,
    no_cache: NoCache = False,
    resume: Resume = False,
    track: Track = "",
    as_json: AsJson = False,
    require_lead: RequireLead = False,
) -> None:
    """Train a model on your images, evaluate it, and write a report.

    Without --method, fit compares linear probes and fine-tuning on held-out training images, within
    the time of --budget. It keeps the linear probe unless another candidate is significantly
    better. The output folder holds the model, report.html and the predictions for the test images.
    """
    from headstart.workflows.recipe import Recipe

    first, rivals = parse_backbones(backbone, backbones)
    recipe = Recipe(
        backbone=first,
        rivals=rivals,
        budget=parse_duration(budget),
        task=task,
        head=head,
        size=size,
        group_by=group_by,
        bad_files=parse_bad_files(bad_files),
        allow_overlap=allow_overlap,
        test_fraction=test_fraction,
        max_risk=max_risk,
        engine=engine,
        device=device,
        offline=offline,
        seed=seed,
    )
    recipe = replace(recipe, method=_method_from_flags(method, ctx.obj, source, recipe))
    run = _run_fit(
        source, recipe, out=out, track=track, no_cache=no_cache, resume=resume, as_json=as_json
    )
    if run.interrupted:
        sys.exit(130)
    _check_lead(run, require_lead)


def _run_fit(
    source: str,
    recipe: Recipe,
    *,
    out: Path | None,
    track: str,
    no_cache: bool,
    resume: bool,
    as_json: bool,
) -> Run:
    """Run ``fit`` with its progress on the terminal, and print the JSON document."""
    from headstart.cli.terminal import terminal
    from headstart.distributed import is_main, processes
    from headstart.workflows.fit import fit as run_fit
    from headstart.workflows.tracking import tracked

    command = _command_line()
    with (
        processes(recipe.device),
        open_cache(no_cache) as cache,
        terminal(as_json) as display,
        tracked(track, source, recipe, out=out, beside=display) as observer,
    ):
        run = run_fit(
            source, recipe, out=out, cache=cache, observer=observer, command=command, resume=resume
        )
        if as_json and is_main():
            emit({"folder": str(run.folder), "summary": run.summary, **run.evaluation.as_dict()})
    return run


def _method_from_flags(
    name: str | None, flag_values: Mapping[str, Any], source: str, recipe: Recipe
) -> Any:
    """Create the method; without a name, choose it by the flags that are set and by the data."""
    from headstart.methods.flags import flags, make_method
    from headstart.workflows.recipe import default_method
    from headstart.workflows.resolve import read_source

    flag_values = {flag: value for flag, value in flag_values.items() if value is not None}
    if name == "auto" and flag_values:
        options = ", ".join(flag.option for flag in flags() if flag.name in flag_values)
        raise UsageError(
            f"--method auto takes no flags of a method, got {options}. Name the method, for "
            "example --method finetune."
        )
    if name == "auto" or (name is None and not flag_values):
        return None
    if name is None:
        tunes = all("finetune" in flag.methods for flag in flags() if flag.name in flag_values)
        task = recipe.resolved_for(read_source(source, recipe)).task if tunes else "classification"
        name = default_method(task).name
    return make_method(name, flag_values, seed=recipe.seed)


def _check_lead(run: Run, is_required: bool) -> None:
    """Exit with 4 if a lead is required and the model is not better than every baseline."""
    if not is_required:
        return
    leads = {baseline.name: baseline.lead for baseline in run.evaluation.baselines}
    not_beaten = [
        name for name, lead in leads.items() if not lead.significant or lead.interval.value < 0
    ]
    if not leads:
        kind = run.evaluation.task.kind
        typer.echo(
            f"--require-lead: there is no baseline for {kind}. Leave the flag out.", err=True
        )
        raise typer.Exit(4)
    if not_beaten:
        typer.echo(
            f"--require-lead: the model is not significantly better than: {', '.join(not_beaten)}.",
            err=True,
        )
        raise typer.Exit(4)


@app.command()
def predict(  # noqa: PLR0913 - one argument a flag
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
    tile: TileSize = 0,
    bad_files: BadFiles = "error",
    engine: Annotated[
        str | None, typer.Option(help="Arithmetic of the backbone. Default: as in training.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Predict classes, boxes or masks of images with a saved model."""
    from headstart.cache import Cache
    from headstart.cli.tables import show_predictions
    from headstart.cli.terminal import plain_console
    from headstart.data.prepare import readable_samples, to_samples
    from headstart.models.prediction_files import as_csv, require_format, write_predictions
    from headstart.models.prediction_files import as_json as predictions_as_json
    from headstart.models.saving import load

    fitted = load(model)
    output_format, classes = "json" if as_json else output, fitted.task.classes
    require_format(output_format, fitted.task.name)
    store = Cache()
    samples = readable_samples(
        to_samples(images), cache=store, bad_files=parse_bad_files(bad_files)
    )
    predictions = fitted.predict_samples(
        samples, cache=store, engine=engine, device=device, threshold=threshold, tile=tile
    )
    if output_format != "table" and (out is not None or output_format not in {"json", "csv"}):
        pairs = zip(samples, predictions, strict=True)
        folder = write_predictions(out or Path("predictions"), output_format, pairs, classes)
        typer.echo(f"Wrote the predictions for {len(samples)} images to {folder}.")
    elif output_format == "json":
        emit(predictions_as_json(predictions, classes))
    elif output_format == "csv":
        typer.echo(as_csv(predictions, classes), nl=False)
    else:
        show_predictions(plain_console(), predictions, classes)


@app.command()
def evaluate(  # noqa: PLR0913 - one argument a flag
    model: ModelFolder,
    source: Source,
    group_by: GroupBy = None,
    bad_files: BadFiles = "error",
    allow_overlap: AllowOverlap = False,
    device: Device = "auto",
    no_cache: NoCache = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Evaluate a saved model on labelled images.

    Images that the model was trained on are refused, unless --allow-overlap is set.
    """
    from headstart.cli.tables import show_evaluation
    from headstart.cli.terminal import plain_console
    from headstart.evaluation.summary import summarise
    from headstart.workflows.evaluate import evaluate_source

    with open_cache(no_cache) as cache:
        evaluation = evaluate_source(
            model,
            source,
            group_by=group_by,
            bad_files=parse_bad_files(bad_files),
            allow_overlap=allow_overlap,
            device=device,
            cache=cache,
            seed=seed,
        )
    if as_json:
        emit({"summary": summarise(evaluation), **evaluation.as_dict()})
    else:
        show_evaluation(plain_console(), evaluation, summarise(evaluation))


@data_app.command("check")
def data_check(
    source: Source, group_by: GroupBy = None, no_cache: NoCache = False, as_json: AsJson = False
) -> None:
    """Report unreadable images, duplicates, and leaks between splits.

    Decodes every image. The exit code is 2 if there is an error.
    """
    from headstart.cli.tables import show_data, show_findings
    from headstart.cli.terminal import plain_console, terminal
    from headstart.data.prepare import inspect_dataset

    with open_cache(no_cache) as cache, terminal(as_json) as display:
        data, findings = inspect_dataset(
            source, cache=cache, group_by=group_by, progress=display.progress
        )
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        rows = [
            {"kind": f.kind, "severity": f.severity, "message": f.message, "paths": f.paths}
            for f in findings
        ]
        emit({"images": len(data), "classes": data.counts(), "findings": rows})
    else:
        console = plain_console()
        show_data(console, data, {"images": data})
        show_findings(console, findings, limit=200)
    if errors:
        raise typer.Exit(2)


@app.command()
def backbones(as_json: AsJson = False) -> None:
    """List the pretrained backbones with their data and licence.

    Any other network of timm or of the Hugging Face Hub works too: timm/<name>, hf/<org>/<model>.
    """
    from headstart.backbones.catalog import names, resolve

    specs = [resolve(name) for name in names()]
    if as_json:
        emit([{"name": s.name, "trained_on": s.data, "licence": s.licence} for s in specs])
        return
    for spec in specs:
        typer.echo(f"{spec.name:<38} {spec.data:<24} {spec.licence}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Output folder.")],
    name: Annotated[str, typer.Option(help="Name of the dataset.")] = "symbols",
    as_json: AsJson = False,
) -> None:
    """Write an embedded example dataset as class folders."""
    from headstart.data.demo.classification import write

    write(name, folder)
    if as_json:
        emit({"folder": str(folder), "name": name})
    else:
        typer.echo(f"Wrote {folder}. Next: headstart fit {folder}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, device, arithmetic, cache and network policy."""
    from headstart.cache import Cache
    from headstart.features.engines import available_engines
    from headstart.runtime import device, machine, versions

    target = device()
    stats = Cache().stats()
    facts: dict[str, Any] = {
        **versions(),
        **machine(target).as_dict(),
        "engines": ", ".join(available_engines(target)),
        "cache": f"{stats.folder} ({stats.bytes / 1e6:.0f} of {stats.budget / 1e6:.0f} MB)",
        "offline": os.environ.get("HEADSTART_OFFLINE") == "1",
    }
    if as_json:
        emit(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name:<12} {value}")


for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line; print an error as one message and set the exit code."""
    from headstart.runtime import prepare

    prepare()
    for name in ("SIGTERM", "SIGHUP"):  # clean up as after Ctrl-C
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
    except HeadstartError as error:
        code = _print_error(str(error), error.exit_code)
    except _ParserError as error:
        error.show()  # type: ignore[attr-defined]
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
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
        _print_error(
            "Stopped. Results in the cache are kept. To continue, run the same command again; add "
            "--resume to continue a training or a comparison.",
            130,
        )
    sys.exit(code if isinstance(code, int) else 0)


def _print_error(message: str, code: int) -> int:
    typer.echo(f"headstart: {message}", err=True)
    return code


def _command_line() -> str:
    return shlex.join(["headstart", *sys.argv[1:]])
