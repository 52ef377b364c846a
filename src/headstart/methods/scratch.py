"""Training from scratch: what the same budget reaches without a head start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from headstart.backbones.freezing import FreezePlan, plan
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset, Kind
from headstart.data.transforms.augment import Augmentation
from headstart.errors import UsageError
from headstart.features.extractor import Extractor
from headstart.methods.method import (
    Outline,
    described,
    require_fitting,
    require_two_of_each,
    resume_identity,
)
from headstart.models.heads.pretrained import names as published_names
from headstart.models.transfer_model import TransferModel
from headstart.runtime import device
from headstart.training.inputs import Reading
from headstart.training.job import Session
from headstart.training.losses.classification import Loss
from headstart.training.losses.segmentation import MaskLoss
from headstart.training.network import Network
from headstart.training.optim import Training
from headstart.training.trainer import Settings, composed, held_out, objective_for, tune

__all__ = ["Scratch"]


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """Train the same network from random weights, for comparison.

    Everything learns, BatchNorm from the batches; images, budget, early stopping and judging
    are those of fine-tuning.

    Parameters
    ----------
    learning_rate : float
        Of all parameters.
    dropout : float
        Before the head.
    training : Training
    augmentation : Augmentation
    loss : Loss
    mask_loss : MaskLoss
        Of segmentation.
    mixup, cutmix : float
        Beta's parameter of MixUp or CutMix; 0 for none.
    seed : int
        Decides the weights, held-out images, order, views, dropout.

    Raises
    ------
    UsageError
        If a value cannot be meant.

    Reference
    ---------
    He et al., Rethinking ImageNet pre-training, ICCV 2019.
    """

    name: ClassVar[str] = "scratch"
    resumes: ClassVar[bool] = True

    learning_rate: float = 1e-3
    dropout: float = 0.0
    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: Loss = field(default_factory=Loss)
    mask_loss: MaskLoss = field(default_factory=MaskLoss)
    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UsageError(f"Expected `dropout` from 0 to below 1, got {self.dropout}.")
        if not isinstance(self.learning_rate, int | float):
            raise UsageError(
                f"Expected `learning_rate` to be a number, got {self.learning_rate!r}."
            )
        self._settings("multiclass")  # checks the rest

    def check(self, train: Dataset) -> None:
        """Refuse data that no held-out part can be made of, by the classes' names.

        Raises
        ------
        DataError
            If fewer than two classes have images, or a class has them in one group only.
        """
        require_fitting(self, train)
        require_two_of_each(train)

    def outline(self, model: TransferModel, train: Dataset, *, extractor: Extractor) -> Outline:
        """Say what would be trained, before anything is."""
        return Outline(
            title="from scratch",
            trains="every parameter, from random values: the pretrained ones are not used",
            plan=self._plan(model.backbone),
            precision=self.training.precision,
            kept="nothing: every stage moves",
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
        """Train on ``train``, stop on ``val`` (or a held-out share of it), return a new model.

        Raises
        ------
        DataError
            If a class has too few images or groups.
        TrainingError
            If the loss is not a finite number.
        """
        from headstart.backbones.backbone import load

        self.check(train)
        if val is None:
            train, val = held_out(train, self.seed)
        backbone = load(model.backbone.spec, pretrained=False, seed=self.seed)
        if train.is_dense and model.backbone.spec.name in published_names(train.kind):
            raise UsageError(
                f"Training from scratch needs a random head, but {model.backbone.spec.name} is "
                "trained. Name a kind of head, such as --head fcos."
            )
        head = model.head_for(train, seed=self.seed)
        what = self._plan(model.backbone)
        settings = self._settings(train.kind)
        objective = objective_for((train, val), settings, backbone=model.backbone)
        tuned = tune(
            Network(backbone, head, what, dropout=self.dropout, device=device(extractor.device)),
            objective,
            settings,
            reading=Reading(backbone=model.backbone, extractor=extractor, seed=self.seed),
            session=session,
            identity={"method": resume_identity(self)},
        )
        origin = {"sha256": "", "from": "random weights", "file": ""}
        return composed(
            model,
            tuned,
            objective,
            backbone=FrozenBackbone(spec=model.backbone.spec, state=tuned.state, origin=origin),
            plan=what,
            method=described(self),
        )

    def _plan(self, backbone: FrozenBackbone) -> FreezePlan:
        return plan(
            backbone.module,
            train_from="all",
            batch_norm="train",
            learning_rate=self.learning_rate,
        )

    def _settings(self, kind: Kind) -> Settings:
        return Settings(
            training=self.training.for_kind(kind),
            augmentation=self.augmentation,
            loss=self.loss,
            mask_loss=self.mask_loss,
            mixup=self.mixup,
            cutmix=self.cutmix,
            head_learning_rate=self.learning_rate,
            seed=self.seed,
        )
