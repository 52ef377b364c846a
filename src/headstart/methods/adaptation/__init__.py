"""Domain adaptation: a trained classifier and unlabelled target images in, a new model out.

Read contract.py (the contract), paired_training.py (training on batches of both domains),
statistics.py (AdaBN, mixed BatchNorm statistics), alignment.py (Deep CORAL, DAN, JAN, MCC, AFN),
adversarial.py (DANN, CDAN, CDAN+E, BSP, MDD, ADDA, MCD), self_training.py (pseudo-labels),
consistency.py (mean teacher, FixMatch) and source_free.py (SHOT, TENT).

``ADAPTATIONS`` is the table of the methods by name. It is filled on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.methods.adaptation.contract import AdaptationMethod

__all__ = ["ADAPTATIONS"]

ADAPTATIONS: Mapping[str, type[AdaptationMethod]]


@cache
def _table() -> Mapping[str, type[AdaptationMethod]]:
    from headstart.methods.adaptation.adversarial import Adda, Bsp, Cdan, CdanE, Dann, Mcd, Mdd
    from headstart.methods.adaptation.alignment import Afn, Dan, DeepCoral, Jan, Mcc
    from headstart.methods.adaptation.consistency import FixMatch, MeanTeacher
    from headstart.methods.adaptation.self_training import SelfTraining
    from headstart.methods.adaptation.source_free import Shot, Tent
    from headstart.methods.adaptation.statistics import AdaBN, MixedBN

    methods: tuple[type[AdaptationMethod], ...] = (
        AdaBN,
        MixedBN,
        DeepCoral,
        Dan,
        Jan,
        Mcc,
        Afn,
        Dann,
        Cdan,
        CdanE,
        Bsp,
        Mdd,
        Adda,
        Mcd,
        SelfTraining,
        MeanTeacher,
        FixMatch,
        Shot,
        Tent,
    )
    return {method.name: method for method in methods}


def __getattr__(name: str) -> Any:
    if name != "ADAPTATIONS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _table()
