"""Names of folders that stand for train, validation and test parts, and doubled folders."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from headstart.data.dataset import SplitName
from headstart.data.formats.layouts import Listing
from headstart.data.formats.tables import split_name
from headstart.errors import LayoutError

__all__ = [
    "find_split_folders",
    "innermost_folder",
    "split_and_rest",
    "split_class_names",
    "splits_inside_classes",
    "subfolder_names",
]

# Words around "train" or "test" that do not change the meaning of the name.
_AFFIXES = frozenset(
    (
        "set", "sets", "data", "dataset", "datasets", "image", "images", "img", "imgs", "jpg",
        "jpeg", "png", "photo", "photos", "pic", "pics", "picture", "pictures", "split", "folder",
        "part", "sample", "samples", "files", "crops", "cropped", "resized", "full", "final",
    )
)  # fmt: skip
_GLUED = re.compile(r"(train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?|dev)(.+)")


def split_and_rest(name: str) -> tuple[SplitName | None, str]:
    """Split that a folder name stands for, and the words of the name that are left.

    Years, other numbers and words such as "set" and "images" are not counted as words.

    Examples
    --------
    >>> split_and_rest("train2017"), split_and_rest("TestSet"), split_and_rest("seg_train")
    (('train', ''), ('test', ''), ('train', 'seg'))
    >>> split_and_rest("test_tube"), split_and_rest("trains")
    (('test', 'tube'), (None, 'trains'))
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word for part in re.findall(r"[^\W\d_]+", spaced) for word in _unglued(part.lower())]
    splits = [split for word in words if (split := split_name(word))]
    rest = " ".join(word for word in words if not split_name(word) and word not in _AFFIXES)
    return (splits[0] if len(splits) == 1 else None), rest


def _unglued(word: str) -> tuple[str, ...]:
    match = None if split_name(word) else _GLUED.fullmatch(word)
    return (match[1], match[2]) if match and match[2] in _AFFIXES else (word,)


def subfolder_names(names: Iterable[str], folder: str) -> frozenset[str]:
    """Names of the folders directly in a folder ("" for the root) that contain files of ``names``.

    Examples
    --------
    >>> sorted(subfolder_names(["a/x/1.jpg", "a/y/z/2.jpg", "a/3.jpg", "b/w/4.jpg"], "a"))
    ['x', 'y']
    """
    prefix = f"{folder}/" if folder else ""
    below = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return frozenset(name.split("/", 1)[0] for name in below if "/" in name)


def innermost_folder(listing: Listing, folder: str) -> str:
    """Follow doubled folders, such as ``train/train``, to the folder that contains the classes.

    Parameters
    ----------
    listing : Listing
    folder : str
        Path relative to the root of the listing; "" is the root.

    Examples
    --------
    >>> from pathlib import Path
    >>> names = ("seg_train/seg_train/sea/1.jpg", "seg_train/seg_train/wood/1.jpg")
    >>> innermost_folder(Listing(root=Path("p"), images=names), "seg_train")
    'seg_train/seg_train'
    """
    while True:
        names = [name for name in listing.images if not folder or name.startswith(f"{folder}/")]
        children = subfolder_names(names, folder)
        if len(children) != 1:
            return folder
        (child,) = children
        path = f"{folder}/{child}" if folder else child
        own_name = folder.rpartition("/")[2] or listing.root.absolute().name
        split = split_and_rest(own_name) if folder else (None, "")
        is_doubled = child.casefold() == own_name.casefold() or (
            split[0] is not None and split_and_rest(child) == split
        )
        contains_all = all(name.startswith(f"{path}/") for name in names)
        if not (is_doubled and contains_all and (folder or subfolder_names(names, path))):
            return folder
        folder = path


def splits_inside_classes(
    folders: Mapping[str, Sequence[str]], labels: Mapping[str, str]
) -> dict[str, SplitName]:
    """Find splits inside class folders, such as ``cat/train/1.jpg`` and ``cat/test/2.jpg``.

    Parameters
    ----------
    folders : mapping of str to sequence of str
        For each image the folders between its class folder and the file.
    labels : mapping of str to str
        Class of each image.

    Returns
    -------
    dict
        Split by image; empty unless a class has folders for two splits.

    Raises
    ------
    LayoutError
        If other images are in no such folder.

    Examples
    --------
    >>> folders = {"cat/train/1.jpg": ["train"], "cat/test/2.jpg": ["test"]}
    >>> splits_inside_classes(folders, dict.fromkeys(folders, "cat"))
    {'cat/train/1.jpg': 'train', 'cat/test/2.jpg': 'test'}
    """
    splits: dict[str, SplitName] = {}
    by_class: dict[str, set[SplitName]] = defaultdict(set)
    below: dict[str, set[str]] = defaultdict(set)
    for name, parts in folders.items():
        words = split_and_rest(labels[name])[1]
        divided = [(i, *split_and_rest(part)) for i, part in enumerate(parts)]
        found = [(i, split) for i, split, rest in divided if split and rest in {"", words}]
        if found:
            index, splits[name] = found[0]
            by_class[labels[name]].add(splits[name])
            for part in parts[index + 1 : index + 2]:
                below[part].add(labels[name])
    # Folders of the same names below may be the classes: the top folders are sites or folds.
    if sum(len(own) > 1 for own in below.values()) > 1:
        return {}
    if not any(len(own) > 1 for own in by_class.values()):
        return {}
    others = [name for name in folders if name not in splits]
    if others:
        raise LayoutError(
            f"{len(splits)} of {len(folders)} images are in folders for splits inside the class "
            f"folders, such as {next(iter(splits))!r}, and the others are not, such as "
            f"{others[0]!r}. Move every image into a folder for its split, or pass --class-level 1 "
            "to ignore these folders."
        )
    return splits


def split_class_names(names: Iterable[str]) -> dict[str, tuple[str, SplitName]]:
    """Divide names such as ``cat_train`` and ``cat_test`` into class and split.

    Returns
    -------
    dict
        Class and split by name; empty unless a class has two splits.

    Raises
    ------
    LayoutError
        If other names have no split.

    Examples
    --------
    >>> split_class_names(["Cat_train", "Cat_test", "dog_train"])["Cat_test"]
    ('Cat', 'test')
    >>> split_class_names(["test_tube", "train_station", "car"])
    {}
    """
    divided: dict[str, tuple[str, SplitName]] = {}
    splits: dict[str, set[SplitName]] = defaultdict(set)
    every = list(names)
    for name in every:
        split, rest = split_and_rest(name)
        if split is not None and rest:
            divided[name] = (_without_split(name) or rest, split)
            splits[rest].add(split)
    if len(splits) < 2 or not any(len(own) > 1 for own in splits.values()):
        return {}
    others = [name for name in every if name not in divided]
    if others:
        raise LayoutError(
            f"The names of {len(divided)} of {len(every)} folders are a class and a split, as in "
            f"{next(iter(divided))!r}, and the others do not, such as {others[0]!r}. Rename the "
            "folders to train/CLASS and test/CLASS, or pass --class-level 1 to read all as classes."
        )
    return divided


def _without_split(name: str) -> str:
    """The name without the part that is a split, in its own spelling."""
    parts = re.split(r"[ _.-]+", name)
    delimiter = next(iter(re.findall(r"[ _.-]+", name)), "")
    kept = [part for part in parts if split_and_rest(part)[1]]
    return delimiter.join(kept) if len(kept) < len(parts) else ""


def find_split_folders(listing: Listing) -> dict[str, SplitName]:
    """Find the top folders that are splits rather than classes.

    A name such as train, training_set or test2017 is a split if every folder with images has such
    a name, or if there are two different splits. Names with a word in common, such as seg_train
    and seg_test, are splits if they contain folders of the same names.

    Examples
    --------
    >>> from pathlib import Path
    >>> names = ("train_set/cat/1.jpg", "test_set/cat/2.jpg")
    >>> tops = ("test_set", "train_set")
    >>> find_split_folders(Listing(root=Path("p"), images=names, folders=tops))
    {'test_set': 'test', 'train_set': 'train'}
    """
    by_rest: dict[str, dict[str, SplitName]] = defaultdict(dict)
    for top in listing.top_folders:
        split, rest = split_and_rest(top)
        if split is not None:
            by_rest[rest][top] = split
    with_images = subfolder_names(listing.images, "")
    with_subfolders = any(name.count("/") > 1 for name in listing.images)
    plain = by_rest.pop("", {})
    if with_images <= plain.keys() and (with_subfolders or len(with_images) > 1):
        return plain
    # A single folder called "train" beside "car" and "bus" may well be a class.
    if len(set(plain.values())) > 1:
        return plain
    groups = [group for group in by_rest.values() if len(set(group.values())) > 1]
    # Several words with two splits each, as in cat_train and dog_train, are names of classes.
    if len(groups) == 1 and _is_one_data_set(listing, groups[0], with_images):
        return groups[0]
    return {}


def _is_one_data_set(
    listing: Listing, group: dict[str, SplitName], with_images: frozenset[str]
) -> bool:
    if with_images <= group.keys():
        return True
    inner = [
        {
            name.casefold()
            for name in subfolder_names(listing.images, innermost_folder(listing, top))
        }
        for top in group
    ]
    return any(a & b for i, a in enumerate(inner) for b in inner[:i])
