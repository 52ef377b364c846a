"""Page of a data set before training: classes, samples, findings, sizes and similar images.

The page is one file. Its size is bounded for any number of images, classes and findings; where it
shows a part only, it prints the total.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.checks.images import Finding
from headstart.data.checks.scan import ImageRecord
from headstart.data.dataset import SPLITS, Boxes, Dataset, Sample, labels_of
from headstart.data.draw import hex_colours, is_background
from headstart.data.splits import evenly_spaced
from headstart.reports.dense import draw_truth
from headstart.reports.page import LIMITS, examples, image_uri, page_template, thumbnails

__all__ = ["common_folder", "group_findings", "histogram", "render_data_page"]

SAMPLES, SAMPLES_EACH = 96, 8
"""Largest number of sample images in all, and of one class."""
DRAWN, DRAWN_EACH, DRAWN_SIDE = 24, 4, 400
"""The same for images with boxes or masks, and the longer side of a drawing in pixels."""
PAIRS, PAIR_HEIGHT = 24, 200
"""Similar images that are shown side by side, and their height in pixels."""
MOST_FINDINGS = 3000
"""Lines of findings on a page; each kind gets an equal share of them."""
UNREADABLE = 500
"""Unreadable files that are listed by name."""
SIMILAR = ("leak", "label-conflict", "near-duplicate", "duplicate", "same-subject")
"""Kinds of findings about similar images, the most important first."""

SIDES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
ASPECTS = {
    0.5: "taller than 1:2",
    0.8: "tall",
    1.25: "nearly square",
    2.0: "wide",
    float("inf"): "wider than 2:1",
}
"""Upper ends of ranges of width divided by height, and their names."""
OBJECTS = (1, 2, 3, 5, 10, 20, 50)
SMALL, MEDIUM = 32**2, 96**2
"""Areas in pixels from which COCO calls an object medium or large."""

Rows = list[tuple[str, int]]


def render_data_page(
    data: Dataset,
    records: Sequence[ImageRecord],
    findings: Sequence[Finding],
    *,
    command: str = "",
) -> str:
    """Render the page of a data set, which loads nothing from outside.

    Parameters
    ----------
    data : Dataset
    records : sequence of ImageRecord
        Result of the scan, one for each example.
    findings : sequence of Finding
        Of all checks.
    command : str
        Command line that made the page.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> data = Dataset(samples=(Sample(image=b"junk", target="cat"),), classes=("cat",))
    >>> page = render_data_page(data, [ImageRecord(digest="", problem="damaged")], [])
    >>> "1 of 1 files cannot be read" in page
    True
    """
    readable = [i for i, record in enumerate(records) if record.problem is None]
    usable = data.subset(readable)
    broken = [
        (sample.name, record.problem)
        for sample, record in zip(data.samples, records, strict=True)
        if record.problem is not None
    ]
    severities = Counter(finding.severity for finding in findings)
    return page_template("data.html.j2").render(
        data=data,
        command=command,
        limits=LIMITS,
        classes=_count_by_split(data),
        samples=_draw_samples(usable),
        n_usable=len(usable),
        colours=_legend(data),
        findings=group_findings(findings),
        n_findings=len(findings),
        severities=severities,
        most_each=MOST_FINDINGS // max(len({f.kind for f in findings}), 1),
        root=common_folder(data.samples),
        tables=_size_tables(usable, [records[i] for i in readable]),
        pairs=_similar_images(data, findings),
        n_pairs=len(list(_similar_findings(findings))),
        broken=broken[:UNREADABLE],
        n_broken=len(broken),
    )


def histogram(values: Iterable[float], edges: Sequence[float], unit: str = "") -> Rows:
    """Count whole numbers in ranges that begin at the edges, without empty ranges at both ends.

    Parameters
    ----------
    values : iterable of float
    edges : sequence of float
        Ascending; the first range lies below the first edge, the last has no end.
    unit : str
        Written after each range.

    Examples
    --------
    >>> histogram([0, 2, 2, 9], (1, 2, 3, 5))
    [('0', 1), ('1', 0), ('2', 2), ('3 to 4', 0), ('5 and more', 1)]
    """
    numbers = list(values)
    places = np.searchsorted(np.asarray(edges), numbers, side="right")
    counts = np.bincount(places, minlength=len(edges) + 1).tolist()
    starts = [0, *edges]
    names = [
        f"{low:g}" if high - low == 1 else f"{low:g} to {high - 1:g}"
        for low, high in zip(starts, edges, strict=False)
    ]
    rows = list(zip([*names, f"{edges[-1]:g} and more"], counts, strict=True))
    filled = [i for i, (_, count) in enumerate(rows) if count]
    if not filled:
        return []
    return [(f"{name}{unit}", count) for name, count in rows[filled[0] : filled[-1] + 1]]


def group_findings(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Group findings by severity and kind, errors first.

    Examples
    --------
    >>> one = Finding(kind="leak", severity="error", message="a and b")
    >>> [group["kind"] for group in group_findings([one, one])]
    ['leak']
    """
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.severity, finding.kind].append(finding)
    order = ("error", "warning", "note")
    by_severity = sorted(groups.items(), key=lambda group: order.index(group[0][0]))
    return [
        {"severity": severity, "kind": kind, "findings": members}
        for (severity, kind), members in by_severity
    ]


def common_folder(samples: Iterable[Sample]) -> str:
    """The folder that contains all images; a page prints paths relative to it.

    Examples
    --------
    >>> common_folder([Sample(image=Path("a/cat/1.jpg")), Sample(image=Path("a/dog/1.jpg"))])
    'a'
    """
    paths = [str(s.image) for s in samples if isinstance(s.image, Path)]
    if not paths:
        return ""
    try:
        return os.path.commonpath([Path(min(paths)).parent, Path(max(paths)).parent])
    except ValueError:  # absolute and relative paths are mixed
        return ""


def _count_by_split(data: Dataset) -> dict[str, Any]:
    """Images, or objects, of each class in each split that the data define."""
    present = {sample.split for sample in data.samples}
    parts = {str(name): data.split(name) for name in SPLITS if name in present}
    if None in present:
        unit = "objects" if data.kind == "detection" else "images"
        parts["no split" if parts else unit] = data.split(None)
    counts = [part.counts() for part in parts.values()]
    rows = [(name, [count[name] for count in counts]) for name in data.classes]
    if len(rows) > LIMITS["classes_in_full"]:
        rows.sort(key=lambda row: sum(row[1]))
    empty = [
        sum(not labels_of(sample.target) for sample in part.samples) for part in parts.values()
    ]
    return {
        "titles": list(parts),
        "rows": rows,
        "totals": [len(part) for part in parts.values()],
        "empty": empty if any(empty) and data.kind != "segmentation" else [],
        "top": max((max(row[1], default=0) for row in rows), default=0),
        "groups": len({sample.group for sample in data.samples} - {None}),
    }


def _draw_samples(data: Dataset) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """Names and images of each class; boxes and masks are drawn, each image once."""
    if not data.is_dense:
        chosen = examples(data, most=SAMPLES, each=SAMPLES_EACH)
        uris = iter(thumbnails(sample for _, samples in chosen for sample in samples))
        return [(name, [(s.name, next(uris)) for s in samples]) for name, samples in chosen]
    return [
        (name, [(sample.name, _draw(sample, data.classes)) for sample in samples])
        for name, samples in _choose_drawn(data)
    ]


def _choose_drawn(data: Dataset) -> list[tuple[str, list[Sample]]]:
    """Choose images of each class, evenly spaced over those that show no class before it."""
    by_class: dict[str, list[int]] = defaultdict(list)
    for row, sample in enumerate(data.samples):
        for label in labels_of(sample.target):
            by_class[label].append(row)
    present = [name for name in data.classes if by_class[name] and not is_background(name)]
    n_each = min(DRAWN_EACH, max(DRAWN // max(len(present), 1), 1))
    used: set[int] = set()
    chosen = []
    for i in evenly_spaced(len(present), DRAWN):
        rows = [row for row in by_class[present[i]] if row not in used]
        picked = [rows[k] for k in evenly_spaced(len(rows), n_each)]
        used.update(picked)
        chosen.append((present[i], [data.samples[row] for row in picked]))
    return [(name, samples) for name, samples in chosen if samples]


def _draw(sample: Sample, classes: Sequence[str]) -> str | None:
    pixels = draw_truth(sample, classes, DRAWN_SIDE)
    return None if pixels is None else image_uri(pixels, quality=80)


def _legend(data: Dataset) -> list[tuple[str, str]]:
    """Classes and their colours; none if the images are not drawn on."""
    if not data.is_dense:
        return []
    pairs = zip(data.classes, hex_colours(len(data.classes)), strict=True)
    visible = data.kind == "detection"
    legend = [(name, colour) for name, colour in pairs if visible or not is_background(name)]
    return legend[: LIMITS["classes_in_full"]]


def _size_tables(data: Dataset, records: Sequence[ImageRecord]) -> list[tuple[str, str, Rows]]:
    """Histograms: title, unit and rows of each."""
    if not records:
        return []
    short = [min(record.width, record.height) for record in records]
    ratios = np.array([record.width / max(record.height, 1) for record in records])
    ends = np.array(list(ASPECTS))
    aspects = Counter(np.searchsorted(ends, ratios, side="left").tolist())
    tables = [
        ("Shorter side in pixels", "images", histogram(short, SIDES)),
        (
            "Width to height",
            "images",
            [(name, aspects[i]) for i, name in enumerate(ASPECTS.values()) if aspects[i]],
        ),
        (
            "File format",
            "images",
            Counter(f"{r.format}, {r.mode}" for r in records).most_common(8),
        ),
    ]
    boxes = [sample.target for sample in data.samples if isinstance(sample.target, Boxes)]
    if boxes:
        tables.append(
            ("Objects in an image", "images", histogram([len(b.labels) for b in boxes], OBJECTS))
        )
        tables.append(("Size of the objects", "objects", _object_sizes(boxes)))
    return [table for table in tables if table[2]]


def _object_sizes(boxes: Iterable[Boxes]) -> Rows:
    sides = np.concatenate([np.zeros((0, 4)), *(b.array() for b in boxes)])
    areas = np.prod(sides[:, 2:] - sides[:, :2], axis=1)
    counts = np.bincount(np.searchsorted((SMALL, MEDIUM), areas, side="right"), minlength=3)
    names = ("small: below 32 × 32 pixels", "medium", "large: from 96 × 96 pixels")
    return list(zip(names, counts.tolist(), strict=True)) if len(areas) else []


def _similar_findings(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Findings about similar images, each set of images once."""
    seen: set[frozenset[str]] = set()
    for kind in SIMILAR:
        for finding in findings:
            paths = frozenset(finding.paths)
            if finding.kind == kind and len(finding.paths) > 1 and paths not in seen:
                seen.add(paths)
                yield finding


def _similar_images(data: Dataset, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The first two images of each finding about similar images, with labels and splits."""
    by_name: dict[str, Sample] = {}
    for sample in data.samples:
        by_name.setdefault(sample.name, sample)
    chosen = [f for f in _similar_findings(findings) if set(f.paths[:2]) <= by_name.keys()][:PAIRS]
    samples = [by_name[name] for finding in chosen for name in finding.paths[:2]]
    uris = iter(thumbnails(samples, height=PAIR_HEIGHT))
    return [
        {
            "kind": finding.kind,
            "severity": finding.severity,
            "n_more": len(finding.paths) - 2,
            "images": [(name, next(uris), _describe(by_name[name])) for name in finding.paths[:2]],
            "message": _with_file_names(finding),
        }
        for finding in chosen
    ]


def _with_file_names(finding: Finding) -> str:
    """The message with the file names of its images instead of their paths."""
    message = finding.message
    for path in sorted(finding.paths, key=len, reverse=True):
        message = message.replace(path, re.split(r"[/\\]", path)[-1])
    return message


def _describe(sample: Sample) -> str:
    labels = labels_of(sample.target)
    text = ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
    return " · ".join(part for part in (text or "no label", sample.split) if part)
