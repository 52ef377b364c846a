"""Certificate of an exported file: its predictions compared with those of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import ExportError
from headstart.models.tasks import ClassificationTask

__all__ = ["TOLERANCES", "Certificate", "ImageCheck", "certify"]

TOLERANCES = {"image": 0.02, "batch": 0.001}
"""Largest accepted difference of a probability, by the input of the file.

A resize in the file is within 2 grey levels of the model's, and one of batches gets the same
pixels."""


@dataclass(frozen=True, kw_only=True)
class ImageCheck:
    """One image: the largest difference of a probability, and whether the labels are equal."""

    name: str
    difference: float
    same_label: bool


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Differences between a file in a runtime and the model in PyTorch, float32.

    Parameters
    ----------
    runtime : str
        Name and version.
    tolerance : float
        Largest accepted difference of a probability.
    checks : tuple of ImageCheck
    """

    runtime: str
    tolerance: float
    checks: tuple[ImageCheck, ...]

    @property
    def largest_difference(self) -> float:
        """Largest difference of any probability on any image; NaN if one is not a number."""
        return float(np.max([check.difference for check in self.checks]))

    @property
    def label_agreement(self) -> float:
        """Share of the images with equal labels."""
        return float(np.mean([check.same_label for check in self.checks]))

    @property
    def agrees(self) -> bool:
        """Whether no difference is above the tolerance.

        A label may differ where both labels have the same probability within the tolerance.
        """
        return bool(self.largest_difference <= self.tolerance)  # False for NaN

    def sentence(self) -> str:
        """Summarise the comparison.

        >>> check = ImageCheck(name="a.png", difference=0.004, same_label=True)
        >>> Certificate(runtime="ONNX Runtime 1", tolerance=0.02, checks=(check,)).sentence()
        'ONNX Runtime 1: largest difference of a probability 0.0040 (accepted: 0.02), same label \
for 1 of 1 images.'
        """
        n_same = sum(check.same_label for check in self.checks)
        return (
            f"{self.runtime}: largest difference of a probability {self.largest_difference:.4f} "
            f"(accepted: {self.tolerance:g}), same label for {n_same} of {len(self.checks)} images."
        )

    def require_agreement(self) -> None:
        """Refuse a file that disagrees with the model.

        Raises
        ------
        ExportError
            If a difference is above the tolerance. The message names the worst image.
        """
        if self.agrees:
            return
        worst = max(self.checks, key=lambda check: np.nan_to_num(check.difference, nan=np.inf))
        raise ExportError(
            f"The exported file disagrees with the model. {self.sentence()} The worst image is "
            f"{worst.name!r}. No file was kept. Use another backbone, or another format: --to "
            "onnx, openvino or pt2."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all values as plain types, for JSON."""
        return {
            "runtime": self.runtime,
            "reference": "PyTorch, float32",
            "tolerance": self.tolerance,
            "largest_difference": self.largest_difference,
            "label_agreement": self.label_agreement,
            "agrees": self.agrees,
            "images": [
                {"image": c.name, "difference": c.difference, "same_label": c.same_label}
                for c in self.checks
            ],
        }


def certify(
    task: ClassificationTask,
    names: Sequence[str],
    reference: NDArray[np.float64],
    exported: NDArray[np.float64],
    *,
    runtime: str,
    tolerance: float,
) -> Certificate:
    """Compare probabilities, shape (n, n_classes), of the model and of the file.

    Examples
    --------
    >>> task = ClassificationTask(classes=("cat", "dog"))
    >>> model, file = np.array([[0.2, 0.8], [0.6, 0.4]]), np.array([[0.2, 0.8], [0.59, 0.41]])
    >>> names = ["a.png", "b.png"]
    >>> certificate = certify(task, names, model, file, runtime="", tolerance=0.001)
    >>> round(certificate.largest_difference, 6), certificate.label_agreement, certificate.agrees
    (0.01, 1.0, False)
    """
    differences: Sequence[float] = np.abs(reference - exported).max(axis=1).tolist()
    labels = zip(task.labels(reference), task.labels(exported), strict=True)
    checks = tuple(
        ImageCheck(name=name, difference=difference, same_label=expected == actual)
        for name, difference, (expected, actual) in zip(names, differences, labels, strict=True)
    )
    return Certificate(runtime=runtime, tolerance=tolerance, checks=checks)
