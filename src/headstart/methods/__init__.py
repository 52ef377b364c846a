"""Training methods. One file per method, one contract.

Read method.py (the contract), linear_probe.py, finetune.py, scratch.py and few_shot.py (the
methods), pretraining.py (train the weights of a backbone), flags.py (the methods' fields as
command-line flags), plugin_methods.py (methods of other packages) and adaptation/ (methods for a
new domain without labels, with a contract of their own).

``METHODS`` is the table of Headstart's own methods by name. It is filled on first use, so that a
run imports only its own method.
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
    from headstart.methods.few_shot import FewShot
    from headstart.methods.finetune import Finetune
    from headstart.methods.linear_probe import LinearProbe
    from headstart.methods.scratch import Scratch

    return {
        "linear-probe": LinearProbe,
        "finetune": Finetune,
        "scratch": Scratch,
        "few-shot": FewShot,
    }


def __getattr__(name: str) -> Any:
    if name != "METHODS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _table()
