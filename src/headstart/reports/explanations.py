"""Heat maps of images as a folder: an image file for each, a page and a JSON file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from headstart.cache import Cache
from headstart.data.checks.images import keep_readable, scan
from headstart.data.dataset import Dataset, Sample
from headstart.data.images import decode
from headstart.data.prepare import to_samples
from headstart.data.readers import with_image_options
from headstart.evaluation.explain import (
    LONG_SIDE,
    ExplainMethod,
    Explanation,
    draw_heat_map,
    explain,
)
from headstart.files import file_stems, write_whole
from headstart.metrics.validation import json_text
from headstart.models.prediction_files import atomic_folder, encode_png, write_images
from headstart.models.saving import load
from headstart.reports.page import page_template

__all__ = ["explain_images", "explanation_rows", "write_explanations"]


def explain_images(
    model_folder: str | Path,
    images: object,
    *,
    out: str | Path,
    method: ExplainMethod = "grad-cam",
    label: str | None = None,
    device: str = "auto",
    max_pixels: int | None = None,
    cache: Cache | None = None,
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Draw which image regions the predictions of a saved classifier depend on.

    Parameters
    ----------
    model_folder : str or Path
    images : path, bytes, PIL image, array, or a sequence of these
        A folder means all images below it.
    out : str or Path
        Output folder, new or empty.
    method, label, device
        As for ``headstart.evaluation.explain.explain``.
    max_pixels : int, optional
        Largest width times height of an image; by default that of the training.
    cache : Cache, optional
        Stores which files can be decoded; by default the user's cache.

    Returns
    -------
    list of dict, tuple of str
        A row for each image, and a message for each image that cannot be read.

    Raises
    ------
    DataError
        If there are no images, or none can be read.
    UsageError, UnknownNameError
        As ``headstart.evaluation.explain.explain``.

    Examples
    --------
    >>> explain_images("runs/photos", "photos/new", out="maps")  # doctest: +SKIP
    """
    model = load(model_folder)
    data = Dataset(samples=to_samples(images), classes=())
    data = with_image_options(data, model.image_options.with_max_pixels(max_pixels))
    records = scan(data.samples, cache=cache or Cache())
    readable = keep_readable(data, records, bad_files="skip")[0].samples
    problems = tuple(
        f"{sample.name}: {record.problem}"
        for sample, record in zip(data.samples, records, strict=True)
        if record.problem is not None
    )
    explanations = explain(model, readable, method=method, label=label, device_name=device)
    title = Path(model_folder).resolve().name
    pairs = zip(readable, explanations, strict=True)
    return write_explanations(Path(out), pairs, title=title, unreadable=problems), problems


def write_explanations(
    folder: Path,
    pairs: Iterable[tuple[Sample, Explanation]],
    *,
    title: str,
    unreadable: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Write a heat map for each image, index.html and explanations.json; on failure write nothing.

    Parameters
    ----------
    folder : Path
        New or empty.
    pairs : iterable of (Sample, Explanation)
        Iterated once; each image is drawn as soon as it arrives.
    title : str
        Of the page, such as the name of the model.
    unreadable : sequence of str
        Messages about images that could not be read.

    Returns
    -------
    list of dict
        The content of explanations.json.

    Raises
    ------
    UsageError
        If the folder is not empty.
    SetupError
        If the folder cannot be written.
    """
    explanations: list[Explanation] = []

    def collect_pairs() -> Iterator[tuple[Sample, Any]]:
        for sample, explanation in pairs:
            explanations.append(explanation)
            yield sample, explanation

    with atomic_folder(folder) as partial_folder:
        write_images(partial_folder, collect_pairs(), _encode_heat_map)
        rows = explanation_rows(explanations)
        text = json_text(rows, indent=1)
        write_whole(partial_folder / "explanations.json", text)
        page = page_template("explain.html.j2").render(
            title=title, rows=rows, unreadable=unreadable
        )
        write_whole(partial_folder / "index.html", page)
    return rows


def explanation_rows(explanations: Sequence[Explanation]) -> list[dict[str, Any]]:
    """Return explanations as JSON values, each with the file name of its heat map.

    >>> import numpy as np
    >>> explanation = Explanation(
    ...     name="a.jpg", label="cat", probability=0.9, prediction="cat", method="occlusion",
    ...     heat=np.array([[0.5, -0.25]]), part=(0.0, 0.0, 1.0, 1.0)
    ... )
    >>> row = explanation_rows([explanation])[0]
    >>> row["file"], row["most"]
    ('a.png', 0.5)
    """
    stems = file_stems([explanation.name for explanation in explanations])
    return [
        {
            "image": explanation.name,
            "prediction": explanation.prediction,
            "class": explanation.label,
            "probability": explanation.probability,
            "method": explanation.method,
            "most": float(max(explanation.heat.max(initial=0.0), 0.0)),
            "part": list(explanation.part),
            "file": f"{stem}.png",
        }
        for explanation, stem in zip(explanations, stems, strict=True)
    ]


def _encode_heat_map(sample: Sample, explanation: Explanation) -> bytes:
    from PIL import Image

    image = decode(sample.image, at_least=LONG_SIDE, options=sample.options)
    pixels = draw_heat_map(image, explanation.heat, explanation.part, long_side=LONG_SIDE)
    return encode_png(Image.fromarray(pixels))
