"""Training on batches of both domains, with the one loop of ``headstart.training.engine``."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import FreezePlan, freeze, plan_freezing, unfreeze
from headstart.data.dataset import Sample, html_fields
from headstart.data.loader import digest_of
from headstart.data.transforms.augment import Augmentation
from headstart.errors import UsageError
from headstart.features.extractor import Extractor
from headstart.methods.adaptation.contract import Adapted, Domains, require_adaptable
from headstart.methods.method import described
from headstart.metrics.target_free import (
    describe_collapse,
    effective_classes,
    mean_entropy,
    mutual_information,
)
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.runtime import device, threads, versions
from headstart.training.engine import train
from headstart.training.inputs import Inputs, InputSource
from headstart.training.job import Job, Rows, Score, Session
from headstart.training.losses.consistency import teacher_decay
from headstart.training.network import Network, Outputs, find_split_point
from headstart.training.optim import Training

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "DomainBatch",
    "GradientAdaptation",
    "PairedTraining",
    "record_adaptation",
    "require_source",
    "train_on_domains",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class DomainBatch:
    """Outputs of the network for a batch of both domains.

    Parameters
    ----------
    target : Outputs
        Of the strong views, for a method with views.
    target_rows : array of int
        Numbers of the target images.
    progress : float
        Share of the training that is done, from 0 to below 1.
    source : Outputs or None
        None for methods without source images.
    labels : tensor or None
        Of the source images.
    plain : Outputs or None
        Of the same target images without augmentation, constants; for a method with views.
    classify : callable, optional
        The head, from pooled features to logits.
    """

    target: Outputs
    target_rows: Rows
    progress: float
    source: Outputs | None = None
    labels: Tensor | None = None
    plain: Outputs | None = None
    classify: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedTraining:
    """What distinguishes one method from another: its loss, and what it trains.

    Parameters
    ----------
    loss : callable
        From a batch to the mean loss. The loss on the source labels is added by the training.
    only : str
        Which parameters of the backbone train, as for fine-tuning.
    trains_head : bool
    discriminator : torch.nn.Module or None
        A module that trains beside the network, such as a discriminator.
    before_epoch : callable, optional
        Called before each epoch with its number, and the probabilities and pooled features of all
        target images.
    problem : callable, optional
        Returns why the training must stop, in a sentence, or "".
    is_source_constant : bool
        Whether the source passes through a constant copy of the start network, and its labels are
        not trained on.
    views : Augmentation, optional
        Strong views of the target images. Then ``DomainBatch.plain`` has the outputs for the
        images as they are.
    teacher_decay : float
        Above 0, ``DomainBatch.plain`` comes from a running average of the weights, which is the
        adapted model, too.
    """

    loss: Callable[[DomainBatch], Tensor]
    only: str = "all"
    trains_head: bool = True
    discriminator: nn.Module | None = None
    before_epoch: Callable[[int, NDArray[Any], NDArray[Any]], None] | None = None
    problem: Callable[[], str] = field(default=lambda: "")
    is_source_constant: bool = False
    views: Augmentation | None = None
    teacher_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class GradientAdaptation:
    """Base of the methods that train by gradient: their settings, and their one training.

    A method gives its own part by ``describe_training``.

    Parameters
    ----------
    train_from : str
        First stage of the backbone that trains: ``last:N``, ``all``, ``head`` or a name, as for
        fine-tuning. The outputs of the stages before it are computed once and cached.
    batch_norm : str
        ``frozen``, ``train`` or ``adapt`` for the stages that train. After ``train`` the
        statistics are estimated once more, on the target images alone.
    learning_rate : float
        Of the backbone and of the head.
    weight : float
        Factor of the method's own term beside the loss on the source labels.
    training : Training
        Optimiser, epochs, batch size and schedule. The last epoch is kept, because no labels are
        there to choose another.
    seed : int

    Raises
    ------
    UsageError
        If a value is out of its range.
    """

    train_from: str = "last:1"
    batch_norm: str = "frozen"
    learning_rate: float = 1e-4
    weight: float = 1.0
    training: Training = field(default_factory=lambda: Training(patience=0))
    seed: int = 0

    name: ClassVar[str]
    needs_source: ClassVar[bool]
    resumes: ClassVar[bool]

    def _repr_html_(self) -> str:
        return html_fields(self)

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(
                f"`learning_rate` must be a positive number, got {self.learning_rate}."
            )
        if not 0 <= self.weight < math.inf:
            raise UsageError(f"`weight` must be 0 or more, got {self.weight}.")
        averages = {name: getattr(self.training, name) for name in ("patience", "soup")}
        for name, value in averages.items():
            if value:
                raise UsageError(
                    f"`{name}` must be 0 for an adaptation, got {value}: no target labels are "
                    "there to choose an epoch. Leave it out."
                )

    def require_stages(self) -> None:
        """Refuse to train the head alone, for a method that never trains the head.

        Raises
        ------
        UsageError
            If ``train_from`` is "head".
        """
        if self.train_from == "head":
            raise UsageError(
                f"`train_from` is {self.train_from!r}, but this method never trains the head. Pass "
                "--train-from last:1."
            )

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the method's loss, and what it trains."""
        raise NotImplementedError(f"{type(self).__name__} must define `describe_training`.")

    def adapt(
        self,
        model: TransferModel,
        domains: Domains,
        *,
        extractor: Extractor,
        session: Session | None = None,
    ) -> Adapted:
        """Train on both domains; without the source if the method does not need it."""
        used = domains if self.needs_source else replace(domains, source=None)
        training = self.describe_training(model, used)
        return train_on_domains(self, model, used, training, extractor=extractor, session=session)


def train_on_domains(
    method: GradientAdaptation,
    model: TransferModel,
    domains: Domains,
    training: PairedTraining,
    *,
    extractor: Extractor,
    session: Session | None = None,
) -> Adapted:
    """Train a model on both domains and return it with the record of the method.

    Parameters
    ----------
    method : GradientAdaptation
    model : TransferModel
    domains : Domains
        Without a source, batches have target images only.
    training : PairedTraining
    extractor : Extractor
    session : Session, optional

    Raises
    ------
    UsageError, DataError
        As ``require_adaptable``; if the backbone has no such stage or parameters.
    """
    run = _DomainRun(method, model, domains, training, extractor)
    if session is not None and session.resume:
        run.score()  # the classes that the source model uses, before the checkpoint is loaded
    history = train(run.job(), run.settings, seed=method.seed, session=session)
    network = run.network
    if run.teacher is not None:
        network.load(run.teacher.network.state(), run.teacher.network.head)
    network.require_unchanged()
    if any(row.batch_norm == "train" for row in run.plan.rows):
        _estimate_on_target(network, run.target, len(domains.target))
    adapted = replace(
        model,
        backbone=model.backbone.with_parameters(network.state()),
        head=network.head,
        engine="fp32",
    )
    steps = {"steps": history.steps, "notes": list(history.notes), "plan": run.plan.as_dict()}
    adapted = record_adaptation(adapted, method, domains, **steps)
    return Adapted(model=adapted, collapse=run.reason, history=history)


def record_adaptation(
    model: TransferModel, method: Any, domains: Domains, **values: Any
) -> TransferModel:
    """Return the model with the record of an adaptation.

    Parameters
    ----------
    model : TransferModel
    method : AdaptationMethod
    domains : Domains
    **values
        JSON values of the method.
    """
    record = {
        "method": described(method),
        "target_images": len(domains.target),
        "source_images": None if domains.source is None else len(domains.source),
        **values,
    }
    return replace(model, record={**model.record, "adaptation": record})


def require_source(batch: DomainBatch) -> Outputs:
    """Return the outputs of the source images of a batch.

    Raises
    ------
    UsageError
        If the batch has none.
    """
    if batch.source is None:
        raise UsageError(f"Expected outputs of source images, got {batch.source}. Pass a source.")
    return batch.source


def _estimate_on_target(network: Network, inputs: Inputs, n: int) -> None:
    """Estimate the statistics of training BatchNorm layers again, on the target alone."""
    rows = (
        replace(row, batch_norm="adapt") if row.batch_norm == "train" else row
        for row in network.plan.rows
    )
    network.plan = replace(network.plan, rows=tuple(rows))
    network.adapt(lambda part: inputs.fetch(1, part), n)


class _Teacher:
    """A network with a running average of another one's weights."""

    def __init__(self, network: Network, decay: float) -> None:
        from torch import nn

        self.network, self.decay, self._last_step = network.constant_copy(), decay, 0
        self.values = nn.Module()  # the same memory as buffers, which checkpoints include
        for number, value in enumerate(self._tensors(self.network)):
            self.values.register_buffer(f"value{number}", value)

    @staticmethod
    def _tensors(network: Network) -> list[Tensor]:
        states = network.backbone.state_dict(), network.layer.state_dict()
        return [value for state in states for value in state.values()]

    def follow(self, network: Network, step: int) -> None:
        """Move the average towards a network, once for each step."""
        if step == self._last_step:
            return
        self._last_step = step
        share = 1 - teacher_decay(step, self.decay)
        for own, other in zip(self._tensors(self.network), self._tensors(network), strict=True):
            if own.is_floating_point():
                own.lerp_(other, share)  # equal values stay equal
            else:
                own.copy_(other)


class _DomainRun:
    """A network, the inputs of both domains, and the state of the training."""

    def __init__(
        self,
        method: GradientAdaptation,
        model: TransferModel,
        domains: Domains,
        training: PairedTraining,
        extractor: Extractor,
    ) -> None:
        head = require_adaptable(model, domains, method)
        self.method, self.model, self.domains, self.training = method, model, domains, training
        module = model.backbone.copy()
        self.plan: FreezePlan = plan_freezing(
            module,
            train_from=method.train_from,
            only=training.only,
            batch_norm=method.batch_norm,
            learning_rate=method.learning_rate,
        )
        split_point = find_split_point(self.plan, head)
        self.network = Network(
            module, head, self.plan, split_point=split_point, device=device(extractor.device)
        )
        inputs = InputSource(
            backbone=model.backbone, extractor=extractor, split_point=split_point, seed=method.seed
        )

        def read(samples: Sequence[Sample]) -> Inputs:
            return inputs.of(samples, Augmentation(), epochs=1)

        self.source_network = None
        if training.is_source_constant:
            self.source_network = self.network.constant_copy()
        self.target = read(domains.target)
        self.source = None if domains.source is None else read(domains.source.samples)
        n_source = 0 if domains.source is None else len(domains.source)
        self.n = max(len(domains.target), n_source)
        self.settings = method.training.for_images(self.n)
        self.per_epoch = self.settings.steps_per_epoch(self.n)
        self.reason = ""
        self.start_classes = 0.0
        self.network.adapt(lambda rows: self.target.fetch(1, rows), len(domains.target))
        self.strong: Inputs | None = None
        if training.views is not None:
            views = training.views
            self.strong = inputs.of(domains.target, views, epochs=self.settings.epochs)
        decay = training.teacher_decay
        self.teacher = _Teacher(self.network, decay) if decay else None
        self.order = lru_cache(maxsize=8)(self._order)

    def job(self) -> Job:
        """Everything that the loop needs."""
        from torch import nn

        modules = {"network": self.network.module}
        groups = self.network.parameter_groups(self.method.learning_rate)
        if not self.training.trains_head:
            groups = groups[:-1]  # the last group is the head's
        if self.teacher is not None:
            modules["teacher"] = self.teacher.values  # checkpoints include it
        discriminator = self.training.discriminator
        if discriminator is not None:
            modules["discriminator"] = discriminator.to(self.network.device)
            rate = self.method.learning_rate
            groups.append({"params": list(discriminator.parameters()), "lr": rate})
        return Job(
            module=nn.ModuleDict(modules),
            groups=[group for group in groups if group["params"]],
            n=self.n,
            order=lambda epoch: np.arange(self.n),
            fetch=self._fetch,
            loss=self._loss,
            score=self.score,
            start_epoch=self._start_epoch,
            identity=self._identity(),
            watch=self._watch,
        )

    def _order(self, epoch: int) -> tuple[Rows, Rows]:
        """Rows of the target and of the source for the pairs of an epoch, each shuffled."""
        sizes = len(self.domains.target), len(self.domains.source or ())
        target, source = (
            np.random.default_rng([self.method.seed, epoch, number]).permutation(size)
            for number, size in enumerate(sizes)
        )
        return np.resize(target, self.n), np.resize(source, self.n) if len(source) else source

    def _fetch(self, epoch: int, pairs: Rows) -> NDArray[Any]:
        """Inputs of pairs, (n, 1 to 3, ...): target, source and strong views of the target."""
        target, source = self.order(epoch)
        parts = [self.target.fetch(1, target[pairs])]
        if self.source is not None:
            parts.append(self.source.fetch(1, source[pairs]))
        if self.strong is not None:
            parts.append(self.strong.fetch(epoch, target[pairs]))
        return np.stack(parts, axis=1)

    def _loss(self, pairs: Rows, batch: NDArray[Any], step: int) -> Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        target_rows, source_rows = (
            rows[pairs] if len(rows) else rows for rows in self.order(1 + step // self.per_epoch)
        )
        network = self.network
        inputs = [network.tensor(batch[:, i]) for i in range(batch.shape[1])]
        # One pass for each domain: BatchNorm in training mode never sees a mix of both.
        target = network.outputs(inputs[0] if self.strong is None else inputs[-1])
        source, labels = None, None
        if self.domains.source is not None:
            source = (self.source_network or network).outputs(inputs[1])
            labels = torch.from_numpy(self._labels[source_rows]).to(network.device)
        value = self.training.loss(
            DomainBatch(
                target=target,
                target_rows=target_rows,
                progress=step / (self.settings.epochs * self.per_epoch),
                source=source,
                labels=labels,
                plain=None if self.strong is None else self._plain_outputs(inputs[0], step),
                classify=network.layer,
            )
        )
        if source is None or labels is None or self.source_network is not None:
            return value
        return cross_entropy(source.logits.float(), labels) + value

    def _plain_outputs(self, inputs: Tensor, step: int) -> Outputs:
        """Outputs for the target images as they are, of the teacher or the network; constants."""
        import torch

        with torch.no_grad():
            if self.teacher is None:
                return self.network.outputs(inputs)
            self.teacher.follow(self.network, step)
            return self.teacher.network.outputs(inputs)

    @property
    def _labels(self) -> NDArray[np.intp]:
        source = self.domains.source
        return np.zeros(0, dtype=np.intp) if source is None else source.targets()

    def _start_epoch(self, epoch: int) -> None:
        if self.training.before_epoch is not None:
            logits, pooled = self._predict()
            self.training.before_epoch(epoch, self._probabilities(logits), pooled)
        self.network.set_training(epoch)
        if not self.training.trains_head:
            freeze(self.network.layer)
        if self.training.discriminator is not None:
            unfreeze(self.training.discriminator)

    def _predict(self) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        return self.network.predict(
            lambda rows: self.target.fetch(1, rows), len(self.domains.target)
        )

    def _probabilities(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities at temperature 1, as the losses use them."""
        task = replace(self.model.require_task(ClassificationTask), temperature=1.0)
        return task.probabilities(logits)

    def score(self) -> Score:
        """Mutual information on the target; also notices when one class takes over."""
        logits = self._predict()[0]
        if not np.isfinite(logits).all():
            self.reason = self.reason or "The weights are not finite numbers."
            return Score(-math.inf, -math.inf)
        probabilities = self._probabilities(logits)
        if not self.start_classes:
            self.start_classes = effective_classes(probabilities)
        self.reason = self.reason or describe_collapse(probabilities, self.start_classes)
        return Score(mutual_information(probabilities), -mean_entropy(probabilities))

    def _watch(self, step: int, loss: float) -> bool:
        """Whether to stop: the loss is no number, the predictions collapsed, or a problem."""
        if not math.isfinite(loss):
            self.reason = f"The loss became {loss} at step {step + 1}."
        self.reason = self.reason or self.training.problem()
        return bool(self.reason)

    def _identity(self) -> dict[str, str]:
        """Everything that decides the training, one hash per part."""
        source = self.domains.source
        values = {
            "method": described(self.method),
            "target": [digest_of(sample) for sample in self.domains.target],
            "source": [(digest_of(s), s.target) for s in source.samples] if source else [],
            "weights": self.model.backbone.identity.hex(),
            "head": [
                hashlib.sha256(v.tobytes()).hexdigest()
                for v in self.model.linear_head().state().values()
            ],
            "settings": [asdict(self.settings), threads()],
            "versions": versions(),
        }
        return {
            name: hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
            for name, value in values.items()
        }
