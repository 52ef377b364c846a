"""Command ``adapt``: a trained classifier for the images of another domain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headstart.cli.options import (
    AsJson,
    BadFiles,
    Device,
    ModelFolder,
    NoCache,
    Quiet,
    Resume,
    Seed,
    Verbose,
    open_cache,
    parse_bad_files,
    parse_detail,
)
from headstart.cli.output import emit, say

if TYPE_CHECKING:
    from headstart.workflows.adaptation import Adaptation

__all__ = ["adapt"]

Target = Annotated[Path, typer.Option(help="Folder of unlabelled images of the new domain.")]
Source = Annotated[
    str | None,
    typer.Option(
        help="Labelled images of the model's own domain, as for `fit`. Without them only "
        "adabn, mixed-bn, shot and tent can run."
    ),
]
Methods = Annotated[
    str,
    typer.Option(
        help="auto, or one or more of adabn, mixed-bn, coral, dan, jan, mcc, afn, dann, cdan, "
        "cdan-e, bsp, mdd, adda, mcd, self-training, mean-teacher, fixmatch, shot and tent, "
        "separated by commas."
    ),
]
EvaluateOn = Annotated[
    str | None,
    typer.Option(
        help="Labelled images of the target: the accuracy of every model is shown, and never "
        "used to choose."
    ),
]
Out = Annotated[Path | None, typer.Option(help="Output folder. Default: runs/<target>-adapted.")]
Budget = Annotated[str, typer.Option(help="Time for all methods: 90s, 5m, 1h.")]
TrainFrom = Annotated[
    str | None,
    typer.Option(
        help="First stage that trains: last:N, all or a name. Default: last:1; tent: all."
    ),
]
BatchNorm = Annotated[
    str | None,
    typer.Option(
        help="BatchNorm of the stages that train: frozen, train or adapt. Default: frozen; "
        "tent: train."
    ),
]
LearningRate = Annotated[
    float | None, typer.Option(help="Learning rate of backbone and head. Default: 1e-4.")
]
Epochs = Annotated[int, typer.Option(min=0, help="Number of epochs; 0: by the number of images.")]


def adapt(  # noqa: PLR0913 - one argument a flag
    model: ModelFolder,
    target: Target,
    source: Source = None,
    method: Methods = "auto",
    evaluate_on: EvaluateOn = None,
    out: Out = None,
    budget: Budget = "5m",
    train_from: TrainFrom = None,
    batch_norm: BatchNorm = None,
    learning_rate: LearningRate = None,
    epochs: Epochs = 0,
    bad_files: BadFiles = "error",
    device: Device = "auto",
    seed: Seed = 0,
    resume: Resume = False,
    no_cache: NoCache = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Adapt a classifier to unlabelled images of another domain.

    No label of the target is used. If no method is better by label-free scores, the source model
    is kept and the exit code is 4.
    """
    from headstart.cli.terminal import terminal
    from headstart.workflows.adapt import adapt as run_adapt
    from headstart.workflows.run_folder import choose_folder, slug

    folder = choose_folder(out, target) if out else Path("runs") / f"{slug(target)}-adapted"
    with open_cache(no_cache) as cache, terminal(as_json, parse_detail(quiet, verbose)) as display:
        adaptation = run_adapt(
            model,
            target,
            source=source,
            method=method,
            evaluate_on=evaluate_on,
            out=folder,
            cache=cache,
            progress=False,
            observer=display,
            budget=budget,
            train_from=train_from,
            batch_norm=batch_norm,
            learning_rate=learning_rate,
            epochs=epochs,
            bad_files=parse_bad_files(bad_files),
            device=device,
            seed=seed,
            resume=resume,
        )
    _print_adaptation(adaptation, as_json=as_json)
    if not adaptation.is_better:
        raise typer.Exit(4)


def _print_adaptation(adaptation: Adaptation, *, as_json: bool) -> None:
    if as_json:
        emit({"folder": str(adaptation.folder), **adaptation.as_dict()})
        return
    for sentence in adaptation.summary:
        say(sentence)
    for result in adaptation.results:
        if result.oracle is not None:
            say(f"Accuracy of {result.method} (oracle, never used to choose): {result.oracle}")
    files = "model.json, model.safetensors, report.html, report.json, report.md, card.md"
    say(f"Written: {adaptation.folder}/: {files}")
