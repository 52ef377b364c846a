"""Linear probe: the backbone stays as it is, one linear layer is solved to convergence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from headstart.data.dataset import Dataset
from headstart.data.splits import kfold
from headstart.errors import UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.method import Outline, described, require_two_of_each
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.job import Session
from headstart.training.logistic_regression import PENALTIES, Imbalance, Problem, search_penalty

__all__ = ["LinearProbe"]


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Multinomial logistic regression on frozen features.

    The penalty is chosen by stratified (group-aware) cross-validation on the training part;
    the folds' held-out logits also give the temperature, so no test image is ever touched.

    Parameters
    ----------
    folds : int
        Folds of the cross-validation; fewer when a class has fewer images or groups.
    imbalance : {"auto", "none", "balanced"}
        ``balanced`` weights every class alike, so that the probabilities are those of equally
        frequent classes; ``auto`` does so from a ratio of 3 on, and never for multilabel.
    penalties : tuple of float
        Candidates, from strong to weak, for features of mean squared norm one.
    seed : int
        Decides the folds; nothing else is random.

    Raises
    ------
    UsageError
        If a value cannot be meant.

    Reference
    ---------
    Kornblith et al., Do better ImageNet models transfer better?, CVPR 2019, section 3.2.
    """

    name: ClassVar[str] = "linear-probe"
    resumes: ClassVar[bool] = False

    folds: int = 5
    imbalance: Imbalance = "auto"
    penalties: tuple[float, ...] = PENALTIES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.imbalance not in {"auto", "none", "balanced"}:
            raise UnknownNameError("imbalance", self.imbalance, ["auto", "none", "balanced"])
        if self.folds < 2:
            raise UsageError(f"Expected `folds` to be at least 2, got {self.folds}.")
        if not self.penalties or min(self.penalties) <= 0:
            raise UsageError(f"Expected positive `penalties`, got {self.penalties}.")

    def check(self, train: Dataset) -> None:
        """Refuse data that two folds cannot be made of, by the classes' names.

        Raises
        ------
        DataError
            If fewer than two classes have images, or a class has them in one group only.
        """
        if train.is_dense:
            raise UsageError(
                f"Expected classes of whole images for a linear probe, got {train.kind}; do use "
                "--method finetune --train-from head, which trains the head behind a frozen "
                "backbone."
            )
        require_two_of_each(train)

    def outline(self, model: TransferModel, train: Dataset, *, extractor: Extractor) -> Outline:
        """Say what would be trained, before anything is."""
        return Outline(
            title="linear probe",
            trains=f"one linear layer, {model.backbone.width:,} inputs, solved to convergence",
        )

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

        Raises
        ------
        DataError
            If a class has too few images or groups for two folds.
        """
        self.check(train)
        targets = train.targets()
        extracted = extractor.features(model.backbone, train.samples)
        problem = Problem.of(targets, n_classes=len(train.classes), kind=train.kind)
        weighted = problem.is_weighted(self.imbalance)
        folds = kfold(targets, self.folds, blocks=train.groups(), seed=self.seed)
        search = search_penalty(
            extracted.values, problem, folds, penalties=self.penalties, weighted=weighted
        )
        task = ClassificationTask(
            classes=train.classes, kind=train.kind, max_risk=model.task.max_risk
        )
        return replace(
            model,
            head=search.head,
            task=task.calibrated(search.held_out, targets, groups=train.groups()),
            engine=extracted.engine.engine,
            record={
                **model.record,
                "method": described(self),
                "engine": extracted.engine.describe(),
                "weighted_classes": weighted,
                "penalty": search.penalty,
                "candidates": [
                    {"penalty": penalty, "log_loss": loss} for penalty, loss in search.candidates
                ],
                "folds": search.folds,
                "iterations": search.iterations,
            },
        )
