"""The commands that show and clear what is kept between runs, and how any command emits JSON."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from headstart.options import AsJson

__all__ = ["cache_app", "emit"]

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
