"""Train a network on images: the code that all gradient methods share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from headstart.backbones.freezing import FreezePlan, fingerprint
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset, Sample, fingerprint_of
from headstart.data.loader import digest_of
from headstart.data.splits import holdout
from headstart.data.transforms.augment import Augmentation
from headstart.distributed.processes import broadcast_tensors, world_size
from headstart.errors import UsageError
from headstart.models.heads.detection_config import BoxSelection
from headstart.models.heads.head import Head
from headstart.models.tasks import DetectionTask, Task
from headstart.models.transfer_model import TransferModel
from headstart.runtime import device, threads, versions
from headstart.training.engine import train
from headstart.training.inputs import Inputs, InputSource
from headstart.training.job import History, Job, Session
from headstart.training.lr_finder import FoundRate, find_learning_rate
from headstart.training.network import Network, find_split_point
from headstart.training.objectives import (
    BoxObjective,
    ClassObjective,
    FitHead,
    MaskObjective,
    Objective,
    Penalty,
)
from headstart.training.optim import Training
from headstart.training.settings import Settings, SharedSettings
from headstart.training.weight_averaging import interpolate

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.backbones.backbone import Backbone

__all__ = [
    "TrainingOutput",
    "adapt_statistics",
    "held_out",
    "objective_for",
    "train_network",
    "trained_model",
]

SELECTION_SHARE = 0.15
"""Share of the training part held out for early stopping, where the data have no ``val`` part."""

NetworkState = tuple[dict[str, "Tensor"], Head]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingOutput:
    """Result of a training.

    Parameters
    ----------
    state : mapping of str to torch.Tensor
        Of the backbone, by the library's names.
    head : Head
    history : History
    predictions : object
        Of the final network for the validation images, in the objective's form.
    found_rate : FoundRate or None
        Result of the learning-rate search, if there was one.
    """

    state: dict[str, Tensor]
    head: Head
    history: History
    predictions: Any
    found_rate: FoundRate | None = None


def held_out(train: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Split training images into training and validation images, by class and group."""
    train_rows, val_rows = holdout(
        train.targets(), fraction=SELECTION_SHARE, blocks=train.groups(), seed=seed
    )
    return train.subset(train_rows), train.subset(val_rows)


def adapt_statistics(
    input_source: InputSource,
    network: tuple[Backbone, FreezePlan, Head],
    samples: Sequence[Sample],
    augmentation: Augmentation,
) -> FrozenBackbone:
    """Compute the BatchNorm statistics of ``adapt`` stages from the training images, once.

    Parameters
    ----------
    input_source : InputSource
        With the backbone; what is before its first such stage runs for this pass only.
    network : Backbone, FreezePlan and Head
        A copy of the backbone, which is changed; the plan; and any head.
    samples : sequence of Sample
    augmentation : Augmentation
        The first view of every image is used.

    Returns
    -------
    FrozenBackbone
        With these statistics. Its outputs are cached under its own identity.
    """
    module, plan, head = network
    split_point = find_split_point(plan, head)
    source = replace(input_source, split_point=split_point, cached=False)
    inputs = source.of(samples, augmentation, epochs=1)
    adapting = Network(
        module, head, plan, split_point=split_point, device=device(source.extractor.device)
    )
    adapting.adapt(lambda rows: inputs.fetch(1, rows), len(samples))
    state = adapting.state()
    broadcast_tensors(state.values())
    return source.backbone.with_parameters(state)


def objective_for(
    parts: tuple[Dataset, Dataset],
    settings: SharedSettings,
    *,
    backbone: FrozenBackbone,
    fit_pooled_head: FitHead | None = None,
    task: Task | None = None,
) -> Objective:
    """Choose the objective by the kind of the labels.

    Parameters
    ----------
    parts : pair of Dataset
        Training and validation images.
    settings : SharedSettings
    backbone : FrozenBackbone
        Its preprocessing says where boxes and masks lie in the network's input.
    fit_pooled_head : callable, optional
        Makes the first head of a classifier.
    task : Task, optional
        Of the model: a detector's says which boxes are kept.
    """
    train, val = parts
    if train.kind == "detection":
        preprocess = backbone.spec.preprocess
        objective = BoxObjective(train=train, val=val, settings=settings, preprocess=preprocess)
        if isinstance(task, DetectionTask):
            return replace(objective, selection=task.selection)
        return objective
    if train.kind == "segmentation":
        preprocess = backbone.spec.preprocess
        return MaskObjective(train=train, val=val, settings=settings, preprocess=preprocess)
    return ClassObjective(train=train, val=val, settings=settings, fit_pooled_head=fit_pooled_head)


def train_network(
    network: Network,
    objective: Objective,
    settings: Settings,
    *,
    input_source: InputSource,
    session: Session | None = None,
    identity: Mapping[str, Any] | None = None,
    penalty: Callable[[Inputs], Penalty | None] | None = None,
) -> TrainingOutput:
    """Train a network on images, stop early, and prove that the constant part did not change.

    Parameters
    ----------
    network : Network
        Changed in place.
    objective : Objective
        Of the training and validation images.
    settings : Settings
    input_source : InputSource
        Source of the network's inputs.
    session : Session, optional
    identity : mapping, optional
        Other values that decide the training, besides settings, images and weights, by name.
    penalty : callable, optional
        Makes a term of the loss from the network's training inputs.
    """
    data, val = objective.train, objective.val
    training = settings.training.for_images(len(data))
    _require_possible(network, training)
    inputs = input_source.of(data.samples, settings.augmentation, epochs=training.epochs)
    val_inputs = input_source.of(val.samples, Augmentation(), epochs=1)
    first_head = network.head
    network.adapt(lambda rows: inputs.fetch(1, rows), len(data))
    if objective.fits_head:
        plain_inputs = inputs
        if not settings.augmentation.is_off:
            plain_inputs = input_source.of(data.samples, Augmentation(), epochs=1)
        objective.fit_head(network, lambda rows: plain_inputs.fetch(1, rows))
    start = network.state(), network.head

    def predict() -> Any:
        return objective.predict(network, lambda rows: val_inputs.fetch(1, rows))

    job = Job(
        module=network.module,
        groups=network.parameter_groups(settings.head_learning_rate),
        n=len(data),
        order=objective.order,
        fetch=inputs.fetch,
        loss=objective.loss(network, inputs, penalty(inputs) if penalty else None),
        score=lambda: objective.score(predict()),
        start_epoch=network.set_training,
        identity=_identity(
            input_source.backbone,
            first_head,
            (data, val),
            settings,
            {**_box_selection(objective), **(identity or {})},
        ),
    )
    found_rate = None
    if settings.finds_rate:
        found_rate = find_learning_rate(job, training, seed=settings.seed)
        for group in job.groups:
            group["lr"] *= found_rate.scale
    history = train(job, training, seed=settings.seed, session=session)
    if settings.wise_ft < 1:
        network.load(*_interpolated(start, (network.state(), network.head), settings.wise_ft))
    network.require_unchanged()
    return TrainingOutput(
        state=network.state(),
        head=network.head,
        history=history,
        predictions=predict(),
        found_rate=found_rate,
    )


def _require_possible(network: Network, training: Training) -> None:
    if training.precision == "fp16" and network.device == "cpu":
        raise UsageError(
            "Precision fp16 needs a GPU, but this training runs on the CPU. Pass --precision bf16 "
            "or --precision fp32."
        )
    late = [row.stage for row in network.plan.rows if row.from_epoch > training.epochs]
    if late:
        raise UsageError(
            f"{', '.join(late)} would begin to train after the last epoch ({training.epochs}). "
            "Lower --unfreeze-every, or raise --epochs."
        )


def trained_model(
    model: TransferModel,
    output: TrainingOutput,
    objective: Objective,
    *,
    backbone: FrozenBackbone,
    plan: FreezePlan,
    method: Mapping[str, Any],
) -> TransferModel:
    """Build the trained model: new weights, a calibrated task and the training's record.

    Parameters
    ----------
    model : TransferModel
        Before the training.
    output : TrainingOutput
    objective : Objective
    backbone : FrozenBackbone
        With the trained values.
    plan : FreezePlan
        As requested; learning rates that were searched or lowered are filled in.
    method : mapping
        The method's fields, for the record.
    """
    found_rate, history = output.found_rate, asdict(output.history)
    scale = output.history.rate_scale * (1.0 if found_rate is None else found_rate.scale)
    if scale != 1:
        rows = (replace(r, learning_rate=r.learning_rate * scale) for r in plan.rows)
        plan = replace(plan, rows=tuple(rows))
    return replace(
        model,
        backbone=backbone,
        head=output.head,
        task=objective.calibrate_task(model, output.predictions),
        engine="fp32",
        record={
            **model.record,
            "method": dict(method),
            "plan": plan.as_dict(),
            "best_epoch": history.pop("best"),
            "temperature_from": "held-out images",
            **history,
            **({} if found_rate is None else {"learning_rate_found": found_rate.as_dict()}),
        },
    )


def _interpolated(start: NetworkState, end: NetworkState, share: float) -> NetworkState:
    """WiSE-FT: mix two networks, backbone and head alike; share 1 gives the end."""
    import torch

    first, last = (
        {name: torch.from_numpy(value) for name, value in head.state().items()}
        for head in (start[1], end[1])
    )
    mixed = {name: value.numpy() for name, value in interpolate(first, last, share).items()}
    return interpolate(start[0], end[0], share), end[1].with_state(mixed)


def _box_selection(objective: Objective) -> dict[str, Any]:
    """Settings of boxes decide the best epoch; checkpoints do not name those of the default."""
    selection = getattr(objective, "selection", BoxSelection())
    return {} if selection == BoxSelection() else {"box selection": asdict(selection)}


def _identity(
    backbone: FrozenBackbone,
    head: Head,
    parts: tuple[Dataset, Dataset],
    settings: Settings,
    method_identity: Mapping[str, Any],
) -> dict[str, str]:
    """Everything that decides a training, one hash per part."""
    import torch

    start = {name: torch.from_numpy(value) for name, value in head.state().items()}
    weights = parts[0].weights()
    values = {
        "data": [[digest_of(s), fingerprint_of(s.target)] for part in parts for s in part.samples],
        "head": [head.as_dict(), fingerprint(start)],
        "weights": backbone.identity.hex(),
        **({} if weights is None else {"image weights": weights.tolist()}),
        "processes": world_size(),
        "threads": threads(),
        "settings": {**asdict(settings), "loss": settings.loss.as_dict()},
        "versions": {k: v for k, v in versions().items() if k != "openvino"},
        **method_identity,
    }
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
        for name, value in values.items()
    }
