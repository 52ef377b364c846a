"""Samples, targets (classes, boxes, masks) and the `Dataset` that contains them.

Coordinates of boxes are pixels of the upright image, after its EXIF rotation: x to the right, y
downwards; the top left corner of the first pixel is (0, 0).
"""

from __future__ import annotations

import hashlib
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.outlines import OutlineMask
from headstart.data.pixel_values import DEFAULT_OPTIONS, MAX_PIXELS, ImageOptions
from headstart.errors import DataError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "DENSE",
    "IGNORED",
    "SPLITS",
    "Boxes",
    "Code",
    "Dataset",
    "Kind",
    "Mask",
    "Palette",
    "Sample",
    "SplitName",
    "Target",
    "brief",
    "fingerprint_of",
    "html_fields",
    "html_table",
    "labels_of",
]

CELL_LENGTH = 200
"""Most characters of a cell in a notebook."""
CLASSES_SHOWN = 20
"""Most classes in a table of a notebook."""

IGNORED = 255
"""In a decoded mask: a pixel without a class, ignored in training and evaluation."""

Code = int | tuple[int, int, int]
"""Value of a class in a mask file: a grey value, a palette index or a colour."""

Kind = Literal["multiclass", "multilabel", "detection", "segmentation"]
DENSE: tuple[Kind, ...] = ("detection", "segmentation")
"""Kinds with targets that have positions, so that the whole image must be used, not a crop."""
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Objects in an image; an image may have none.

    Parameters
    ----------
    corners : tuple of (float, float, float, float)
        Left, top, right, bottom of every object.
    labels : tuple of str
        Class of every object.
    hard : tuple of bool
        Whether an object is difficult (VOC) or a crowd (COCO). In training its area is neither an
        object nor background. In evaluation neither detecting nor missing it counts. Empty if no
        object is hard.
    size : (int, int) or None
        Width and height of the image, if the annotation states them.

    Raises
    ------
    DataError
        If the lengths differ.

    Examples
    --------
    >>> boxes = Boxes(corners=((0.0, 0.0, 4.0, 2.0),), labels=("cell",))
    >>> boxes.array().shape, boxes.is_hard()
    ((1, 4), array([False]))
    """

    corners: tuple[tuple[float, float, float, float], ...] = ()
    labels: tuple[str, ...] = ()
    hard: tuple[bool, ...] = ()
    size: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return (
            f"Boxes({len(self.labels)} objects: labels={brief(self.labels)}, "
            f"corners={brief(self.corners)}, size={self.size})"
        )

    def _repr_html_(self) -> str:
        return html_fields(self)

    def __post_init__(self) -> None:
        if len(self.corners) != len(self.labels) or len(self.hard) not in {0, len(self.labels)}:
            raise DataError(
                "Expected one label and (if given) one `hard` mark per box, got "
                f"{len(self.corners)} boxes, {len(self.labels)} labels, {len(self.hard)} marks."
            )

    def array(self) -> NDArray[np.float32]:
        """Corners as an array, shape (n, 4)."""
        return np.asarray(self.corners, dtype=np.float32).reshape(-1, 4)

    def is_hard(self) -> NDArray[np.bool_]:
        """Hard marks as an array, shape (n,)."""
        return np.asarray(self.hard or (False,) * len(self.labels), dtype=bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """Codes of the classes in the masks of a data set.

    Parameters
    ----------
    codes : tuple of (code, str)
        A grey value, palette index or colour, and its class.
    ignored : tuple of codes
        Pixels with these codes are ignored in training and evaluation.
    threshold : int or None
        Values of this and above are read as 255, all others as 0.

    Examples
    --------
    >>> Palette(codes=((0, "background"), (1, "leaf"))).names
    ('background', 'leaf')
    """

    codes: tuple[tuple[Code, str], ...]
    ignored: tuple[Code, ...] = (IGNORED,)
    threshold: int | None = None

    def __repr__(self) -> str:
        return f"Palette(codes={brief(self.codes)}, ignored={brief(self.ignored)})"

    def _repr_html_(self) -> str:
        return html_fields(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, each once, in the order of the codes."""
        return tuple(dict.fromkeys(name for _, name in self.codes))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mask:
    """A class for every pixel, in a file or in memory.

    Parameters
    ----------
    source : Path, array of int, shape (H, W) or (H, W, 3), or OutlineMask
        A file is read, and an outline is drawn, only when it is needed.
    palette : Palette
    present : tuple of str
        Classes that occur in the mask, if it has been read.
    size : (int, int) or None
        Width and height to which the mask is scaled by nearest neighbour; None: it is not scaled.
    max_pixels : int
        Largest width times height of a file; a larger one is refused before it is decoded.
    """

    source: Path | NDArray[Any] | OutlineMask
    palette: Palette
    present: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    max_pixels: int = MAX_PIXELS

    def __repr__(self) -> str:
        source = self.source
        text = brief(str(source)) if isinstance(source, Path) else f"<array {source.shape}>"
        return f"Mask({text}, {len(self.palette.names)} classes: {brief(self.palette.names)})"

    def _repr_html_(self) -> str:
        source = self.source
        rows = {
            "source": str(source) if isinstance(source, Path) else f"array {source.shape}",
            "classes": self.palette.names,
            "present": self.present,
        }
        return html_table("Mask", rows)


Target = str | tuple[str, ...] | Boxes | Mask | None
"""A class name; for multilabel a tuple of names (may be empty); for detection `Boxes`; for
segmentation a `Mask`; None if unlabelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One example: an image, its target, its group and its split.

    Parameters
    ----------
    image : Path, bytes, array of shape (H, W[, C]) or PIL image
        A path is opened only when it is needed.
    target : str, tuple of str, Boxes, Mask or None
        Class name; a tuple of names for multilabel; boxes or a mask; None if unlabelled.
    group : str or None
        Images of one group (a patient, a video) are always in the same split.
    split : {"train", "val", "test"} or None
        Split that the data define, if any.
    digest : str or None
        Content identity of the image, set after it has been scanned.
    title : str or None
        Name of an image that has no path.
    weight : float
        Weight of the image in the loss of a classifier, above 0: 2 counts as two equal images.
    options : ImageOptions
        How to decode the image.

    Raises
    ------
    UsageError
        If the weight is not a finite number above 0.
    """

    image: Path | bytes | NDArray[Any] | Image
    target: Target = None
    group: str | None = None
    split: SplitName | None = None
    digest: str | None = None
    title: str | None = None
    weight: float = 1.0
    options: ImageOptions = DEFAULT_OPTIONS

    def __post_init__(self) -> None:
        if not isinstance(self.weight, int | float) or not 0 < self.weight < float("inf"):
            raise UsageError(
                f"`weight` must be a finite number above 0, got {brief(self.weight)}. Leave out "
                "images of weight 0."
            )

    def __repr__(self) -> str:
        values = {"target": self.target, "group": self.group, "split": self.split}
        texts = (f", {key}={brief(value)}" for key, value in values.items() if value is not None)
        return f"Sample({brief(self.name)}{''.join(texts)})"

    def _repr_html_(self) -> str:
        rows = {
            "image": self.name,
            "target": self.target,
            "group": self.group,
            "split": self.split,
        }
        return html_table("Sample", rows)

    @property
    def name(self) -> str:
        """Name of the image in messages: its title, its path, or its type."""
        if self.title is not None:
            return self.title
        if isinstance(self.image, Path):
            # A file name need not be valid text, but reports must be.
            return str(self.image).encode("utf-8", "backslashreplace").decode()
        return f"<{type(self.image).__name__}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Examples and the names of their classes.

    Parameters
    ----------
    samples : tuple of Sample
    classes : tuple of str
        Class names in a fixed order. Targets are mapped to it by name, so that a class without
        images in one split does not change the indices of the others.
    kind : {"multiclass", "multilabel", "detection", "segmentation"}
    name : str
        Name of the data set, such as the name of its folder.
    notes : tuple of str
        What the reader recognised and why, for the user.
    warnings : tuple of str
        What the user should check, such as a set of which a part has no annotations.

    Examples
    --------
    >>> data = Dataset(
    ...     samples=(Sample(image=b"", target="dog"), Sample(image=b"", target="cat")),
    ...     classes=("cat", "dog"),
    ... )
    >>> data.targets()
    array([1, 0])
    >>> data.counts()
    {'cat': 1, 'dog': 1}
    """

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    kind: Kind = "multiclass"
    name: str = "data"
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Dataset({brief(self.name)}, {self.kind}: {len(self)} images, "
            f"{len(self.classes)} classes: {brief(self.classes)})"
        )

    def _repr_html_(self) -> str:
        counts = self.counts()
        title = f"{self.name}: {len(self)} images, {self.kind}, {len(self.classes)} classes"
        shown = {name: counts[name] for name in self.classes[:CLASSES_SHOWN]}
        n_more = len(self.classes) - CLASSES_SHOWN
        rest = f"<p>and {n_more} more classes</p>" if n_more > 0 else ""
        return html_table(title, shown) + rest

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def is_dense(self) -> bool:
        """Whether targets are boxes or masks."""
        return self.kind in DENSE

    def subset(self, indices: Iterable[int]) -> Dataset:
        """Return the examples at ``indices``, in that order, with the same classes."""
        return replace(self, samples=tuple(self.samples[int(i)] for i in indices))

    def split_indices(self, split: SplitName | None) -> NDArray[np.intp]:
        """Indices of the examples of one split; None selects those without a split."""
        indices = [i for i, sample in enumerate(self.samples) if sample.split == split]
        return np.asarray(indices, dtype=np.intp)

    def split(self, split: SplitName | None) -> Dataset:
        """Return the examples of one split."""
        return self.subset(self.split_indices(split))

    def weights(self) -> NDArray[np.float64] | None:
        """Weight of each example, shape (n,), with mean 1; None if all are equal.

        >>> samples = [Sample(image=b"", weight=weight) for weight in (3, 1)]
        >>> Dataset(samples=tuple(samples), classes=()).weights()
        array([1.5, 0.5])
        """
        values = np.array([sample.weight for sample in self.samples], dtype=np.float64)
        if not len(values) or (values == values[0]).all():
            return None
        return np.asarray(values / values.mean())

    def groups(self) -> NDArray[np.intp] | None:
        """Group of each example as a number, shape (n,); None if no example has a group.

        An example without a group is a group of its own.

        >>> samples = [Sample(image=b"", group=name) for name in ("ann", None, "ann")]
        >>> Dataset(samples=tuple(samples), classes=()).groups()
        array([0, 1, 0])
        """
        if all(sample.group is None for sample in self.samples):
            return None
        codes: dict[str | int, int] = {}
        groups = (s.group if s.group is not None else i for i, s in enumerate(self.samples))
        return np.asarray([codes.setdefault(group, len(codes)) for group in groups], dtype=np.intp)

    def targets(self) -> NDArray[np.intp]:
        """Targets as class indices.

        Returns
        -------
        array
            Indices into ``classes``, shape (n,), for multiclass. Otherwise 0 and 1, shape
            (n, n_classes): whether an image has a class.

        Raises
        ------
        DataError
            If an example has no label.
        UnknownNameError
            If an example's class is not one of ``classes``.
        """
        class_indices = {name: i for i, name in enumerate(self.classes)}
        if self.kind != "multiclass":
            table = np.zeros((len(self), len(self.classes)), dtype=np.intp)
            for row, sample in enumerate(self.samples):
                for label in _require_labels(sample):
                    table[row, _class_index(label, class_indices)] = 1
            return table
        return np.asarray(
            [_class_index(_require_labels(sample)[0], class_indices) for sample in self.samples],
            dtype=np.intp,
        )

    def counts(self) -> dict[str, int]:
        """Number of examples of each class (for detection of objects), in the order of ``classes``.

        Classes without examples are included.
        """
        counts: Counter[str] = Counter()
        for sample in self.samples:
            if isinstance(sample.target, Boxes):
                counts.update(sample.target.labels)
            else:
                counts.update(labels_of(sample.target))
        return {name: counts[name] for name in self.classes}


def brief(value: object) -> str:
    """Return a short text of a value: at most 6 items, and 80 characters of each text.

    >>> brief(tuple("abcdefgh"))
    "('a', 'b', 'c', 'd', 'e', 'f', ...)"
    """
    texts = reprlib.Repr()
    texts.maxstring = texts.maxother = 80
    return texts.repr(value)


def html_table(title: str, rows: Mapping[str, object]) -> str:
    """Return a title and a table of names and short values, for a notebook; all text is escaped.

    >>> html_table("Sample", {"image": "<b>.jpg"})
    '<b>Sample</b><table><tr><th>image</th><td>&lt;b&gt;.jpg</td></tr></table>'
    """
    cells = "".join(
        f"<tr><th>{escape(_cell(name))}</th><td>{escape(_cell(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<b>{escape(_cell(title))}</b><table>{cells}</table>"


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else brief(value)
    return text if len(text) <= CELL_LENGTH else f"{text[: CELL_LENGTH - 1]}…"


def html_fields(value: Any) -> str:
    """Return the fields of a dataclass as a table, for a notebook.

    >>> html_fields(Palette(codes=((0, "sky"),)))  # doctest: +ELLIPSIS
    '<b>Palette</b><table><tr><th>codes</th><td>((0, &#x27;sky&#x27;),)</td></tr>...
    """
    return html_table(
        type(value).__name__, {one.name: getattr(value, one.name) for one in fields(value)}
    )


def labels_of(target: Target) -> tuple[str, ...]:
    """Return the class names of a target, each once; an empty tuple for no target.

    >>> labels_of("cat"), labels_of(Boxes(corners=((0, 0, 1, 1),) * 2, labels=("dog", "dog")))
    (('cat',), ('dog',))
    """
    if target is None or isinstance(target, str):
        return () if target is None else (target,)
    if isinstance(target, Boxes):
        return tuple(dict.fromkeys(target.labels))
    return target.present if isinstance(target, Mask) else target


def fingerprint_of(target: Target) -> str:
    """Return a text that differs for different targets; the contents of masks are read.

    >>> fingerprint_of("cat")
    "'cat'"
    """
    if isinstance(target, Boxes):  # all values: the text for people is shortened
        return (
            f"Boxes(corners={target.corners!r}, labels={target.labels!r}, hard={target.hard!r}, "
            f"size={target.size!r})"
        )
    if not isinstance(target, Mask):
        return repr(target)
    source = target.source
    if isinstance(source, Path):
        shape, content = "", source.read_bytes()
    elif isinstance(source, OutlineMask):
        shape, content = "outlines", source.digest()
    else:
        shape, content = repr((source.shape, source.dtype.str)), source.tobytes()
    palette = f"Palette(codes={target.palette.codes!r}, ignored={target.palette.ignored!r})"
    changes = (target.palette.threshold, target.size)
    if changes != (None, None):
        palette = f"{palette}, {changes!r}"
    return hashlib.sha256(f"({palette}, {shape!r})".encode() + content).hexdigest()


def _require_labels(sample: Sample) -> tuple[str, ...]:
    if sample.target is None:
        raise DataError(
            f"Expected a label for every image, got none for {sample.name}. Add its label, or "
            "remove the image."
        )
    return labels_of(sample.target)


def _class_index(label: str, class_indices: dict[str, int]) -> int:
    try:
        return class_indices[label]
    except KeyError:
        raise UnknownNameError("class", label, class_indices) from None
