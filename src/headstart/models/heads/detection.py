"""Detection head: its architecture and tensors as a value, and its transfer to other classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.spec import Stage
from headstart.errors import ModelFileError, UsageError
from headstart.models.heads.detection_config import (
    DETECTION_HEADS,
    LAST_STRIDE,
    MAX_VALUE,
    BoxShape,
    anchor_recall,
    fit_anchors,
    resolve_options,
    tuples_to_lists,
)

if TYPE_CHECKING:
    from headstart.models.heads.detection_modules import BoxModule

__all__ = ["BoxHead", "match_classes", "merge_class_outputs", "pyramid_stages"]

CLASS_OUTPUTS = {
    "faster-rcnn": {r"roi\.box_predictor\.cls_score\.": 1, r"roi\.box_predictor\.bbox_pred\.": 4},
    "retinanet": {r"net\.head\.classification_head\.cls_logits\.": 1},
    "fcos": {r"net\.head\.classification_head\.cls_logits\.": 1},
    # The first layer of a predictor is depth-wise: its outputs do not depend on the classes.
    "ssdlite": {r"net\.head\.classification_head\.module_list\.\d+\.1\.": 1},
}
"""Layers with outputs for each class, and the number of outputs of a class for one anchor."""
WITH_BACKGROUND = {"faster-rcnn", "ssdlite"}
"""Kinds whose first class output is the background."""

MAX_SIDE = 4096
"""Longest side of a canvas or an image: a larger one in a description could exhaust the memory."""


def match_classes(before: Sequence[str], after: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Pair the indices of equal names, ignoring case.

    Parameters
    ----------
    before, after : sequence of str

    Returns
    -------
    tuple of (int, int)
        For each name of ``after`` that is in ``before``: its (first) index there and here.

    Examples
    --------
    >>> match_classes(["cat", "dog"], ["Dog", "cow", "cat"])
    ((1, 0), (0, 2))
    """
    # Reversed, so that of equal names the first index is used.
    indices = {name.casefold(): index for index, name in reversed([*enumerate(before)])}
    pairs = [(indices.get(name.casefold()), index) for index, name in enumerate(after)]
    return tuple((old, new) for old, new in pairs if old is not None)


def merge_class_outputs(
    shape: BoxShape,
    old: Mapping[str, NDArray[Any]],
    new: Mapping[str, NDArray[Any]],
    class_pairs: Sequence[tuple[int, int]],
) -> dict[str, NDArray[Any]]:
    """Copy all tensors of a head, except the outputs of new classes.

    Parameters
    ----------
    shape : BoxShape
        Of the new head.
    old, new : mapping of str to array
        Tensors of the old head, and of a randomly initialised new one.
    class_pairs : sequence of (int, int)
        Index of a class in the old head and in the new one.
    """
    result = {}
    for name, array in old.items():
        patterns = CLASS_OUTPUTS[shape.kind].items()
        n_outputs = next((n for pattern, n in patterns if re.match(pattern, name)), 0)
        result[name] = array
        if n_outputs:
            result[name] = _copy_class_outputs(shape, array, new[name], n_outputs, class_pairs)
    return result


def _copy_class_outputs(
    shape: BoxShape,
    old: NDArray[Any],
    new: NDArray[Any],
    n_outputs: int,
    class_pairs: Sequence[tuple[int, int]],
) -> NDArray[Any]:
    """Copy the outputs of common classes, and of the background, into the new tensor."""
    # Outputs are ordered by anchor, then by class: shape (anchors, classes, n_outputs, ...).
    shift = int(shape.kind in WITH_BACKGROUND)
    anchors = new.shape[0] // ((shape.n_classes + shift) * n_outputs)
    source = old.reshape(anchors, -1, n_outputs, *old.shape[1:])
    result = new.reshape(anchors, -1, n_outputs, *new.shape[1:]).copy()
    for before, after in [(0, 0)] * shift + [(a + shift, b + shift) for a, b in class_pairs]:
        result[:, after] = source[:, before]
    return result.reshape(new.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxHead:
    """A detector without its backbone; ``random`` initialises one.

    Parameters
    ----------
    taps : tuple of str
        Stages whose maps the head reads, from fine to coarse.
    shape : BoxShape
        The architecture.
    tensors : mapping of str to array
        By the names of ``module().state_dict()``.

    References
    ----------
    Ren et al. 2015, Faster R-CNN; Lin et al. 2017, Feature pyramid networks, and Focal loss
    (RetinaNet); Tian et al. 2019, FCOS; Sandler et al. 2018, MobileNetV2, section 6.2 (SSDLite).

    Examples
    --------
    >>> stages = [Stage(name=f"layer{i}", channels=8, stride=2 ** (i + 1)) for i in range(1, 5)]
    >>> head = BoxHead.random(stages, 2, kind="fcos", canvas=(64, 96), seed=0, channels=64)
    >>> head.taps
    ('layer2', 'layer3', 'layer4')
    >>> import torch
    >>> maps = [torch.zeros(1, 8, 64 // s, 96 // s) for s in (8, 16, 32)]
    >>> module = head.module()
    >>> boxes, scores, labels = module.detect(module(maps))[0]
    >>> boxes.shape[1], scores.shape == labels.shape
    (4, True)
    """

    taps: tuple[str, ...]
    shape: BoxShape
    tensors: Mapping[str, NDArray[Any]]

    def __repr__(self) -> str:
        values = sum(tensor.size for tensor in self.tensors.values())
        return f"BoxHead({self.kind}, taps={self.taps}, {values} parameters)"

    @property
    def kind(self) -> str:
        """Its name in files and on the command line."""
        return self.shape.kind

    @classmethod
    def random(
        cls,
        stages: Sequence[Stage],
        n_classes: int,
        *,
        kind: str,
        canvas: tuple[int, int],
        seed: int,
        **options: Any,
    ) -> BoxHead:
        """Initialise a head with random tensors.

        Parameters
        ----------
        stages : sequence of Stage
            Of the backbone.
        n_classes : int
            Without a background.
        kind : {"faster-rcnn", "retinanet", "fcos", "ssdlite"}
        canvas : (int, int)
            Height and width of the backbone's input, in pixels.
        seed : int
        **options
            Options of the kind: the keys of ``DETECTION_HEADS[kind]``.

        Raises
        ------
        UnknownNameError
            If there is no such kind or option.
        UsageError
            If the backbone has no maps of the strides needed, or a value is invalid.
        """
        import torch

        from headstart.models.heads.detection_modules import build

        shape, taps = _plan_shape(stages, n_classes, kind, canvas, options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build(shape)
        return cls(taps=taps, shape=shape, tensors=_copy_arrays(module))

    @classmethod
    def with_fitted_anchors(
        cls,
        stages: Sequence[Stage],
        n_classes: int,
        *,
        kind: str,
        canvas: tuple[int, int],
        seed: int,
        boxes: NDArray[np.floating[Any]],
        **options: Any,
    ) -> BoxHead:
        """Initialise a head with anchors fitted to the training boxes (n, 4) on the canvas.

        The same as ``random`` if there are no boxes, if ``sizes`` or ``ratios`` are given, and
        for FCOS, which has no anchors.
        """
        shape, _ = _plan_shape(stages, n_classes, kind, canvas, options)
        if kind != "fcos" and len(boxes) and not {"sizes", "ratios"} & set(options):
            per_level = len(shape.sizes[0])
            sizes, ratios = fit_anchors(boxes, shape.levels, per_level=per_level)
            options = options | {"sizes": sizes, "ratios": ratios}
        return cls.random(stages, n_classes, kind=kind, canvas=canvas, seed=seed, **options)

    def module(self) -> BoxModule:
        """Build the module with its own copy of the tensors, in float32 on the CPU."""
        import torch

        module = _build_without_memory(self.shape)
        state = {k: torch.from_numpy(np.array(v)) for k, v in self.tensors.items()}
        module.load_state_dict(state, strict=True, assign=True)
        return module

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the tensors by name: float32, and int64 for BatchNorm's counters."""
        return dict(self.tensors)

    def with_state(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """Return the same head with other tensors."""
        return replace(self, tensors={name: np.array(value) for name, value in state.items()})

    def as_dict(self) -> dict[str, Any]:
        """The architecture as JSON values, for model.json."""
        shape = self.shape
        return {
            "kind": shape.kind,
            "taps": list(self.taps),
            "widths": list(shape.widths),
            "strides": list(shape.strides),
            "n_classes": shape.n_classes,
            "canvas": list(shape.canvas),
            "options": {name: tuples_to_lists(value) for name, value in shape.options.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> BoxHead:
        """Read what ``as_dict`` and ``state`` wrote.

        Raises
        ------
        ModelFileError
            If the description is invalid, or the tensors do not match it.
        """
        try:
            shape, taps = _parse_shape(values)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"Expected a detection head, got a damaged description ({error}). Copy the model "
                "again."
            ) from error
        module = _build_without_memory(shape)
        expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        actual = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        wrong = sorted(
            name for name in expected.keys() | actual if expected.get(name) != actual.get(name)
        )
        if wrong:
            raise ModelFileError(
                f"Expected the tensors of a {shape.kind} head, got {len(wrong)} that are missing, "
                f"unexpected or of another shape, such as {wrong[0]}. Copy the model again."
            )
        return cls(taps=taps, shape=shape, tensors=dict(tensors))

    def anchors(self) -> NDArray[np.float32] | None:
        """All anchors on the canvas, (n, 4); None for FCOS, which has points."""
        from headstart.models.heads.detection_modules import anchors_on

        if self.kind == "fcos":
            return None
        anchors: NDArray[np.float32] = anchors_on(self.shape).numpy()
        return anchors

    def anchor_recall(self, boxes: NDArray[np.floating[Any]]) -> float | None:
        """Share of boxes (n, 4) on the canvas with an IoU of at least 0.5 with some anchor.

        None if there are no boxes, and for FCOS, which has no anchors.
        """
        anchors = self.anchors() if len(boxes) else None
        return None if anchors is None else anchor_recall(boxes, anchors)

    def with_classes(
        self, classes_before: Sequence[str], classes_after: Sequence[str], *, seed: int
    ) -> BoxHead:
        """Return the head for other classes; outputs of classes with equal names are copied.

        Parameters
        ----------
        classes_before : sequence of str
            The classes of this head, in order.
        classes_after : sequence of str
            The classes of the new head. Names are compared without case. Outputs of classes that
            are new are initialised at random.
        seed : int
            For the random outputs.

        Raises
        ------
        UsageError
            If the head has another number of classes.
        """
        import torch

        from headstart.models.heads.detection_modules import build

        if len(classes_before) != self.shape.n_classes:
            raise UsageError(
                f"Expected the names of {self.shape.n_classes} classes, got "
                f"{len(classes_before)}: {list(classes_before)}."
            )
        shape = replace(self.shape, n_classes=len(classes_after))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            new = _copy_arrays(build(shape))
        class_pairs = match_classes(classes_before, classes_after)
        tensors = merge_class_outputs(shape, self.tensors, new, class_pairs)
        return replace(self, shape=shape, tensors=tensors)


def pyramid_stages(stages: Sequence[Stage], first_stride: int) -> tuple[Stage, ...]:
    """Select the last stage of each stride 4, 8, 16, 32 that is at least ``first_stride``.

    Raises
    ------
    UsageError
        If no stage has one of the strides, as in a vision transformer.

    Examples
    --------
    >>> stages = [Stage(name=n, channels=8, stride=s) for n, s in [("a", 16), ("b", 32), ("c", 32)]]
    >>> [stage.name for stage in pyramid_stages(stages, 16)]
    ['a', 'c']
    """
    last = {stage.stride: stage for stage in stages}
    strides = [stride for stride in (4, 8, 16, LAST_STRIDE) if stride >= first_stride]
    if missing := [stride for stride in strides if stride not in last]:
        raise UsageError(
            f"Expected a backbone with maps of stride {', '.join(map(str, strides))}, got none of "
            f"{', '.join(map(str, missing))}. Choose a convolutional one, such as --backbone "
            "torchvision/resnet18."
        )
    return tuple(last[stride] for stride in strides)


def _plan_shape(
    stages: Sequence[Stage],
    n_classes: int,
    kind: str,
    canvas: tuple[int, int],
    options: Mapping[str, Any],
) -> tuple[BoxShape, tuple[str, ...]]:
    """Architecture and stages of a head for a backbone."""
    # The strides follow from ``first_stride``, an option. To read it, resolve the options with a
    # placeholder for the strides; ``sizes`` depends on them and is checked later.
    strides: tuple[int, ...] = (LAST_STRIDE,)
    without_sizes = {name: value for name, value in options.items() if name != "sizes"}
    first_stride = resolve_options(kind, strides, canvas, without_sizes)["first_stride"]
    taps = pyramid_stages(stages, first_stride)
    if n_classes < 1 or not LAST_STRIDE <= min(canvas) <= max(canvas) <= MAX_SIDE:
        raise UsageError(
            f"Expected at least one class and a canvas of {LAST_STRIDE} to {MAX_SIDE} pixels "
            f"a side, got {n_classes} and {canvas}. Pass another --size."
        )
    strides = tuple(stage.stride for stage in taps)
    shape = BoxShape(
        kind=kind,
        widths=tuple(stage.channels for stage in taps),
        strides=strides,
        n_classes=n_classes,
        canvas=(int(canvas[0]), int(canvas[1])),
        options=resolve_options(kind, strides, canvas, options),
    )
    return shape, tuple(stage.name for stage in taps)


def _parse_shape(values: Mapping[str, Any]) -> tuple[BoxShape, tuple[str, ...]]:
    """Build the shape from the described stages, as ``random`` does, with the same checks."""
    numbers = [*values["widths"], *values["strides"], *values["canvas"], values["n_classes"]]
    if wrong := [n for n in numbers if type(n) is not int or not 1 <= n <= MAX_VALUE]:
        raise UsageError(f"Expected whole numbers from 1 to {MAX_VALUE}, got {wrong[0]!r}.")
    if not all(isinstance(tap, str) for tap in values["taps"]):
        raise UsageError(f"Expected names of stages, got {values['taps']!r}.")
    height, width = values["canvas"]
    if not isinstance(values["options"], dict):
        raise UsageError(f"Expected options by name, got {values['options']!r}.")
    if values["kind"] not in DETECTION_HEADS:
        raise UsageError(
            f"Expected a head among {', '.join(DETECTION_HEADS)}, got {values['kind']!r}."
        )
    stages = [
        Stage(name=name, channels=channels, stride=stride)
        for name, channels, stride in zip(
            values["taps"], values["widths"], values["strides"], strict=True
        )
    ]
    shape, taps = _plan_shape(
        stages, values["n_classes"], values["kind"], (height, width), values["options"]
    )
    if taps != tuple(values["taps"]):
        raise UsageError(f"Expected the stages {taps}, got {values['taps']}.")
    return shape, taps


def _build_without_memory(shape: BoxShape) -> BoxModule:
    """Build the module on torch's meta device: its tensors have shapes but no values."""
    import torch

    from headstart.models.heads.detection_modules import build

    with torch.device("meta"):
        return build(shape)


def _copy_arrays(module: BoxModule) -> dict[str, NDArray[Any]]:
    return {name: np.array(tensor.numpy()) for name, tensor in module.state_dict().items()}
