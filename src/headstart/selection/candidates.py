"""Candidates of a race (linear probes at several depths, trainings) and their estimated cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.rungs import Rung, find_rungs
from headstart.data.dataset import Dataset, Sample
from headstart.errors import DataError, TrainingError, UsageError
from headstart.evaluation.classification import evaluate
from headstart.features.extractor import Extractor, SplitPoint
from headstart.methods.finetune import RECIPE, Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.method import Method
from headstart.methods.scratch import Scratch
from headstart.models.build import create_model
from headstart.models.transfer_model import TransferModel
from headstart.selection.progress import FoldWatch
from headstart.training.job import Session
from headstart.training.optim import Training
from headstart.training.profiler import FAST_BATCH_SECONDS
from headstart.training.time_estimate import (
    ImageCosts,
    extraction_seconds,
    has_usual_costs,
    measure_image_costs,
    usual_image_costs,
)

__all__ = [
    "Candidate",
    "estimate_feature_seconds",
    "estimate_training_seconds",
    "has_training_costs",
    "image_costs",
    "is_resizable",
    "known_feature_seconds",
    "measuring_seconds",
    "method_from_record",
    "method_to_record",
    "probe_candidate",
    "probe_depths",
    "recipe_candidates",
    "rejection_reason",
    "train_and_predict",
    "train_on_holdout",
    "training_candidates",
    "with_epochs",
]

ALL_EPOCHS = Training(patience=1000)
"""Trainings of a race run all epochs, so that their duration can be estimated. The best epoch is
kept anyway. The winner is trained with the same settings."""

EPOCHS: int = RECIPE["epochs"]
LEAST_EPOCHS = 3
"""Epochs of the recipe, and the smallest number to which a short budget reduces them."""

TRAINING_SIDE, LEAST_RESIZED_SIDE = 160, 192
"""Side of the images of a training, in pixels, and the smallest side that is reduced to it."""

LEARNING_RATES = 3e-5, 3e-4
"""Learning rates of fine-tuning: the low one for few natural photographs, the high one for small
networks and images far from the pretraining data."""

RUNG_TITLES = {
    "last:1": "the last resolution (last:1)",
    "last:2": "the last two resolutions (last:2)",
    "all": "all stages",
}
"""Rungs in a sentence; tables have the words of ``--train-from``."""

PREDICTION_BATCH = 64
"""Images in memory at a time when a fold is predicted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One method on one backbone.

    Parameters
    ----------
    name : str
    backbone : FrozenBackbone
        Backbone to start from; for a probe it ends at the probed stage.
    full_backbone : FrozenBackbone
        The same backbone with all stages.
    method : Method
    alternatives : tuple of Method
        The same method with other learning rates. The first fold selects one of them on the
        validation images.
    trains : str
        Shares of the backbone that train, in words; empty for a probe.
    rate_scale : float
        Factor of the learning rates in the last training; below 1 if it had diverged first.
    options : mapping
        Of ``create_model``: for boxes and masks the head and the size.
    epochs : pair of int
        Smallest and largest number of epochs.
    measured_as : Candidate, optional
        Candidate whose measured time gives the estimate of this one.
    with_backbone : bool
        Whether several backbones race, so that the title names this one.
    relative_seconds : float
        Time of this one, as a multiple of that.
    """

    name: str
    backbone: FrozenBackbone
    full_backbone: FrozenBackbone
    method: Method
    alternatives: tuple[Method, ...] = ()
    trains: str = ""
    rate_scale: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: tuple[int, int] = (LEAST_EPOCHS, EPOCHS)
    measured_as: Candidate | None = None
    relative_seconds: float = 1.0
    with_backbone: bool = False

    def start(self, data: Dataset) -> TransferModel:
        """Create the untrained model."""
        return create_model(self.backbone, data, **self.options)

    @property
    def title(self) -> str:
        """Name in a sentence; the name itself is short enough for a table."""
        train_from = getattr(self.method, "train_from", "")
        size = f" at {self.options['size']} pixels" if "size" in self.options else ""
        backbone = f" of {self.full_backbone.spec.name}" if self.with_backbone else ""
        title = f"fine-tuning {RUNG_TITLES.get(train_from, '')}{backbone}{size}"
        return title if train_from else self.name

    @property
    def megabytes(self) -> float:
        """Size of the backbone's weights in float32."""
        return self.backbone.parameters * 4 / 1e6


def probe_depths(backbone: FrozenBackbone) -> tuple[str, ...]:
    """Stages to probe: the last stages of two earlier resolutions, and the full backbone ("").

    Examples
    --------
    >>> probe_depths(FrozenBackbone.open("embedded/efficientnet_lite0"))
    ('stage3', 'stage5', '')
    """
    stages = backbone.spec.stages or backbone.module.stages
    last_of = {stage.stride: stage.name for stage in stages[:-1]}
    last_of.pop(stages[-1].stride, None)
    inner_stages = list(last_of.values())
    if not inner_stages:  # a transformer, whose stages all have the same resolution
        inner_stages = [stage.name for stage in stages[:-1]]
    return (*inner_stages[-2:], "")


def probe_candidate(
    backbone: FrozenBackbone, end: str, seed: int, *, with_backbone: bool = False
) -> Candidate:
    """Create the probe after a stage; ``with_backbone`` adds the backbone to its name."""
    title = "linear probe" + (f" at {end}" if end else "")
    read_backbone = backbone.until(end) if end else backbone
    method = LinearProbe(seed=seed)
    name = f"{title} of {backbone.spec.name}" if with_backbone else title
    return Candidate(name=name, backbone=read_backbone, full_backbone=backbone, method=method)


def training_candidates(
    backbone: FrozenBackbone, seed: int, *, include_scratch: bool
) -> tuple[tuple[Candidate, ...], ...]:
    """List the trainings that may race: one from each tuple, the most expensive first.

    The first tuple fine-tunes the last resolution. The second fine-tunes all stages, or the last
    two resolutions if that takes too long. With ``include_scratch`` the second is training from
    scratch.
    """

    def finetune_candidate(rung: Rung) -> Candidate:
        method, *alternatives = (
            Finetune(train_from=rung.name, learning_rate=rate, training=ALL_EPOCHS, seed=seed)
            for rate in LEARNING_RATES
        )
        return Candidate(
            name=f"fine-tuning {rung.name}",
            backbone=backbone,
            full_backbone=backbone,
            method=method,
            alternatives=tuple(alternatives),
            trains=rung.shares,
        )

    _, *inner, whole = find_rungs(backbone.module)
    rungs = [finetune_candidate(rung) for rung in (*inner[:1], whole, *inner[1:])]
    if include_scratch:
        scratch = Scratch(training=ALL_EPOCHS, seed=seed)
        name = "training from scratch"
        return (rungs[0],), (
            Candidate(name=name, backbone=backbone, full_backbone=backbone, method=scratch),
        )
    return (rungs[0],), tuple(rungs[1:])


def recipe_candidates(
    backbone: FrozenBackbone, seed: int, *, include_scratch: bool
) -> tuple[Candidate, ...]:
    """List the trainings of a choice by expected gain, the one with the largest gain first.

    Every rung has the measured recipe (docs/results.md): images of ``TRAINING_SIDE`` pixels, light
    augmentation, ``EPOCHS`` epochs along a cosine, the last of which is kept.
    """
    start = backbone.resized(TRAINING_SIDE) if is_resizable(backbone) else backbone
    candidates = [
        Candidate(
            name=f"fine-tuning {rung.name}",
            backbone=start,
            full_backbone=backbone,
            method=Finetune.measured(train_from=rung.name, seed=seed),
            trains=rung.shares,
        )
        for rung in reversed(find_rungs(start.module))
        if rung.name != "head"
    ]
    if not include_scratch:
        return tuple(candidates)
    method = Scratch(training=ALL_EPOCHS, seed=seed)
    scratch = Candidate(
        name="training from scratch", backbone=backbone, full_backbone=backbone, method=method
    )
    return (scratch, *candidates)


def is_resizable(backbone: FrozenBackbone) -> bool:
    """Whether smaller images make a training quicker: of a convolutional network, from 192 pixels.

    A transformer has positions for one size of images; all its stages have one stride.

    Examples
    --------
    >>> is_resizable(FrozenBackbone.open("embedded/efficientnet_lite0"))
    True
    >>> is_resizable(FrozenBackbone.open("embedded/efficientnet_lite0?crop=96"))
    False
    """
    preprocess = backbone.spec.preprocess
    stages = backbone.spec.stages or backbone.module.stages
    is_square = preprocess.canvas is None and preprocess.fit == "crop"
    return (
        is_square and preprocess.crop >= LEAST_RESIZED_SIDE and len({s.stride for s in stages}) > 1
    )


def with_epochs(candidate: Candidate, epochs: int) -> Candidate:
    """Return the candidate with another number of epochs; its schedule ends with the last one."""
    method: Any = candidate.method
    return replace(
        candidate, method=replace(method, training=replace(method.training, epochs=epochs))
    )


def rejection_reason(candidate: Candidate, parts: Sequence[Dataset]) -> str:
    """Return why the method cannot train on one of these sets; empty if it can."""
    try:
        for part in parts:
            candidate.method.check(part)
    except DataError as error:
        return str(error)
    return ""


def estimate_feature_seconds(
    backbone: FrozenBackbone, samples: Sequence[Sample], data: Dataset, *, extractor: Extractor
) -> float:
    """Estimate the seconds to compute the missing features of these images."""
    return extraction_seconds(create_model(backbone, data), samples, data, extractor=extractor)


def known_feature_seconds(
    backbone: FrozenBackbone, samples: Sequence[Sample], data: Dataset, *, extractor: Extractor
) -> float | None:
    """Estimate the seconds of the missing features without measuring; None if that needs it."""
    _, n_missing = extractor.plan_extraction(backbone, samples)
    if not n_missing:
        return 0.0
    if not has_training_costs(backbone, data, extractor):
        return None
    return estimate_feature_seconds(backbone, samples, data, extractor=extractor)


def has_training_costs(backbone: FrozenBackbone, data: Dataset, extractor: Extractor) -> bool:
    """Whether an earlier run has measured the training costs of this backbone."""
    return has_usual_costs(create_model(backbone, data), data, extractor=extractor)


def measuring_seconds(image_seconds: float, n_cores: int) -> float:
    """Estimate how long it takes to measure the training costs of one candidate.

    The measurement passes four batches of four images through the stages on one core, and four
    batches of 8 images forward and backward on all cores; where these are fast, of 32, too.

    Parameters
    ----------
    image_seconds : float
        Seconds per image of the extraction on all cores.
    n_cores : int

    Examples
    --------
    >>> measuring_seconds(0.005, 2), measuring_seconds(0.02, 2)
    (2.56, 2.56)
    """
    n_stage_passes, n_small, n_large = 4 * 4 * n_cores, 4 * 8 * 3, 4 * 32 * 3
    is_fast = image_seconds * 8 * 3 < FAST_BATCH_SECONDS
    return image_seconds * (n_stage_passes + n_small + n_large * is_fast)


def estimate_training_seconds(
    candidate: Candidate,
    data: Dataset,
    val: Dataset | None,
    n_predictions: int,
    *,
    extractor: Extractor,
    start: TransferModel | None = None,
    pace: float = 1.0,
) -> float:
    """Estimate the seconds of a training on ``data`` and of ``n_predictions`` predictions.

    Parameters
    ----------
    candidate : Candidate
    data : Dataset
        Training images.
    val : Dataset or None
        Validation images for early stopping; if None, a share of ``data``.
    n_predictions : int
        Number of images to predict afterwards.
    extractor : Extractor
    start : TransferModel, optional
        Model to start from, for boxes or masks.
    pace : float
        Actual over estimated duration of a probe on these images.
    """
    backbone, method = candidate.backbone, candidate.method
    start = start or create_model(backbone, data)
    seconds = method.expected_seconds(start, data, val, extractor=extractor, pace=pace)
    plan = method.outline(start, data, extractor=extractor).plan
    if plan is None:
        return seconds
    head = start.initial_head(data, seed=0)
    image_cost = measure_image_costs(start.backbone, plan, head, data, extractor=extractor)
    return seconds + n_predictions * image_cost.seconds


def image_costs(backbone: FrozenBackbone, data: Dataset, extractor: Extractor) -> ImageCosts:
    """Measure the seconds per image without an activation cache, or read them from the cache."""
    return usual_image_costs(create_model(backbone, data), data, extractor=extractor)


def method_to_record(method: Method) -> dict[str, Any]:
    """Return the settings that identify a training of a race; see ``method_from_record``."""
    field_names = ("train_from", "learning_rate", "seed")
    fields = {name: getattr(method, name) for name in field_names if hasattr(method, name)}
    training = getattr(method, "training", ALL_EPOCHS)
    has_epochs = training == Training(epochs=training.epochs, patience=0)
    return {"name": method.name, **fields, **({"epochs": training.epochs} if has_epochs else {})}


def method_from_record(values: Mapping[str, Any]) -> Method:
    """Create the method of a race from its record.

    Raises
    ------
    UsageError
        If the record is damaged.

    Examples
    --------
    >>> chosen = Finetune(train_from="all", learning_rate=3e-4, training=ALL_EPOCHS, seed=3)
    >>> method_from_record(method_to_record(chosen)) == chosen
    True
    """
    classes: dict[str, Any] = {"finetune": Finetune, "scratch": Scratch}
    fields = dict(values)
    try:
        method_class = classes[fields.pop("name")]
        training = ALL_EPOCHS
        if "epochs" in fields:  # of a race for boxes or masks
            training = Training(epochs=int(fields.pop("epochs")), patience=0)
        return method_class(**fields, training=training)  # type: ignore[no-any-return]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"The method that the race has chosen is damaged in the run's folder: {values}. "
            "Start again without --resume."
        ) from error


def train_and_predict(
    candidate: Candidate,
    train: Dataset,
    val: Dataset | None,
    test: Dataset,
    *,
    extractor: Extractor,
    watch: FoldWatch | None = None,
) -> tuple[NDArray[np.float64], Candidate]:
    """Train on some images and predict others.

    The features are not cached, because the trained network is not saved. ``watch`` reports the
    steps and stops them.

    Returns
    -------
    array, shape (n, n_classes)
        Logits for ``test``.
    Candidate
        With the selected learning rate, the factor of the rates, and no alternatives.

    Raises
    ------
    KeyboardInterrupt
        If a training was interrupted.
    RaceStoppedError, BudgetUsedUpError
        If ``watch`` has stopped it.
    TrainingError
        If training fails for every learning rate.
    """
    trained: list[tuple[float, Method, TransferModel]] = []
    last_error: TrainingError | None = None
    for number, method in enumerate((candidate.method, *candidate.alternatives)):
        start = create_model(candidate.backbone, train)
        session = None if watch is None else watch.session(number)
        try:
            model = method.fit(start, train, val, extractor=extractor, session=session)
        except TrainingError as error:
            last_error = error
            continue
        if model.record.get("interrupted"):  # the score of a partial training is no estimate
            raise KeyboardInterrupt
        trained.append((_best_validation_score(model), method, model))
    if last_error is not None and not trained:  # training failed with every learning rate
        raise last_error
    _, method, model = max(trained, key=lambda result: result[0])  # ties: the lowest rate
    features = _pooled_features(model, test.samples, extractor, watch)
    logits = np.asarray(model.linear_head().logits(features), dtype=np.float64)
    rate_scale = float(model.record.get("rate_scale", 1.0))
    return logits, replace(candidate, method=method, alternatives=(), rate_scale=rate_scale)


def train_on_holdout(
    candidate: Candidate,
    train: Dataset,
    held_out: Dataset,
    *,
    extractor: Extractor,
    session: Session,
    watch: FoldWatch,
) -> tuple[Any, TransferModel]:
    """Train on some images and predict the held-out ones; the model may be kept.

    The held-out images also calibrate the model's temperature, or a detector's thresholds.

    Returns
    -------
    array or AnyEvaluation
        Logits for the held-out images; for boxes and masks their evaluation.
    TransferModel

    Raises
    ------
    KeyboardInterrupt
        If the training was interrupted.
    RaceStoppedError
        If ``watch`` has stopped it.
    TrainingError
        If the training fails.
    """
    start = candidate.start(train)
    model = candidate.method.fit(start, train, held_out, extractor=extractor, session=session)
    if model.record.get("interrupted") and not watch.keeps_partial:
        raise KeyboardInterrupt
    if train.is_dense:
        if not watch.keeps_partial:
            watch.report_scoring(len(held_out))
        return evaluate(model, held_out, extractor=extractor), model
    features = _pooled_features(model, held_out.samples, extractor, watch)
    return np.asarray(model.linear_head().logits(features), dtype=np.float64), model


def _pooled_features(
    model: TransferModel, samples: Sequence[Sample], extractor: Extractor, watch: FoldWatch | None
) -> NDArray[np.float32]:
    runner = replace(extractor, engine="fp32").runner(model.backbone, SplitPoint(engine="fp32"))
    blocks = []
    for start in range(0, len(samples), PREDICTION_BATCH):
        if watch is not None:
            watch.report_scoring(len(samples))
        blocks.append(runner(samples[start : start + PREDICTION_BATCH], None))
    return np.concatenate(blocks)


def _best_validation_score(model: TransferModel) -> float:
    """Return the validation score of the best epoch."""
    return max(float(epoch["score"]) for epoch in model.record["epochs"])
