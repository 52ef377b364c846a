"""Heat maps of images as a folder: an image file for each, a page and a JSON file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from headstart.data.dataset import Sample
from headstart.data.images import decode
from headstart.evaluation.explain import (
    LONG_SIDE,
    Explanation,
    draw_heat_map,
)
from headstart.files import file_stems, write_whole
from headstart.metrics.validation import json_text
from headstart.models.prediction_files import atomic_folder, encode_png, write_images
from headstart.reports.page import page_template

__all__ = ["explanation_rows", "write_explanations"]


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
