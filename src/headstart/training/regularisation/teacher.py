"""Distillation: settings, the outputs of the teacher, and their term of the loss."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Dataset, html_fields
from headstart.errors import UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.models.saving import load
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.job import Rows
from headstart.training.losses.distillation import dist, dkd, kd, pkt, rkd
from headstart.training.network import Outputs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Distillation",
    "Teacher",
    "TeacherLoss",
    "open_teacher",
    "read_teacher",
    "teacher_term",
]

TeacherLoss = Literal["kd", "dkd", "dist", "rkd", "pkt"]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """A teacher whose outputs the network learns, beside the labels; off without ``teacher``.

    Parameters
    ----------
    teacher : str
        Folder of a trained classifier with the same classes; empty for none.
    teacher_loss : {"kd", "dkd", "dist", "rkd", "pkt"}
        Of the predictions: kd is the divergence, dkd weighs true and other classes apart, dist
        compares correlations. Of the features: rkd compares distances and angles between images,
        pkt their similarities.
    teacher_weight : float
        Weight of the teacher's loss; that of the labels is 1.
    teacher_temperature : float
        Divides the logits of kd, dkd and dist, above 0.

    Raises
    ------
    UnknownNameError
        If there is no such loss.
    UsageError
        If a number is out of its range.

    Examples
    --------
    >>> Distillation().is_off, Distillation(teacher="runs/large").is_off
    (True, False)
    """

    teacher: str = ""
    teacher_loss: TeacherLoss = "kd"
    teacher_weight: float = 1.0
    teacher_temperature: float = 4.0

    def _repr_html_(self) -> str:
        return html_fields(self)

    def __post_init__(self) -> None:
        if self.teacher_loss not in get_args(TeacherLoss):
            raise UnknownNameError("teacher_loss", self.teacher_loss, get_args(TeacherLoss))
        for name in ("teacher_weight", "teacher_temperature"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and math.isfinite(value) and value > 0):
                raise UsageError(
                    f"`{name}` must be a finite number above 0, got {value!r}. Pass a value such "
                    f"as {name}={getattr(type(self), name)}."
                )

    @property
    def is_off(self) -> bool:
        """Whether there is no teacher."""
        return not self.teacher


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """Outputs of a teacher for the training images, each computed once.

    Parameters
    ----------
    logits : array, float32, shape (n, classes)
        In the order of the student's classes.
    features : array, float32, shape (n, width)
    targets : array of int, shape (n,)
    settings : Distillation
    fingerprint : str
        Hash of the teacher's weights.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    targets: NDArray[np.intp]
    settings: Distillation
    fingerprint: str


def read_teacher(settings: Distillation, train: Dataset, extractor: Extractor) -> Teacher | None:
    """Load the teacher and compute its outputs for the plain training images, through the cache.

    Parameters
    ----------
    settings : Distillation
    train : Dataset
    extractor : Extractor

    Returns
    -------
    Teacher or None
        None without a teacher.

    Raises
    ------
    ModelFileError
        If the folder holds no model.
    UsageError
        If the teacher is no classifier, or does not know a class of the images.

    Examples
    --------
    >>> read_teacher(Distillation(), Dataset(samples=(), classes=("a",)), None) is None
    True
    """
    if settings.is_off:
        return None
    model, order = open_teacher(settings, train)
    values = extractor.features(model.backbone, train.samples).values
    head = model.linear_head()
    digest = hashlib.sha256(model.backbone.identity)
    for name, value in sorted(head.state().items()):
        digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return Teacher(
        logits=np.asarray(head.logits(values), dtype=np.float32)[:, order],
        features=values,
        targets=train.targets(),
        settings=settings,
        fingerprint=digest.hexdigest(),
    )


def open_teacher(settings: Distillation, train: Dataset) -> tuple[TransferModel, list[int]]:
    """Load the teacher, and find the columns of its logits in the order of the images' classes.

    Parameters
    ----------
    settings : Distillation
        With a teacher.
    train : Dataset

    Raises
    ------
    ModelFileError
        If the folder holds no model.
    UsageError
        If the teacher is no classifier, or does not know a class of the images.

    Examples
    --------
    >>> open_teacher(Distillation(teacher="runs/large"), train)  # doctest: +SKIP
    """
    model, folder = load(settings.teacher), settings.teacher
    if not isinstance(model.task, ClassificationTask) or train.kind != "multiclass":
        kind = train.kind if isinstance(model.task, ClassificationTask) else model.task.kind
        raise UsageError(
            f"`teacher` {folder} cannot teach: distillation is for one class per image, not for "
            f"{kind}. Leave out --teacher."
        )
    known = list(model.task.classes)
    if missing := [name for name in train.classes if name not in known]:
        raise UsageError(
            f"`teacher` {folder} does not know the classes {', '.join(map(repr, missing[:5]))}; it "
            f"knows {', '.join(map(repr, known[:10]))}. Train a teacher on the same classes."
        )
    return model, [known.index(name) for name in train.classes]


def teacher_term(teacher: Teacher, device: str) -> Callable[[Outputs, Outputs, Rows], Tensor]:
    """Make the term of the loss from the outputs of the network and the rows of the images."""
    import torch

    settings, temperature = teacher.settings, teacher.settings.teacher_temperature
    logits = torch.from_numpy(teacher.logits.copy()).to(device)
    features = torch.from_numpy(teacher.features.copy()).to(device)
    targets = torch.from_numpy(np.asarray(teacher.targets, dtype=np.int64)).to(device)
    losses: dict[str, Callable[[Outputs, Tensor], Tensor]] = {
        "kd": lambda outputs, i: kd(outputs.logits, logits[i], temperature),
        "dkd": lambda outputs, i: dkd(outputs.logits, logits[i], targets[i], temperature),
        "dist": lambda outputs, i: dist(outputs.logits, logits[i], temperature),
        "rkd": lambda outputs, i: rkd(outputs.pooled, features[i]),
        "pkt": lambda outputs, i: pkt(outputs.pooled, features[i]),
    }
    loss = losses[settings.teacher_loss]

    def term(outputs: Outputs, _: Outputs, rows: Rows) -> Tensor:
        indices = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(device)
        return settings.teacher_weight * loss(outputs, indices)

    return term
