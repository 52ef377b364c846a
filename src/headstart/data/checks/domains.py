"""Recognise images of a special domain, for which weights of that domain exist: chest X-rays.

The statistics are of the 32 x 32 grey levels that the scan of every image keeps, so that nothing
is decoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.data.checks.scan import SKETCH_SIDE, ImageRecord

__all__ = ["REFERENCES", "DomainReference", "find_image_domain", "sketch_statistics"]

Floats = NDArray[np.float64]

MIN_IMAGES = 20
MIN_SHARE = 0.6
"""Share of the images that must be like the reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainReference:
    """Statistics of the images of a domain.

    Parameters
    ----------
    name : str
        Plural, for sentences.
    prefix : str
        Of the names of backbones that were trained on such images.
    mean, spread : tuple of float
        Mean and standard deviation of ``sketch_statistics`` over images of the domain.
    limit : float
        95 % of these images have a smaller mean squared deviation from the mean.
    """

    name: str
    prefix: str
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    limit: float


REFERENCES = (
    # 250 frontal chest X-rays of adults without findings (NIH ChestX-ray8)
    DomainReference(
        name="chest X-rays",
        prefix="xray/",
        mean=(
            *(-1.079, -0.375, 0.148, -0.317, 0.014, 0.385, 0.034, 1.189),
            *(0.715, 3.845, 6.438, 0.585),
        ),
        spread=(
            *(0.533, 0.396, 0.287, 0.371, 0.424, 0.309, 0.647, 0.260),
            *(0.260, 0.201, 0.662, 0.088),
        ),
        limit=1.9,
    ),
)
"""Measured domains; docs/backbones.md has the shares of other images within the limit."""


def find_image_domain(records: Sequence[ImageRecord]) -> tuple[DomainReference, float] | None:
    """Find the domain that most of the images are like.

    Parameters
    ----------
    records : sequence of ImageRecord
        Of the scan.

    Returns
    -------
    DomainReference and the share of images like it, or None
        None for fewer than 20 images, and if less than 60 % of them are like a reference.

    Examples
    --------
    >>> find_image_domain([]) is None
    True
    """
    n_values = SKETCH_SIDE**2
    sketches = [record.sketch for record in records if len(record.sketch) == n_values]
    if len(sketches) < MIN_IMAGES:
        return None
    grey = np.frombuffer(b"".join(sketches), np.uint8).reshape(-1, SKETCH_SIDE, SKETCH_SIDE)
    values = sketch_statistics(grey)
    for reference in REFERENCES:
        deviations = (values - np.array(reference.mean)) / np.array(reference.spread)
        share = float((np.square(deviations).mean(axis=1) < reference.limit).mean())
        if share >= MIN_SHARE:
            return reference, share
    return None


def sketch_statistics(grey: NDArray[np.uint8]) -> Floats:
    """Describe images by layout, symmetry, contrast, roughness and brightness.

    Parameters
    ----------
    grey : array of uint8, shape (n, 32, 32)

    Returns
    -------
    array, shape (n, 12)
        Eight standardised grey levels of the left half, after averaging it with the mirrored right
        half (four rows of the outer and the inner quarter); the correlation of the image with its
        mirror image; the logarithms of the standard deviation and of the mean squared step between
        neighbours; and the mean brightness from 0 to 1.

    Examples
    --------
    >>> sketch_statistics(np.full((1, 32, 32), 51, np.uint8))[0, -1].round(3).item()
    0.2
    """
    values = grey.astype(np.float64)
    cells = values.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))
    contrast = cells.std(axis=(1, 2)) + 1e-6
    cells = (cells - cells.mean(axis=(1, 2), keepdims=True)) / contrast[:, None, None]
    mirrored = cells[:, :, ::-1]
    half = ((cells + mirrored) / 2)[:, :, :4].reshape(-1, 4, 2, 2, 2).mean(axis=(2, 4))
    steps = [np.square(np.diff(values, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
    return np.column_stack(
        [
            half.reshape(len(values), -1),
            (cells * mirrored).mean(axis=(1, 2)),
            np.log(contrast),
            np.log(steps[0] + steps[1] + 1),
            values.mean(axis=(1, 2)) / 255,
        ]
    )
