"""The commands that show and clear what is kept between runs, and how any command emits JSON."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from headstart.cli.options import (
    AllowOverlap,
    AsJson,
    Backbone,
    BadFiles,
    Budget,
    Device,
    Engine,
    GroupBy,
    HeadName,
    ModelFolder,
    NoCache,
    Offline,
    Seed,
    Size,
    Source,
    Task,
    TestFraction,
    in_seconds,
    listed,
    opened_cache,
    policy_of,
    racing,
)
from headstart.cli.options import Backbones as Rivals

__all__ = ["VERBS", "cache_app", "compare", "emit", "explain", "plan", "rank"]

cache_app = typer.Typer(help="Show or clear what is kept between runs.", no_args_is_help=True)


def emit(document: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(document, indent=1, allow_nan=False, default=str))


@cache_app.command("show")
def cache_show(as_json: AsJson = False) -> None:
    """Show where the cache is and what it holds."""
    from headstart.cache import Cache

    store = Cache()
    stats = store.stats()
    if as_json:
        kinds = {k: {"entries": n, "bytes": size} for k, (n, size) in stats.kinds.items()}
        emit(
            {
                "folder": str(stats.folder),
                "bytes": stats.bytes,
                "budget": stats.budget,
                "kinds": kinds,
            }
        )
        return
    typer.echo(f"{stats.folder}: {stats.bytes / 1e6:.1f} of {stats.budget / 1e6:.0f} MB")
    for kind, (entries, size) in sorted(stats.kinds.items()):
        typer.echo(f"  {kind:<10} {entries:>8} entries {size / 1e6:>10.1f} MB")
    for note in store.notes:
        typer.echo(f"  {note}")


@cache_app.command("clear")
def cache_clear(
    kind: Annotated[str | None, typer.Option(help="Only this kind, such as features.")] = None,
    as_json: AsJson = False,
) -> None:
    """Forget what was kept; the next run computes it again."""
    from headstart.cache import Cache

    store = Cache()
    before = store.stats().bytes
    store.clear(kind)
    freed, folder = before - store.stats().bytes, store.stats().folder
    if as_json:
        emit({"folder": str(folder), "freed_bytes": freed})
    else:
        typer.echo(f"Freed {freed / 1e6:.1f} MB in {folder}.")


Methods = Annotated[
    str,
    typer.Option(
        help="With commas between: scratch, probe, finetune, with options as in "
        "finetune?train-from=all&epochs=5; auto is a race in every training. The first is the "
        "reference."
    ),
]
Backbones = Annotated[str, typer.Option(help="With commas between; see `headstart backbones`.")]
Seeds = Annotated[int, typer.Option(help="How often everything is repeated.")]
Fractions = Annotated[str, typer.Option(help="Shares of the training images, with commas between.")]
Folds = Annotated[
    int | None,
    typer.Option(
        help="Of a cross-validation a seed; 0 for one split a seed. Default: 5 below 200 "
        "images of classes, else 0."
    ),
]
Epochs = Annotated[
    int | None, typer.Option(help="At most, of every method that trains by gradient.")
]
Steps = Annotated[
    int | None,
    typer.Option(help="Instead of epochs: the same number of steps for few and many images."),
]
Out = Annotated[Path | None, typer.Option(help="Folder to write; default runs/compare-<name>.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a comparison that was stopped.")]


def compare(  # noqa: PLR0913 - one argument a flag
    source: Source,
    methods: Methods = "scratch,probe,finetune",
    backbones: Backbones = "embedded/efficientnet_lite0",
    seeds: Seeds = 5,
    fractions: Fractions = "1",
    folds: Folds = None,
    epochs: Epochs = None,
    steps: Steps = None,
    budget: Budget = "2m",
    out: Out = None,
    head: HeadName = "auto",
    size: Size = 0,
    group_by: GroupBy = None,
    bad_files: BadFiles = "error",
    allow_overlap: AllowOverlap = False,
    test_fraction: TestFraction = 0.2,
    device: Device = "auto",
    offline: Offline = None,
    seed: Seed = 0,
    no_cache: NoCache = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train several ways on the same images, and say what can be told apart."""
    from headstart.cli.tables import show_comparison
    from headstart.cli.terminal import terminal
    from headstart.workflows.compare import compare as run_compare
    from headstart.workflows.recipe import Recipe, Trials

    trials = Trials(methods=_names(methods), backbones=listed(backbones), seeds=seeds, folds=folds)
    trials = replace(trials, fractions=_shares(fractions), epochs=epochs, steps=steps)
    recipe = Recipe(
        budget=in_seconds(budget),
        head=head,
        size=size,
        group_by=group_by,
        bad_files=policy_of(bad_files),
        allow_overlap=allow_overlap,
        test_fraction=test_fraction,
        device=device,
        offline=offline,
        seed=seed,
    )
    with opened_cache(no_cache) as cache, terminal(as_json) as shown:
        found, folder = run_compare(
            source,
            trials,
            recipe=recipe,
            out=out,
            cache=cache,
            observer=shown,
            command=shlex.join(["headstart", *sys.argv[1:]]),
            resume=resume,
        )
        if not as_json:
            show_comparison(shown.console, found)
    written = {"folder": str(folder), **found.as_dict()}
    files = f"Written: {folder}/: compare.html, compare.png, compare.json, table.csv"
    typer.echo(json.dumps(written, indent=1, allow_nan=False) if as_json else files)


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _shares(text: str) -> tuple[float, ...]:
    from headstart.errors import UsageError

    try:
        return tuple(float(part) for part in _names(text))
    except ValueError as error:
        raise UsageError(
            f"Expected --fractions as numbers with commas between, got {text!r}; do write "
            "0.1,0.3,1."
        ) from error


def plan(  # noqa: PLR0913 - one argument a flag
    source: Source,
    method: Annotated[
        str,
        typer.Option(
            help="auto for the race; or linear-probe, finetune, scratch, with options as in "
            "finetune?train-from=all&epochs=5."
        ),
    ] = "auto",
    task: Task = "auto",
    backbone: Backbone = "embedded/efficientnet_lite0",
    backbones: Rivals = "",
    budget: Budget = "2m",
    head: HeadName = "auto",
    size: Size = 0,
    group_by: GroupBy = None,
    bad_files: BadFiles = "error",
    allow_overlap: AllowOverlap = False,
    test_fraction: TestFraction = 0.2,
    engine: Engine = "auto",
    device: Device = "auto",
    offline: Offline = None,
    seed: Seed = 0,
    no_cache: NoCache = False,
    as_json: AsJson = False,
) -> None:
    """Say what `fit` would do and how long it would take, without training."""
    from headstart.cli.terminal import terminal
    from headstart.workflows.plan import plan as run_plan
    from headstart.workflows.recipe import Recipe, method_named

    first, rivals = racing(backbone, backbones)
    recipe = Recipe(
        backbone=first,
        rivals=rivals,
        method=None if method == "auto" else method_named(method, "classification", seed=seed),
        task=task,
        budget=in_seconds(budget),
        head=head,
        size=size,
        group_by=group_by,
        bad_files=policy_of(bad_files),
        allow_overlap=allow_overlap,
        test_fraction=test_fraction,
        engine=engine,
        device=device,
        offline=offline,
        seed=seed,
    )
    with opened_cache(no_cache) as cache, terminal(as_json) as shown:
        found = run_plan(source, recipe, cache=cache, observer=shown)
    if as_json:
        typer.echo(json.dumps(found, indent=1, allow_nan=False))


def rank(  # noqa: PLR0913 - one argument a flag
    source: Source,
    backbones: Backbones,
    measure: Annotated[
        str,
        typer.Option(
            help="With commas between, the order is by the first: linear-probe, knn, log-me, "
            "h-score, shrunk-h-score, trans-rate, nleep, leep, nce, gbc, parc, sfda. Default: all "
            "but h-score and sfda, by linear-probe."
        ),
    ] = "",
    max_images: Annotated[
        int, typer.Option(min=0, help="Training images to look at, at most about; 0 for all.")
    ] = 500,
    size: Size = 0,
    group_by: GroupBy = None,
    bad_files: BadFiles = "error",
    allow_overlap: AllowOverlap = False,
    test_fraction: TestFraction = 0.2,
    engine: Engine = "auto",
    device: Device = "auto",
    offline: Offline = None,
    seed: Seed = 0,
    no_cache: NoCache = False,
    as_json: AsJson = False,
) -> None:
    """Say which backbone's features tell the classes apart best, and what each costs."""
    from headstart.cli.tables import show_ranking
    from headstart.cli.terminal import terminal
    from headstart.selection.scores import DEFAULTS
    from headstart.workflows.rank import rank as run_rank
    from headstart.workflows.recipe import Recipe

    recipe = Recipe(
        size=size,
        group_by=group_by,
        bad_files=policy_of(bad_files),
        allow_overlap=allow_overlap,
        test_fraction=test_fraction,
        engine=engine,
        device=device,
        offline=offline,
        seed=seed,
    )
    with opened_cache(no_cache) as cache, terminal(as_json) as shown:
        found = run_rank(
            source,
            listed(backbones),
            recipe=recipe,
            measures=_names(measure) or DEFAULTS,
            most=max_images,
            cache=cache,
            observer=shown,
        )
        if not as_json:
            show_ranking(shown.console, found)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1, allow_nan=False))


def explain(
    model: ModelFolder,
    images: Annotated[list[Path], typer.Argument(help="Files or folders.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write, new or empty: a drawing an image, index.html.")
    ] = Path("explanations"),
    method: Annotated[
        str, typer.Option(help="grad-cam (quick) or occlusion (any backbone; 170 times the work).")
    ] = "grad-cam",
    label: Annotated[
        str | None, typer.Option("--class", help="What to explain; default: the likeliest class.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Draw where in images a classifier finds its answer; exit 2 if one cannot be read."""
    from headstart.reports.explanations import explain_images

    means: Any = method
    rows, unreadable = explain_images(
        model, images, out=out, method=means, label=label, device=device
    )
    if as_json:
        told = {"folder": str(out), "images": rows, "unreadable": unreadable}
        typer.echo(json.dumps(told, indent=1, allow_nan=False))
    else:
        typer.echo(f"Drew {len(rows)} images; open {out / 'index.html'}.")
    for one in unreadable:
        typer.echo(f"headstart: left out {one}", err=True)
    if unreadable:
        raise typer.Exit(2)


VERBS: tuple[Callable[..., Any], ...] = (
    plan,
    rank,
    compare,
    explain,
)
"""In the order of ``headstart --help``."""
