"""Durations such as ``10m``."""

from __future__ import annotations

from contextlib import suppress
from numbers import Real

from headstart.errors import UsageError

__all__ = ["parse_duration"]


def parse_duration(duration: object) -> float:
    """Convert a duration such as ``10m`` to seconds.

    Raises
    ------
    UsageError
        If it is not a duration.

    Examples
    --------
    >>> [parse_duration(value) for value in ("90s", "10m", "1.5h", "0", 120)]
    [90.0, 600.0, 5400.0, 0.0, 120.0]
    """
    seconds = float("nan")
    if isinstance(duration, str):
        unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(duration[-1:])
        with suppress(ValueError):
            seconds = float(duration if unit is None else duration[:-1]) * (unit or 1.0)
    elif not isinstance(duration, bool) and isinstance(duration, Real):
        with suppress(OverflowError):
            seconds = float(duration)
    if not 0 <= seconds < float("inf"):
        raise UsageError(
            f"--budget must be a duration such as 90s, 10m or 1h, got {duration!r}. Write "
            "--budget 10m."
        )
    return seconds
