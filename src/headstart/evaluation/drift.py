"""Drift and forgetting of a fine-tuned backbone, compared with its state before training.

Both backbones process the same images. Their features are compared stage by stage. If the weights
include the original classifier, its predictions from both backbones are compared too.
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

__all__ = ["linear_cka", "mean_cosine", "measure_drift"]

Array = NDArray[np.floating[Any]]

FeaturePair = tuple[NDArray[np.float32], NDArray[np.float32]]


def linear_cka(a: Array, b: Array) -> float:
    """Compute the linear CKA of two feature sets; it is invariant to rotation and scale.

    Parameters
    ----------
    a, b : array, shape (n, d_a) and (n, d_b)

    Returns
    -------
    float
        0 to 1; NaN if one of them is the same for every image.

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
    x = np.asarray(a, dtype=np.float64) - np.mean(a, axis=0, dtype=np.float64)
    y = np.asarray(b, dtype=np.float64) - np.mean(b, axis=0, dtype=np.float64)
    if len(x) < max(x.shape[1], y.shape[1]):
        # Same value from (n, n) products, which are smaller for few images.
        gram_x, gram_y = x @ x.T, y @ y.T
        shared = float((gram_x * gram_y).sum())
    else:
        gram_x, gram_y = x.T @ x, y.T @ y
        shared = float(np.square(y.T @ x).sum())
    norm = float(np.linalg.norm(gram_x) * np.linalg.norm(gram_y))
    return min(shared / norm, 1.0) if norm > 0 else math.nan


def mean_cosine(a: Array, b: Array) -> float:
    """Compute the mean cosine between the rows of two arrays.

    Parameters
    ----------
    a, b : array, shape (n, d)

    Returns
    -------
    float
        -1 to 1. Rows of zeros have no direction and do not count; NaN if no row remains.

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
        raise UsageError(
            f"Expected `b` to have the shape of `a`, {a.shape}, got {b.shape}. Pass features of "
            "the same layer."
        )
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    is_nonzero = norms > 0
    if not is_nonzero.any():
        return math.nan
    cosines = (x[is_nonzero] * y[is_nonzero]).sum(axis=1) / norms[is_nonzero]
    return float(np.clip(cosines, -1, 1).mean())


def measure_drift(
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
    """Compare a fine-tuned backbone with its state before training, on the same images.

    Parameters
    ----------
    before, after : FrozenBackbone
        Backbones of the same architecture. Images are preprocessed as ``before`` requires.
    samples : sequence of Sample
        Source images, or any other images as a proxy.
    old_head : mapping of str to tensor, optional
        The original classifier, as ``headstart.backbones.backbone.original_head`` reads it. By
        default, the one in the weights of ``before``.
    labels : sequence of int, optional
        Class index of each sample for the original classifier.
    batch : int
        Batch size.
    limit : int
        Maximum number of images; selected by ``seed``.
    seed : int

    Returns
    -------
    Forgetting
        The drift of a stage is exactly 0 if it and all stages before it are unchanged. Such
        stages run only once. ``source`` is None if the original classifier is missing or has more
        than one linear layer; then ``note`` gives the reason.

    Raises
    ------
    DataError
        If there is no image.
    UsageError
        If the architectures differ, or the labels are invalid.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from headstart.backbones.backbone import load
    >>> from headstart.backbones.catalog import resolve
    >>> spec = resolve("timm/test_resnet")
    >>> state = load(spec, pretrained=False).trunk.state_dict()
    >>> backbone = FrozenBackbone(spec=spec, state=state, origin={})
    >>> noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    >>> drift = measure_drift(backbone, backbone, [Sample(image=pixels) for pixels in noise])
    >>> drift.stages[-1]
    StageDrift(stage='layer4', cka=1.0, cosine=1.0, relative_weight_change=0.0)
    >>> drift.source is None, drift.note
    (True, 'The weights hold no original classifier, so its predictions cannot be compared.')
    """
    _check_arguments(before, after, samples, labels, batch, limit)
    rows = _sample_rows(len(samples), limit, seed)
    selected = [samples[row] for row in rows]
    head, reason = before.classifier(old_head)
    note = f"{reason}, so its predictions cannot be compared." if reason else ""
    true_classes = None if labels is None or head is None else np.asarray(labels)[rows]
    is_equal, weight_changes = _compare_weights(before.module, after.module)
    pairs: list[FeaturePair] = []
    if not all(is_equal) or true_classes is not None:
        pairs = _stage_features(
            before, after, selected, first_changed=_count_equal_stages(is_equal), batch=batch
        )
    stages = tuple(
        StageDrift(stage=stage.name, cka=1.0, cosine=1.0, relative_weight_change=0.0)
        if i < _count_equal_stages(is_equal)
        else StageDrift(
            stage=stage.name,
            cka=linear_cka(*pairs[i]),
            cosine=mean_cosine(*pairs[i]),
            relative_weight_change=weight_changes[i],
        )
        for i, stage in enumerate(before.module.stages)
    )
    source = None
    if head is not None:
        pooled = pairs[-1] if pairs else None
        source = _compare_source_predictions(before.spec.data, head, pooled, selected, true_classes)
    return Forgetting(stages=stages, source=source, images=len(selected), note=note)


# -- backbones ---------------------------------------------------------------------------------


def _compare_weights(before: Backbone, after: Backbone) -> tuple[list[bool], list[float]]:
    """Return, per stage, whether its tensors are equal and the relative change of its weights."""
    import torch

    stage_names = [stage.name for stage in before.stages]
    is_equal = dict.fromkeys(stage_names, True)
    changes, norms = dict.fromkeys(stage_names, 0.0), dict.fromkeys(stage_names, 0.0)
    parameters = {name for name, _ in before.named_parameters()}
    new_state = after.state_dict()
    for name, old_tensor in before.state_dict().items():
        if name.endswith("num_batches_tracked"):  # a counter without influence on the output
            continue
        stage, new_tensor = before.stage_of(name), new_state[name].to(old_tensor.device)
        is_equal[stage] &= torch.equal(old_tensor, new_tensor)
        if name in parameters:
            changes[stage] += float((new_tensor.double() - old_tensor.double()).square().sum())
            norms[stage] += float(old_tensor.double().square().sum())
    relative_changes = [
        math.sqrt(changes[stage] / norms[stage])
        if norms[stage]
        else _change_from_zero(changes[stage])
        for stage in stage_names
    ]
    return [is_equal[name] for name in stage_names], relative_changes


def _change_from_zero(change: float) -> float:
    return 0.0 if change == 0 else math.nan


def _count_equal_stages(is_equal: list[bool]) -> int:
    """Count the unchanged stages from the first one on."""
    return is_equal.index(False) if False in is_equal else len(is_equal)


def _stage_features(
    before: FrozenBackbone,
    after: FrozenBackbone,
    samples: list[Sample],
    *,
    first_changed: int,
    batch: int,
) -> list[FeaturePair]:
    """Return both features of every stage, (n, channels), and finally the pooled features.

    The arrays of unchanged stages are empty, because they are not compared.
    """
    import torch

    collected: list[tuple[list[Any], list[Any]]] = [([], []) for _ in before.module.stages]
    collected.append(([], []))
    for pixels in _load_batches(before, samples, batch):
        with torch.inference_mode():
            inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            x = before.spec.preprocess.normalise(inputs)
            for index, pair in _run_both(before.module, after.module, x, first_changed):
                for features, parts in zip(pair, collected[index], strict=True):
                    parts.append(features.float().numpy())
    empty = np.zeros((0, 0), dtype=np.float32)
    return [
        (np.concatenate(a), np.concatenate(b)) if a and b else (empty, empty) for a, b in collected
    ]


def _load_batches(
    backbone: FrozenBackbone, samples: list[Sample], batch: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield batches of pixels; the next batch is decoded in the background."""
    parts = [samples[start : start + batch] for start in range(0, len(samples), batch)]
    with ThreadPoolExecutor(1) as executor:
        yield from map_bounded(
            lambda part: load_batch(part, backbone.spec.preprocess), parts, executor, 2
        )


def _run_both(
    before: Backbone, after: Backbone, x: Tensor, first_changed: int
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """Yield the index and both outputs from stage ``first_changed`` on, then the pooled ones."""
    stages = before.stages
    if first_changed:
        x = before.run(x, stop=stages[first_changed - 1].name)
    old = new = x
    for index, stage in enumerate(stages[first_changed:], start=first_changed):
        old = before.run(old, start=stage.name, stop=stage.name)
        new = after.run(new, start=stage.name, stop=stage.name)
        yield index, (_spatial_mean(old, stage), _spatial_mean(new, stage))
    yield (
        len(stages),
        (before.pool(old), after.pool(new) if first_changed < len(stages) else before.pool(x)),
    )


def _spatial_mean(x: Tensor, stage: Stage) -> Tensor:
    """Average maps (in either order of axes) or tokens to one vector per image."""
    if x.ndim == 4:
        return x.mean(dim=(2, 3) if x.shape[1] == stage.channels else (1, 2))
    return x.mean(dim=1) if x.ndim == 3 else x


# -- original classifier -----------------------------------------------------------------------


def _compare_source_predictions(
    name: str,
    head: tuple[Array, Array],
    pooled: FeaturePair | None,
    samples: list[Sample],
    true_classes: NDArray[np.intp] | None,
) -> SourceChange:
    """Compare the original classifier's predictions; without ``pooled`` nothing has changed."""
    weight, bias = head
    if true_classes is not None and not (
        true_classes.min() >= 0 and true_classes.max() < len(weight)
    ):
        raise UsageError(
            f"Expected `labels` from 0 to {len(weight) - 1}, got {true_classes.min()} to "
            f"{true_classes.max()}. Pass class indices of the original classifier."
        )
    groups = Dataset(samples=tuple(samples), classes=()).groups()
    unchanged = np.zeros(len(samples), dtype=np.intp)
    old, new = (unchanged, unchanged)
    if pooled is not None:
        old, new = ((features @ weight.T + bias).argmax(axis=1) for features in pooled)
    change = SourceChange(
        name=name or "the source",
        images=len(samples),
        agreement=proportion_interval(old == new, groups),
    )
    if true_classes is None:
        return change
    return SourceChange(
        name=change.name,
        images=change.images,
        agreement=change.agreement,
        before=proportion_interval(old == true_classes, groups),
        after=proportion_interval(new == true_classes, groups),
        change=paired_proportion_difference(new == true_classes, old == true_classes, groups),
    )


# -- argument checks ---------------------------------------------------------------------------


def _sample_rows(n: int, limit: int, seed: int) -> NDArray[np.intp]:
    if n <= limit:
        return np.arange(n)
    rows = np.random.default_rng([seed, n]).choice(n, size=limit, replace=False)
    return np.sort(rows).astype(np.intp)


def _check_arguments(
    before: FrozenBackbone,
    after: FrozenBackbone,
    samples: Sequence[Sample],
    labels: Sequence[int] | None,
    batch: int,
    limit: int,
) -> None:
    if not samples:
        raise DataError(
            f"Measuring drift needs at least one image, got {len(samples)}. Pass images."
        )
    if batch < 1 or limit < 1:
        raise UsageError(
            f"`batch` and `limit` must be at least 1, got {batch} and {limit}. Pass larger values."
        )
    if labels is not None and len(labels) != len(samples):
        raise UsageError(
            f"Expected one label for each of {len(samples)} images, got {len(labels)}. Pass None "
            "if the source classes are unknown."
        )
    before_state, after_state = before.module.state_dict(), after.module.state_dict()
    if {name: tensor.shape for name, tensor in before_state.items()} != {
        name: tensor.shape for name, tensor in after_state.items()
    }:
        raise UsageError(
            f"Expected two backbones of one architecture, got {before.spec.architecture} and "
            f"{after.spec.architecture}. Compare a backbone with its own earlier state."
        )


def _check_rows(a: Array, b: Array) -> None:
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) == 0:
        raise UsageError(
            "Expected `a` and `b` of shape (n, d) with the same n above 0, got shapes "
            f"{a.shape} and {b.shape}. Pass features of the same images."
        )
