"""The contract of a method: a model and labelled images in, a new model out."""

from __future__ import annotations

import reprlib
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np

from headstart.backbones.freezing import FreezePlan
from headstart.data.dataset import Dataset
from headstart.errors import DataError, UsageError
from headstart.features.extractor import Extractor
from headstart.models.transfer_model import TransferModel
from headstart.training.job import Session
from headstart.training.losses.classification import Loss
from headstart.training.losses.own_loss import OwnLoss
from headstart.training.settings import SharedSettings
from headstart.training.time_estimate import probe_seconds, training_seconds
from headstart.training.trainer import SELECTION_SHARE

__all__ = [
    "Method",
    "Outline",
    "described",
    "estimate_gradient_seconds",
    "require_fitting",
    "require_two_of_each",
    "resume_identity",
    "with_loss",
]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """Description of the training that a method is about to run, for the user.

    Parameters
    ----------
    title : str
        Such as ``linear probe``.
    trains : str
        What trains, and how.
    plan : FreezePlan or None
        Stage by stage; None where the backbone stays as it is.
    cached : str
        Which outputs of the backbone are computed once and cached, and the expected speed-up.
    precision : str
        Arithmetic of the steps; empty where no steps are taken.
    """

    title: str
    trains: str
    plan: FreezePlan | None = None
    cached: str = ""
    precision: str = ""


class Method(Protocol):
    """A training method, as a frozen keyword-only dataclass.

    Its fields are the Python arguments, the flags of the command line, and the record that is
    saved with the model. A method never changes the model that it receives.
    """

    name: ClassVar[str]
    resumes: ClassVar[bool]  # whether a stopped training can be resumed
    uses_weights: ClassVar[bool]  # whether it starts from the pretrained weights

    def check(self, train: Dataset) -> None:
        """Refuse data that this method cannot learn from, before anything is computed.

        Raises
        ------
        DataError
            With the names of the classes.
        """
        ...

    def outline(self, model: TransferModel, train: Dataset, *, extractor: Extractor) -> Outline:
        """Describe what would train."""
        ...

    def expected_seconds(
        self,
        model: TransferModel,
        train: Dataset,
        val: Dataset | None = None,
        *,
        extractor: Extractor,
        pace: float = 1.0,
    ) -> float:
        """Estimate how long ``fit`` takes on this machine.

        Parameters
        ----------
        model : TransferModel
        train : Dataset
        val : Dataset, optional
        extractor : Extractor
            Values in its cache cost nothing.
        pace : float
            Actual over estimated seconds of a linear probe on these images, if one has run.
        """
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
            The only images that parameters are fitted on.
        val : Dataset, optional
            For methods that stop or select on validation images; never the test part.
        extractor : Extractor
            Computes and caches the features of frozen parts.
        session : Session, optional
            Callbacks for epochs, and the folder of checkpoints.
        """
        ...


def described(method: Any) -> dict[str, Any]:
    """Return a method's name and fields as plain values, for the record of a model.

    >>> from headstart.methods.linear_probe import LinearProbe
    >>> described(LinearProbe())["name"]
    'linear-probe'
    """
    values = {"name": method.name, **asdict(method)}
    loss = getattr(method, "loss", None)
    return {**values, "loss": loss.as_dict()} if isinstance(loss, Loss) else values


def with_loss(method: Any, function: object) -> Any:
    """Return a method that trains with a loss of the user's own.

    Raises
    ------
    UsageError
        If the method does not train by gradient, or the loss cannot be used.

    Examples
    --------
    >>> from torch.nn.functional import cross_entropy
    >>> from headstart.methods.scratch import Scratch
    >>> with_loss(Scratch(), cross_entropy).loss.function.name
    'torch.nn.functional.cross_entropy'
    """
    loss = getattr(method, "loss", None)
    if not isinstance(loss, Loss):
        name = "auto" if method is None else method.name
        raise UsageError(
            f"`loss` is {reprlib.repr(function)}, but method {name} takes no loss of your own. "
            "Pass method='finetune' or method='scratch'."
        )
    own = function if isinstance(function, Loss) else replace(loss, function=OwnLoss.of(function))
    return replace(method, loss=own)


def resume_identity(method: Any) -> dict[str, Any]:
    """Return a method's fields by the names that checkpoints use, older ones included."""
    values = described(method)
    if "activation_cache" in values:  # its name in checkpoints that were saved before it changed
        values["boundary_cache"] = values.pop("activation_cache")
    if not values.get("distillation", {}).get("teacher"):  # checkpoints without it do not name it
        values.pop("distillation", None)
    return values


def estimate_gradient_seconds(
    method: SharedSettings,
    model: TransferModel,
    plan: FreezePlan,
    parts: tuple[Dataset, Dataset | None],
    *,
    fits_head: bool,
    extractor: Extractor,
    pace: float,
) -> float:
    """Estimate the seconds of a training by gradient, with the fit of the first head.

    Parameters
    ----------
    method : SharedSettings
    model : TransferModel
    plan : FreezePlan
    parts : Dataset, and Dataset or None
        Training and validation images; without the latter, a share of the training images.
    fits_head : bool
        Whether the head is fitted on features before the training.
    extractor : Extractor
    pace : float
        Actual over estimated seconds of a linear probe on these images.
    """
    train, val = parts
    n_val = round(SELECTION_SHARE * len(train)) if val is None else len(val)
    n_train = len(train) - n_val if val is None else len(train)
    seconds = training_seconds(
        model.backbone,
        plan,
        model.initial_head(train, seed=method.seed),
        train,
        (n_train, n_val),
        method=method,
        fits_head=fits_head,
        extractor=extractor,
    )
    if fits_head:
        seconds += pace * probe_seconds(n_train, model.backbone.width, len(train.classes))
    return seconds


def require_fitting(method: Any, train: Dataset) -> None:
    """Refuse settings that apply to classes only, where boxes or masks are learned.

    Raises
    ------
    UsageError
        With the names of the settings.
    """
    if not train.is_dense:
        mixed = bool(method.mixup or method.cutmix)
        if mixed and train.weights() is not None:
            name, value = ("mixup", method.mixup) if method.mixup else ("cutmix", method.cutmix)
            raise UsageError(
                f"`{name}` is {value:g}, but the images have weights, and a mixed image has no "
                f"weight. Pass --{name} 0, or leave out the weights."
            )
        method.loss.check(n_classes=len(train.classes), kind=train.kind, mixed=mixed)
        return
    if train.weights() is not None:
        raise UsageError(
            f"The images have weights, which cannot be used for {train.kind}: they are for classes "
            "of whole images. Leave out the weights."
        )
    settings = described(method)
    defaults = {"loss": Loss().as_dict(), "mixup": 0.0, "cutmix": 0.0, "dropout": 0.0}
    wrong = [name for name, value in defaults.items() if settings.get(name, value) != value]
    wrong += ["start"] * (settings.get("start") == "probe")
    wrong += ["policy"] * (settings.get("augmentation", {}).get("policy", "none") != "none")
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)} cannot be used for {train.kind}: it is for classes of whole "
            "images. Remove the flag."
        )


def require_two_of_each(train: Dataset, *, least: int = 2) -> None:
    """Refuse data that cannot be split into training and validation images.

    Raises
    ------
    DataError
        If fewer than two classes have images, or a class has them in one group only.
    """
    if train.is_dense and (len(train) < least or not any(train.counts().values())):
        raise DataError(
            f"Training needs at least {least} images and at least one object or labelled pixel, "
            f"but the training part has {len(train)} images with labels {train.counts()}. Add "
            "labelled images."
        )
    if train.kind != "multiclass":
        return
    targets, groups = train.targets(), train.groups()
    groups = np.arange(len(train)) if groups is None else groups
    n_groups = [len(np.unique(groups[targets == k])) for k in range(len(train.classes))]
    sizes = dict(zip(train.classes, n_groups, strict=True))
    present = [name for name, size in sizes.items() if size]
    if len(present) < 2:
        raise DataError(
            f"The training part has images of {len(present)} class ({', '.join(present) or 'none'})"
            ", but needs at least two. Add images of another class. If these are images and masks, "
            "arrange them as images/1.jpg and masks/1.png."
        )
    too_small = [name for name, size in sizes.items() if 0 < size < least]
    if too_small:
        names = ", ".join(map(repr, too_small[:5])) + (", ..." if len(too_small) > 5 else "")
        raise DataError(
            f"Each class needs at least {least} training images (in as many groups, where there "
            f"are groups), but there are fewer of {names}. Add images, or remove these classes."
        )
