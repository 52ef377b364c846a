"""Fine-tuning: as many stages as the data deserve learn with the head; the rest runs once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import FreezePlan, plan
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import DENSE, Dataset, Kind
from headstart.data.splits import kfold
from headstart.data.transforms.augment import Augmentation
from headstart.distributed import main_first
from headstart.errors import UnknownNameError, UsageError
from headstart.features.extractor import Extractor, View
from headstart.methods.method import (
    Outline,
    described,
    require_fitting,
    require_two_of_each,
    resume_identity,
)
from headstart.models.heads.head import Head
from headstart.models.heads.linear import LinearHead
from headstart.models.transfer_model import TransferModel
from headstart.runtime import device
from headstart.training.activation_cache import ActivationCachePlan, Demand, agreed, foresee
from headstart.training.inputs import Reading
from headstart.training.job import Session
from headstart.training.logistic_regression import Problem, search_penalty
from headstart.training.losses.classification import Loss
from headstart.training.losses.segmentation import MaskLoss
from headstart.training.network import Network, boundary_cut
from headstart.training.objectives import Solve
from headstart.training.optim import Training
from headstart.training.regularisation.penalties import Regularisation
from headstart.training.regularisation.terms import bind
from headstart.training.trainer import (
    SELECTION_SHARE,
    Settings,
    TrainingOutput,
    composed,
    held_out,
    objective_for,
    tune,
)

if TYPE_CHECKING:
    from headstart.backbones.backbone import Backbone

__all__ = ["Finetune"]

Start = Literal["auto", "probe", "random"]
ActivationCacheMode = Literal["auto", "on", "off"]
FOLDS = 5
DEFAULT_RATE = 3e-5
"""On small sets of photographs and X-rays 1e-4 throws away in its first epoch what the probe had
found; 1e-5 needs more epochs than few images give."""

DENSE_RATES = 1e-4, 1e-3
"""Of the backbone and of a head for boxes or masks, which is large and never solved first."""


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train stages of the backbone together with a head that was solved first (LP-FT).

    The stages before the first one that moves are constant, so what they give is computed once an
    image (and augmented view) and kept; every epoch runs only the rest. Training stops when the
    macro F1 of held-out images no longer rises, and its best epoch is kept, the start included.

    Parameters
    ----------
    train_from : str
        The first stage that trains, by name; ``all``, ``head``, or ``last:N``.
    only : str
        Which parameters of these stages: all, norm, bias, lora, or a regular expression.
    lora_rank : int
        Of the low-rank updates with ``only="lora"``; they are merged at the end.
    batch_norm : str
        frozen, train or adapt for the stages that train, or stage=policy pairs.
    stoch_norm : float
        Probability that a channel in training BatchNorm uses the moving statistics; 0 for none.
    learning_rate : float or str, optional
        Of the backbone's last stage (by default 3e-5, for boxes and masks 1e-4), or stage=rate
        pairs, or auto: found by raising it first.
    head_learning_rate : float, optional
        By default the backbone's (3e-5 where stages have their own) for a head that was solved,
        ten times it for a random one, and 1e-3 for boxes and masks.
    layer_decay : float
        Each earlier stage learns at this share of the rate of the one behind it.
    unfreeze_every : int
        Epochs after which one more stage begins to train; 0 for all at once.
    start : {"auto", "probe", "random"}
        Solve the head on the frozen features first, or draw it; auto solves a classifier's.
    dropout : float
        Before the head.
    activation_cache : {"auto", "on", "off"}
        Keep what crosses the boundary. ``auto`` does where it pays; the result is the same.
    training : Training
        Optimiser, epochs, schedule and the rest.
    augmentation : Augmentation
    loss : Loss
    mask_loss : MaskLoss
        Of segmentation.
    mixup, cutmix : float
        Beta's parameter of MixUp or CutMix; 0 for none.
    regularisation : Regularisation
        What holds the network near its start.
    wise_ft : float
        Share of the fine-tuned network in the final weights (WiSE-FT); 1 for all.
    seed : int
        Decides held-out images, order, views, dropout.

    Raises
    ------
    UsageError
        If a value cannot be meant.

    Reference
    ---------
    Kumar et al., Fine-tuning can distort pretrained features and underperform
    out-of-distribution, ICLR 2022 (LP-FT).

    Examples
    --------
    >>> Finetune(train_from="layer4", learning_rate=1e-4, head_learning_rate=1e-3).batch_norm
    'frozen'
    """

    name: ClassVar[str] = "finetune"
    resumes: ClassVar[bool] = True

    train_from: str = "last:1"
    only: str = "all"
    lora_rank: int = 8
    batch_norm: str = "frozen"
    stoch_norm: float = 0.0
    learning_rate: float | str | None = None
    head_learning_rate: float | None = None
    layer_decay: float = 1.0
    unfreeze_every: int = 0
    start: Start = "auto"
    dropout: float = 0.0
    activation_cache: ActivationCacheMode = "auto"
    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: Loss = field(default_factory=Loss)
    mask_loss: MaskLoss = field(default_factory=MaskLoss)
    mixup: float = 0.0
    cutmix: float = 0.0
    regularisation: Regularisation = field(default_factory=Regularisation)
    wise_ft: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("start", self.start, get_args(Start)),
            ("activation_cache", self.activation_cache, ("auto", "on", "off")),
        ):
            if value not in known:
                raise UnknownNameError(name, value, known)
        for name in ("dropout", "stoch_norm"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"Expected `{name}` from 0 to below 1, got {getattr(self, name)}.")
        if self.lora_rank < 1:
            raise UsageError(f"Expected `lora_rank` to be 1 or more, got {self.lora_rank}.")
        means = self.wise_ft < 1 or self.training.ema or self.training.soup
        if self.only == "lora" and (means or self.regularisation.l2_sp):
            raise UsageError(
                "Expected no `wise_ft`, `ema`, `soup` or `l2_sp` with `only` lora, got one: a mean "
                "of low-rank factors is no mean of weights; do lower `lora_rank` or the learning "
                "rate to stay nearer to the start."
            )
        self._settings("multiclass")  # checks the rest

    def check(self, train: Dataset) -> None:
        """Refuse data that no held-out part can be made of, by the classes' names.

        Raises
        ------
        DataError
            If fewer than two classes have images, or a class has them in one group only.
        """
        # One is held out, and the probe is solved on two folds of the others.
        require_fitting(self, train)
        require_two_of_each(train, least=3 if self._solves(train) else 2)

    def outline(self, model: TransferModel, train: Dataset, *, extractor: Extractor) -> Outline:
        """Say what would train, before anything does.

        Raises
        ------
        UnknownNameError
            If the backbone has no such stage.
        """
        backbone = model.backbone.copy()  # low-rank updates are added in place
        what, head = self._plan(backbone, train.kind), model.head_for(train, seed=self.seed)
        first = what.first_moving
        judged = round(SELECTION_SHARE * len(train))
        sizes = len(train) - judged, judged
        names = "the head" if first is None else f"{first} and what follows, with the head"
        return Outline(
            title=f"fine-tuning, from {self.train_from}",
            trains=f"{names}: {what.trainable:,} parameters of the backbone",
            plan=what,
            precision=self.training.precision,
            kept=self._foresee(
                model.backbone, (backbone, what, head), train, sizes, extractor
            ).sentence(),
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
        self.check(train)
        if val is None:
            train, val = held_out(train, self.seed)
        module = model.backbone.copy()
        what = self._plan(module, train.kind)
        if self.stoch_norm:
            from headstart.training.adapters import add_stoch_norm

            add_stoch_norm(module, self.stoch_norm)
        head = model.head_for(train, seed=self.seed)
        names = [stage.name for stage in module.stages]
        with main_first():  # who comes later finds the times remembered
            sizes = len(train), len(val)
            kept = self._foresee(model.backbone, (module, what, head), train, sizes, extractor)
        kept, split_point = agreed(kept, names), boundary_cut(what, head)
        network = Network(
            module,
            head,
            what,
            split_point=split_point,
            dropout=self.dropout,
            device=device(extractor.device),
        )
        settings = self._settings(train.kind)
        solve = self._solver(train) if self._solves(train) else None
        objective = objective_for((train, val), settings, backbone=model.backbone, solve=solve)
        reading = Reading(
            backbone=model.backbone,
            extractor=extractor,
            split_point=split_point,
            cached=kept.cached,
            kept=kept.stop,
            where=kept.where,
            seed=self.seed,
        )
        tuned = tune(
            network,
            objective,
            settings,
            reading=reading,
            session=session,
            identity={"method": resume_identity(self)},
            penalty=bind(network, model.backbone, train, self.regularisation),
        )
        tuned = _merged(network, tuned, self)
        backbone = model.backbone.tuned(tuned.state)
        return composed(
            model, tuned, objective, backbone=backbone, plan=what, method=described(self)
        )

    def _solves(self, train: Dataset) -> bool:
        return self.start == "probe" or (self.start == "auto" and not train.is_dense)

    def _settings(self, kind: Kind) -> Settings:
        rate = self.head_learning_rate
        if rate is None and kind in DENSE:
            rate = DENSE_RATES[1]
        if rate is None:
            rate = self.learning_rate if isinstance(self.learning_rate, float | int) else None
            rate = (rate or DEFAULT_RATE) * (10 if self.start == "random" else 1)
        return Settings(
            training=self.training.for_kind(kind),
            augmentation=self.augmentation,
            loss=self.loss,
            mask_loss=self.mask_loss,
            mixup=self.mixup,
            cutmix=self.cutmix,
            head_learning_rate=rate,
            wise_ft=self.wise_ft,
            finds_rate=self.learning_rate == "auto",
            seed=self.seed,
        )

    def _plan(self, backbone: Backbone, kind: Kind) -> FreezePlan:
        if self.only == "lora":
            from headstart.training.adapters import add_lora

            add_lora(backbone, rank=self.lora_rank, seed=self.seed)
        default = DENSE_RATES[0] if kind in DENSE else DEFAULT_RATE
        given = self.learning_rate
        return plan(
            backbone,
            train_from=self.train_from,
            only=self.only,
            batch_norm=self.batch_norm,
            learning_rate=default if given is None or given == "auto" else given,
            layer_decay=self.layer_decay,
            unfreeze_every=self.unfreeze_every,
        )

    def _foresee(
        self,
        backbone: FrozenBackbone,
        network: tuple[Backbone, FreezePlan, Head],
        train: Dataset,
        sizes: tuple[int, int],
        extractor: Extractor,
    ) -> ActivationCachePlan:
        """Decide what is kept; sizes: images to learn from, and to be judged on."""
        solves = self._solves(train)
        return foresee(
            backbone,
            network,
            Demand.of(sizes, self.training.for_kind(train.kind), self.augmentation, solves=solves),
            samples=train.samples,
            view=View(augmentation=self.augmentation, seed=self.seed, number=0),
            extractor=extractor,
            wanted=self.activation_cache,
        )

    def _solver(self, train: Dataset) -> Solve:
        """From pooled features to the head of a linear probe."""
        problem = Problem.of(train.targets(), n_classes=len(train.classes), kind=train.kind)
        imbalance = "balanced" if self.loss.imbalance == "sampling" else self.loss.imbalance
        folds = kfold(train.targets(), FOLDS, blocks=train.groups(), seed=self.seed)

        def solve(pooled: NDArray[np.float32]) -> LinearHead:
            return search_penalty(
                pooled, problem, folds, weighted=problem.is_weighted(imbalance)
            ).head

        return solve


def _merged(network: Network, tuned: TrainingOutput, how: Finetune) -> TrainingOutput:
    """Leave a plain network: low-rank updates merged, BatchNorm without coins."""
    from headstart.training.adapters import merge_lora, remove_stoch_norm

    if how.stoch_norm:
        remove_stoch_norm(network.backbone)
    if how.only != "lora":
        return tuned
    merge_lora(network.backbone)
    return replace(tuned, state=network.state())
