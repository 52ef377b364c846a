"""Copies of an image that are cropped, mirrored, rotated by 90 degrees or changed in brightness.

1. Every image has a descriptor: the lowest frequencies of its 32 x 32 grey values. Mirroring and
   rotation change signs and order of the numbers; a crop has nearly the descriptor of one of 36
   windows of the original. Pairs whose descriptors correlate are candidates.
2. The window of a candidate is refined by least squares (Baker and Matthews 2004), and the local
   contrasts of both images must correlate.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from headstart.data.checks.scan import SKETCH_SIDE, ImageRecord
from headstart.data.splits import find_root

__all__ = ["Copy", "find_copies", "find_known_copies", "pack_descriptors"]

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

MIN_SIDE = 64  # pixels; smaller images have too few details to be recognised by
MIN_CONTRAST = 6.0  # standard deviation of grey levels
MIN_DETAIL = 0.001  # share of the contrast in details; enlarged and blurred images have less
DETAIL_FREQUENCY = 8  # cycles per image from which a pattern is a detail
FREQUENCIES = 8  # per axis
CELLS = 16  # per axis, from which the frequencies are computed
MIN_SCORE = 0.87  # correlation of two descriptors
MAX_CANDIDATES = 4  # per image
CLUSTER_SIZE = 2048  # images; up to this number all pairs are compared
PROBES = 3  # clusters that are searched for each window
BLOCK = 128  # images whose windows are compared at once
PAIRS = 64  # that are aligned at once; their arrays fit into the cache of a processor
STEPS = 5  # of the alignment
MIN_MATCH = 0.85  # correlation of the local contrasts
MIN_MATCH_ALIKE = 0.92  # in a set whose images are all alike, such as radiographs
ALIKE = 0.5  # wrong candidates per image from which the images of a set are all alike
MAX_LINKED = 24  # images that are linked by copies; more have the same scene, not one source
MIN_KNOWN = 0.98  # correlation with a stored descriptor
KNOWN_FREQUENCIES = 5  # per axis, in which crops of known images are searched
MIN_KNOWN_CROP = 0.97  # correlation of these
ALIKE_FREQUENCIES = 6  # in a set whose images are all alike; a crop needs higher ones of its image
MIN_KNOWN_CROP_ALIKE = 0.988  # of these, on a finer grid of windows
MAX_UNRELATED = 0.3  # median correlation of two known images that are not all alike
MIN_BLOCKS = 6  # of 16 blocks of the image that must have contrast
BLACK, WHITE = 3, 252  # grey levels that may be clipped
FULL = (0.0, 1.0, 0.0, 1.0)

VIEWS = {
    (False, False, True): "mirrored",
    (False, True, False): "mirrored upside down",
    (False, True, True): "rotated by 180 degrees",
    (True, False, False): "mirrored and rotated by 90 degrees",
    (True, True, True): "mirrored and rotated by 90 degrees",
    (True, False, True): "rotated by 90 degrees",
    (True, True, False): "rotated by 90 degrees",
}
"""Whether rows and columns are exchanged, then whether the order of each is reversed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """An image that shows another one.

    Parameters
    ----------
    copy, original : int
        Indices of the images. Which of the two was made from the other is known for crops only.
    change : str
        "cropped", "mirrored", "rotated by 90 degrees", ...; "" if none of these.
    match : float
        Correlation of the local contrasts, up to 1.
    """

    copy: int
    original: int
    change: str
    match: float


def find_copies(records: Sequence[ImageRecord]) -> list[Copy]:
    """Find pairs of images of which one is a copy of the other; identical files are left out.

    Up to 2,048 images all pairs are compared, beyond it those with the most similar frequencies.

    Parameters
    ----------
    records : sequence of ImageRecord
        Result of `scan`.

    Returns
    -------
    list of Copy
        By decreasing match; at most four for an image.

    Examples
    --------
    >>> from headstart.data.checks.scan import scan
    >>> from headstart.data.dataset import Sample
    >>> noise = np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    >>> image = np.kron(noise, np.ones((16, 16), np.uint8))
    >>> records = scan([Sample(image=image), Sample(image=image[:, ::-1])])
    >>> find_copies(records)[0].change
    'mirrored'
    """
    rows, sketches = _usable_sketches(records)
    if len(rows) < 2:
        return []
    candidates = _search(sketches)
    copies = []
    n_wrong = 0
    for start in range(0, len(candidates), PAIRS):
        part = candidates[start : start + PAIRS]
        for (first, second, kind), window, match in zip(
            part, *_verify(sketches, part), strict=True
        ):
            if match < MIN_MATCH:
                n_wrong += 1
            else:
                copies.append(_to_copy(int(rows[first]), int(rows[second]), kind, window, match))
    least = MIN_MATCH_ALIKE if n_wrong > ALIKE * len(rows) else MIN_MATCH
    copies = [copy for copy in copies if copy.match >= least]
    return sorted(_without_large_groups(copies, len(records)), key=lambda copy: -copy.match)


def _without_large_groups(copies: Sequence[Copy], n: int) -> list[Copy]:
    """Leave out the images that are linked to many others: those are alike, not copies."""
    parent = list(range(n))
    for copy in copies:
        parent[find_root(parent, copy.copy)] = find_root(parent, copy.original)
    sizes = Counter(find_root(parent, row) for row in range(n))
    return [c for c in copies if sizes[find_root(parent, c.copy)] <= MAX_LINKED]


def pack_descriptors(records: Sequence[ImageRecord]) -> str:
    """Pack the descriptors of images as text: 84 characters for each that can be recognised.

    Examples
    --------
    >>> from headstart.data.checks.scan import scan
    >>> from headstart.data.dataset import Sample
    >>> noise = np.random.default_rng(0).integers(0, 255, (96, 96), np.uint8)
    >>> records = scan([Sample(image=noise)])
    >>> len(pack_descriptors(records)), find_known_copies(records, pack_descriptors(records))
    (84, [0])
    """
    _, sketches = _usable_sketches(records)
    if not len(sketches):
        return ""
    values = np.rint(127 * _unit(_frequencies(sketches, FULL))).astype(np.int8)
    return b64encode(values.tobytes()).decode()


def find_known_copies(records: Sequence[ImageRecord], packed: str) -> list[int]:
    """Find the images that nearly repeat others, of which only the descriptors are known.

    Copies of another size, quality or (slightly) brightness are found, mirrored and rotated ones,
    images of which the known one is a crop, and crops of a known image, with at least 80 % of its
    sides. For the crops, a smooth image is made from the descriptor of the known one.

    Parameters
    ----------
    records : sequence of ImageRecord
    packed : str
        Result of `pack_descriptors` for the known images.

    Returns
    -------
    list of int
        Rows of the records.
    """
    rows, sketches = _usable_sketches(records)
    n_values = FREQUENCIES**2 - 1
    try:
        values = np.frombuffer(b64decode(packed), np.int8)
    except ValueError:  # a damaged text: the images cannot be compared
        return []
    known = values[: len(values) // n_values * n_values].reshape(-1, n_values).astype(np.float32)
    known /= np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-6)
    if not len(known) or not len(rows):
        return []
    is_found = _are_crops_of(sketches, known)
    for start in range(0, len(rows), BLOCK // 4):
        descriptors = _all_descriptors(sketches[start : start + BLOCK // 4])
        vectors = descriptors.reshape(-1, n_values)
        parts = (known[i : i + CLUSTER_SIZE] for i in range(0, len(known), CLUSTER_SIZE))
        best = np.max([(vectors @ part.T).max(axis=1) for part in parts], axis=0)
        is_known = np.reshape(best, descriptors.shape[:2]).max(axis=1) >= MIN_KNOWN
        is_found[start : start + BLOCK // 4] |= is_known
    return [int(row) for row in rows[is_found]]


def _are_crops_of(sketches: Floats, known: Floats) -> NDArray[np.bool_]:
    """Whether each image, (n, 32, 32), is a crop of one with a known descriptor, (m, 63)."""
    unrelated = known[:CLUSTER_SIZE] @ known[:CLUSTER_SIZE].T
    pairs = unrelated[np.triu_indices(len(unrelated), 1)]
    are_alike = bool(len(pairs)) and float(np.median(pairs)) > MAX_UNRELATED
    n, least, windows = KNOWN_FREQUENCIES, MIN_KNOWN_CROP, _WINDOWS
    if are_alike:
        n, least, windows = ALIKE_FREQUENCIES, MIN_KNOWN_CROP_ALIKE, _fine_windows()
    wanted = _unit(_frequencies(sketches, FULL)[:, :n, :n])
    best = np.zeros(len(sketches), dtype=np.float32)
    for start in range(0, len(known), CLUSTER_SIZE):
        images = _smooth_images(known[start : start + CLUSTER_SIZE])
        for window in windows:
            shown = _unit(_frequencies(images, window)[:, :n, :n])
            best = np.maximum(best, (wanted @ shown.T).max(axis=1))
    return best >= least


def _smooth_images(descriptors: Floats) -> Floats:
    """Images (n, 32, 32) of the frequencies in descriptors (n, 63); their mean is 0."""
    values = np.pad(descriptors, ((0, 0), (1, 0))).reshape(-1, FREQUENCIES, FREQUENCIES)
    k = np.arange(FREQUENCIES)[:, None]
    waves = np.cos(np.pi * k * (np.arange(SKETCH_SIDE) + 0.5) / SKETCH_SIDE)
    waves = (waves * np.where(k == 0, np.sqrt(0.5), 1.0)).astype(np.float32)
    return np.asarray(waves.T @ values @ waves, dtype=np.float32)


def _usable_sketches(records: Sequence[ImageRecord]) -> tuple[Indices, Floats]:
    """Indices and grey values (n, 32, 32) of the distinct images that can be recognised."""
    first: dict[str, int] = {}
    for i, record in enumerate(records):
        if record.sketch and min(record.width, record.height) >= MIN_SIDE:
            first.setdefault(record.digest, i)
    rows = np.asarray(list(first.values()), dtype=np.intp)
    values = np.frombuffer(b"".join(records[i].sketch for i in rows), np.uint8)
    sketches = values.reshape(-1, SKETCH_SIDE, SKETCH_SIDE).astype(np.float32)
    usable = sketches.std(axis=(1, 2)) >= MIN_CONTRAST
    usable[usable] = _detail(sketches[usable]) >= MIN_DETAIL
    return rows[usable], sketches[usable]


def _detail(sketches: Floats) -> Floats:
    """Share of the contrast of each sketch (n, side, side) at high frequencies, from 0 to 1.

    An image of 8 x 8 pixels that was enlarged has none: two such images of one class agree by
    chance. The window keeps the borders from looking like details.
    """
    window = np.outer(np.hanning(SKETCH_SIDE), np.hanning(SKETCH_SIDE))
    centred = sketches - sketches.mean(axis=(1, 2), keepdims=True)
    power = np.abs(np.fft.rfft2(centred * window)) ** 2
    power[:, :, 1:-1] *= 2  # rfft2 leaves out the mirrored half
    rows = np.abs(np.fft.fftfreq(SKETCH_SIDE, 1 / SKETCH_SIDE))
    columns = np.arange(SKETCH_SIDE // 2 + 1)
    is_detail = np.maximum(rows[:, None], columns) >= DETAIL_FREQUENCY
    total = np.maximum(power.sum(axis=(1, 2)), np.finfo(float).tiny)
    return np.asarray((power * is_detail).sum(axis=(1, 2)) / total, dtype=np.float32)


def _to_copy(first: int, second: int, kind: int, window: Floats, match: float) -> Copy:
    """Describe a pair: the first image shows a window, or a view, of the second one."""
    area = float((window[1] - window[0]) * (window[3] - window[2]))
    change = ""
    if kind >= len(_WINDOWS):
        change = list(VIEWS.values())[kind - len(_WINDOWS)]
    elif area < 0.96:
        change = "cropped"
    return Copy(copy=first, original=second, change=change, match=float(match))


# ------------------------------------------------------------------------------- candidates


Window = tuple[float, float, float, float]


def _fine_windows() -> tuple[Window, ...]:
    """Windows for images that are all alike: 7 sizes at 7 x 7 places, and the whole image."""
    steps = tuple(i / 6 for i in range(7))
    return _crop_windows(tuple(0.8 + 0.15 * step for step in steps), steps)


def _crop_windows(
    sizes: Sequence[float] = (0.95, 0.9, 0.85, 0.8), places: Sequence[float] = (0.0, 0.5, 1.0)
) -> tuple[Window, ...]:
    """The whole image, and windows of 80 to 95 % of each side: top, bottom, left, right."""
    grid = product(sizes, places, places)
    crops = [(y * (1 - s), y * (1 - s) + s, x * (1 - s), x * (1 - s) + s) for s, y, x in grid]
    return (FULL, *crops)


_WINDOWS = _crop_windows()


def _cell_means(low: float, high: float) -> Floats:
    """Matrix (16, 32) that averages a part of an axis, from low to high, in equal cells."""
    edges = np.linspace(low * SKETCH_SIDE, high * SKETCH_SIDE, CELLS + 1)
    pixels = np.arange(SKETCH_SIDE)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(overlap, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def _cosines() -> Floats:
    """Matrix (8, 16) of the lowest frequencies of the discrete cosine transform."""
    k = np.arange(FREQUENCIES)[:, None]
    waves = np.cos(np.pi * (2 * np.arange(CELLS) + 1) * k / (2 * CELLS))
    return np.asarray(waves * np.where(k == 0, np.sqrt(0.5), 1.0), dtype=np.float32)


def _frequencies(sketches: Floats, window: tuple[float, float, float, float]) -> Floats:
    """Frequencies (n, 8, 8) of a window of every image."""
    waves = _cosines()
    rows, columns = (waves @ _cell_means(*window[i : i + 2]) for i in (0, 2))
    result: Floats = rows @ sketches @ columns.T
    return result


def _unit(frequencies: Floats) -> Floats:
    """Descriptors (n, 63) of unit length; without the mean, which brightness changes."""
    vectors = frequencies.reshape(len(frequencies), -1)[:, 1:]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-6), dtype=np.float32)


def _view_of(values: NDArray[np.float32], view: tuple[bool, bool, bool]) -> NDArray[np.float32]:
    """Grey values (n, h, w) in one of the views."""
    is_transposed, rows, columns = view
    turned = values.swapaxes(1, 2) if is_transposed else values
    return turned[:, :: -1 if rows else 1, :: -1 if columns else 1]


def _all_descriptors(sketches: Floats) -> Floats:
    """Descriptors (n, 44, 63) of every window and view of every image."""
    parts = [_unit(_frequencies(sketches, window)) for window in _WINDOWS]
    whole = _frequencies(sketches, FULL)
    signs = np.where(np.arange(FREQUENCIES) % 2, -1.0, 1.0).astype(np.float32)
    for is_transposed, rows, columns in VIEWS:
        turned = whole.swapaxes(1, 2) if is_transposed else whole
        # Reversing an axis changes the sign of its odd frequencies.
        turned = turned * (signs[:, None] if rows else 1) * (signs if columns else 1)
        parts.append(_unit(turned))
    return np.stack(parts, axis=1)


def _search(sketches: Floats) -> list[tuple[int, int, int]]:
    """Candidates: image, original, and the index of the window or view; the best per image."""
    whole = _unit(_frequencies(sketches, FULL))
    clusters, centres = _clusters(whole)
    best: dict[tuple[int, int], tuple[float, int, int, int]] = {}
    for start in range(0, len(sketches), BLOCK):
        descriptors = _all_descriptors(sketches[start : start + BLOCK])
        n_kinds = descriptors.shape[1]
        vectors = descriptors.reshape(-1, descriptors.shape[2])
        for members, queries in _probed(vectors, clusters, centres):
            scores = vectors[queries] @ whole[members].T
            hits, columns = np.nonzero(scores >= MIN_SCORE)
            for hit, column in zip(hits, columns, strict=True):
                original, kind = divmod(int(queries[hit]), n_kinds)
                first, second = int(members[column]), start + original
                pair = (min(first, second), max(first, second))
                score = float(scores[hit, column])
                if first != second and score > best.get(pair, (0.0,))[0]:
                    best[pair] = (score, first, second, kind)
    return _best_per_image(list(best.values()))


def _clusters(whole: Floats) -> tuple[list[Indices], Floats]:
    """Divide the images into clusters of similar descriptors; members and centres."""
    n_clusters = -(-len(whole) // CLUSTER_SIZE)
    rng = np.random.default_rng(0)
    centres = whole[rng.choice(len(whole), n_clusters, replace=False)]
    for _ in range(4 if n_clusters > 1 else 1):
        nearest = np.argmax(whole @ centres.T, axis=1)
        members = [np.flatnonzero(nearest == i) for i in range(n_clusters)]
        means = [
            whole[rows].mean(axis=0) if len(rows) else centres[i] for i, rows in enumerate(members)
        ]
        centres = np.stack(means)
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-6)
    return members, centres


def _probed(
    vectors: Floats, clusters: list[Indices], centres: Floats
) -> Iterator[tuple[Indices, Indices]]:
    """Clusters with the vectors that are compared with their members."""
    if len(clusters) == 1:
        yield clusters[0], np.arange(len(vectors))
        return
    scores = vectors @ centres.T
    nearest = np.argpartition(-scores, min(PROBES, len(clusters)) - 1, axis=1)[:, :PROBES]
    for i, members in enumerate(clusters):
        queries = np.flatnonzero((nearest == i).any(axis=1))
        if len(members) and len(queries):
            yield members, queries


def _best_per_image(
    pairs: list[tuple[float, int, int, int]],
) -> list[tuple[int, int, int]]:
    """The pairs that are among the best of one of their images."""
    by_image: dict[int, int] = defaultdict(int)
    chosen = []
    for _, first, second, kind in sorted(pairs, reverse=True):
        if min(by_image[first], by_image[second]) < MAX_CANDIDATES:
            chosen.append((first, second, kind))
        by_image[first] += 1
        by_image[second] += 1
    return chosen


# ------------------------------------------------------------------------------ verification


def _verify(sketches: Floats, pairs: list[tuple[int, int, int]]) -> tuple[Floats, Floats]:
    """Windows (m, 4), and the correlations of the local contrasts (m,)."""
    images = sketches[[first for first, _, _ in pairs]]
    views = list(VIEWS)
    originals, windows = [], []
    for _, second, kind in pairs:
        is_crop = kind < len(_WINDOWS)
        original = sketches[second][None]
        view = original if is_crop else _view_of(original, views[kind - len(_WINDOWS)])
        originals.append(view[0])
        windows.append(_WINDOWS[kind] if is_crop else FULL)
    return _align(images, np.stack(originals), np.asarray(windows, dtype=np.float32))


def _align(images: Floats, originals: Floats, windows: Floats) -> tuple[Floats, Floats]:
    """Refine the window of each original that its image shows; return windows and matches."""
    n = images.shape[1]
    unit = (np.arange(n, dtype=np.float32) + 0.5) / n
    # A window is start and length along each axis.
    place = windows[:, [0, 1, 2, 3]].copy()
    place[:, 1] -= place[:, 0]
    place[:, 3] -= place[:, 2]
    valid = _is_unclipped(images)
    for _ in range(STEPS):
        shown, along_y, along_x = _sample(originals, place, unit)
        place += _least_squares_step(images, shown, along_y, along_x, valid, unit)
    shown, _, _ = _sample(originals, place, unit)
    windows = np.stack(
        [place[:, 0], place[:, 0] + place[:, 1], place[:, 2], place[:, 2] + place[:, 3]], axis=1
    )
    return windows, _local_match(images, shown, valid * _is_unclipped(shown))


def _is_unclipped(values: Floats) -> Floats:
    return ((values > BLACK) & (values < WHITE)).astype(np.float32)


def _interpolation(positions: NDArray[np.floating], n: int) -> tuple[Floats, Floats]:
    """Matrices (m, k, n) of linear interpolation at positions (m, k), and their derivatives."""
    index = np.clip(np.floor(positions), 0, n - 2).astype(np.intp)
    fraction = np.clip(positions - index, 0, 1).astype(np.float32)
    weights = np.zeros((*positions.shape, n), dtype=np.float32)
    slopes = np.zeros_like(weights)
    for matrix, low, high in ((weights, 1 - fraction, fraction), (slopes, -1.0, 1.0)):
        rows, columns = np.indices(positions.shape)
        matrix[rows, columns, index] = low
        matrix[rows, columns, index + 1] = high
    return weights, slopes


def _sample(originals: Floats, place: Floats, unit: Floats) -> tuple[Floats, Floats, Floats]:
    """Grey values of the windows, and their derivatives along the rows and columns."""
    n = originals.shape[1]
    rows, row_slopes = _interpolation((place[:, 0, None] + place[:, 1, None] * unit) * n - 0.5, n)
    columns, column_slopes = _interpolation(
        (place[:, 2, None] + place[:, 3, None] * unit) * n - 0.5, n
    )
    half, across = rows @ originals, columns.swapaxes(1, 2)
    along_rows = (row_slopes @ originals) @ across * np.float32(n)
    along_columns = half @ column_slopes.swapaxes(1, 2) * np.float32(n)
    return _single(half @ across), _single(along_rows), _single(along_columns)


def _single(values: NDArray[np.floating]) -> Floats:
    return np.asarray(values, dtype=np.float32)


def _least_squares_step(
    images: Floats, shown: Floats, along_y: Floats, along_x: Floats, valid: Floats, unit: Floats
) -> Floats:
    """Change of start and length along both axes; contrast and brightness are fitted, too."""
    m = len(images)
    weights = valid.reshape(m, -1)
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    target, value = images.reshape(m, -1), shown.reshape(m, -1)
    target = target - (target * weights).sum(axis=1, keepdims=True) / total
    value = value - (value * weights).sum(axis=1, keepdims=True) / total
    variance = np.maximum((value**2 * weights).sum(axis=1, keepdims=True), 1e-3)
    gain = np.clip((value * target * weights).sum(axis=1, keepdims=True) / variance, 0.2, 5)
    moves = [along_y, along_y * unit[:, None], along_x, along_x * unit]
    columns = [gain * move.reshape(m, -1) for move in moves]
    jacobian = np.stack([*columns, value, np.ones_like(value)], axis=1)
    weighted = jacobian * weights[:, None]
    normal = weighted @ jacobian.swapaxes(1, 2)
    normal += np.diag([100.0, 100, 100, 100, 0.1, 0.1]).astype(np.float32)
    right = weighted @ (target - gain * value)[..., None]
    step = np.linalg.solve(normal, right)[:, :4, 0]
    return np.asarray(np.clip(step, -0.05, 0.05), dtype=np.float32)


def _local_match(images: Floats, shown: Floats, valid: Floats) -> Floats:
    """Correlation of the local contrasts; 0 where too few blocks of an image have contrast."""
    first = (images - _local_mean(images)) * valid
    second = (shown - _local_mean(shown)) * valid
    pairs = ((first, first), (second, second), (first, second))
    squares, others, products = (_block_sums(a * b) for a, b in pairs)
    n_pixels = np.maximum(_block_sums(valid), 1)
    has_contrast = (squares / n_pixels > 2) & (others / n_pixels > 2)
    norms = np.sqrt(np.maximum(squares.sum(axis=1) * others.sum(axis=1), 1e-3))
    match = products.sum(axis=1) / norms
    return np.where(has_contrast.sum(axis=1) >= MIN_BLOCKS, match, 0).astype(np.float32)


def _local_mean(values: Floats, radius: int = 3) -> Floats:
    """Mean of the (2 radius + 1)² pixels around each pixel; edges are repeated."""
    width = 2 * radius + 1
    for axis in (1, 2):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (radius + 1, radius)
        sums = np.cumsum(np.pad(values, pad, mode="edge"), axis=axis, dtype=np.float32)
        n = values.shape[axis]
        high, low = (np.take(sums, range(k, k + n), axis=axis) for k in (width, 0))
        values = np.asarray((high - low) / width, dtype=np.float32)
    return values


def _block_sums(values: Floats) -> Floats:
    """Sums (m, 16) over 4 x 4 blocks of the image."""
    m, n, _ = values.shape
    side = n // 4
    return np.asarray(values.reshape(m, 4, side, 4, side).sum(axis=(2, 4)).reshape(m, 16))
