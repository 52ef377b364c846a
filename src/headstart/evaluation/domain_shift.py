"""Recognise images of another domain: a small reference of the training images in the model."""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import shake_256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.splits import evenly_spaced
from headstart.evaluation.embeddings import EmbeddedDataset
from headstart.metrics.outliers import OutlierDetector, excess_p_value

__all__ = ["REFERENCE", "DomainShift", "make_reference", "measure_shift"]

REFERENCE = "domain_reference"
"""Name of the reference in the record of a model."""
MAX_REFERENCE = 256
"""Maximum number of training images, and of test images, in a reference."""
WIDTH = 128
"""Numbers for each image: signed sums of its features, which keep the angles between images."""
MIN_IMAGES = 8
"""Minimum number of training, test and new images for a statement."""
TYPICAL = 0.95
"""Share of the test images that are nearer to the training images than an outlier."""
MAX_P_VALUE, MIN_RATIO = 0.001, 3.0

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainShift:
    """Share of images that are farther from the training images than most test images.

    Parameters
    ----------
    share : float
        Share of the new images.
    expected : float
        Share that images of the model's own domain have on average.
    p_value : float
        Probability of this share or a larger one for images of the model's own domain.
    """

    share: float
    expected: float
    p_value: float

    @property
    def is_other_domain(self) -> bool:
        """Whether the share is significantly and clearly above what chance gives.

        >>> DomainShift(share=0.3, expected=0.05, p_value=1e-9).is_other_domain
        True
        >>> DomainShift(share=0.06, expected=0.05, p_value=1e-9).is_other_domain
        False
        """
        return self.p_value < MAX_P_VALUE and self.share >= MIN_RATIO * self.expected


def make_reference(embedded: EmbeddedDataset, backbone: FrozenBackbone) -> dict[str, Any]:
    """Describe the training images for ``measure_shift``, in 45 kB of text at most.

    Parameters
    ----------
    embedded : EmbeddedDataset
        Features of the backbone.
    backbone : FrozenBackbone
        The model's own. The reference is valid for these weights only.

    Returns
    -------
    dict
        JSON values; empty if there are fewer than 8 training or test images.

    Examples
    --------
    >>> reference = make_reference(embedded, model.backbone)  # doctest: +SKIP
    >>> measure_shift(reference, features, model.backbone).share  # doctest: +SKIP
    0.05
    """
    train = embedded.train[evenly_spaced(len(embedded.train), MAX_REFERENCE)]
    test = embedded.test[evenly_spaced(len(embedded.test), MAX_REFERENCE)]
    if min(len(train), len(test)) < MIN_IMAGES:
        return {}
    rows = _project(embedded.values[train])
    largest = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-12)
    packed = np.rint(127 * rows / largest).astype(np.int8)
    detector = OutlierDetector.fit(packed)
    distances = detector.scores(_project(embedded.values[test]))
    return {
        "training": b64encode(packed.tobytes()).decode(),
        "weights": backbone.identity.hex(),
        "test_distances": [round(float(value), 4) for value in np.sort(distances)],
    }


def measure_shift(
    reference: Mapping[str, Any], features: NDArray[np.floating[Any]], backbone: FrozenBackbone
) -> DomainShift | None:
    """Compare images with the reference of a model.

    Parameters
    ----------
    reference : mapping
        Result of ``make_reference``.
    features : array, shape (m, d)
        Of the new images.
    backbone : FrozenBackbone
        The one that computed the features.

    Returns
    -------
    DomainShift or None
        None without a reference for these weights, or with fewer than 8 images.
    """
    try:
        training = np.frombuffer(b64decode(reference["training"]), np.int8).reshape(-1, WIDTH)
        distances = np.array(reference["test_distances"], dtype=np.float64)
        weights = reference["weights"]
    except (KeyError, TypeError, ValueError):  # an older model, or a damaged record
        return None
    if weights != backbone.identity.hex() or min(len(training), len(distances)) < MIN_IMAGES:
        return None
    if len(features) < MIN_IMAGES:
        return None
    rank = min(math.ceil(TYPICAL * (len(distances) + 1)), len(distances))
    new = OutlierDetector.fit(training).scores(_project(features))
    above = int((new > np.sort(distances)[rank - 1] + 1e-4).sum())  # distances are rounded
    return DomainShift(
        share=above / len(new),
        expected=1 - rank / (len(distances) + 1),
        p_value=excess_p_value(above, len(new), rank, len(distances)),
    )


def _project(features: NDArray[np.floating[Any]]) -> Floats:
    """Random signed sums of the features, shape (n, 128). The signs come from a hash.

    A hash gives the same signs with every version of numpy; a random generator may not.
    """
    n = features.shape[1]
    content = shake_256(f"{REFERENCE} {n}".encode()).digest(n * WIDTH // 8)
    bits = np.unpackbits(np.frombuffer(content, np.uint8)).reshape(n, WIDTH)
    return np.asarray(features, dtype=np.float64) @ (2.0 * bits - 1.0)
