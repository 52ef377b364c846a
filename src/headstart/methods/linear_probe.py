"""Linear probe: logistic regression on frozen features, solved to convergence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Dataset, html_fields
from headstart.data.splits import kfold
from headstart.errors import UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.method import Outline, described, require_two_of_each
from headstart.metrics.class_means import groups_span_classes
from headstart.metrics.confidence_intervals import proportion_interval
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.job import Session
from headstart.training.penalty_search import (
    PENALTIES,
    Folds,
    Imbalance,
    Problem,
    search_penalty,
)
from headstart.training.time_estimate import extraction_seconds, probe_seconds

__all__ = ["LinearProbe"]

GAP_LEVEL = 0.99
"""Level of the intervals that cross-validated and test accuracy are compared by."""


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Multinomial logistic regression on frozen features.

    The penalty is chosen by stratified (group-aware) cross-validation on the training part; the
    temperature is fitted on the held-out logits of the folds. Validation images, if the data have
    any, are held out as well and take part in both choices. Test images are never used.

    Parameters
    ----------
    folds : int
        Folds of the cross-validation; fewer when a class has fewer images or groups.
    imbalance : {"auto", "none", "balanced"}
        ``balanced`` gives all classes the same total weight; ``auto`` does so if the largest class
        has at least 3 times the images of the smallest. Never for multilabel. The probabilities
        are then those of equally frequent classes.
    penalties : tuple of float
        Candidates, from strong to weak, for features of mean squared norm one.
    seed : int
        Decides the folds. Nothing else is random.

    Raises
    ------
    UsageError
        If a value is out of its range.

    Reference
    ---------
    Kornblith et al., Do better ImageNet models transfer better?, CVPR 2019, section 3.2.
    """

    name: ClassVar[str] = "linear-probe"
    uses_weights: ClassVar[bool] = True
    resumes: ClassVar[bool] = False

    folds: int = 5
    imbalance: Imbalance = "auto"
    penalties: tuple[float, ...] = PENALTIES
    seed: int = 0

    def _repr_html_(self) -> str:
        return html_fields(self)

    def __post_init__(self) -> None:
        if self.imbalance not in {"auto", "none", "balanced"}:
            raise UnknownNameError("imbalance", self.imbalance, ["auto", "none", "balanced"])
        if self.folds < 2:
            raise UsageError(f"`folds` must be at least 2, got {self.folds}.")
        if not self.penalties or min(self.penalties) <= 0:
            raise UsageError(f"`penalties` must be positive numbers, got {self.penalties}.")

    def check(self, train: Dataset) -> None:
        """Refuse data that cannot be split into two folds.

        Raises
        ------
        DataError
            If fewer than two classes have images, or a class has them in one group only.
        """
        if train.is_dense:
            raise UsageError(
                f"A linear probe needs classes of whole images, but this data is for {train.kind}. "
                "Pass --method finetune --train-from head, which trains the head on a frozen "
                "backbone."
            )
        require_two_of_each(train)

    def outline(self, model: TransferModel, train: Dataset, *, extractor: Extractor) -> Outline:
        """Describe what would train."""
        return Outline(
            title="linear probe",
            trains=f"one linear layer, {model.backbone.width:,} inputs, solved to convergence",
        )

    def expected_seconds(
        self,
        model: TransferModel,
        train: Dataset,
        val: Dataset | None = None,
        *,
        extractor: Extractor,
        pace: float = 1.0,
    ) -> float:
        """Estimate how long ``fit`` takes on this machine."""
        samples = (*train.samples, *(val.samples if val is not None else ()))
        seconds = extraction_seconds(model, samples, train, extractor=extractor)
        return seconds + pace * probe_seconds(len(train), model.backbone.width, len(train.classes))

    def fit(
        self,
        model: TransferModel,
        train: Dataset,
        val: Dataset | None = None,
        *,
        extractor: Extractor,
        session: Session | None = None,
    ) -> TransferModel:
        """Solve the head on ``train`` and return a new model with it.

        Parameters
        ----------
        model, train, val, extractor, session
            As in the contract of a method.
            Weights of the training images count in the fit and in the choice of the penalty. A
            validation image has their mean. The temperature is fitted without them.

        Raises
        ------
        DataError
            If a class has too few images or groups for two folds.
        """
        self.check(train)
        data, folds = self._held_out_parts(train, val)
        targets = data.targets()
        extracted = extractor.features(model.backbone, data.samples)
        problem = Problem.of(targets, n_classes=len(train.classes), kind=train.kind)
        weighted = problem.is_weighted(self.imbalance)
        row_weights = train.weights()
        if row_weights is not None:
            padding = np.full(len(data) - len(train), row_weights.mean())
            problem = replace(problem, row_weights=np.concatenate([row_weights, padding]))
        search = search_penalty(
            extracted.values,
            problem,
            folds,
            penalties=self.penalties,
            weighted=weighted,
            fit_rows=slice(0, len(train)),
        )
        max_risk = model.require_task(ClassificationTask).max_risk
        task = ClassificationTask(classes=train.classes, kind=train.kind, max_risk=max_risk)
        return replace(
            model,
            head=search.head,
            task=task.calibrated(search.held_out, targets, groups=data.groups()),
            engine=extracted.engine.engine,
            record={
                **model.record,
                "method": described(self),
                "engine": extracted.engine.describe(),
                "weighted_classes": weighted,
                **({} if row_weights is None else {"weighted_images": True}),
                "penalty": search.penalty,
                "candidates": [
                    {"penalty": penalty, "log_loss": loss} for penalty, loss in search.candidates
                ],
                "folds": search.folds,
                "validation_images": len(data) - len(train),
                **_cross_validation(train, search.held_out[: len(train)]),
                "iterations": search.iterations,
            },
        )

    def _held_out_parts(self, train: Dataset, val: Dataset | None) -> tuple[Dataset, Folds]:
        """Training and validation images together, and the rows to fit and to hold out."""
        folds = kfold(train.targets(), self.folds, blocks=train.groups(), seed=self.seed)
        if val is None or not len(val):
            return train, folds
        n, data = len(train), replace(train, samples=(*train.samples, *val.samples))
        return data, [*folds, (np.arange(n), np.arange(n, len(data)))]


def _cross_validation(train: Dataset, held_out: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """Share of correct training images of each class, predicted by the folds, with its interval."""
    if train.kind == "multilabel":  # its thresholds are chosen on these predictions
        return {}
    targets, groups = train.targets(), train.groups()
    correct = held_out.argmax(axis=1) == targets
    shares: list[list[float] | None] = []
    for label in range(len(train.classes)):
        rows = np.flatnonzero(targets == label)
        labels = None if groups is None else [groups[row] for row in rows]
        share = proportion_interval(correct[rows], labels, level=GAP_LEVEL)
        shares.append([share.value, share.low, share.high] if len(rows) else None)
    values = {
        "level": GAP_LEVEL,
        "independent": not groups_span_classes(targets, groups),
        "correct": shares,
    }
    return {"cross_validation": values}
