"""Output of ``evaluate --episodes``."""

from __future__ import annotations

from pathlib import Path

import typer

from headstart.cli.options import open_cache, read_settings
from headstart.cli.output import emit, print_line

__all__ = ["print_episodes"]


def print_episodes(context: typer.Context, model: Path, source: str) -> None:
    """Evaluate few-shot heads on episodes, and print a table or JSON.

    Parameters
    ----------
    context : typer.Context
        Of the command ``evaluate``; its parameters are read.
    model : Path
    source : str
    """
    from headstart.cli.terminal import plain_console, terminal
    from headstart.workflows.episodes import evaluate_episodes

    values = context.params
    counts = {name: values[name] for name in ("episodes", "ways", "shots", "seed")}
    with open_cache(values["no_cache"]) as cache, terminal(values["as_json"]) as display:
        scores = evaluate_episodes(
            model,
            source,
            **counts,
            device=values["device"],
            cache=cache,
            on_progress=display.progress,
            **read_settings(context),
        )
    if values["as_json"]:
        rows = {name: [score.value, score.low, score.high] for name, score in scores.items()}
        emit({**counts, "accuracy": rows})
        return
    console = plain_console()
    print_line(
        console,
        "[bold]Episodes[/] ",
        f"{counts['episodes']} of {counts['ways']} classes, {counts['shots']} training images of "
        "each; mean accuracy with its 95 % confidence interval",
    )
    for name, score in sorted(scores.items(), key=lambda item: -item[1].value):
        print_line(console, f"{name:<18} ", str(score))
