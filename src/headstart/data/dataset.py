"""What an image shows beyond a class: boxes around objects, or a class for every pixel.

Coordinates are pixels of the image as it is shown, after its EXIF rotation: x to the right, y
downwards, the corner of the first pixel is (0, 0).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError, UnknownNameError

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
    "fingerprint_of",
    "labels_of",
]

IGNORED = 255
"""In a decoded mask: a pixel that no class is claimed for; it is neither learned nor judged."""

Code = int | tuple[int, int, int]
"""How a mask file writes a class: a grey value (or palette index), or a colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Objects in an image; none is a valid answer.

    Parameters
    ----------
    corners : tuple of (float, float, float, float)
        Left, top, right, bottom of every object.
    labels : tuple of str
        Its class, one for each.
    hard : tuple of bool
        Whether an object is difficult (VOC) or a crowd (COCO): in training it is left out, so
        that its place counts as background; in the judgement neither finding nor missing it
        counts. Empty for none.
    size : (int, int) or None
        Width and height of the image that the annotation states, if it does.

    Raises
    ------
    DataError
        If the lengths differ.

    Examples
    --------
    >>> one = Boxes(corners=((0.0, 0.0, 4.0, 2.0),), labels=("cell",))
    >>> one.array().shape, one.is_hard()
    ((1, 4), array([False]))
    """

    corners: tuple[tuple[float, float, float, float], ...] = ()
    labels: tuple[str, ...] = ()
    hard: tuple[bool, ...] = ()
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.corners) != len(self.labels) or len(self.hard) not in {0, len(self.labels)}:
            raise DataError(
                "Expected one label (and one mark, if any) for every box, got "
                f"{len(self.corners)} boxes, {len(self.labels)} labels, {len(self.hard)} marks."
            )

    def array(self) -> NDArray[np.float32]:
        """Corners as an array, shape (n, 4)."""
        return np.asarray(self.corners, dtype=np.float32).reshape(-1, 4)

    def is_hard(self) -> NDArray[np.bool_]:
        """The marks as an array, shape (n,)."""
        return np.asarray(self.hard or (False,) * len(self.labels), dtype=bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """How the masks of a data set write its classes.

    Parameters
    ----------
    codes : tuple of (code, str)
        A grey value, palette index or colour, and the class it stands for.
    ignored : tuple of codes
        Pixels of these are neither learned nor judged.

    Examples
    --------
    >>> Palette(codes=((0, "background"), (1, "leaf"))).names
    ('background', 'leaf')
    """

    codes: tuple[tuple[Code, str], ...]
    ignored: tuple[Code, ...] = (IGNORED,)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, each once, in the order of the codes."""
        return tuple(dict.fromkeys(name for _, name in self.codes))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mask:
    """A class for every pixel, in a file beside the image or in memory.

    Parameters
    ----------
    source : Path or array of int, shape (H, W) or (H, W, 3)
        A file is opened only when it is needed.
    palette : Palette
    present : tuple of str
        Classes that the mask shows, as far as it has been looked at.
    """

    source: Path | NDArray[Any]
    palette: Palette
    present: tuple[str, ...] = ()


Kind = Literal["multiclass", "multilabel", "detection", "segmentation"]
DENSE: tuple[Kind, ...] = ("detection", "segmentation")
"""What an image shows is a matter of places: the whole of it has to be seen."""

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")

Target = str | tuple[str, ...] | Boxes | Mask | None
"""A class by name; for multilabel a tuple of names (may be empty); for detection and segmentation
what is where; None when unlabelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One example: an image, what it shows, and what it belongs to.

    Parameters
    ----------
    image : Path, bytes, array of shape (H, W[, C]) or PIL image
        The image; a path is opened only when it is needed.
    target : str, tuple of str, Boxes, Mask or None
        Class by name; a tuple of names when several may hold at once; or what is where.
    group : str or None
        Images of one group (a patient, a video) never lie on both sides of a split.
    split : {"train", "val", "test"} or None
        The part that the data's author put it in, if any.
    digest : str or None
        Content identity of the image, known once it has been scanned.
    title : str or None
        What to call an image that has no path.
    """

    image: Path | bytes | NDArray[Any] | Image
    target: Target = None
    group: str | None = None
    split: SplitName | None = None
    digest: str | None = None
    title: str | None = None

    @property
    def name(self) -> str:
        """What to call the image in front of a person: its title, its path, or its kind."""
        if self.title is not None:
            return self.title
        if isinstance(self.image, Path):
            # A file name need not be valid text; what is written down has to be.
            return str(self.image).encode("utf-8", "backslashreplace").decode()
        return f"<{type(self.image).__name__}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Examples and the names of their classes.

    Parameters
    ----------
    samples : tuple of Sample
    classes : tuple of str
        Class names in a fixed order; targets are mapped to it by name, so a class that is
        missing from one split cannot shift the others.
    kind : {"multiclass", "multilabel", "detection", "segmentation"}
    name : str
        What to call the data set, such as the folder's name.
    notes : tuple of str
        What the reader recognised and why, for the person.

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

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def is_dense(self) -> bool:
        """Whether targets are boxes or masks."""
        return self.kind in DENSE

    def subset(self, indices: Iterable[int]) -> Dataset:
        """The examples at ``indices``, in that order, with the same classes."""
        return replace(self, samples=tuple(self.samples[int(i)] for i in indices))

    def split_indices(self, split: SplitName | None) -> NDArray[np.intp]:
        """Indices of the examples of one part; None selects those without a part."""
        chosen = [i for i, sample in enumerate(self.samples) if sample.split == split]
        return np.asarray(chosen, dtype=np.intp)

    def split(self, split: SplitName | None) -> Dataset:
        """The examples of one part."""
        return self.subset(self.split_indices(split))

    def groups(self) -> NDArray[np.intp] | None:
        """Group of each example as a number, shape (n,); None when no example has a group.

        An example without a group is a group of its own.

        >>> parts = [Sample(image=b"", group=name) for name in ("ann", None, "ann")]
        >>> Dataset(samples=tuple(parts), classes=()).groups()
        array([0, 1, 0])
        """
        if all(sample.group is None for sample in self.samples):
            return None
        codes: dict[str | int, int] = {}
        wanted = (s.group if s.group is not None else i for i, s in enumerate(self.samples))
        return np.asarray([codes.setdefault(name, len(codes)) for name in wanted], dtype=np.intp)

    def targets(self) -> NDArray[np.intp]:
        """Targets as class indices.

        Returns
        -------
        array
            Shape (n,) of indices into ``classes`` for multiclass; shape (n, n_classes) of
            0 and 1 for multilabel, and for detection and segmentation: which classes an image
            shows.

        Raises
        ------
        DataError
            If an example has no label.
        UnknownNameError
            If an example's class is not one of ``classes``.
        """
        position = {name: i for i, name in enumerate(self.classes)}
        if self.kind != "multiclass":
            table = np.zeros((len(self), len(self.classes)), dtype=np.intp)
            for row, sample in enumerate(self.samples):
                for label in _labels(sample):
                    table[row, _position(label, position)] = 1
            return table
        return np.asarray(
            [_position(_labels(sample)[0], position) for sample in self.samples], dtype=np.intp
        )

    def counts(self) -> dict[str, int]:
        """How many examples carry each class, in the order of ``classes``; zero included.

        Of detection: how many objects there are.
        """
        tally: Counter[str] = Counter()
        for sample in self.samples:
            if isinstance(sample.target, Boxes):
                tally.update(sample.target.labels)
            else:
                tally.update(labels_of(sample.target))
        return {name: tally[name] for name in self.classes}


def labels_of(target: Target) -> tuple[str, ...]:
    """Return the classes that a target names, each once; none for no target.

    >>> labels_of("cat"), labels_of(Boxes(corners=((0, 0, 1, 1),) * 2, labels=("dog", "dog")))
    (('cat',), ('dog',))
    """
    if target is None or isinstance(target, str):
        return () if target is None else (target,)
    if isinstance(target, Boxes):
        return tuple(dict.fromkeys(target.labels))
    return target.present if isinstance(target, Mask) else target


def fingerprint_of(target: Target) -> str:
    """Return a text that is another where a target says something else; masks are read.

    >>> fingerprint_of("cat")
    "'cat'"
    """
    if not isinstance(target, Mask):
        return repr(target)
    source = target.source
    if isinstance(source, Path):
        shape, content = "", source.read_bytes()
    else:
        shape, content = repr((source.shape, source.dtype.str)), source.tobytes()
    return hashlib.sha256(repr((target.palette, shape)).encode() + content).hexdigest()


def _labels(sample: Sample) -> tuple[str, ...]:
    if sample.target is None:
        raise DataError(f"Expected every example to have a label, got none for {sample.name}.")
    return labels_of(sample.target)


def _position(label: str, position: dict[str, int]) -> int:
    try:
        return position[label]
    except KeyError:
        raise UnknownNameError("class", label, position) from None
