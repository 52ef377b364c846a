"""Who takes part in a race: probes at several depths, trainings, and what each should cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset, Sample
from headstart.errors import DataError, TrainingError, UsageError
from headstart.features.extractor import Extractor, SplitPoint
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.method import Method
from headstart.methods.scratch import Scratch
from headstart.models.build import create_model
from headstart.models.transfer_model import TransferModel
from headstart.runtime import cores
from headstart.training.optim import Training
from headstart.training.time_estimate import Costs, costs_of, feature_seconds, training_seconds
from headstart.training.trainer import SELECTION_SHARE

__all__ = [
    "Candidate",
    "costs",
    "depths",
    "expected_features",
    "expected_probe",
    "expected_training",
    "in_short",
    "probe_of",
    "raced",
    "refusal",
    "remade",
    "trainings",
]

TO_THE_END = Training(patience=1000)
"""A training that is raced runs all of its epochs, so that its time can be foreseen; the best
epoch is kept in any case. What is chosen is trained in the same way."""

RATES = 3e-5, 3e-4
"""Of fine-tuning: the first keeps what few photographs have; the second moves networks that are
small, or far from home."""

BATCH = 64
"""Images whose pixels are held at a time where a fold is answered."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One way to learn.

    Parameters
    ----------
    name : str
    backbone : FrozenBackbone
        What it starts from; of a probe as far as it is read.
    whole : FrozenBackbone
        The same backbone to its end.
    method : Method
    others : tuple of Method
        The same with other learning rates: what the images that its first training stops on
        like best is what it is from then on.
    """

    name: str
    backbone: FrozenBackbone
    whole: FrozenBackbone
    method: Method
    others: tuple[Method, ...] = ()

    @property
    def megabytes(self) -> float:
        """Of the backbone's values in float32."""
        return self.backbone.parameters * 4 / 1e6


def depths(backbone: FrozenBackbone) -> tuple[str, ...]:
    """Where a backbone is probed: behind its last two coarser resolutions, and as a whole ("").

    Examples
    --------
    >>> depths(FrozenBackbone.open("embedded/efficientnet_lite0"))
    ('stage3', 'stage5', '')
    """
    stages = backbone.spec.stages or backbone.module.stages
    last_of = {stage.stride: stage.name for stage in stages[:-1]}
    last_of.pop(stages[-1].stride, None)
    inner = list(last_of.values())
    if not inner:  # tokens, which are as many everywhere
        inner = [stage.name for stage in stages[:-1]]
    return (*inner[-2:], "")


def probe_of(backbone: FrozenBackbone, end: str, seed: int, *, named: bool = False) -> Candidate:
    """Make the linear probe behind a stage; ``named`` where there are several backbones."""
    what = "linear probe" + (f" at {end}" if end else "")
    part = backbone.until(end) if end else backbone
    method = LinearProbe(seed=seed)
    name = f"{what} of {backbone.spec.name}" if named else what
    return Candidate(name=name, backbone=part, whole=backbone, method=method)


def trainings(
    backbone: FrozenBackbone, seed: int, *, hopeless: bool
) -> tuple[tuple[Candidate, ...], ...]:
    """Who may be promoted, each place with its alternatives, the dearest first.

    The first place is for the last stage. The second is for all stages, or the last two where
    that is too dear; or for training from scratch, where the weights are of no use.
    """

    def tuned(name: str, train_from: str) -> Candidate:
        first, *others = (
            Finetune(train_from=train_from, learning_rate=rate, training=TO_THE_END, seed=seed)
            for rate in RATES
        )
        return Candidate(
            name=f"fine-tuning {name}",
            backbone=backbone,
            whole=backbone,
            method=first,
            others=tuple(others),
        )

    last = tuned("last stage", "last:1")
    if hopeless:
        fresh = Scratch(training=TO_THE_END, seed=seed)
        name = "training from scratch"
        return (last,), (Candidate(name=name, backbone=backbone, whole=backbone, method=fresh),)
    stages = len(backbone.spec.stages or backbone.module.stages)
    deeper = [tuned("all stages", "all")] if stages > 1 else []
    deeper += [tuned("two stages", "last:2")] if stages > 2 else []
    return (last,), tuple(deeper)


def refusal(contender: Candidate, parts: Sequence[Dataset]) -> str:
    """Why a method cannot learn from one of these parts; empty where it can."""
    try:
        for part in parts:
            contender.method.check(part)
    except DataError as error:
        return str(error)
    return ""


def expected_features(
    backbone: FrozenBackbone, samples: Sequence[Sample], data: Dataset, *, extractor: Extractor
) -> float:
    """Seconds until all features of these images are there."""
    choice, missing = extractor.outlook(backbone, samples)
    if not missing:
        return 0.0
    rate = choice.rates.get(choice.engine)
    return feature_seconds(costs(backbone, data, extractor), missing, rate, cores())


def expected_probe(n: int, width: int, n_classes: int) -> float:
    """Seconds of a probe's search on features, by what two cores took on eight sets of images.

    Half of 48 such searches took 0.4 to 1.0 times as long, a tenth of them over 1.1 times: the
    solver's steps depend on how hard the classes are to tell apart.
    """
    rank, columns = min(n, width), n_classes if n_classes > 2 else 1
    return 0.1 + 0.05 * columns + 1.2e-6 * n * rank * columns + 2.5e-10 * n * width * rank


def expected_training(
    contender: Candidate,
    data: Dataset,
    val: Dataset | None,
    asked: int,
    *,
    extractor: Extractor,
    start: TransferModel | None = None,
    pace: float = 1.0,
) -> float:
    """Seconds of a training on ``data``, and of ``asked`` answers.

    Parameters
    ----------
    contender : Contender
    data : Dataset
        What it learns from.
    val : Dataset or None
        What it stops on; a share of ``data`` where there is none.
    asked : int
        Images that it is to answer then.
    extractor : Extractor
    start : TransferModel, optional
        What it starts from, where boxes or masks are learned.
    pace : float
        How much longer than expected a probe took on these images.
    """
    backbone, how = contender.backbone, contender.method
    start = start or create_model(backbone, data)
    outline = how.outline(start, data, extractor=extractor)
    head = start.head_for(data, seed=how.seed)  # type: ignore[attr-defined]
    judged = round(SELECTION_SHARE * len(data)) if val is None else len(val)
    learned = len(data) - judged if val is None else len(data)
    if outline.plan is None:
        looking = expected_features(backbone, data.samples, data, extractor=extractor)
        return looking + pace * expected_probe(len(data), backbone.width, len(data.classes))
    solves = isinstance(how, Finetune) and not data.is_dense
    seconds = training_seconds(
        backbone,
        outline.plan,
        head,
        data,
        (learned, judged),
        how=how,  # type: ignore[arg-type]
        solves=solves,
        extractor=extractor,
    )
    seconds += solves * pace * expected_probe(learned, backbone.width, len(data.classes))
    each = costs_of(backbone, outline.plan, head, data, extractor=extractor)
    return seconds + asked * each.seconds


def costs(backbone: FrozenBackbone, data: Dataset, extractor: Extractor) -> Costs:
    """Measure, or remember, what an image costs where nothing is kept."""
    start = create_model(backbone, data)
    method = Finetune(train_from="last:1")
    outline = method.outline(start, data, extractor=extractor)
    if outline.plan is None:  # a fine-tuning always has one
        return Costs(forward=0.0, pixels=0.0)
    return costs_of(backbone, outline.plan, start.head_for(data, seed=0), data, extractor=extractor)


def in_short(method: Method) -> dict[str, Any]:
    """What tells one training of a race from another, as plain values; see ``remade``."""
    names = ("train_from", "learning_rate", "seed")
    told = {name: getattr(method, name) for name in names if hasattr(method, name)}
    return {"name": method.name, **told}


def remade(values: Mapping[str, Any]) -> Method:
    """Make the training of a race again.

    Raises
    ------
    UsageError
        If that is none.

    Examples
    --------
    >>> chosen = Finetune(train_from="all", learning_rate=3e-4, training=TO_THE_END, seed=3)
    >>> remade(in_short(chosen)) == chosen
    True
    """
    kinds: dict[str, Any] = {"finetune": Finetune, "scratch": Scratch}
    given = dict(values)
    try:
        kind = kinds[given.pop("name")]
        return kind(**given, training=TO_THE_END)  # type: ignore[no-any-return]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"Expected what a race has chosen, got {values}; do begin without --resume."
        ) from error


def raced(
    contender: Candidate,
    learn: Dataset,
    val: Dataset | None,
    asked: Dataset,
    *,
    extractor: Extractor,
) -> tuple[NDArray[np.float64], Candidate]:
    """Train on some images and answer others.

    Features of a network that is thrown away are not kept.

    Returns
    -------
    array, shape (n, n_classes)
        Logits of ``asked``.
    Contender
        With its learning rate settled.

    Raises
    ------
    KeyboardInterrupt
        If a training was interrupted.
    TrainingError
        If the loss is not a finite number, at any of its rates.
    """
    found: list[tuple[float, Method, TransferModel]] = []
    failed: TrainingError | None = None
    for method in (contender.method, *contender.others):
        try:
            model = method.fit(
                create_model(contender.backbone, learn), learn, val, extractor=extractor
            )
        except TrainingError as error:
            failed = error
            continue
        if model.record.get("interrupted"):  # half a training says nothing of a whole one
            raise KeyboardInterrupt
        found.append((_reached(model), method, model))
    if not found:
        raise failed or TrainingError("Expected a training that ends, got none.")
    _, method, model = max(found, key=lambda one: one[0])  # the lowest rate of equals
    run: Any = replace(extractor, engine="fp32").runner(model.backbone, SplitPoint(engine="fp32"))
    samples = asked.samples
    blocks = [run(samples[at : at + BATCH], None) for at in range(0, len(samples), BATCH)]
    logits = np.asarray(model.linear_head().logits(np.concatenate(blocks)), dtype=np.float64)
    return logits, replace(contender, method=method, others=())


def _reached(model: TransferModel) -> float:
    """The held-out score of the epoch that was kept."""
    return max(float(epoch["score"]) for epoch in model.record["epochs"])
