"""Files with 8-bit integers: which images calibrate them, and whether they keep the accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.cache import open_cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.loader import load_batch
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import DataError, ExportError, UsageError
from headstart.exports.int8_graph import calibrate
from headstart.exports.onnx_file import onnx_file
from headstart.metrics.confidence_intervals import (
    Difference,
    Interval,
    paired_proportion_difference,
    wilson_interval,
)
from headstart.models.exported_model import ExportedModel
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.workflows.evaluate import labelled_part, short_digest

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["LARGEST_LOSS", "Int8Check", "Int8Images", "choose_images", "int8_file"]

LARGEST_LOSS = 0.01
"""Accuracy that 8-bit integers may lose, unless ``allow_loss`` is given."""
CALIBRATION = 64
"""Most images that calibrate the file."""
BATCH = 8
"""Images of one batch of the calibration."""
LARGEST_SHARE_KEPT = 1 / 4
"""Share of the layers that may stay in float32; with more, a float32 file is the better choice."""


@dataclass(frozen=True, kw_only=True)
class Int8Images:
    """Images for a file with 8-bit integers: ``calibration``, and others to compare it on."""

    calibration: Dataset
    test: Dataset


@dataclass(frozen=True, kw_only=True)
class Int8Check:
    """Accuracy of a file with 8-bit integers and of the float32 file, on the same images.

    Parameters
    ----------
    before, after : Interval
        Accuracy in float32 and with 8-bit integers.
    change : Difference
        ``after`` minus ``before``, paired.
    label_agreement : float
        Share of the images that get the same label from both files.
    images, calibration_images : int
    float_layers : tuple of str
        Sensitive layers that were kept in float32.
    """

    before: Interval
    after: Interval
    change: Difference
    label_agreement: float
    images: int
    calibration_images: int
    float_layers: tuple[str, ...] = ()

    @property
    def loses(self) -> bool:
        """Whether more than 1 point of accuracy is lost, and the loss is significant."""
        return self.change.interval.value < -LARGEST_LOSS and self.change.significant

    def sentences(self) -> list[str]:
        """Summarise the comparison."""
        gap = self.change.interval
        points = f"{100 * gap.value:+.1f} points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
        lines = [
            (
                f"8-bit integers: accuracy {self.after}, float32 {self.before}; change {points} "
                f"on {self.images} images. Both files give the same label for "
                f"{round(self.label_agreement * self.images)} of {self.images} images."
            )
        ]
        if self.float_layers:
            lines.append(
                f"{len(self.float_layers)} sensitive layers stay in float32: "
                f"{', '.join(self.float_layers)}."
            )
        if not self.loses and gap.low < -LARGEST_LOSS:
            lines.append(
                f"{self.images} images are too few to exclude a loss of more than 1 point. Pass "
                "--int8 with more labelled images."
            )
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return all values as plain types, for JSON."""
        return {
            "rule": (
                "refused if more than 1 point of accuracy is lost and the paired interval (95 %) "
                "excludes 0, unless --allow-loss is given"
            ),
            "accuracy_float32": self.before.as_dict(),
            "accuracy_int8": self.after.as_dict(),
            "change": self.change.interval.as_dict(),
            "label_agreement": self.label_agreement,
            "images": self.images,
            "calibration_images": self.calibration_images,
            "float_layers": list(self.float_layers),
            "loses": self.loses,
        }


def choose_images(model: TransferModel, source: object) -> Int8Images:
    """Read labelled images: training images of the model calibrate, the others compare.

    If none of them is a training image, up to 64 images calibrate and the others compare. The
    calibration images are spread evenly over the classes.

    Parameters
    ----------
    model : TransferModel
    source : str, Path, Dataset or object
        As for `headstart.fit`.

    Raises
    ------
    UsageError
        If the model is no classifier with one class for each image.
    DataError
        If the images cannot be used, or no image is left to compare the files on.
    """
    task = model.require_task(ClassificationTask)
    if task.kind != "multiclass":
        raise UsageError(
            f"`int8` needs a model with one class for each image, got a {task.kind} model. Pass "
            "another model, or leave --int8 out."
        )
    with open_cache(no_cache=True) as cache:
        data = model.align_classes(labelled_part(source, task.kind, "", cache=cache))
    seen = set(model.record.get("learned_from", ()))
    known = [i for i, sample in enumerate(data.samples) if short_digest(sample) in seen]
    others = sorted(set(range(len(data))) - set(known))
    pool = known or others
    targets = data.targets()
    ordered = sorted(pool, key=lambda row: (targets[row], row))
    count = min(CALIBRATION, len(pool) if known else len(pool) // 2)
    places = np.linspace(0, len(ordered) - 1, count).round().astype(int)
    chosen = {ordered[place] for place in places}
    rest = others if known else [row for row in others if row not in chosen]
    if not rest or not chosen:
        raise DataError(
            f"All {len(data)} images of --int8 are needed to calibrate the file: none is left to "
            "compare its accuracy on. Pass --int8 with other labelled images too, such as the "
            "whole folder that `headstart fit` was given."
        )
    return Int8Images(calibration=data.subset(sorted(chosen)), test=data.subset(rest))


def int8_file(
    model: TransferModel,
    network: ModelProto,
    entries: Mapping[str, str],
    images: Int8Images,
    float_file: ExportedModel,
    *,
    folder: Path,
    allow_loss: bool,
) -> tuple[bytes, Int8Check]:
    """Convert a network to 8 bits, and compare it with the float32 file.

    If the file loses more than 1 point of accuracy beyond chance, the most sensitive layers are
    kept in float32: 1, 2, 4 and so on, up to a quarter of all layers.

    Parameters
    ----------
    model : TransferModel
    network : ModelProto
        From normalised pixels to the output, float32.
    entries : mapping of str to str
        The file's metadata.
    images : Int8Images
    float_file : ExportedModel
        The float32 file; the new one gets the same preprocessing.
    folder : Path
        For temporary files.
    allow_loss : bool
        Accept any loss, and keep no layer in float32.

    Returns
    -------
    (bytes, Int8Check)

    Raises
    ------
    ExportError
        If the network cannot be converted, or loses too much.
    """
    batches = _batches(images.calibration.samples, model.backbone.spec.preprocess)
    calibrated = calibrate(network, batches)
    reference = float_file.predict_probabilities(images.test.samples)

    def build(kept: Sequence[str]) -> tuple[bytes, Int8Check]:
        content = onnx_file(
            model,
            entries,
            takes_images=float_file.takes_images,
            network=calibrated.quantise(kept=kept),
        )
        path = folder / "int8.onnx"
        path.write_bytes(content)
        probabilities = ExportedModel.open(path).predict_probabilities(images.test.samples)
        names = tuple(calibrated.layers[node] for node in kept)
        return content, _compare(model, images, reference, probabilities, names)

    built = build(())
    if built[1].loses and not allow_loss:
        ranked = calibrated.rank_layers(batches[:1])
        built = _keep_layers(build, ranked)
    return built


def _keep_layers(
    build: Callable[[Sequence[str]], tuple[bytes, Int8Check]], ranked: Sequence[str]
) -> tuple[bytes, Int8Check]:
    """Keep 1, 2, 4, ... layers in float32 until the loss is accepted."""
    count, most = 1, max(1, int(len(ranked) * LARGEST_SHARE_KEPT))
    while True:
        content, check = build(ranked[:count])
        if not check.loses:
            return content, check
        if count == most:
            raise ExportError(
                f"8-bit integers lose more than 1 point of accuracy. {' '.join(check.sentences())} "
                "No file was kept. Pass --allow-loss to accept this, or export without --int8."
            )
        count = min(2 * count, most)


def _compare(
    model: TransferModel,
    images: Int8Images,
    reference: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    float_layers: tuple[str, ...],
) -> Int8Check:
    task, data = model.require_task(ClassificationTask), images.test
    if not np.isfinite(probabilities).all():
        raise ExportError(
            f"With 8-bit integers {int((~np.isfinite(probabilities)).sum())} probabilities are not "
            "numbers. Export without --int8."
        )
    before, after = task.predicted(reference), task.predicted(probabilities)
    targets = data.targets()
    right_before, right_after = before == targets, after == targets
    return Int8Check(
        before=wilson_interval(float(right_before.sum()), len(data)),
        after=wilson_interval(float(right_after.sum()), len(data)),
        change=paired_proportion_difference(right_after, right_before, data.groups()),
        label_agreement=float((before == after).mean()),
        images=len(data),
        calibration_images=len(images.calibration),
        float_layers=float_layers,
    )


def _batches(samples: Sequence[Sample], preprocess: Preprocess) -> list[NDArray[np.float32]]:
    import torch

    batches = []
    for start in range(0, len(samples), BATCH):
        pixels = torch.from_numpy(load_batch(samples[start : start + BATCH], preprocess))
        normalised = preprocess.normalise(pixels.permute(0, 3, 1, 2))
        batches.append(np.ascontiguousarray(normalised.numpy()))
    return batches
