"""Small files that name the classes of masks: classes.txt, labelmap.txt, class_dict.csv, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from headstart.data.dataset import IGNORED, SPLITS, Code, Dataset, Mask, Palette, Sample, SplitName
from headstart.data.formats.layouts import Listing, listed
from headstart.data.formats.tables import read_table, split_name
from headstart.data.masks import MAX_CLASSES, RawMask, codes_of, distinct, look_up, read_raw
from headstart.errors import DataError, LayoutError, UnreadableImageError
from headstart.runtime import cores

__all__ = [
    "ClassMap",
    "Pairs",
    "find_class_map",
    "find_pairs",
    "is_other_rendering",
    "palette_of",
    "read_class_map",
    "read_mask_pairs",
]

_NAMES = (
    "classes", "class_names", "class_map", "class_dict", "labelmap", "label_map", "label_colors",
    "labels", "codes", "palette", "colors", "colours",
)  # fmt: skip
_VOID = frozenset(("ignore", "ignored", "void", "unlabelled", "unlabeled"))
_COLOUR = re.compile(r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;:]+(\S.*)")
_CVAT = re.compile(r"([^:]+):\s*(\d{1,3}),\s*(\d{1,3}),\s*(\d{1,3})\s*(?::.*)?")
_HEX = re.compile(r"#([0-9a-fA-F]{6})[\s,;:]+(\S.*)")
_NUMBER = re.compile(r"(\d+)[\s,;:]+(\S.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMap:
    """Codes and the classes that they stand for.

    Parameters
    ----------
    name : str
        The file it was read from.
    codes : tuple of (code, str)
    in_order : bool
        Whether the file names no codes, so that these are the places in the file.
    """

    name: str
    codes: tuple[tuple[Code, str], ...]
    in_order: bool = False


def find_class_map(listing: Listing) -> tuple[str, ...]:
    """Files of a folder that are class maps by their name, the most likely first.

    Examples
    --------
    >>> find_class_map(Listing(root=Path("p"), others=("a/classes.csv", "classes.txt", "x.txt")))
    ('classes.txt', 'a/classes.csv')
    """
    found = []
    for name in listing.others:
        stem, _, suffix = name.rsplit("/", 1)[-1].lower().rpartition(".")
        if stem in _NAMES and suffix in {"txt", "csv", "json"}:
            found.append((name.count("/"), _NAMES.index(stem), name))
    return tuple(name for *_, name in sorted(found))


def read_class_map(path: Path) -> ClassMap:
    r"""Read the classes of masks.

    Parameters
    ----------
    path : Path
        Text of one class a line: ``name`` (its code is its place, from 0), ``code name``,
        ``r g b name``, ``#rrggbb name`` or ``name:r,g,b::``; CSV with a column of names and one
        of codes, three of colours or one of ``#rrggbb``; JSON, a list of names or an object of
        code or ``#rrggbb`` to name.

    Raises
    ------
    DataError
        If it is none of these, or names a code twice.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "classes.txt")
    >>> _ = path.write_text("128 0 0 leaf\n0 0 0 ground\n")
    >>> read_class_map(path).codes
    (((128, 0, 0), 'leaf'), ((0, 0, 0), 'ground'))
    """
    try:
        if path.suffix.lower() == ".csv":
            pairs = _of_table(read_table(path).columns)
        elif path.suffix.lower() == ".json":
            pairs = _of_json(json.loads(path.read_text(encoding="utf-8-sig")))
        else:
            pairs = _of_lines(path.read_text(encoding="utf-8-sig").splitlines())
    except (ValueError, TypeError, KeyError) as error:
        raise _refused(path, f"something else ({error})") from error
    in_order = all(code is None for code, _ in pairs)
    codes = [
        (place if code is None else code, normalize("NFC", name.strip()))
        for place, (code, name) in enumerate(pairs)
    ]
    twice = {code for i, (code, _) in enumerate(codes) if code in [c for c, _ in codes[:i]]}
    if not codes or twice or any(not name for _, name in codes):
        raise _refused(path, f"the code {next(iter(twice))} twice" if twice else "no names")
    return ClassMap(name=path.name, codes=tuple(codes), in_order=in_order)


def palette_of(codes: Sequence[tuple[Code, str]]) -> Palette:
    """The palette of a class map: classes called void, ignore or unlabelled are ignored.

    255 is ignored, too, unless the map gives it to a class.

    Examples
    --------
    >>> palette_of([(0, "sky"), (1, "Unlabelled")])
    Palette(codes=((0, 'sky'),), ignored=(255, 1))
    """
    void = tuple(code for code, name in codes if name.casefold() in _VOID and code != IGNORED)
    kept = tuple((code, name) for code, name in codes if name.casefold() not in _VOID)
    always = () if IGNORED in [code for code, _ in kept] else (IGNORED,)
    return Palette(codes=kept, ignored=always + void)


def _refused(path: Path, got: str) -> DataError:
    return DataError(
        f"Expected {str(path)!r} to name the classes of masks, got {got}; do: write one class a "
        "line, as 'name', 'code name' or 'r g b name'."
    )


_Pairs = list[tuple[Code | None, str]]


def _of_lines(lines: Sequence[str]) -> _Pairs:
    texts = [line.strip() for line in lines if line.strip()]
    texts = [text for text in texts if text[0] != "#" or _HEX.fullmatch(text)]
    if found := _all(_COLOUR, texts):
        return [(_colour(r, g, b), name) for r, g, b, name in found]
    if found := _all(_CVAT, texts):
        return [(_colour(r, g, b), name) for name, r, g, b in found]
    if found := _all(_HEX, texts):
        return [(_of_hex(code), name) for code, name in found]
    if found := _all(_NUMBER, texts):
        return [(int(code), name) for code, name in found]
    if mixed := [text for text in texts if _COLOUR.fullmatch(text) or _HEX.fullmatch(text)]:
        raise ValueError(f"some lines with a colour, such as {listed(mixed, 1)}, some without")
    return [(None, text) for text in texts]


def _all(pattern: re.Pattern[str], texts: Sequence[str]) -> list[tuple[str, ...]]:
    matches = [pattern.fullmatch(text) for text in texts]
    found = [match.groups() for match in matches if match]
    return found if len(found) == len(texts) else []


def _colour(*parts: Any) -> tuple[int, int, int]:
    red, green, blue = (int(part) for part in parts)
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"the colour {red} {green} {blue}")
    return red, green, blue


def _of_hex(text: str) -> tuple[int, int, int]:
    return _colour(*bytes.fromhex(text.removeprefix("#")))


def _of_table(columns: dict[str, list[Any]]) -> _Pairs:
    known = {name.strip().lower(): cells for name, cells in columns.items()}

    def one_of(*names: str) -> list[Any] | None:
        return next((known[name] for name in names if name in known), None)

    names = one_of("name", "class", "label", "class_name", "category")
    if names is None:
        raise ValueError(f"the columns {listed(columns)}, none of which is called 'name'")
    channels = [one_of("r", "red"), one_of("g", "green"), one_of("b", "blue")]
    colours = one_of("color", "colour", "hex", "rgb")
    numbers = one_of("code", "id", "index", "value", "pixel", "label_id", "class_id")
    codes: list[Code | None]
    if all(channel is not None for channel in channels):
        codes = [_colour(*cells) for cells in zip(*(c or () for c in channels), strict=True)]
    elif colours is not None:
        codes = [_of_json_code(str(cell)) for cell in colours]
    elif numbers is not None:
        codes = [int(cell) for cell in numbers]
    else:
        codes = [None] * len(names)
    return [(code, str(name or "")) for code, name in zip(codes, names, strict=True)]


def _of_json(values: Any) -> _Pairs:
    if isinstance(values, list):
        return [(None, _name(value)) for value in values]
    if not isinstance(values, dict):
        raise TypeError(f"{type(values).__name__} in JSON")
    if values and all(isinstance(value, str) for value in values.values()):
        return [(_of_json_code(code), name) for code, name in values.items()]
    return [
        (_colour(*value) if isinstance(value, list) else int(value), name)
        for name, value in values.items()
    ]


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} for a name")
    return value


def _of_json_code(text: str) -> Code:
    parts = re.findall(r"\d+", text)
    if text.strip().startswith("#"):
        return _of_hex(text.strip())
    return _colour(*parts) if len(parts) == 3 else int(text)


_MASKS = re.compile(
    r"(?P<base>.*?)[ _-]?(?:masks?|labels?|annots?|annotations?|gt|gtfine|ground_?truths?"
    r"|segmentation(?:class|classraw|classaug)?|segmentations)(?:[ _-]?png)?",
    re.IGNORECASE,
)
_IMAGES = re.compile(
    r"(?P<base>.*?)[ _-]?(?:images?|imgs?|jpegimages|pictures?|photos?|frames|rgb|leftimg8bit)",
    re.IGNORECASE,
)
_MASK_STEM = re.compile(
    r"[ _.-](?:masks?|labels?|l|gt|seg|segmentation|annot|annotation"
    r"|(?:gtfine_)?(?:labelids|labeltrainids))$",
    re.IGNORECASE,
)
_IMAGE_STEM = re.compile(r"_(?:leftimg8bit|image|img|rgb)$", re.IGNORECASE)
_OTHER = re.compile(r"_(?:color|instanceids|instances?|polygons)$", re.IGNORECASE)
_VOC_LISTS = re.compile(r"(?:^|/)ImageSets/Segmentation/(?:train|val|test)\.txt$")
_VOC = "segmentationclass"
_Key = tuple[tuple[str, ...], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Which mask belongs to which image, as posix paths relative to the folder.

    Parameters
    ----------
    masks : dict of str to str
        Mask by image.
    bare : tuple of str
        Images without a mask in folders where others have one.
    unlabelled : tuple of str
        Images of folders in which none has a mask.
    spare : tuple of str
        Masks without an image.
    """

    masks: dict[str, str]
    bare: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()


def find_pairs(listing: Listing) -> Pairs | None:
    """Pair images with masks by the names of folders and files; None where this is not that.

    Folders called masks, labels, annotations, gt or SegmentationClass mirror those of the
    images, which may be called images; or trainannot stands beside train.

    Raises
    ------
    DataError
        If an image has two masks.

    Examples
    --------
    >>> names = ("images/1.jpg", "images/2.jpg", "masks/1_mask.png", "masks/2_mask.png")
    >>> find_pairs(Listing(root=Path("p"), images=names)).masks
    {'images/1.jpg': 'masks/1_mask.png', 'images/2.jpg': 'masks/2_mask.png'}
    """
    masks = [name for name in listing.images if _is_mask(name) and not is_other_rendering(name)]
    if not masks:
        return None
    images = {name: _key(name, _IMAGE_STEM) for name in listing.images if not _is_mask(name)}
    exact = {_key(name, _IMAGE_STEM): name for name in masks}
    loose: dict[_Key, list[str]] = {}
    for name in masks:
        loose.setdefault(_key(name, _MASK_STEM), []).append(name)
    paired = {}
    for image, key in images.items():
        candidates = [exact[key]] if key in exact else loose.get(key, [])
        if len(candidates) > 1:
            raise DataError(
                f"Expected one mask for {image!r}, got {listed(candidates)}; do: keep one."
            )
        if candidates:
            paired[image] = candidates[0]
    if 2 * len(set(paired.values())) < len(masks):
        return None
    return _sorted_out(paired, images, masks)


def _sorted_out(paired: dict[str, str], images: Iterable[str], masks: Sequence[str]) -> Pairs:
    used, folders = set(paired.values()), {_folder(name) for name in paired}
    voc = any(_VOC in mask.lower().split("/") for mask in used)  # there, few images have masks
    alone = [name for name in images if name not in paired]
    bare = tuple(name for name in alone if _folder(name) in folders and not voc)
    return Pairs(
        masks=paired,
        bare=bare,
        unlabelled=tuple(name for name in alone if name not in set(bare)),
        spare=tuple(name for name in masks if name not in used),
    )


def is_other_rendering(name: str) -> bool:
    """Whether a file among masks shows something else: colours to look at, or instances.

    Examples
    --------
    >>> is_other_rendering("aachen_000000_gtFine_color.png"), is_other_rendering("aachen.png")
    (True, False)
    """
    return bool(_OTHER.search(name.rpartition(".")[0]))


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _base(match: re.Match[str] | None) -> str | None:
    """What a folder's name says beside "masks" or "images": nothing or a part; else None."""
    base = match["base"] if match else None
    return base if base is None or not base or split_name(base) else None


def _is_mask(name: str) -> bool:
    return any(_base(_MASKS.fullmatch(part)) is not None for part in _folder(name).split("/"))


def _key(name: str, suffix: re.Pattern[str]) -> _Key:
    """Folders without the words for masks and images, and the stem without its suffix."""
    folder, _, file = name.rpartition("/")
    kept = []
    for part in folder.split("/"):
        bases = [_base(pattern.fullmatch(part)) for pattern in (_MASKS, _IMAGES)]
        base = next((base for base in bases if base is not None), part)
        kept += [base.lower()] if base else []
    return tuple(kept), suffix.sub("", file.rpartition(".")[0])


def read_mask_pairs(
    listing: Listing, pairs: Pairs, *, labels_required: bool = True
) -> tuple[Dataset, tuple[str, ...]]:
    """Read images with masks; every mask is opened once to see which classes it shows.

    Parameters
    ----------
    listing : Listing
    pairs : Pairs
        See `find_pairs`.
    labels_required : bool
        False: images of folders without any mask are read, too.

    Returns
    -------
    Dataset
        Of kind "segmentation", sorted by path. An image whose mask is missing has no target;
        what a mask that cannot be read shows is not known. Both are for the audit to report.
    tuple of str
        The relative path of each image.

    Raises
    ------
    DataError
        If a class map, a list of a part, or every mask is damaged, or the masks are not of few
        values.
    LayoutError
        If a list of a part names none of the images.
    """
    keys = sorted([*pairs.masks, *pairs.bare, *([] if labels_required else pairs.unlabelled)])
    names = sorted(set(pairs.masks.values()))
    looks = dict(zip(names, _looks([listing.root / name for name in names]), strict=True))
    readable = [look for look in looks.values() if look is not None]
    if not readable:
        read_raw(listing.root / names[0])  # says why
    maps = find_class_map(listing)
    class_map = read_class_map(listing.root / maps[0]) if maps else None
    palette, how = _palette(class_map, readable)
    splits, by = _splits(listing, keys)
    samples = tuple(
        Sample(
            image=listing.root / key,
            target=_target(listing, pairs.masks.get(key), looks, palette),
            split=splits[key],
        )
        for key in keys
    )
    notes = (
        f"{len(pairs.masks)} images with masks{by}",
        "task: segmentation because masks lie beside the images",
        *how,
        *([f"class maps not read: {listed(maps[1:])}"] if maps[1:] else []),
        *_left_out(pairs, labels_required),
    )
    data = Dataset(samples=samples, classes=palette.names, kind="segmentation", notes=notes)
    return data, tuple(keys)


def _looks(paths: Sequence[Path]) -> list[RawMask | None]:
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(_look, paths, chunksize=8))


def _look(path: Path) -> RawMask | None:
    try:
        return distinct(read_raw(path))
    except UnreadableImageError:  # the audit says so, with the file's name
        return None


def _target(
    listing: Listing, name: str | None, looks: Mapping[str, RawMask | None], palette: Palette
) -> Mask | None:
    if name is None:
        return None
    look = looks[name]
    seen = set() if look is None else set(look_up(look, palette).ravel().tolist())
    present = tuple(label for i, label in enumerate(palette.names) if i in seen)
    return Mask(source=listing.root / name, palette=palette, present=present)


def _palette(
    class_map: ClassMap | None, looks: Sequence[RawMask]
) -> tuple[Palette, tuple[str, ...]]:
    """How the masks write their classes, and how that came to be known."""
    found = _codes(looks)
    both = found == {0, IGNORED}
    if class_map is None:
        return _palette_of_codes(found, both)
    palette = palette_of(class_map.codes)
    if class_map.in_order and both and len(palette.codes) == 2:
        first, second = palette.names
        return Palette(codes=((0, first), (IGNORED, second)), ignored=()), (
            f"classes from {class_map.name}; 0/255 read as {first} and {second}",
        )
    void = [name for code, name in class_map.codes if code not in dict(palette.codes)]
    by = "by place" if class_map.in_order else "by code"
    notes = [f"classes from {class_map.name}, {by}: {listed(palette.names, 12)}"]
    notes += [f"ignored, neither learned nor judged: {listed(void)}"] if void else []
    return palette, tuple(notes)


def _codes(looks: Sequence[RawMask]) -> set[Code]:
    codes = {code for look in looks for code in codes_of(look)}
    if any(isinstance(code, tuple) for code in codes):
        codes = {code for look in looks for code in codes_of(look, by_colour=True)}
    return codes


def _palette_of_codes(found: set[Code], both: bool) -> tuple[Palette, tuple[str, ...]]:
    how = "to name them, write classes.txt with one name a line, or 'code name', or 'r g b name'"
    if both:
        palette = Palette(codes=((0, "background"), (IGNORED, "object")), ignored=())
        return palette, ("0/255 read as background and object", how)
    codes = sorted((code for code in found if code != IGNORED), key=str)
    codes.sort(key=lambda code: code if isinstance(code, int) else 0)
    if len(codes) > MAX_CLASSES:
        raise DataError(
            f"Expected masks of few values, one for each class, got {len(codes)} different ones; "
            "do: save masks as PNG without smoothing and without a photograph's compression, and "
            "name their classes in classes.txt."
        )
    palette = Palette(codes=tuple((code, _called(code)) for code in codes))
    notes = [f"classes are the {len(codes)} values found in the masks; {how}"]
    notes += ["255 is ignored: neither learned nor judged"] if IGNORED in found else []
    return palette, tuple(notes)


def _called(code: Code) -> str:
    return str(code) if isinstance(code, int) else "#{:02x}{:02x}{:02x}".format(*code)


def _splits(listing: Listing, keys: Sequence[str]) -> tuple[dict[str, SplitName | None], str]:
    """The part of each image: from lists of names, as VOC has them, or from folders."""
    members = _listed(listing, keys)
    splits = {key: members.get(key) if members else _split_of(key) for key in keys}
    present = [split for split in SPLITS if split in splits.values()]
    how = "by lists" if members else "by folders"
    return splits, f", {'/'.join(present)} {how}" if present else ", no splits"


def _listed(listing: Listing, keys: Sequence[str]) -> dict[str, SplitName]:
    voc = [name for name in listing.others if _VOC_LISTS.search(name)]
    lists = voc or [name for name in listing.others if name in {f"{s}.txt" for s in SPLITS}]
    members: dict[str, SplitName] = {}
    for name in lists:
        text = (listing.root / name).read_text(encoding="utf-8-sig", errors="replace")
        rows = [Path(line.split()[0]) for line in text.splitlines() if line.strip()]
        stems = {row.name for row in rows} | {row.stem for row in rows}
        part = split_name(Path(name).stem)
        for key in [key for key in keys if part and Path(key).stem in stems]:
            if part is not None and members.setdefault(key, part) != part:
                raise DataError(
                    f"Expected {key!r} to be in one split, got {members[key]} and {part} "
                    f"({listed(lists)}); do: remove it from one."
                )
    if lists and not members:
        raise LayoutError(
            f"Expected {lists[0]!r} to list names of images, got none of {len(keys)}; "
            "do: write one name a line, or remove the file."
        )
    return members


def _split_of(key: str) -> SplitName | None:
    for part in _folder(key).split("/"):
        base = _base(_IMAGES.fullmatch(part))
        if split := split_name(base or part):
            return split
    return None


def _left_out(pairs: Pairs, labels_required: bool) -> tuple[str, ...]:
    notes = []
    if pairs.unlabelled and labels_required:
        notes.append(
            f"{len(pairs.unlabelled)} images without masks left out: {listed(pairs.unlabelled)}"
        )
    if pairs.spare:
        notes.append(f"{len(pairs.spare)} masks without an image: {listed(pairs.spare)}")
    return tuple(notes)
