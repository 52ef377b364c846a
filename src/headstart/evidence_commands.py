"""The verbs that weigh evidence before or after a training: one function each, as in cli.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["VERBS"]

VERBS: tuple[Callable[..., Any], ...] = ()
"""In the order of ``headstart --help``."""
