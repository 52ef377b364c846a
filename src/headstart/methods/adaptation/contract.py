"""Contract of domain adaptation: what a method gets and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from headstart.data.dataset import Dataset, Sample
from headstart.errors import DataError, UsageError
from headstart.features.extractor import Extractor
from headstart.models.heads.linear import LinearHead
from headstart.models.transfer_model import TransferModel
from headstart.training.job import History, Session

__all__ = ["AdaptationMethod", "Adapted", "Domains", "require_adaptable"]

LEAST_TARGET = 8
"""Smallest number of target images: BatchNorm statistics and covariances of fewer are noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Domains:
    """Images of the two domains.

    Parameters
    ----------
    target : tuple of Sample
        Their labels, if they have any, are never read.
    source : Dataset or None
        Labelled images of the source, for the methods that need them.
    """

    target: tuple[Sample, ...]
    source: Dataset | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapted:
    """Result of an adaptation.

    Parameters
    ----------
    model : TransferModel
    collapse : str
        Why the method was stopped, in a sentence; empty if it ended as planned.
    history : History or None
        Of the training; None for a method without one. The score is the mutual information
        between target images and predictions, in nats.
    """

    model: TransferModel
    collapse: str = ""
    history: History | None = None


class AdaptationMethod(Protocol):
    """An adaptation method, as a frozen keyword-only dataclass.

    A method never changes the model that it receives, and never reads a label of the target.
    """

    name: ClassVar[str]
    needs_source: ClassVar[bool]
    resumes: ClassVar[bool]  # whether a stopped training can be resumed to the same bits

    def adapt(
        self,
        model: TransferModel,
        domains: Domains,
        *,
        extractor: Extractor,
        session: Session | None = None,
    ) -> Adapted:
        """Adapt a model to the target images.

        Parameters
        ----------
        model : TransferModel
            A classifier with one class for each image.
        domains : Domains
        extractor : Extractor
            Computes and caches the outputs of frozen stages.
        session : Session, optional
            Callbacks for epochs, and the folder of checkpoints.

        Raises
        ------
        UsageError
            If the model is no classifier, or lacks what the method changes.
        DataError
            If there are too few images, or the source is missing or has other classes.
        """
        ...


def require_adaptable(model: TransferModel, domains: Domains, method: Any) -> LinearHead:
    """Check model and images for a method, and return the model's head.

    Parameters
    ----------
    model : TransferModel
    domains : Domains
    method : AdaptationMethod
        Or its class.

    Raises
    ------
    UsageError
        If the model does not predict one class for each image.
    DataError
        If there are too few target images, or the source is missing or has other classes.

    Examples
    --------
    >>> from headstart.backbones.frozen import FrozenBackbone
    >>> from headstart.methods.adaptation.statistics import AdaBN
    >>> from headstart.models.tasks import ClassificationTask
    >>> backbone = FrozenBackbone.open("embedded/efficientnet_lite0")
    >>> task = ClassificationTask(classes=("cat", "dog"))
    >>> model = TransferModel(
    ...     backbone=backbone, task=task, head=LinearHead.random(1280, 2, seed=0)
    ... )
    >>> require_adaptable(model, Domains(target=(Sample(image=b""),)), AdaBN)
    Traceback (most recent call last):
    headstart.errors.DataError: Adaptation needs at least 8 target images, got 1. Add images.
    """
    head = model.linear_head()
    if model.task.kind != "multiclass":
        raise UsageError(
            f"Adaptation needs a model that predicts one class for each image, got a "
            f"{model.task.kind} model. Train one with one class for each image."
        )
    if len(domains.target) < LEAST_TARGET:
        raise DataError(
            f"Adaptation needs at least {LEAST_TARGET} target images, got {len(domains.target)}. "
            "Add images."
        )
    source = domains.source
    if source is None and method.needs_source:
        raise DataError(
            f"Method {method.name} needs labelled source images, got none. Pass --source FOLDER, "
            "or a method without them: adabn, mixed-bn, shot or tent."
        )
    if source is not None and source.classes != model.task.classes:
        raise DataError(
            f"The source has the classes {list(source.classes)[:5]}, the model "
            f"{list(model.task.classes)[:5]}. Pass images of the model's classes."
        )
    if source is not None and len(source) < 2:
        raise DataError(
            f"Adaptation needs at least 2 source images, got {len(source)}. Add images."
        )
    return head
