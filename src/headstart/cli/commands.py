"""Commands ``cache``, ``plan``, ``rank``, ``compare``, ``explain``, ``demo`` and ``doctor``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart.cli.adapt import adapt
from headstart.cli.bench import bench
from headstart.cli.distill import distill
from headstart.cli.export import export
from headstart.cli.options import (
    AllowOverlap,
    AsJson,
    Backbone,
    BadFiles,
    BandRange,
    Bands,
    Bits,
    Budget,
    ClassLevel,
    Device,
    Engine,
    GroupBy,
    HeadName,
    ImageColumn,
    ImagesFolder,
    LabelColumn,
    LabelFrom,
    LabelSeparator,
    MasksFolder,
    MaskThreshold,
    MaxPixels,
    MethodName,
    ModelFolder,
    NoCache,
    NoData,
    Offline,
    On,
    Prove,
    Quiet,
    RaceBudget,
    Seed,
    Size,
    Source,
    Task,
    TestFraction,
    Verbose,
    WeightColumn,
    Window,
    open_cache,
    parse_detail,
    run_recipe,
)
from headstart.cli.options import Backbones as Rivals
from headstart.cli.output import echo, emit, say
from headstart.cli.serve import serve
from headstart.cli.watch import watch

if TYPE_CHECKING:
    from headstart.evaluation.comparison import Comparison

__all__ = ["COMMANDS", "cache_app", "compare", "demo", "doctor", "explain", "plan", "rank"]

cache_app = typer.Typer(help="Show or clear the cache of features and scans.", no_args_is_help=True)

Methods = Annotated[
    str,
    typer.Option(
        help="Methods to compare, separated by commas: scratch, probe, finetune, auto; the first "
        "is the reference. Options of a method follow a question mark: "
        "finetune?train-from=all&epochs=5. auto chooses the method anew in every training run."
    ),
]
Backbones = Annotated[
    str, typer.Option(help="Backbones, separated by commas; `headstart backbones` lists them.")
]
Measure = Annotated[
    str,
    typer.Option(
        help="Scores to compute, separated by commas; the first one orders the backbones: "
        "linear-probe, knn, log-me, h-score, shrunk-h-score, trans-rate, nleep, leep, nce, "
        "gbc, parc, sfda. Default: all but h-score and sfda, ordered by linear-probe."
    ),
]
MaxImages = Annotated[
    int, typer.Option(min=0, help="Approximate maximum number of training images to use; 0: all.")
]
Seeds = Annotated[int, typer.Option(help="Number of repetitions, each with its own seed.")]
Fractions = Annotated[
    str, typer.Option(help="Fractions of the training images to train on, separated by commas.")
]
Folds = Annotated[
    int | None,
    typer.Option(
        help="Folds of the cross-validation that every seed runs; 0: one train/test split. "
        "Default: 5 for classification with fewer than 200 images, else 0."
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(help="Maximum number of epochs of fine-tuning and training from scratch."),
]
Steps = Annotated[
    int | None,
    typer.Option(
        help="Number of training steps, whatever the number of images; replaces --epochs."
    ),
]
Out = Annotated[Path | None, typer.Option(help="Output folder. Default: runs/compare-<name>.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a comparison that was stopped.")]


@cache_app.command("show")
def cache_show(as_json: AsJson = False) -> None:
    """Show the folder, the size and the entries of the cache."""
    from headstart.cache import Cache

    store = Cache()
    stats = store.stats()
    if as_json:
        kinds = {
            kind: {"entries": entries, "bytes": size}
            for kind, (entries, size) in stats.kinds.items()
        }
        emit(
            {
                "folder": str(stats.folder),
                "bytes": stats.bytes,
                "budget": stats.budget,
                "kinds": kinds,
            }
        )
        return
    say(f"{stats.folder}: {stats.bytes / 1e6:.1f} of {stats.budget / 1e6:.0f} MB")
    for kind, (entries, size) in sorted(stats.kinds.items()):
        echo(f"  {kind:<10} {entries:>8} entries {size / 1e6:>10.1f} MB")
    for note in store.notes:
        say(f"  {note}")


@cache_app.command("clear")
def cache_clear(
    kind: Annotated[
        str | None, typer.Option(help="Delete only this kind of entry, such as features.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Delete cached results; the next run computes them again."""
    from headstart.cache import Cache

    store = Cache()
    before = store.stats().bytes
    store.clear(kind)
    freed, folder = before - store.stats().bytes, store.stats().folder
    if as_json:
        emit({"folder": str(folder), "freed_bytes": freed})
    else:
        say(f"Freed {freed / 1e6:.1f} MB in {folder}.")


def compare(  # noqa: PLR0913 - one argument a flag
    ctx: typer.Context,
    source: Source,
    methods: Methods = "scratch,probe,finetune",
    backbones: Backbones = "embedded/efficientnet_lite0",
    seeds: Seeds = 5,
    fractions: Fractions = "1",
    folds: Folds = None,
    epochs: Epochs = None,
    steps: Steps = None,
    budget: RaceBudget = None,
    out: Out = None,
    task: Task = "auto",
    head: HeadName = "auto",
    size: Size = 0,
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
    device: Device = "auto",
    offline: Offline = None,
    seed: Seed = 0,
    no_cache: NoCache = False,
    resume: Resume = False,
    on: On = "",
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Compare methods on the same images, with significance tests.

    Every method is trained on the same splits. The output folder holds compare.html, a figure and
    all numbers.
    """
    from headstart.cli.terminal import terminal
    from headstart.workflows.compare import compare as run_compare
    from headstart.workflows.verb_settings import COMPARE_SETTINGS, TRIAL_SETTINGS

    names = (*TRIAL_SETTINGS, *COMPARE_SETTINGS)
    with open_cache(no_cache) as cache, terminal(as_json, parse_detail(quiet, verbose)) as display:
        comparison, folder = run_compare(
            source,
            **{name: ctx.params[name] for name in names},
            out=out,
            cache=cache,
            observer=display,
            progress=False,
            command=shlex.join(["headstart", *sys.argv[1:]]),
            resume=resume,
            on=on,
        )
    _print_comparison(comparison, folder, brief=quiet, as_json=as_json)


def _print_comparison(comparison: Comparison, folder: Path, *, brief: bool, as_json: bool) -> None:
    if as_json:
        emit({"folder": str(folder), **comparison.as_dict()})
        return
    from headstart.cli.tables import show_comparison
    from headstart.cli.terminal import plain_console

    show_comparison(plain_console(), comparison, brief=brief)
    say(f"Written: {folder}/: compare.html, compare.png, compare.json, table.csv")


def plan(  # noqa: PLR0913 - one argument a flag
    ctx: typer.Context,
    source: Source,
    method: MethodName = None,
    task: Task = "auto",
    backbone: Backbone = "embedded/efficientnet_lite0",
    backbones: Rivals = "",
    budget: Budget = None,
    prove: Prove = False,
    head: HeadName = "auto",
    size: Size = 0,
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
    engine: Engine = "auto",
    device: Device = "auto",
    offline: Offline = None,
    seed: Seed = 0,
    no_cache: NoCache = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Show what `fit` would do and how long it would take.

    Nothing is trained. The flags are those of `fit`.
    """
    from headstart.cli.terminal import terminal
    from headstart.workflows.events import Noted
    from headstart.workflows.plan import plan as run_plan

    recipe, note = run_recipe(ctx)
    detail = parse_detail(quiet, verbose)
    with open_cache(no_cache) as cache, terminal(as_json, detail) as display:
        if note:
            display(Noted(text=note))
        planned = run_plan(source, recipe, cache=cache, observer=display, progress=False)
    if as_json:
        emit(planned)


def rank(  # noqa: PLR0913 - one argument a flag
    ctx: typer.Context,
    source: Source,
    backbones: Backbones,
    measure: Measure = "",
    max_images: MaxImages = 500,
    task: Task = "auto",
    size: Size = 0,
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
    engine: Engine = "auto",
    device: Device = "auto",
    offline: Offline = None,
    seed: Seed = 0,
    no_cache: NoCache = False,
    on: On = "",
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Rank backbones by how well their features separate the classes.

    Shows the significance of the differences and the cost of each backbone. Nothing is trained to
    the end.
    """
    from headstart.cli.tables import show_ranking
    from headstart.cli.terminal import terminal
    from headstart.workflows.rank import rank as run_rank
    from headstart.workflows.verb_settings import RANK_SETTINGS

    with open_cache(no_cache) as cache, terminal(as_json, parse_detail(quiet, verbose)) as display:
        ranking = run_rank(
            source,
            backbones,
            measure=measure,
            max_images=max_images,
            **{name: ctx.params[name] for name in RANK_SETTINGS},
            cache=cache,
            observer=display,
            progress=False,
            on=on,
        )
        if not as_json:
            show_ranking(display.console, ranking, brief=quiet)
    if as_json:
        emit(ranking.as_dict())


def explain(
    model: ModelFolder,
    images: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Output folder, new or empty: a heat map for every image, and index.html."
        ),
    ] = Path("explanations"),
    method: Annotated[
        str,
        typer.Option(help="grad-cam (fast) or occlusion (any backbone, about 170 times slower)."),
    ] = "grad-cam",
    label: Annotated[
        str | None, typer.Option("--class", help="Class to explain. Default: the predicted class.")
    ] = None,
    device: Device = "auto",
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Draw which image regions a prediction depends on.

    The exit code is 2 if an image cannot be read; the other images are drawn.
    """
    from headstart.workflows.explain import explain

    checked_method: Any = method  # explain raises on an unknown name
    rows, unreadable = explain(
        model,
        images,
        out=out,
        method=checked_method,
        label=label,
        device=device,
        max_pixels=max_pixels,
    )
    if as_json:
        emit({"folder": str(out), "images": rows, "unreadable": unreadable})
    else:
        say(f"Drew {len(rows)} images. Open {out / 'index.html'}.")
    for problem in unreadable:
        say(f"headstart: skipped {problem}", err=True)
    if unreadable:
        raise typer.Exit(2)


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
        say(f"Wrote {folder}. Next: `headstart fit {folder}`")


def doctor(as_json: AsJson = False) -> None:
    """Show versions, device, arithmetic, cache and network policy."""
    from headstart.cache import Cache
    from headstart.features.engines import available_engines
    from headstart.runtime import device, machine, versions

    target, store = device(), Cache()
    stats = store.stats()
    facts: dict[str, Any] = {
        **versions(),
        **machine(target).as_dict(),
        "engines": ", ".join(available_engines(target)),
        "cache": f"{stats.folder} ({stats.bytes / 1e6:.0f} of {stats.budget / 1e6:.0f} MB)",
        "offline": os.environ.get("HEADSTART_OFFLINE") == "1",
    }
    if store.notes:
        facts["cache notes"] = " ".join(store.notes)
    if as_json:
        emit(facts)
        return
    for name, value in facts.items():
        echo(f"{name:<12} {value}")


COMMANDS: tuple[Callable[..., Any], ...] = (
    plan,
    rank,
    compare,
    adapt,
    distill,
    explain,
    export,
    bench,
    serve,
    watch,
    demo,
    doctor,
)
"""Commands of this file and of those with their names, in the order of ``headstart --help``."""
