"""What fine-tuning has changed in a backbone, and what it has forgotten, as numbers.

Both backbones look at the same images. Stage by stage their answers are compared, and where
the classifier that the backbone was published with is at hand, it answers from both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.spec import Stage
from headstart.data.dataset import Dataset, Sample
from headstart.data.loader import load_batch, map_bounded
from headstart.errors import DataError, UsageError
from headstart.evaluation.forgetting import Forgetting, SourceChange, StageDrift
from headstart.metrics.confidence_intervals import paired_proportion_difference, proportion_interval

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.backbones.backbone import Backbone

__all__ = ["linear_cka", "mean_cosine", "measure"]

Array = NDArray[np.floating[Any]]


def linear_cka(a: Array, b: Array) -> float:
    """Similarity of two sets of features of the same images, blind to rotation and scale.

    Parameters
    ----------
    a, b : array, shape (n, d_a) and (n, d_b)

    Returns
    -------
    float
        0 to 1; NaN where one of them is the same for every image.

    Raises
    ------
    UsageError
        Unless both have two axes and the same number of rows.

    References
    ----------
    Kornblith et al. (2019), "Similarity of neural network representations revisited", eq. 4 and
    5 with the linear kernel: ``||B'A||^2 / (||A'A|| ||B'B||)`` of centred columns.

    Examples
    --------
    >>> a = np.array([[0.0, 1.0], [1.0, 0.0], [3.0, 1.0]])
    >>> round(linear_cka(a, 5 * a[:, ::-1] + 1), 6)
    1.0
    """
    _check_rows(a, b)
    one = np.asarray(a, dtype=np.float64) - np.mean(a, axis=0, dtype=np.float64)
    two = np.asarray(b, dtype=np.float64) - np.mean(b, axis=0, dtype=np.float64)
    if len(one) < max(one.shape[1], two.shape[1]):
        # The same number from (n, n) products, which are smaller where images are few.
        first, second = one @ one.T, two @ two.T
        shared = float((first * second).sum())
    else:
        first, second = one.T @ one, two.T @ two
        shared = float(np.square(two.T @ one).sum())
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return min(shared / size, 1.0) if size > 0 else math.nan


def mean_cosine(a: Array, b: Array) -> float:
    """Mean cosine between the rows of two arrays.

    Parameters
    ----------
    a, b : array, shape (n, d)

    Returns
    -------
    float
        -1 to 1. Rows that are zero have no direction and are left out; NaN if none remains.

    Raises
    ------
    UsageError
        Unless both have the same shape with two axes.

    Examples
    --------
    >>> mean_cosine(np.eye(2), np.array([[2.0, 0.0], [1.0, 0.0]]))
    0.5
    """
    _check_rows(a, b)
    if a.shape != b.shape:
        raise UsageError(f"Expected `b` to have the shape of `a`, {a.shape}, got {b.shape}.")
    one, two = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    there = sizes > 0
    if not there.any():
        return math.nan
    cosines = (one[there] * two[there]).sum(axis=1) / sizes[there]
    return float(np.clip(cosines, -1, 1).mean())


def measure(
    before: FrozenBackbone,
    after: FrozenBackbone,
    samples: Sequence[Sample],
    *,
    old_head: Mapping[str, Tensor] | None = None,
    labels: Sequence[int] | None = None,
    batch: int = 16,
    limit: int = 200,
    seed: int = 0,
) -> Forgetting:
    """Compare a backbone with what it was before fine-tuning, on the same images.

    Parameters
    ----------
    before, after : FrozenBackbone
        Of one architecture. Images are prepared as ``before`` expects them.
    samples : sequence of Sample
        Images of the source, or any others as a proxy.
    old_head : mapping of str to tensor, optional
        The original classifier, as ``headstart.backbones.backbone.original_head`` reads it; by
        default what the weights of ``before`` hold.
    labels : sequence of int, optional
        For each sample its class in the original classifier's order.
    batch : int
        Images at a time.
    limit : int
        Images at most; drawn by ``seed`` alone.
    seed : int

    Returns
    -------
    Forgetting
        A stage has drift of exactly 0 where it and all before it are equal bit for bit; such
        stages run once for both. ``source`` is None where the original classifier is not there
        or is more than one linear layer; ``note`` says so.

    Raises
    ------
    DataError
        If there is no image.
    UsageError
        If the backbones are of two architectures, or the labels do not fit.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from headstart.backbones.backbone import load
    >>> from headstart.backbones.catalog import resolve
    >>> spec = resolve("timm/test_resnet")
    >>> state = load(spec, pretrained=False).trunk.state_dict()
    >>> backbone = FrozenBackbone(spec=spec, state=state, origin={})
    >>> noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    >>> found = measure(backbone, backbone, [Sample(image=pixels) for pixels in noise])
    >>> found.stages[-1]
    StageDrift(stage='layer4', cka=1.0, cosine=1.0, relative_weight_change=0.0)
    >>> found.source is None, found.note
    (True, 'The weights hold no original classifier, so its answers cannot be compared.')
    """
    _check_arguments(before, after, samples, labels, batch, limit)
    rows = _drawn(len(samples), limit, seed)
    chosen = [samples[row] for row in rows]
    head, reason = before.classifier(old_head)
    note = f"{reason}, so its answers cannot be compared." if reason else ""
    truth = None if labels is None or head is None else np.asarray(labels)[rows]
    same, changes = _compared(before.module, after.module)
    pairs: list[_Pair] = []
    if not all(same) or truth is not None:
        pairs = _answers(before, after, chosen, moved=_leading(same), batch=batch)
    stages = tuple(
        StageDrift(stage=stage.name, cka=1.0, cosine=1.0, relative_weight_change=0.0)
        if i < _leading(same)
        else StageDrift(
            stage=stage.name,
            cka=linear_cka(*pairs[i]),
            cosine=mean_cosine(*pairs[i]),
            relative_weight_change=changes[i],
        )
        for i, stage in enumerate(before.module.stages)
    )
    source = None
    if head is not None:
        pooled = pairs[-1] if pairs else None
        source = _asked(before.spec.data, head, pooled, chosen, truth)
    return Forgetting(stages=stages, source=source, images=len(chosen), note=note)


# ------------------------------------------------------------------------------- the backbones

_Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def _compared(before: Backbone, after: Backbone) -> tuple[list[bool], list[float]]:
    """For every stage: whether all its tensors are equal, and how far its parameters are."""
    import torch

    names = [stage.name for stage in before.stages]
    same = dict.fromkeys(names, True)
    moved, size = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    parameters = {name for name, _ in before.named_parameters()}
    new = after.state_dict()
    for name, old in before.state_dict().items():
        if name.endswith("num_batches_tracked"):  # a counter that no answer depends on
            continue
        stage, now = before.stage_of(name), new[name].to(old.device)
        same[stage] &= torch.equal(old, now)
        if name in parameters:
            moved[stage] += float((now.double() - old.double()).square().sum())
            size[stage] += float(old.double().square().sum())
    changes = [math.sqrt(moved[n] / size[n]) if size[n] else _of_zero(moved[n]) for n in names]
    return [same[name] for name in names], changes


def _of_zero(moved: float) -> float:
    return 0.0 if moved == 0 else math.nan


def _leading(same: list[bool]) -> int:
    """How many stages from the first on are equal."""
    return same.index(False) if False in same else len(same)


def _answers(
    before: FrozenBackbone, after: FrozenBackbone, samples: list[Sample], *, moved: int, batch: int
) -> list[_Pair]:
    """For every stage both answers, (n, channels), and last of all the pooled ones.

    Of stages that are equal there are only empty arrays: nobody compares them.
    """
    import torch

    collected: list[tuple[list[Any], list[Any]]] = [([], []) for _ in before.module.stages]
    collected.append(([], []))
    for pixels in _batches(before, samples, batch):
        with torch.inference_mode():
            inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            x = before.spec.preprocess.normalise(inputs)
            for place, two in _both(before.module, after.module, x, moved):
                for answers, kept in zip(two, collected[place], strict=True):
                    kept.append(answers.float().numpy())
    empty = np.zeros((0, 0), dtype=np.float32)
    return [
        (np.concatenate(a), np.concatenate(b)) if a and b else (empty, empty) for a, b in collected
    ]


def _batches(
    backbone: FrozenBackbone, samples: list[Sample], batch: int
) -> Iterator[NDArray[np.uint8]]:
    """Pixels, the next batch decoded while one is computed."""
    parts = [samples[at : at + batch] for at in range(0, len(samples), batch)]
    with ThreadPoolExecutor(1) as executor:
        yield from map_bounded(
            lambda part: load_batch(part, backbone.spec.preprocess), parts, executor, 2
        )


def _both(
    before: Backbone, after: Backbone, x: Tensor, moved: int
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """Both answers of every stage from ``moved`` on, by place, and then the pooled ones."""
    stages = before.stages
    if moved:
        x = before.run(x, stop=stages[moved - 1].name)
    old = new = x
    for place, stage in enumerate(stages[moved:], start=moved):
        old = before.run(old, start=stage.name, stop=stage.name)
        new = after.run(new, start=stage.name, stop=stage.name)
        yield place, (_mean_over_places(old, stage), _mean_over_places(new, stage))
    yield (
        len(stages),
        (before.pool(old), after.pool(new) if moved < len(stages) else before.pool(x)),
    )


def _mean_over_places(x: Tensor, stage: Stage) -> Tensor:
    """From maps, in either order of axes, or tokens to one vector for each image."""
    if x.ndim == 4:
        return x.mean(dim=(2, 3) if x.shape[1] == stage.channels else (1, 2))
    return x.mean(dim=1) if x.ndim == 3 else x


# ------------------------------------------------------------------------- the original head


def _asked(
    name: str,
    head: tuple[Array, Array],
    pooled: _Pair | None,
    samples: list[Sample],
    truth: NDArray[np.intp] | None,
) -> SourceChange:
    """The original classifier's answers to both; without ``pooled`` nothing has moved."""
    weight, bias = head
    if truth is not None and not (truth.min() >= 0 and truth.max() < len(weight)):
        raise UsageError(
            f"Expected `labels` from 0 to {len(weight) - 1}, got {truth.min()} to {truth.max()}; "
            "do give places in the original classifier's order."
        )
    groups = Dataset(samples=tuple(samples), classes=()).groups()
    nothing = np.zeros(len(samples), dtype=np.intp)
    old, new = (nothing, nothing)
    if pooled is not None:
        old, new = ((answers @ weight.T + bias).argmax(axis=1) for answers in pooled)
    found = SourceChange(
        name=name or "the source",
        images=len(samples),
        agreement=proportion_interval(old == new, groups),
    )
    if truth is None:
        return found
    return SourceChange(
        name=found.name,
        images=found.images,
        agreement=found.agreement,
        before=proportion_interval(old == truth, groups),
        after=proportion_interval(new == truth, groups),
        change=paired_proportion_difference(new == truth, old == truth, groups),
    )


# ----------------------------------------------------------------------------- the arguments


def _drawn(n: int, limit: int, seed: int) -> NDArray[np.intp]:
    if n <= limit:
        return np.arange(n)
    drawn = np.random.default_rng([seed, n]).choice(n, size=limit, replace=False)
    return np.sort(drawn).astype(np.intp)


def _check_arguments(
    before: FrozenBackbone,
    after: FrozenBackbone,
    samples: Sequence[Sample],
    labels: Sequence[int] | None,
    batch: int,
    limit: int,
) -> None:
    if not samples:
        raise DataError("Expected at least one image to measure drift on, got none.")
    if batch < 1 or limit < 1:
        raise UsageError(
            f"Expected `batch` and `limit` of at least 1, got {batch} and {limit}; do pass more."
        )
    if labels is not None and len(labels) != len(samples):
        raise UsageError(
            f"Expected a label for each of {len(samples)} images, got {len(labels)}; do pass "
            "None where the source's classes are not known."
        )
    one, two = before.module.state_dict(), after.module.state_dict()
    if {k: v.shape for k, v in one.items()} != {k: v.shape for k, v in two.items()}:
        raise UsageError(
            f"Expected two backbones of one architecture, got {before.spec.architecture} and "
            f"{after.spec.architecture}; do compare a backbone with what it was itself."
        )


def _check_rows(a: Array, b: Array) -> None:
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) == 0:
        raise UsageError(
            "Expected `a` and `b` of shape (n, d) with the same n above 0, got shapes "
            f"{a.shape} and {b.shape}; do pass features of the same images."
        )
