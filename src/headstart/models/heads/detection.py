"""Which outputs of a detector's head belong to which class, and moving them to other classes."""

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
    KINDS,
    LAST_STRIDE,
    BoxShape,
    anchor_recall,
    anchors_for,
    resolved,
)

if TYPE_CHECKING:
    from headstart.models.heads.detection_modules import BoxModule

__all__ = ["BoxHead", "matched", "merged", "taps_of"]

ROWS = {
    "faster-rcnn": {r"roi\.box_predictor\.cls_score\.": 1, r"roi\.box_predictor\.bbox_pred\.": 4},
    "retinanet": {r"net\.head\.classification_head\.cls_logits\.": 1},
    "fcos": {r"net\.head\.classification_head\.cls_logits\.": 1},
    # The first layer of a predictor works by channel and knows nothing of classes.
    "ssdlite": {r"net\.head\.classification_head\.module_list\.\d+\.1\.": 1},
}
"""Layers whose outputs belong to classes, and how many a class has for one anchor."""
WITH_BACKGROUND = {"faster-rcnn", "ssdlite"}


def matched(before: Sequence[str], after: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Pair the places of equal names, whatever the case of their letters.

    Parameters
    ----------
    before, after : sequence of str

    Returns
    -------
    tuple of (int, int)
        For each name of ``after`` that is in ``before`` its place there (the first) and here.

    Examples
    --------
    >>> matched(["cat", "dog"], ["Dog", "cow", "cat"])
    ((1, 0), (0, 2))
    """
    known = {name.casefold(): place for place, name in reversed([*enumerate(before)])}
    pairs = [(known.get(name.casefold()), place) for place, name in enumerate(after)]
    return tuple((old, new) for old, new in pairs if old is not None)


def merged(
    shape: BoxShape,
    old: Mapping[str, NDArray[Any]],
    drawn: Mapping[str, NDArray[Any]],
    kept: Sequence[tuple[int, int]],
) -> dict[str, NDArray[Any]]:
    """Take over all tensors but the outputs of classes that are new.

    Parameters
    ----------
    shape : BoxShape
        Of the new head.
    old, drawn : mapping of str to array
        Tensors of the old head, and of a new one of random numbers.
    kept : sequence of (int, int)
        Place of a class in the old head and in the new one.
    """
    result = {}
    for name, array in old.items():
        each = next((n for rows, n in ROWS[shape.kind].items() if re.match(rows, name)), 0)
        result[name] = _rows(shape, array, drawn[name], each, kept) if each else array
    return result


def _rows(
    shape: BoxShape,
    old: NDArray[Any],
    drawn: NDArray[Any],
    each: int,
    kept: Sequence[tuple[int, int]],
) -> NDArray[Any]:
    """Put the outputs of kept classes, and of the background, into those that were drawn."""
    shift = int(shape.kind in WITH_BACKGROUND)
    anchors = drawn.shape[0] // ((shape.n_classes + shift) * each)
    source = old.reshape(anchors, -1, each, *old.shape[1:])
    result = drawn.reshape(anchors, -1, each, *drawn.shape[1:]).copy()
    for before, after in [(0, 0)] * shift + [(a + shift, b + shift) for a, b in kept]:
        result[:, after] = source[:, before]
    return result.reshape(drawn.shape)


MOST_PIXELS = 4096
MOST_CLASSES = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxHead:
    """A detector without its backbone; ``random`` draws one.

    Parameters
    ----------
    taps : tuple of str
        Stages whose maps it reads, fine ones first.
    shape : BoxShape
        What it is built of.
    tensors : mapping of str to array
        Its numbers, as ``module().state_dict()`` names them.

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
        """Draw a head.

        Parameters
        ----------
        stages : sequence of Stage
            Of the backbone.
        n_classes : int
            Without a background.
        kind : {"faster-rcnn", "retinanet", "fcos", "ssdlite"}
        canvas : (int, int)
            Height and width of what the backbone reads, in pixels.
        seed : int
        **options
            Of the kind: the keys of ``KINDS[kind]``.

        Raises
        ------
        UnknownNameError
            If there is no such kind or option.
        UsageError
            If the backbone has no maps of the strides needed, or a value cannot be meant.
        """
        import torch

        shape, taps = _shaped(stages, n_classes, kind, canvas, options)
        from headstart.models.heads.detection_modules import build

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build(shape)
        return cls(taps=taps, shape=shape, tensors=_arrays(module))

    @classmethod
    def fitted(
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
        """Draw a head whose anchors fit the boxes (n, 4) of the training images on the canvas.

        As ``random`` where there are no boxes, for FCOS, which has no anchors, and where
        ``sizes`` or ``ratios`` are given.
        """
        shape, _ = _shaped(stages, n_classes, kind, canvas, options)
        if kind != "fcos" and len(boxes) and not {"sizes", "ratios"} & set(options):
            per_level = len(shape.sizes[0])
            sizes, ratios = anchors_for(boxes, shape.levels, per_level=per_level)
            options = options | {"sizes": sizes, "ratios": ratios}
        return cls.random(stages, n_classes, kind=kind, canvas=canvas, seed=seed, **options)

    def module(self) -> BoxModule:
        """Build it with tensors of its own, in float32 on the CPU."""
        import torch

        module = _empty(self.shape)
        state = {k: torch.from_numpy(np.array(v)) for k, v in self.tensors.items()}
        module.load_state_dict(state, strict=True, assign=True)
        return module

    def state(self) -> dict[str, NDArray[Any]]:
        """Return its numbers by name: float32, and int64 where something is counted."""
        return dict(self.tensors)

    def with_state(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """Return the same head with other numbers."""
        return replace(self, tensors={name: np.array(value) for name, value in state.items()})

    def as_dict(self) -> dict[str, Any]:
        """What it is built of, as plain values."""
        shape = self.shape
        return {
            "kind": shape.kind,
            "taps": list(self.taps),
            "widths": list(shape.widths),
            "strides": list(shape.strides),
            "n_classes": shape.n_classes,
            "canvas": list(shape.canvas),
            "options": {name: _listed(value) for name, value in shape.options.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> BoxHead:
        """Read what ``as_dict`` and ``state`` wrote.

        Raises
        ------
        ModelFileError
            If the description cannot be meant, or the tensors are not those of it.
        """
        try:
            shape, taps = _read(values)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"Expected a head that finds boxes, got a description that is damaged ({error})."
            ) from error
        wanted = {name: tuple(x.shape) for name, x in _empty(shape).state_dict().items()}
        given = {name: tuple(x.shape) for name, x in tensors.items()}
        wrong = sorted(n for n in wanted.keys() | given.keys() if wanted.get(n) != given.get(n))
        if wrong:
            raise ModelFileError(
                f"Expected the tensors of a {shape.kind} head, got {len(wrong)} that are missing, "
                f"not expected or of another shape, such as {wrong[0]}; do fetch the model again."
            )
        return cls(taps=taps, shape=shape, tensors=dict(tensors))

    def anchors(self) -> NDArray[np.float32] | None:
        """All anchors on the canvas, (n, 4); None for FCOS, which has points."""
        from headstart.models.heads.detection_modules import anchors_on

        if self.kind == "fcos":
            return None
        found: NDArray[np.float32] = anchors_on(self.shape).numpy()
        return found

    def reach(self, boxes: NDArray[np.floating[Any]]) -> float | None:
        """Share of boxes (n, 4) on the canvas with an IoU of at least 0.5 with some anchor.

        None where there is no box, and for FCOS, which has no anchors.
        """
        anchors = self.anchors() if len(boxes) else None
        return None if anchors is None else anchor_recall(boxes, anchors)

    def adapted(
        self, classes_before: Sequence[str], classes_after: Sequence[str], *, seed: int
    ) -> BoxHead:
        """Return a head for other classes that keeps what it knows of those it has.

        Parameters
        ----------
        classes_before : sequence of str
            Its classes in order.
        classes_after : sequence of str
            The new ones; outputs of those whose name is among the old, whatever the case of its
            letters, are kept, those of others are drawn.
        seed : int

        Raises
        ------
        UsageError
            If the head has another number of classes.
        """
        import torch

        from headstart.models.heads.detection_modules import build

        if len(classes_before) != self.shape.n_classes:
            raise UsageError(
                f"Expected the names of {self.shape.n_classes} classes, got {len(classes_before)}."
            )
        shape = replace(self.shape, n_classes=len(classes_after))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = _arrays(build(shape))
        kept = matched(classes_before, classes_after)
        return replace(self, shape=shape, tensors=merged(shape, self.tensors, drawn, kept))


def taps_of(stages: Sequence[Stage], first_stride: int) -> tuple[Stage, ...]:
    """Find the last stage of each stride from ``first_stride`` to 32, each twice the one before.

    Raises
    ------
    UsageError
        If there is none of some stride, as in a network of tokens.

    Examples
    --------
    >>> stages = [Stage(name=n, channels=8, stride=s) for n, s in [("a", 16), ("b", 32), ("c", 32)]]
    >>> [stage.name for stage in taps_of(stages, 16)]
    ['a', 'c']
    """
    last = {stage.stride: stage for stage in stages}
    wanted = [s for s in (4, 8, 16, 32) if s >= first_stride]
    if missing := [stride for stride in wanted if stride not in last]:
        raise UsageError(
            f"Expected a backbone with maps of stride {', '.join(map(str, wanted))}, got none of "
            f"{', '.join(map(str, missing))}; do take a convolutional one, such as "
            "torchvision/resnet18."
        )
    return tuple(last[stride] for stride in wanted)


def _shaped(
    stages: Sequence[Stage],
    n_classes: int,
    kind: str,
    canvas: tuple[int, int],
    options: Mapping[str, Any],
) -> tuple[BoxShape, tuple[str, ...]]:
    strides: tuple[int, ...] = (LAST_STRIDE,)  # all are known once the options are
    first = resolved(kind, strides, canvas, {k: v for k, v in options.items() if k != "sizes"})
    taps = taps_of(stages, first["first_stride"])
    if n_classes < 1 or not LAST_STRIDE <= min(canvas) <= max(canvas) <= MOST_PIXELS:
        raise UsageError(
            f"Expected at least one class and a canvas of {LAST_STRIDE} to {MOST_PIXELS} pixels "
            f"a side, got {n_classes} and {canvas}; do choose another `--size`."
        )
    strides = tuple(stage.stride for stage in taps)
    shape = BoxShape(
        kind=kind,
        widths=tuple(stage.channels for stage in taps),
        strides=strides,
        n_classes=n_classes,
        canvas=(int(canvas[0]), int(canvas[1])),
        options=resolved(kind, strides, canvas, options),
    )
    return shape, tuple(stage.name for stage in taps)


def _read(values: Mapping[str, Any]) -> tuple[BoxShape, tuple[str, ...]]:
    """Build the shape as it would be built of stages, so that nothing else can be described."""
    numbers = [*values["widths"], *values["strides"], *values["canvas"], values["n_classes"]]
    if not all(type(n) is int and 1 <= n <= MOST_CLASSES for n in numbers) or not all(
        isinstance(tap, str) for tap in values["taps"]
    ):
        raise UsageError("Expected names of stages and whole numbers within reason, got others.")
    height, width = values["canvas"]
    if not isinstance(values["options"], dict):
        raise UsageError(f"Expected options by name, got {values['options']!r}.")
    if values["kind"] not in KINDS:
        raise UsageError(f"Expected a kind of head, got {values['kind']!r}.")
    stages = [
        Stage(name=name, channels=channels, stride=stride)
        for name, channels, stride in zip(
            values["taps"], values["widths"], values["strides"], strict=True
        )
    ]
    shape, taps = _shaped(
        stages, values["n_classes"], values["kind"], (height, width), values["options"]
    )
    if taps != tuple(values["taps"]):
        raise UsageError(f"Expected the stages {taps}, got {values['taps']}.")
    return shape, taps


def _empty(shape: BoxShape) -> BoxModule:
    """Build the module without numbers: no memory is taken and no chance is drawn."""
    import torch

    from headstart.models.heads.detection_modules import build

    with torch.device("meta"):
        return build(shape)


def _arrays(module: BoxModule) -> dict[str, NDArray[Any]]:
    return {name: np.array(x.numpy()) for name, x in module.state_dict().items()}


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, tuple) else value
