"""Pairs of images and masks, by the names of folders and files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headstart.data.formats.layouts import Listing, format_list, list_folder
from headstart.data.formats.mask_names import PairingName, find_twins, folder_role, pairing_name
from headstart.data.formats.mask_parts import are_numbered, parts_by_place
from headstart.data.formats.tables import split_name
from headstart.errors import DataError, LayoutError, UsageError

__all__ = [
    "MaskPairs",
    "find_mask_pairs",
    "image_folder_prefix",
    "is_other_rendering",
    "pair_folders",
    "unpaired_masks_error",
]

_MASK_FOLDER = re.compile(
    r"(?P<base>.*?)[ _-]?(?:masks?|labels?|annots?|annotations?|gt|gtfine|ground_?truths?"
    r"|segmentation(?:class|classraw|classaug)?|segmentations)(?:[ _-]?png)?",
    re.IGNORECASE,
)
_IMAGE_FOLDER = re.compile(
    r"(?P<base>.*?)[ _-]?(?:images?|imgs?|jpegimages|pictures?|photos?|frames|rgb|leftimg8bit)",
    re.IGNORECASE,
)
_MASK_SUFFIX = re.compile(
    r"[ _.-](?:masks?|labels?|l|gt|seg|segmentation|annot|annotation"
    r"|(?:gtfine_)?(?:labelids|labeltrainids))$",
    re.IGNORECASE,
)
_IMAGE_SUFFIX = re.compile(r"_(?:leftimg8bit|image|img|rgb)$", re.IGNORECASE)
_OTHER_RENDERING = re.compile(r"_(?:color|instanceids|instances?|polygons)$", re.IGNORECASE)
_OTHER_FOLDERS = frozenset(
    ("object", "objects", "instance", "instances", "color", "colour", "colored", "coloured", "vis",
     "visual", "overlay", "overlays", "panoptic", "bbox", "boxes", "polygons"),
)  # fmt: skip
_VOC_MASK_FOLDER = "segmentationclass"
_PairingKey = tuple[tuple[str, ...], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskPairs:
    """Pairs of image and mask, as posix paths relative to the folder.

    Parameters
    ----------
    masks : dict of str to str
        Mask by image.
    missing : tuple of str
        Images without a mask in folders where other images have one.
    unlabelled : tuple of str
        Images in folders without any mask.
    unused : tuple of str
        Masks without an image.
    parts : dict of str to tuple of str
        All masks of the images that have several, one for each object.
    """

    masks: dict[str, str]
    missing: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)


def find_mask_pairs(listing: Listing) -> MaskPairs | None:
    """Pair images with masks by the names of folders and files; None if there are no masks.

    Mask folders are called masks, labels, annotations, gt, segs, targets or the like, and have the
    structure of the image folders (images/, or train/ with trainannot/); or the masks are beside
    the images, as x_mask.tif beside x.tif.

    Raises
    ------
    DataError
        If an image has two masks.

    Examples
    --------
    >>> names = ("images/1.jpg", "images/2.jpg", "masks/1_mask.png", "masks/2_mask.png")
    >>> find_mask_pairs(Listing(root=Path("p"), images=names)).masks
    {'images/1.jpg': 'masks/1_mask.png', 'images/2.jpg': 'masks/2_mask.png'}
    """
    pairs = _pairs_by_place(listing) or _pairs_of_mask_folders(listing) or _pairs_by_words(listing)
    if pairs is not None:
        _refuse_second_folder(listing, pairs)
    return pairs


def _refuse_second_folder(listing: Listing, pairs: MaskPairs) -> None:
    """Refuse folders such as ``mask/`` and ``1st_manual/`` beside each other."""
    used = {folder for name in pairs.masks.values() if (folder := _mask_folder(name))}
    parents = {_parent(folder) for folder in used}
    for name in listing.images:
        folder = _mask_folder(name)
        if folder is not None and folder not in used and _parent(folder) in parents:
            raise LayoutError(
                f"{str(listing.root)!r} has masks in more than one folder: "
                f"{format_list(sorted({*used, folder}))}. Pass --masks FOLDER to name the one to "
                "use."
            )


def _mask_folder(name: str) -> str | None:
    """Topmost folder for masks in a path, unless it is of a split or another rendering."""
    parts = _parent(name).split("/")
    for i, part in enumerate(parts):
        role, rest = folder_role(part)
        if role == "mask":
            other = any(word in _OTHER_FOLDERS or split_name(word) for word in rest)
            return None if other else "/".join(parts[: i + 1])
    return None


def _pairs_of_mask_folders(listing: Listing) -> MaskPairs | None:
    masks = [name for name in listing.images if _is_mask(name) and not is_other_rendering(name)]
    if not masks:
        return None
    images = {
        name: _pairing_key(name, _IMAGE_SUFFIX) for name in listing.images if not _is_mask(name)
    }
    # Masks named like their image go first; 1_mask.png for 1.jpg is accepted if there is none.
    same_name = {_pairing_key(name, _IMAGE_SUFFIX): name for name in masks}
    with_suffix: dict[_PairingKey, list[str]] = {}
    for name in masks:
        with_suffix.setdefault(_pairing_key(name, _MASK_SUFFIX), []).append(name)
    masks_by_image = {}
    for image, key in images.items():
        candidates = [same_name[key]] if key in same_name else with_suffix.get(key, [])
        if len(candidates) > 1 and not are_numbered(candidates):
            raise _several_masks_error(image, candidates)
        if candidates:
            masks_by_image[image] = candidates
    # Folders called "labels" and the like may contain ordinary images.
    if 2 * len({name for group in masks_by_image.values() for name in group}) < len(masks):
        return None
    return _to_mask_pairs(masks_by_image, images, masks)


def _pairs_by_place(listing: Listing) -> MaskPairs | None:
    """Pair images with several masks, which their folders or numbers name."""
    names = [name for name in listing.images if not is_other_rendering(name)]
    parts = parts_by_place(names)
    if not parts:
        return None
    masks = {name for group in parts.values() for name in group}
    return _to_mask_pairs(parts, [name for name in names if name not in masks], sorted(masks))


def _several_masks_error(image: str, masks: Sequence[str]) -> DataError:
    return DataError(
        f"Expected one mask for {image!r}, got {format_list(masks)}. Merge them into one mask per "
        "image, or pass --masks FOLDER to name the folder with the masks to use."
    )


def _pairs_by_words(listing: Listing) -> MaskPairs | None:
    """Pair images with masks by the words in the names of their folders and files."""
    names = [name for name in listing.images if not is_other_rendering(name)]
    twins = find_twins(names)
    masks = [name for name in names if name in twins or "mask" in _roles(name)]
    unmarked = [name for name in names if name not in set(masks)]
    # Without twins, images must be in a folder for images: "face" and "face_mask" may be classes.
    images = [name for name in unmarked if twins or "image" in _roles(name)]
    for keep_words in (True, False):
        found = _match(
            [pairing_name(name, keep_words=keep_words) for name in images],
            [pairing_name(name, keep_words=keep_words) for name in masks],
            (lambda file: (file.folders, file.stem), lambda file: (file.folders, file.short_stem)),
        )
        # A few masks beside many images do not make the others images without a mask.
        used = {name for group in found.values() for name in group}
        if found and (2 * len(found) >= len(images) or not twins.keys() & used):
            return _to_mask_pairs(found, unmarked, masks)
    return None


def _roles(name: str) -> set[str | None]:
    return {folder_role(part)[0] for part in _parent(name).split("/")}


def _match(
    images: Sequence[PairingName],
    masks: Sequence[PairingName],
    keys: Sequence[Callable[[PairingName], object]],
) -> dict[str, list[str]]:
    """Masks by image, by the first key that pairs at least half of the masks or of the images."""
    for key in keys:
        by_key: dict[object, list[str]] = defaultdict(list)
        for mask in masks:
            by_key[key(mask)].append(mask.name)
        candidates = {image.name: by_key[key(image)] for image in images if by_key.get(key(image))}
        matched = {name for names in candidates.values() for name in names}
        if not matched or (2 * len(matched) < len(masks) and 2 * len(candidates) < len(images)):
            continue
        for image, names in candidates.items():
            if len(names) > 1 and not are_numbered(names):
                raise _several_masks_error(image, names)
        return candidates
    return {}


def unpaired_masks_error(listing: Listing) -> LayoutError | None:
    """Error for images and masks that cannot be paired by their names; None without masks.

    Examples
    --------
    >>> names = ("images/a.jpg", "masks/7.png")
    >>> str(unpaired_masks_error(Listing(root=Path("p"), images=names)))[:55]
    "'p' looks like images and masks ('images' and 'masks'),"
    """
    twins = find_twins(listing.images)
    folders: dict[tuple[str, str | None], str] = {}
    examples: dict[str, str] = {}
    for name in listing.images:
        parts = name.split("/")[:-1]
        for i, part in enumerate(parts):
            role, _ = folder_role(part)
            folders.setdefault(("/".join(parts[:i]), role), part)
            examples.setdefault("/".join(parts[: i + 1]), name)
    if twins:
        mask, image = next(iter(twins.items()))
        return _unpaired_error(listing, f"{image!r} and {mask!r}", (image, mask))
    for (parent, kind), masks in folders.items():
        images = folders.get((parent, "image"))
        if kind == "mask" and images is not None:
            first, second = (f"{parent}/{top}" if parent else top for top in (images, masks))
            text = f"{first!r} and {second!r}"
            return _unpaired_error(listing, text, (examples[first], examples[second]))
    return None


def _unpaired_error(listing: Listing, evidence: str, example: tuple[str, str]) -> LayoutError:
    return LayoutError(
        f"{str(listing.root)!r} looks like images and masks ({evidence}), but their names do not "
        f"match, such as {example[0]!r} and {example[1]!r}. Give each mask the name of its image "
        "(merge several masks of an image into one file), or pass --masks FOLDER to name the "
        "folder of the masks. To read folders as classes, pass --class-level 1."
    )


def pair_folders(listing: Listing, *, masks: str | None, images: str | None = None) -> MaskPairs:
    """Pair the images and the masks of two given folders.

    Parameters
    ----------
    listing : Listing
    masks, images : str or None
        A folder of the listing, or the name of several (``masks`` for train/masks and val/masks),
        or a folder elsewhere. The one that is None is all the rest.

    Raises
    ------
    UsageError
        If a folder has no images.
    LayoutError
        If no name of a mask matches the name of an image.
    DataError
        If an image has two masks.

    Examples
    --------
    >>> names = ("scans/a1.jpg", "drawn/a1-final.png", "drawn/a2-final.png", "scans/a2.jpg")
    >>> pair_folders(Listing(root=Path("p"), images=names), masks="drawn").masks
    {'scans/a1.jpg': 'drawn/a1-final.png', 'scans/a2.jpg': 'drawn/a2-final.png'}
    """
    if masks is None:
        image_files = _files_of(listing, images, "--images", ())
        mask_files = _files_of(listing, masks, "--masks", image_files)
    else:
        mask_files = _files_of(listing, masks, "--masks", ())
        image_files = _files_of(listing, images, "--images", mask_files)
    keys: tuple[Callable[[PairingName], object], ...] = (
        lambda file: (file.folders, file.stem),
        lambda file: (file.folders, file.short_stem),
        lambda file: file.stem,
        lambda file: file.short_stem,
        lambda file: (file.folders, file.number),
        lambda file: file.number,
    )
    found = _match(image_files, mask_files, keys)
    if not found:
        raise _unpaired_error(
            listing,
            f"{len(image_files)} images and {len(mask_files)} masks",
            (image_files[0].name, mask_files[0].name),
        )
    return _to_mask_pairs(found, [f.name for f in image_files], [f.name for f in mask_files])


def _files_of(
    listing: Listing, folder: str | None, flag: str, others: Sequence[PairingName]
) -> list[PairingName]:
    """Files of a folder, with the folders around it; for no folder all files but the others."""
    taken = {file.name for file in others}
    names = [n for n in listing.images if n not in taken and not is_other_rendering(n)]
    files = []
    if folder is None:
        files = [pairing_name(name, keep_words=True) for name in names]
    else:
        inside = Path(folder).as_posix().strip("/")
        for name in names:
            around, marker, rest = f"/{name}".partition(f"/{inside}/")
            if marker:
                file = pairing_name(f"{around.strip('/')}/{rest}".strip("/"), keep_words=True)
                files.append(file._replace(name=name))
        path = listing.root / folder if (listing.root / folder).is_dir() else Path(folder)
        if not files and path.is_dir():
            files = [
                pairing_name(name, keep_words=True)._replace(
                    name=(path / name).absolute().as_posix()
                )
                for name in list_folder(path).images
            ]
    if not files:
        known = format_list({name.rpartition("/")[0] for name in listing.images} - {""})
        raise UsageError(
            f"{flag} must name a folder with images in {str(listing.root)!r}, got "
            f"{str(folder)!r}. Pass one of its folders: {known or 'there are none'}."
        )
    return files


def _to_mask_pairs(
    masks_by_image: Mapping[str, Sequence[str]], images: Iterable[str], masks: Sequence[str]
) -> MaskPairs:
    used = {name for group in masks_by_image.values() for name in group}
    folders = {_parent(name) for name in masks_by_image}
    # In Pascal VOC only a small part of the images has masks: a missing one is no error.
    is_voc = any(_VOC_MASK_FOLDER in mask.lower().split("/") for mask in used)
    without_mask = [name for name in images if name not in masks_by_image]
    missing = tuple(name for name in without_mask if _parent(name) in folders and not is_voc)
    return MaskPairs(
        masks={image: group[0] for image, group in masks_by_image.items()},
        missing=missing,
        unlabelled=tuple(name for name in without_mask if name not in set(missing)),
        unused=tuple(name for name in masks if name not in used),
        parts={image: tuple(group) for image, group in masks_by_image.items() if len(group) > 1},
    )


def is_other_rendering(name: str) -> bool:
    """Whether a file among masks is not a class mask: a coloured view, or instance ids.

    Examples
    --------
    >>> is_other_rendering("aachen_000000_gtFine_color.png"), is_other_rendering("aachen.png")
    (True, False)
    """
    return bool(_OTHER_RENDERING.search(name.rpartition(".")[0]))


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _folder_prefix(match: re.Match[str] | None) -> str | None:
    """Text before "masks" or "images" in a folder name: empty or a split; else None."""
    base = match["base"] if match else None
    return base if base is None or not base or split_name(base) else None


def _is_mask(name: str) -> bool:
    return any(
        _folder_prefix(_MASK_FOLDER.fullmatch(part)) is not None
        for part in _parent(name).split("/")
    )


def _pairing_key(name: str, suffix: re.Pattern[str]) -> _PairingKey:
    """Key that an image and its mask share: folders without "images" or "masks", and the stem."""
    folder, _, file = name.rpartition("/")
    folders = []
    for part in folder.split("/"):
        prefixes = [_folder_prefix(p.fullmatch(part)) for p in (_MASK_FOLDER, _IMAGE_FOLDER)]
        prefix = next((prefix for prefix in prefixes if prefix is not None), part)
        folders += [prefix.lower()] if prefix else []
    return tuple(folders), suffix.sub("", file.rpartition(".")[0])


def image_folder_prefix(name: str) -> str | None:
    """Text before "images" in a folder name: empty or a split; None for another folder.

    Examples
    --------
    >>> image_folder_prefix("train_images"), image_folder_prefix("cats")
    ('train', None)
    """
    return _folder_prefix(_IMAGE_FOLDER.fullmatch(name))
