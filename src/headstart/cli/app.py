"""The command line: arguments only; every verb calls the public API."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart.cli.commands import VERBS, cache_app, emit
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
    RequireLead,
    Resume,
    RunFolder,
    Seed,
    Size,
    Source,
    Task,
    TestFraction,
    Track,
    in_seconds,
    opened_cache,
    policy_of,
    racing,
)
from headstart.errors import HeadstartError, SetupError, UsageError

if TYPE_CHECKING:
    from headstart.workflows.fit import Run
    from headstart.workflows.recipe import Recipe

__all__ = ["app", "main"]

app = typer.Typer(
    name="headstart",
    help="From a folder of images to an honest, reusable model: classes, boxes or masks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look at the images before anything is trained.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(cache_app, name="cache")

# Whatever the parser refuses; typer keeps the class itself private.
_BadCommand: type[Exception] = typer.BadParameter.__bases__[0]


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
    """Learn from images, judge the result, and write a run's folder."""
    from headstart.cli.terminal import terminal
    from headstart.distributed import is_main, processes
    from headstart.workflows.fit import fit as run_fit
    from headstart.workflows.recipe import Recipe
    from headstart.workflows.tracking import tracked

    first, rivals = racing(backbone, backbones)
    recipe = Recipe(
        backbone=first,
        rivals=rivals,
        budget=in_seconds(budget),
        task=task,
        head=head,
        size=size,
        group_by=group_by,
        bad_files=policy_of(bad_files),
        allow_overlap=allow_overlap,
        test_fraction=test_fraction,
        max_risk=max_risk,
        engine=engine,
        device=device,
        offline=offline,
        seed=seed,
    )
    recipe = replace(recipe, method=_method(method, ctx.obj, source, recipe))
    with processes(device), opened_cache(no_cache) as cache, terminal(as_json) as shown:
        go = partial(run_fit, source, recipe, out=out, cache=cache, resume=resume)
        with tracked(track, source, recipe, out=out, beside=shown) as told:
            run = go(observer=told, command=_command_line())
        if as_json and is_main():
            emit({"folder": str(run.folder), "verdict": run.verdict, **run.evaluation.as_dict()})
    if run.interrupted:
        sys.exit(130)
    _require_leads(run, require_lead)


def _method(name: str | None, given: Mapping[str, Any], source: str, recipe: Recipe) -> Any:
    """Make the method; where it is not named but flags are given, flags and data name it."""
    from headstart.methods.flags import flags, make_method
    from headstart.workflows.recipe import default_method
    from headstart.workflows.resolve import read

    given = {flag: value for flag, value in given.items() if value is not None}
    if name == "auto" and given:
        raise UsageError(
            f"Expected no flags of a method with --method auto, got {', '.join(given)}; do name "
            "the method."
        )
    if name == "auto" or (name is None and not given):
        return None
    if name is None:
        tunes = all("finetune" in flag.methods for flag in flags() if flag.name in given)
        task = recipe.settled(read(source, recipe)).task if tunes else "classification"
        name = default_method(task).name
    return make_method(name, given, seed=recipe.seed)


def _require_leads(run: Run, wanted: bool) -> None:
    leads = {b.name: b.lead for b in run.evaluation.baselines}  # judged as the verdict judges
    behind = [n for n, lead in leads.items() if not lead.distinguishable or lead.interval.value < 0]
    if wanted and (behind or not leads):
        known = ", ".join(behind) or "anything, for there is no baseline for this task"
        typer.echo(f"Not better than: {known}.", err=True)
        raise typer.Exit(4)


@app.command()
def predict(  # noqa: PLR0913 - one argument a flag
    model: ModelFolder,
    images: Annotated[list[Path], typer.Argument(help="Files or folders.")],
    output: Annotated[
        str,
        typer.Option(
            "--format",
            help="table, json or csv; of boxes also coco, yolo, overlay, of masks also masks, "
            "overlay: files in a folder.",
        ),
    ] = "table",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write, new or empty; default predictions.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Least score of a box; default: as the model learned.")
    ] = None,
    tile: Annotated[
        int, typer.Option(min=0, help="Masks of large images, window by window of this side.")
    ] = 0,
    bad_files: BadFiles = "error",
    engine: Annotated[str | None, typer.Option(help="Default: as the model learned.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Say what images show: classes with probabilities, boxes, or masks."""
    from headstart.cache import Cache
    from headstart.cli.tables import show_predictions
    from headstart.cli.terminal import plain_console
    from headstart.data.prepare import gather, select
    from headstart.models.prediction_files import as_csv, require_format, write_found
    from headstart.models.prediction_files import as_json as plain
    from headstart.models.saving import load

    fitted = load(model)
    form, classes = "json" if as_json else output, fitted.task.classes
    require_format(form, fitted.task.name)
    store = Cache()
    samples = select(gather(images), cache=store, bad_files=policy_of(bad_files))
    found = fitted.answers(
        samples, cache=store, engine=engine, device=device, threshold=threshold, tile=tile
    )
    if form != "table" and (out is not None or form not in {"json", "csv"}):
        pairs = zip(samples, found, strict=True)
        folder = write_found(out or Path("predictions"), form, pairs, classes)
        typer.echo(f"Wrote what {len(samples)} images show to {folder}.")
    elif form == "json":
        emit(plain(found, classes))
    elif form == "csv":
        typer.echo(as_csv(found, classes), nl=False)
    else:
        show_predictions(plain_console(), found, classes)


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
    """Judge a model on labelled images that it has not seen."""
    from headstart.cli.tables import show_evaluation
    from headstart.cli.terminal import plain_console
    from headstart.evaluation.summary import verdict
    from headstart.workflows.evaluate import evaluate_source

    with opened_cache(no_cache) as cache:
        evaluation = evaluate_source(
            model,
            source,
            group_by=group_by,
            bad_files=policy_of(bad_files),
            allow_overlap=allow_overlap,
            device=device,
            cache=cache,
            seed=seed,
        )
    if as_json:
        emit({"verdict": verdict(evaluation), **evaluation.as_dict()})
    else:
        show_evaluation(plain_console(), evaluation, verdict(evaluation))


@data_app.command("check")
def data_check(
    source: Source, group_by: GroupBy = None, no_cache: NoCache = False, as_json: AsJson = False
) -> None:
    """Decode every image and report what is wrong: exit 2 on errors."""
    from headstart.cli.tables import show_data, show_findings
    from headstart.cli.terminal import plain_console, terminal
    from headstart.data.prepare import inspect

    with opened_cache(no_cache) as cache, terminal(as_json) as shown:
        data, findings = inspect(source, cache=cache, group_by=group_by, progress=shown.progress)
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        listed = [
            {"kind": f.kind, "severity": f.severity, "message": f.message, "paths": f.paths}
            for f in findings
        ]
        emit({"images": len(data), "classes": data.counts(), "findings": listed})
    else:
        console = plain_console()
        show_data(console, data, {"images": data})
        show_findings(console, findings, limit=200)
    if errors:
        raise typer.Exit(2)


@app.command()
def backbones(as_json: AsJson = False) -> None:
    """List the backbones of the catalogue; timm/<any> and hf/<org>/<model> work too."""
    from headstart.backbones.catalog import names, resolve

    rows = [resolve(name) for name in names()]
    if as_json:
        emit([{"name": r.name, "trained_on": r.data, "licence": r.licence} for r in rows])
        return
    for row in rows:
        typer.echo(f"{row.name:<38} {row.data:<24} {row.licence}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write the images.")],
    name: Annotated[str, typer.Option(help="Which set.")] = "symbols",
    as_json: AsJson = False,
) -> None:
    """Write an embedded example set as class folders, to look at and to try things on."""
    from headstart.data.demo.classification import write

    write(name, folder)
    if as_json:
        emit({"folder": str(folder), "name": name})
    else:
        typer.echo(f"Wrote {folder}; next: headstart fit {folder}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has: versions, device, arithmetic, cache, network policy."""
    from headstart.cache import Cache
    from headstart.features.engines import available
    from headstart.runtime import device, machine, versions

    target = device()
    stats = Cache().stats()
    facts: dict[str, Any] = {
        **versions(),
        **machine(target).as_dict(),
        "engines": ", ".join(available(target)),
        "cache": f"{stats.folder} ({stats.bytes / 1e6:.0f} of {stats.budget / 1e6:.0f} MB)",
        "offline": os.environ.get("HEADSTART_OFFLINE") == "1",
    }
    if as_json:
        emit(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name:<12} {value}")


for verb in VERBS:
    app.command()(verb)


def main() -> None:
    """Run the command line; errors become one sentence and an exit code."""
    from headstart.runtime import prepare

    prepare()
    for name in ("SIGTERM", "SIGHUP"):  # being stopped kindly cleans up, as Ctrl-C does
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
    except HeadstartError as error:
        code = _complain(str(error), error.exit_code)
    except _BadCommand as error:
        error.show()  # type: ignore[attr-defined]
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        wrapped = SetupError(f"Expected the disk and the files to work, got {error}.")
        code = _complain(str(wrapped), wrapped.exit_code)
    if code == 130:  # the parser turns Ctrl-C into this code as well
        told = "Stopped. What was computed is kept; run again"
        _complain(f"{told} (a training or a comparison: with --resume).", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, code: int) -> int:
    typer.echo(f"headstart: {message}", err=True)
    return code


def _command_line() -> str:
    return shlex.join(["headstart", *sys.argv[1:]])
