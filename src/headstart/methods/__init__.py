"""How a model learns; one module a method, one contract in method.py.

``METHODS`` is the table of them all, by the names that people use. It is read when it is first
asked for, so that a run imports its own method only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.methods.method import Method

__all__ = ["METHODS"]

METHODS: Mapping[str, type[Method]]


@cache
def _table() -> Mapping[str, type[Method]]:
    from headstart.methods.finetune import Finetune
    from headstart.methods.linear_probe import LinearProbe
    from headstart.methods.scratch import Scratch

    return {"linear-probe": LinearProbe, "finetune": Finetune, "scratch": Scratch}


def __getattr__(name: str) -> Any:
    if name != "METHODS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _table()
