"""Names of folders and files that stand for images or for masks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, NamedTuple

__all__ = ["PairingName", "find_twins", "folder_role", "pairing_name"]

_MASK_WORDS = frozenset(
    (
        "mask", "masks", "label", "labels", "annot", "annots", "annotation", "annotations", "ann",
        "anns", "anno", "annos", "gt", "gts", "ground", "truth", "truths", "groundtruth",
        "groundtruths", "seg", "segs", "segmentation", "segmentations", "target", "targets",
        "manual", "matte", "mattes",
    )
)  # fmt: skip
_IMAGE_WORDS = frozenset(
    (
        "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "pic", "pics",
        "frame", "frames", "rgb", "input", "inputs", "original", "originals",
    )
)  # fmt: skip
_FORMAT_WORDS = frozenset(
    ("png", "jpg", "jpeg", "tif", "tiff", "bmp", "gif", "dir", "folder", "data", "set", "dataset")
)
# "with_mask" and "no_mask" are classes of people, not folders of masks.
_NEGATIONS = frozenset(("with", "without", "no", "non", "not", "un", "incorrect", "wearing"))
_TWIN = re.compile(r"[ _.-]+(?:masks?|gt|seg|segmentation|ground_?truth)(?:[ _.-]?\d+)?$", re.I)
_STEM_PREFIX = re.compile(
    r"^(?:images?|imgs?|masks?|labels?|gt|seg|segmentation|annot|annotation)[ _.-]*(?=[^ _.-])",
    re.I,
)
_STEM_SUFFIX = re.compile(
    r"[ _.-](?:images?|imgs?|rgb|leftimg8bit|masks?|labels?|l|gt|seg|segmentation|annot|annotation"
    r"|ground_?truth|(?:gtfine_)?(?:labelids|labeltrainids))(?:[ _.-]?\d+)?$",
    re.I,
)


class PairingName(NamedTuple):
    """Parts of a file name by which an image is paired with its mask.

    Attributes
    ----------
    name : str
    folders : tuple of str
        Folders that its partner shares, too.
    stem : str
        Of the file.
    """

    name: str
    folders: tuple[str, ...]
    stem: str

    @property
    def short_stem(self) -> str:
        """The stem without words such as "image" and "mask" at its ends."""
        return _STEM_PREFIX.sub("", _STEM_SUFFIX.sub("", self.stem))

    @property
    def number(self) -> str:
        """The first number in the stem; the stem if there is none."""
        match = re.search(r"\d+", self.stem)
        return str(int(match[0])) if match else self.stem


@lru_cache(maxsize=4096)  # a folder is in the path of each of its files
def folder_role(name: str) -> tuple[Literal["image", "mask"] | None, tuple[str, ...]]:
    """Whether a folder name stands for images or for masks, and the words of it that are left.

    Examples
    --------
    >>> folder_role("Ground_Truth"), folder_role("train_masks"), folder_role("no_mask")
    (('mask', ()), ('mask', ('train',)), (None, ('no', 'mask')))
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = tuple(re.findall(r"[^\W\d_]+", spaced.lower()))
    if _NEGATIONS & set(words):
        return None, words
    rest = tuple(word for word in words if word not in _MASK_WORDS | _IMAGE_WORDS | _FORMAT_WORDS)
    if _MASK_WORDS & set(words):
        return "mask", rest
    return ("image" if _IMAGE_WORDS & set(words) else None), rest


def find_twins(names: Iterable[str]) -> dict[str, str]:
    """Masks beside their image in the same folder, such as x_mask.tif beside x.tif.

    Examples
    --------
    >>> find_twins(["p1/x.tif", "p1/x_mask.tif", "p1/y.tif"])
    {'p1/x_mask.tif': 'p1/x.tif'}
    """
    by_stem = {name.rpartition(".")[0]: name for name in names}
    twins = {}
    for stem, name in by_stem.items():
        folder, _, file = stem.rpartition("/")
        short = _TWIN.sub("", file)
        image = by_stem.get(f"{folder}/{short}" if folder else short)
        if short != file and image is not None:
            twins[name] = image
    return twins


def pairing_name(name: str, *, keep_words: bool) -> PairingName:
    """Leave out the words for images and masks in the folders of a file.

    Parameters
    ----------
    name : str
        Posix path.
    keep_words : bool
        Keep the other words of these folders, such as "train" in "train_masks".

    Examples
    --------
    >>> pairing_name("p1/train_masks/1_mask.png", keep_words=True).folders
    ('p1', 'train')
    >>> pairing_name("p1/train_masks/1_mask.png", keep_words=False)[1:]
    (('p1',), '1_mask')
    """
    folder, _, file = name.rpartition("/")
    folders = []
    for part in filter(None, folder.split("/")):
        role, rest = folder_role(part)
        text = " ".join(rest) if keep_words else ""
        folders += [part.lower()] if role is None else [text] if text else []
    return PairingName(name, tuple(folders), file.rpartition(".")[0])
