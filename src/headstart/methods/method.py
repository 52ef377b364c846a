"""The contract of a method: a model and examples in, a new model out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from headstart.backbones.freezing import FreezePlan
from headstart.data.dataset import Dataset
from headstart.errors import DataError, UsageError
from headstart.features.extractor import Extractor
from headstart.models.transfer_model import TransferModel
from headstart.training.job import Session
from headstart.training.losses.classification import Loss

__all__ = [
    "Method",
    "Outline",
    "described",
    "require_fitting",
    "require_two_of_each",
    "resume_identity",
]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a method is about to do, for people.

    Parameters
    ----------
    title : str
        Such as ``linear probe``.
    trains : str
        What learns, and how.
    plan : FreezePlan or None
        Stage by stage; None where the backbone stays as it is.
    kept : str
        What of the backbone runs once and is kept, and what that is expected to bring.
    precision : str
        What steps are computed in; empty where none are taken.
    """

    title: str
    trains: str
    plan: FreezePlan | None = None
    kept: str = ""
    precision: str = ""


class Method(Protocol):
    """A way to learn, as a frozen keyword-only dataclass.

    Its fields are the Python arguments, the command line's flags and the record that is stored
    with the model. The model given is never modified.
    """

    name: ClassVar[str]
    resumes: ClassVar[bool]  # whether a training of steps can be taken up again

    def check(self, train: Dataset) -> None:
        """Refuse data that this method cannot learn from, before anything is computed.

        Raises
        ------
        DataError
            By the classes' names.
        """
        ...

    def outline(self, model: TransferModel, train: Dataset, *, extractor: Extractor) -> Outline:
        """Say what would be trained, before anything is."""
        ...

    def fit(
        self,
        model: TransferModel,
        train: Dataset,
        val: Dataset | None = None,
        *,
        extractor: Extractor,
        session: Session | None = None,
    ) -> TransferModel:
        """Learn from ``train`` (and select on ``val``) and return a new model.

        Parameters
        ----------
        model : TransferModel
        train : Dataset
            The only examples that parameters are fitted on.
        val : Dataset, optional
            For methods that stop or select on held-out examples; never the test part.
        extractor : Extractor
            Makes the features of what is frozen.
        session : Session, optional
            Who is told of epochs, and where a training can be taken up again.
        """
        ...


def described(method: Any) -> dict[str, Any]:
    """Return a method's name and fields as plain values, for the record of a model.

    >>> from headstart.methods.linear_probe import LinearProbe
    >>> described(LinearProbe())["name"]
    'linear-probe'
    """
    return {"name": method.name, **asdict(method)}


def resume_identity(method: Any) -> dict[str, Any]:
    """Settings of a method by the names that checkpoints have, also older ones."""
    values = described(method)
    if "activation_cache" in values:  # checkpoints call it by its first name
        values["boundary_cache"] = values.pop("activation_cache")
    return values


def require_fitting(method: Any, train: Dataset) -> None:
    """Refuse settings that say something of classes only, where boxes or masks are learned.

    Raises
    ------
    UsageError
        By the settings' names.
    """
    if not train.is_dense:
        return
    settings = described(method)
    off = {"loss": asdict(Loss()), "mixup": 0.0, "cutmix": 0.0, "dropout": 0.0}
    wrong = [name for name, value in off.items() if name in settings and settings[name] != value]
    wrong += ["start"] * (settings.get("start") == "probe")
    wrong += ["policy"] * (settings.get("augmentation", {}).get("policy", "none") != "none")
    if wrong:
        raise UsageError(
            f"Expected settings that {train.kind} knows, got {', '.join(wrong)}, which is for "
            "classes of whole images; do leave it as it is."
        )


def require_two_of_each(train: Dataset, *, least: int = 2) -> None:
    """Refuse data that cannot be parted into images to learn from and images to select on.

    Raises
    ------
    DataError
        If fewer than two classes have images, or a class has them in one group only.
    """
    if train.is_dense and (len(train) < least or not any(train.counts().values())):
        raise DataError(
            f"Expected at least {least} images to learn from, and something on one of them, got "
            f"{len(train)} images; do add some."
        )
    if train.kind != "multiclass":
        return
    targets, groups = train.targets(), train.groups()
    groups = np.arange(len(train)) if groups is None else groups
    spread = [len(np.unique(groups[targets == k])) for k in range(len(train.classes))]
    if sum(count > 0 for count in spread) < 2:
        raise DataError(
            "Expected at least 2 classes with images in the training part, got "
            f"{[c for c, n in zip(train.classes, spread, strict=True) if n]}; "
            "do add images of another class."
        )
    alone = [c for c, n in zip(train.classes, spread, strict=True) if 0 < n < least]
    if alone:
        shown = ", ".join(map(repr, alone[:5])) + (", ..." if len(alone) > 5 else "")
        raise DataError(
            f"Expected at least {least} images of each class to learn from (in as many groups, "
            f"where there are groups), got fewer of {shown}; do add images or "
            "leave these classes out."
        )
