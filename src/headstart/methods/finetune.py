"""Fine-tuning: train the head and later stages; run the constant stages once per image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import FreezePlan, plan_freezing
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.rungs import format_shares
from headstart.data.dataset import DENSE, Dataset, Kind, html_fields
from headstart.data.splits import kfold
from headstart.data.transforms.augment import Augmentation
from headstart.distributed.processes import main_first
from headstart.errors import UnknownNameError, UsageError
from headstart.features.extractor import Extractor, SplitPoint, View
from headstart.methods.method import (
    Outline,
    described,
    estimate_gradient_seconds,
    require_fitting,
    require_two_of_each,
    resume_identity,
)
from headstart.models.heads.head import Head
from headstart.models.heads.linear import LinearHead
from headstart.models.transfer_model import TransferModel
from headstart.runtime import device
from headstart.training.activation_cache import (
    ActivationCacheMode,
    ActivationCachePlan,
    TrainingWorkload,
    agree_on_cache_plan,
    plan_activation_cache,
)
from headstart.training.inputs import InputSource
from headstart.training.job import Session
from headstart.training.network import Network, find_split_point
from headstart.training.objectives import FitHead, Objective
from headstart.training.optim import Training
from headstart.training.penalty_search import Problem, search_penalty
from headstart.training.regularisation.penalties import Regularisation
from headstart.training.regularisation.teacher import (
    Distillation,
    Teacher,
    open_teacher,
    read_teacher,
)
from headstart.training.regularisation.terms import penalty_factory
from headstart.training.settings import Settings, SharedSettings
from headstart.training.trainer import (
    SELECTION_SHARE,
    adapt_statistics,
    held_out,
    objective_for,
    train_network,
    trained_model,
)

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.backbones.backbone import Backbone

__all__ = ["RECIPE", "Finetune", "with_measured_recipe"]

Start = Literal["auto", "probe", "random"]
FOLDS = 5
DEFAULT_RATE = 3e-5
"""On small sets of photographs and X-rays, 1e-4 undoes the fit of the probe in the first epoch.
1e-5 needs more epochs than are chosen for a small data set."""

RECIPE: Mapping[str, Any] = {"learning_rate": 3e-4, "augment": "light", "epochs": 8, "patience": 0}
"""Measured recipe for classes (docs/results.md), by flag: of the race, and of ``finetune`` by name.
The fields of `Finetune` have the defaults of older releases, which their records rely on."""

DENSE_RATES = 1e-4, 1e-3
"""Of the backbone and of the head for boxes or masks, which is large and starts at random."""


def with_measured_recipe(flag_values: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return the flags of ``finetune`` with the measured recipe for those that are not set.

    Boxes and masks have other defaults, which the method itself chooses.

    Examples
    --------
    >>> with_measured_recipe({"epochs": 3}, "classification")
    {'learning_rate': 0.0003, 'augment': 'light', 'epochs': 3, 'patience': 0}
    >>> with_measured_recipe({"epochs": 3}, "detection")
    {'epochs': 3}
    """
    return {**({} if task in DENSE else RECIPE), **flag_values}


@dataclass(frozen=True, kw_only=True)
class Finetune(SharedSettings):
    """Train stages of the backbone together with a head that was fitted first (LP-FT).

    The stages before the first one that trains are constant. Their outputs are computed once per
    image (and augmented view) and cached; each epoch runs only the rest. Training stops when the
    macro F1 on the validation images no longer rises. The best epoch is kept, the start included.
    `SharedSettings` has the fields that all gradient methods share.

    Parameters
    ----------
    train_from : str
        What trains with the head: ``last:1``, the last resolution; ``last:N``, the last N; ``all``;
        ``head``, nothing else; or the first stage that trains, by name.
    only : str
        Which parameters of these stages train: all, norm, bias, lora, or a regular expression.
    lora_rank : int
        Rank of the low-rank updates with ``only="lora"``; they are merged at the end.
    batch_norm : str
        frozen, train or adapt for the stages that train, or stage=policy pairs.
    stoch_norm : float
        Probability that a channel in training BatchNorm uses the moving statistics; 0 for none.
    learning_rate : float or str, optional
        Of the backbone's last stage (by default 3e-5, for boxes and masks 1e-4), or stage=rate
        pairs, or auto: found by a learning-rate search.
    head_learning_rate : float, optional
        By default the backbone's (3e-5 where stages have their own) for a head that was fitted,
        ten times it for a random one, and 1e-3 for boxes and masks.
    layer_decay : float
        Factor of the learning rate from each stage to the one before it.
    unfreeze_every : int
        Number of epochs after which one more stage begins to train; 0 for all at once.
    start : {"auto", "probe", "random"}
        Fit the head on the frozen features first, or start at random; auto fits a classifier's.
    dropout : float
        Before the head.
    activation_cache : {"auto", "on", "off"}
        Cache the outputs of constant stages. ``auto`` does where it saves time; the result is the
        same.
    distillation : Distillation
        A trained model whose outputs the network learns, too.
    regularisation : Regularisation
        Penalties that keep the network near its start.
    wise_ft : float
        Share of the fine-tuned network in the final weights (WiSE-FT); 1 for all.

    Raises
    ------
    UsageError
        If a value is out of its range.

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
    uses_weights: ClassVar[bool] = True
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
    regularisation: Regularisation = field(default_factory=Regularisation)
    distillation: Distillation = field(default_factory=Distillation)
    wise_ft: float = 1.0

    @classmethod
    def measured(cls, **changes: Any) -> Self:
        """Make the method with the measured recipe for classes; ``changes`` are other fields.

        Examples
        --------
        >>> Finetune.measured(train_from="all").training.epochs
        8
        """
        fields: dict[str, Any] = {
            "learning_rate": RECIPE["learning_rate"],
            "augmentation": Augmentation.named(RECIPE["augment"]),
            "training": Training(epochs=RECIPE["epochs"], patience=RECIPE["patience"]),
        }
        return cls(**{**fields, **changes})

    def _repr_html_(self) -> str:
        return html_fields(self)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, allowed in (
            ("start", self.start, get_args(Start)),
            ("activation_cache", self.activation_cache, get_args(ActivationCacheMode)),
        ):
            if value not in allowed:
                raise UnknownNameError(name, value, allowed)
        for name in ("dropout", "stoch_norm"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"`{name}` must be from 0 to below 1, got {getattr(self, name)}.")
        if (self.mixup or self.cutmix) and not self.distillation.is_off:
            raise UsageError(
                f"`mixup` is {self.mixup} and `cutmix` is {self.cutmix}, but the outputs of the "
                "teacher are those of whole images. Leave out --mixup, --cutmix or --teacher."
            )
        if self.lora_rank < 1:
            raise UsageError(f"`lora_rank` must be 1 or more, got {self.lora_rank}.")
        averages = self.wise_ft < 1 or self.training.ema or self.training.soup
        if self.only == "lora" and (averages or self.regularisation.l2_sp):
            raise UsageError(
                "`only` is lora, which excludes `wise_ft`, `ema`, `soup` and `l2_sp`: an average "
                "of low-rank factors is not the average of the weights. Lower --lora-rank or "
                "--learning-rate to stay near the start."
            )
        self._settings("multiclass")  # checks the remaining values

    def check(self, train: Dataset) -> None:
        """Refuse data that cannot be split into training and validation images.

        Raises
        ------
        DataError
            If fewer than two classes have images, or a class has them in one group only.
        ModelFileError, UsageError
            If there is no such teacher, or it has other classes.
        """
        require_fitting(self, train)
        # One image per class is for validation, and the probe needs two folds of the others.
        require_two_of_each(train, least=3 if self._fits_head(train) else 2)
        if not self.distillation.is_off:
            open_teacher(self.distillation, train)

    def outline(self, model: TransferModel, train: Dataset, *, extractor: Extractor) -> Outline:
        """Describe what would train.

        Raises
        ------
        UnknownNameError
            If the backbone has no such stage.
        """
        module = model.backbone.copy()  # low-rank updates are added in place
        plan, head = self._plan(module, train.kind), model.initial_head(train, seed=self.seed)
        first = plan.after_adapting().first_changing_stage
        n_val = round(SELECTION_SHARE * len(train))
        sizes = len(train) - n_val, n_val
        cache_plan = self._cache_plan(
            model.backbone, (module, plan.after_adapting(), head), train, sizes, extractor
        )
        names = "the head" if first is None else f"{first} and the stages after it, with the head"
        shares = f", {format_shares(model.backbone.module, plan)}" if plan.trainable else ""
        return Outline(
            title=f"fine-tuning, from {self.train_from}",
            trains=f"{names}: {plan.trainable:,} parameters{shares}",
            plan=plan,
            precision=self.training.precision,
            cached=cache_plan.sentence(),
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
        head = model.initial_head(train, seed=self.seed)
        backbone = self._adapted(model, head, train, extractor)
        module = backbone.copy()
        requested = self._plan(module, train.kind)
        plan = requested.after_adapting()
        self._add_stoch_norm(module)
        with main_first():  # the other processes then find the measured times in the cache
            sizes = len(train), len(val)
            cache_plan = self._cache_plan(backbone, (module, plan, head), train, sizes, extractor)
        cache_plan = agree_on_cache_plan(cache_plan, [stage.name for stage in module.stages])
        split_point = find_split_point(plan, head)
        network = self._network((module, plan, head), split_point, device(extractor.device))
        settings = self._settings(train.kind)
        objective = self._objective(model, (train, val), settings)
        input_source = InputSource(
            backbone=backbone,
            extractor=extractor,
            split_point=split_point,
            cached=cache_plan.cached,
            cached_stage=cache_plan.stop,
            storage=cache_plan.storage,
            seed=self.seed,
        )
        teacher = read_teacher(self.distillation, train, extractor)
        output = train_network(
            network,
            objective,
            settings,
            input_source=input_source,
            session=session,
            identity=self._identity(model, teacher),
            penalty=penalty_factory(network, backbone, train, self.regularisation, teacher),
        )
        state = self._merged_state(network, output.state)
        return trained_model(
            model,
            output,
            objective,
            backbone=backbone.with_parameters(state),
            plan=requested,
            method=described(self),
        )

    def _objective(
        self, model: TransferModel, parts: tuple[Dataset, Dataset], settings: SharedSettings
    ) -> Objective:
        train = parts[0]
        return objective_for(
            parts,
            settings,
            backbone=model.backbone,
            fit_pooled_head=self._fit_head(train) if self._fits_head(train) else None,
            task=model.task,
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
            self._plan(model.backbone.copy(), train.kind).after_adapting(),
            (train, val),
            fits_head=self._fits_head(train),
            extractor=extractor,
            pace=pace,
        )

    def _fits_head(self, train: Dataset) -> bool:
        return self.start == "probe" or (self.start == "auto" and not train.is_dense)

    def _settings(self, kind: Kind) -> Settings:
        rate = self.head_learning_rate
        if rate is None and kind in DENSE:
            rate = DENSE_RATES[1]
        if rate is None:
            rate = self.learning_rate if isinstance(self.learning_rate, float | int) else None
            rate = (rate or DEFAULT_RATE) * (10 if self.start == "random" else 1)
        return Settings.of(
            self,
            kind,
            head_learning_rate=rate,
            wise_ft=self.wise_ft,
            finds_rate=self.learning_rate == "auto",
        )

    def _plan(self, module: Backbone, kind: Kind) -> FreezePlan:
        if self.only == "lora":
            from headstart.training.adapters import add_lora

            add_lora(module, rank=self.lora_rank, seed=self.seed)
        rate = self.learning_rate
        if rate is None or rate == "auto":
            rate = DENSE_RATES[0] if kind in DENSE else DEFAULT_RATE
        return plan_freezing(
            module,
            train_from=self.train_from,
            only=self.only,
            batch_norm=self.batch_norm,
            learning_rate=rate,
            layer_decay=self.layer_decay,
            unfreeze_every=self.unfreeze_every,
        )

    def _network(
        self, parts: tuple[Backbone, FreezePlan, Head], split_point: SplitPoint | None, target: str
    ) -> Network:
        module, plan, head = parts
        return Network(
            module, head, plan, split_point=split_point, dropout=self.dropout, device=target
        )

    def _adapted(
        self, model: TransferModel, head: Head, train: Dataset, extractor: Extractor
    ) -> FrozenBackbone:
        """Compute the statistics of ``adapt`` stages that are not trained; else change nothing."""
        backbone = model.backbone
        if "adapt" not in self.batch_norm:
            return backbone
        plan = self._plan(backbone.copy(), train.kind)
        if not plan.adapts_first:
            return backbone
        source = InputSource(backbone=backbone, extractor=extractor, seed=self.seed)
        network = backbone.copy(), plan, head
        return adapt_statistics(source, network, train.samples, self.augmentation)

    def _identity(self, model: TransferModel, teacher: Teacher | None) -> dict[str, Any]:
        """Name what decides the training: the weights before any statistics were adapted."""
        values = {"method": resume_identity(self), "weights": model.backbone.identity.hex()}
        return values if teacher is None else {**values, "teacher": teacher.fingerprint}

    def _cache_plan(
        self,
        backbone: FrozenBackbone,
        network: tuple[Backbone, FreezePlan, Head],
        train: Dataset,
        sizes: tuple[int, int],
        extractor: Extractor,
    ) -> ActivationCachePlan:
        """Plan the activation cache for these numbers of training and validation images."""
        workload = TrainingWorkload.of(
            sizes,
            self.training.for_kind(train.kind),
            self.augmentation,
            fits_head=self._fits_head(train),
        )
        return plan_activation_cache(
            backbone,
            network,
            workload,
            samples=train.samples,
            view=View(augmentation=self.augmentation, seed=self.seed, number=0),
            extractor=extractor,
            mode=self.activation_cache,
        )

    def _fit_head(self, train: Dataset) -> FitHead:
        """Make the function from pooled features to the head of a linear probe."""
        problem = Problem.of(train.targets(), n_classes=len(train.classes), kind=train.kind)
        problem = replace(problem, row_weights=train.weights())
        imbalance = "balanced" if self.loss.imbalance == "sampling" else self.loss.imbalance
        folds = kfold(train.targets(), FOLDS, blocks=train.groups(), seed=self.seed)

        def fit_head(pooled: NDArray[np.float32]) -> LinearHead:
            is_weighted = problem.is_weighted(imbalance)
            return search_penalty(pooled, problem, folds, weighted=is_weighted).head

        return fit_head

    def _add_stoch_norm(self, module: Backbone) -> None:
        if self.stoch_norm:
            from headstart.training.adapters import add_stoch_norm

            add_stoch_norm(module, self.stoch_norm)

    def _merged_state(self, network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a plain network: without StochNorm, low-rank updates merged."""
        from headstart.training.adapters import merge_lora, remove_stoch_norm

        if self.stoch_norm:
            remove_stoch_norm(network.backbone)
        if self.only != "lora":
            return state
        merge_lora(network.backbone)
        return network.state()
