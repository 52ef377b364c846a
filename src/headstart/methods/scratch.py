"""Training from scratch: the baseline without pretrained weights, with the same budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headstart.backbones.freezing import FreezePlan, plan_freezing
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset, Kind, html_fields
from headstart.errors import UsageError
from headstart.features.extractor import Extractor
from headstart.methods.method import (
    Outline,
    described,
    estimate_gradient_seconds,
    require_fitting,
    require_two_of_each,
    resume_identity,
)
from headstart.models.heads.pretrained import published_heads
from headstart.models.transfer_model import TransferModel
from headstart.runtime import device
from headstart.training.inputs import InputSource
from headstart.training.job import Session
from headstart.training.network import Network
from headstart.training.settings import Settings, SharedSettings
from headstart.training.trainer import held_out, objective_for, train_network, trained_model

__all__ = ["Scratch"]


@dataclass(frozen=True, kw_only=True)
class Scratch(SharedSettings):
    """Train the same network from random weights, for comparison.

    Everything trains, BatchNorm from the batches. Images, budget, early stopping and scores are
    those of fine-tuning. `SharedSettings` has the fields that all gradient methods share.

    Parameters
    ----------
    learning_rate : float
        Of all parameters.
    dropout : float
        Before the head.

    Raises
    ------
    UsageError
        If a value is out of its range.

    Reference
    ---------
    He et al., Rethinking ImageNet pre-training, ICCV 2019.
    """

    name: ClassVar[str] = "scratch"
    uses_weights: ClassVar[bool] = False
    resumes: ClassVar[bool] = True

    learning_rate: float = 1e-3
    dropout: float = 0.0

    def _repr_html_(self) -> str:
        return html_fields(self)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise UsageError(f"`dropout` must be from 0 to below 1, got {self.dropout}.")
        if not isinstance(self.learning_rate, int | float):
            raise UsageError(f"`learning_rate` must be a number, got {self.learning_rate!r}.")
        self._settings("multiclass")  # checks the remaining values

    def check(self, train: Dataset) -> None:
        """Refuse data that cannot be split into training and validation images.

        Raises
        ------
        DataError
            If fewer than two classes have images, or a class has them in one group only.
        """
        require_fitting(self, train)
        require_two_of_each(train)

    def outline(self, model: TransferModel, train: Dataset, *, extractor: Extractor) -> Outline:
        """Describe what would train."""
        return Outline(
            title="from scratch",
            trains="every parameter, from random values: the pretrained weights are not used",
            plan=self._plan(model.backbone),
            precision=self.training.precision,
            cached="nothing: every stage trains",
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
        spec = model.backbone.spec
        module = load(spec, pretrained=False, seed=self.seed)
        if train.is_dense and spec.name in published_heads(train.kind):
            raise UsageError(
                f"Training from scratch needs a random head, but {spec.name} is trained. Name a "
                "kind of head, such as --head fcos."
            )
        head, plan = model.initial_head(train, seed=self.seed), self._plan(model.backbone)
        settings = self._settings(train.kind)
        objective = objective_for((train, val), settings, backbone=model.backbone, task=model.task)
        output = train_network(
            Network(module, head, plan, dropout=self.dropout, device=device(extractor.device)),
            objective,
            settings,
            input_source=InputSource(backbone=model.backbone, extractor=extractor, seed=self.seed),
            session=session,
            identity={"method": resume_identity(self)},
        )
        origin = {"sha256": "", "from": "random weights", "file": ""}
        return trained_model(
            model,
            output,
            objective,
            backbone=FrozenBackbone(spec=spec, state=output.state, origin=origin),
            plan=plan,
            method=described(self),
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
        return estimate_gradient_seconds(
            self,
            model,
            self._plan(model.backbone),
            (train, val),
            fits_head=False,
            extractor=extractor,
            pace=pace,
        )

    def _plan(self, backbone: FrozenBackbone) -> FreezePlan:
        return plan_freezing(
            backbone.module, train_from="all", batch_norm="train", learning_rate=self.learning_rate
        )

    def _settings(self, kind: Kind) -> Settings:
        return Settings.of(self, kind, head_learning_rate=self.learning_rate)
