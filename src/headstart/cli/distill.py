"""Command ``distill``: a small student learns from a trained teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headstart.cli.options import (
    AsJson,
    Device,
    GroupBy,
    ModelFolder,
    NoCache,
    Offline,
    Quiet,
    Seed,
    Source,
    TestFraction,
    Verbose,
    open_cache,
    parse_detail,
)
from headstart.cli.output import emit, say

__all__ = ["distill"]

Student = Annotated[str, typer.Option(help="Backbone of the student.")]
Loss = Annotated[
    str,
    typer.Option(
        help="kd, dkd or dist compare the predictions with the teacher's; rkd and pkt the features."
    ),
]
Temperature = Annotated[
    float, typer.Option(help="Divides the logits of kd, dkd and dist, above 0.")
]
Weight = Annotated[
    float, typer.Option(help="Weight of the teacher's loss; that of the labels is 1.")
]
TrainFrom = Annotated[
    str, typer.Option(help="First stage of the student that trains: last:N, all or a name.")
]
Epochs = Annotated[
    int | None, typer.Option(min=1, help="Number of epochs. Default: that of --method finetune.")
]
LearningRate = Annotated[
    float | None, typer.Option(help="Learning rate. Default: that of --method finetune.")
]
Out = Annotated[Path | None, typer.Option(help="Output folder. Default: runs/<data>-distilled.")]


def distill(  # noqa: PLR0913 - one argument a flag
    teacher: ModelFolder,
    source: Source,
    student: Student = "torchvision/mobilenet_v3_small",
    loss: Loss = "kd",
    temperature: Temperature = 4.0,
    weight: Weight = 1.0,
    train_from: TrainFrom = "all",
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    out: Out = None,
    group_by: GroupBy = None,
    test_fraction: TestFraction = 0.2,
    device: Device = "auto",
    offline: Offline = None,
    seed: Seed = 0,
    no_cache: NoCache = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Train a small model on the outputs of a large one.

    The student is fine-tuned twice, with the teacher and without it, on the same images, so that
    the gain is known. The exit code is 4 if the student with the teacher is significantly worse.
    """
    from headstart.cli.terminal import terminal
    from headstart.workflows.distill import distill as run_distill

    with open_cache(no_cache) as cache, terminal(as_json, parse_detail(quiet, verbose)) as display:
        settings: dict[str, Any] = {
            "epochs": epochs,
            "learning_rate": learning_rate,
            "group_by": group_by,
        }
        distilled = run_distill(
            teacher,
            source,
            student,
            loss=loss,
            temperature=temperature,
            weight=weight,
            train_from=train_from,
            out=out,
            cache=cache,
            observer=display,
            progress=False,
            test_fraction=test_fraction,
            device=device,
            offline=offline,
            seed=seed,
            **{name: value for name, value in settings.items() if value is not None},
        )
    if as_json:
        emit(distilled.as_dict())
    else:
        say("\n".join(("Distillation", *(f"  {text}" for text in distilled.sentences))))
    if distilled.gain.high < 0:
        raise typer.Exit(4)
