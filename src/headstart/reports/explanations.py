"""Explanations as a folder: a drawing for each image, and a page that shows them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.cache import Cache
from headstart.data.checks.images import scan, usable
from headstart.data.dataset import Dataset, Sample
from headstart.data.images import decode
from headstart.data.prepare import gather
from headstart.evaluation.explain import LONG_SIDE, Explanation, Means, draw_heat, explain
from headstart.models.prediction_files import new_folder, png, stems, write_images
from headstart.models.saving import load
from headstart.reports.page import page_template

__all__ = ["drawn", "explain_images", "explanation_rows", "write_explanations"]


def explain_images(
    model_folder: str | Path,
    images: object,
    *,
    out: str | Path,
    method: Means = "grad-cam",
    label: str | None = None,
    device: str = "auto",
    cache: Cache | None = None,
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Draw where a saved classifier finds its answers, into a folder with a page.

    Parameters
    ----------
    model_folder : str or Path
    images : path, bytes, PIL image, array, or a sequence of these
        A folder stands for all images below it.
    out : str or Path
        Folder to write, not there yet, or empty.
    method, label, device
        As for ``headstart.explain.explain``.
    cache : Cache, optional
        Where it is kept which files can be decoded; by default the user's.

    Returns
    -------
    list of dict, tuple of str
        A row for each image, and what is said of those that cannot be read: the others go on.

    Raises
    ------
    DataError
        If there are no images, or none can be read.
    UsageError, UnknownNameError
        As ``headstart.explain.explain``.

    Examples
    --------
    >>> explain_images("runs/photos", "photos/new", out="maps")  # doctest: +SKIP
    """
    model = load(model_folder)
    data = Dataset(samples=gather(images), classes=())
    records = scan(data.samples, cache=cache or Cache())
    kept = usable(data, records, bad_files="skip")[0].samples
    bad = tuple(
        f"{sample.name}: {record.problem}"
        for sample, record in zip(data.samples, records, strict=True)
        if record.problem is not None
    )
    found = explain(model, kept, method=method, label=label, wanted_device=device)
    title = Path(model_folder).resolve().name
    pairs = zip(kept, found, strict=True)
    return write_explanations(Path(out), pairs, title=title, unreadable=bad), bad


def write_explanations(
    folder: Path,
    found: Iterable[tuple[Sample, Explanation]],
    *,
    title: str,
    unreadable: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Write a drawing for each image, index.html and explanations.json, whole or not at all.

    Parameters
    ----------
    folder : Path
        Not there yet, or empty.
    found : iterable of (Sample, Explanation)
        Gone through once; images are drawn as they come.
    title : str
        Of the page, such as the model's name.
    unreadable : sequence of str
        What is said of images that could not be read.

    Returns
    -------
    list of dict
        What explanations.json holds.

    Raises
    ------
    UsageError
        If there is something in the folder.
    SetupError
        If it cannot be written.
    """
    kept: list[Explanation] = []

    def passing() -> Iterator[tuple[Sample, Any]]:
        for sample, one in found:
            kept.append(one)
            yield sample, one

    with new_folder(folder) as made:
        write_images(made, passing(), _png)
        rows = explanation_rows(kept)
        text = json.dumps(rows, indent=1, allow_nan=False)
        (made / "explanations.json").write_text(text, encoding="utf-8")
        page = page_template("explain.html.j2").render(
            title=title, rows=rows, unreadable=unreadable
        )
        (made / "index.html").write_text(page, encoding="utf-8")
    return rows


def explanation_rows(found: Sequence[Explanation]) -> list[dict[str, Any]]:
    """Explanations as plain values, each with the name of its drawing.

    >>> one = Explanation(
    ...     name="a.jpg", label="cat", probability=0.9, answer="cat", method="occlusion",
    ...     heat=np.array([[0.5, -0.25]]), part=(0.0, 0.0, 1.0, 1.0)
    ... )
    >>> row = explanation_rows([one])[0]
    >>> row["file"], row["most"]
    ('a.png', 0.5)
    """
    return [
        {
            "image": one.name,
            "answer": one.answer,
            "class": one.label,
            "probability": one.probability,
            "method": one.method,
            "most": float(max(one.heat.max(initial=0.0), 0.0)),
            "part": list(one.part),
            "file": f"{stem}.png",
        }
        for one, stem in zip(found, stems([one.name for one in found]), strict=True)
    ]


def drawn(sample: Sample, found: Explanation, *, long_side: int = LONG_SIDE) -> NDArray[np.uint8]:
    """Draw an image with its heat beside it; see ``heat_maps.draw_heat``."""
    image = decode(sample.image, at_least=long_side)
    return draw_heat(image, found.heat, found.part, long_side=long_side)


def _png(sample: Sample, found: Explanation) -> bytes:
    from PIL import Image

    return png(Image.fromarray(drawn(sample, found)))
