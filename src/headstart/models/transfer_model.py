"""A model that works anywhere: backbone, head, task, and where they came from."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.prepare import BadFiles, gather, select
from headstart.errors import DataError, UsageError
from headstart.features.engines import runnable
from headstart.features.extractor import Extractor
from headstart.models.heads.head import Head
from headstart.models.heads.linear import LinearHead
from headstart.models.inference import Detections, Segmentation, detect, segment

__all__ = ["Answer", "Prediction", "TransferModel", "predictions_csv", "predictions_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the model says of one image.

    Parameters
    ----------
    name : str
        The image's path, or its kind when it came from memory.
    label : str or tuple of str
        The class by name; for multilabel every label that holds.
    probability : float
        Calibrated probability of ``label``; for multilabel of the likeliest label.
    probabilities : dict of str to float
        Of every class, by name.
    abstains : bool or None
        Whether ``label`` is too unsure to count, for a model with a wanted risk; None where no
        such threshold was chosen.
    """

    name: str
    label: str | tuple[str, ...]
    probability: float
    probabilities: dict[str, float]
    abstains: bool | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferModel:
    """A backbone with a head for a task, and the record of how it was made.

    Parameters
    ----------
    backbone : FrozenBackbone
        The backbone with its weights and preprocessing.
    task : Classification, Detection or Segmentation
    head : Head or None
        None before a method has fitted one.
    engine : str
        Arithmetic that the head learned from; predictions use it where the machine can.
    record : mapping
        Method, data, versions: plain values, stored with the model.
    """

    backbone: FrozenBackbone
    task: Any
    head: Head | None = None
    engine: str = "auto"
    record: Mapping[str, Any] = field(default_factory=dict)

    def require_head(self) -> Head:
        """Return the head.

        Raises
        ------
        UsageError
            If the model has not been fitted.
        """
        if self.head is None:
            raise UsageError("Expected a fitted model, got one without a head; do fit it first.")
        return self.head

    def linear_head(self) -> LinearHead:
        """Return the head of a classifier.

        Raises
        ------
        UsageError
            If the model has not been fitted, or does not classify.
        """
        head = self.require_head()
        if not isinstance(head, LinearHead):
            raise UsageError(f"Expected a classifier, got a model with the head {head.kind}.")
        return head

    def head_for(self, train: Dataset, *, seed: int) -> Head:
        """Return what a training starts from: the head that is there, else a random linear one.

        Raises
        ------
        UsageError
            If there is none, and boxes or masks are to be learned.
        """
        if self.head is not None and (train.is_dense or self.head.taps):
            return self.head
        if train.is_dense:
            raise UsageError(
                f"Expected a model with a head for {train.kind}, got one without; do make it with "
                "`headstart.create_model.create_model`."
            )
        return LinearHead.random(self.backbone.width, len(train.classes), seed=seed)

    def aligned(self, data: Dataset) -> Dataset:
        """Return the same images with this model's classes, so that indices mean the same.

        Raises
        ------
        DataError
            If the model gives one class an image, and an image has several labels or none.
        """
        if self.task.kind == "multiclass":
            for sample in data.samples:
                if isinstance(sample.target, tuple) and len(sample.target) != 1:
                    raise DataError(
                        f"Expected one class for each image, got {list(sample.target)} for "
                        f"{sample.name}; do use a model that was trained on several labels."
                    )
        return replace(data, classes=self.task.classes, kind=self.task.kind)

    def predict_probabilities(
        self, samples: Sequence[Sample], *, extractor: Extractor
    ) -> NDArray[np.float64]:
        """Calibrated probabilities, shape (n, n_classes), in the order of ``task.classes``."""
        head = self.linear_head()
        values = extractor.features(self.backbone, samples).values
        if not len(samples):
            return np.zeros((0, len(self.task.classes)))
        return np.asarray(self.task.probabilities(head.logits(values)))

    def predict(
        self,
        images: object,
        *,
        bad_files: BadFiles = "error",
        engine: str | None = None,
        device: str = "auto",
        cache: Cache | None = None,
        threshold: float | None = None,
        tile: int = 0,
    ) -> list[Any]:
        """Say what every image shows, in order.

        Parameters
        ----------
        images : path, bytes, PIL image, array, or a sequence of these
            A folder stands for all images below it.
        bad_files : {"error", "skip"}
            Refuse images that cannot be decoded, or leave them out of the answer.
        engine : str, optional
            By default the arithmetic that the model learned from, where the machine has it; boxes
            and masks are always found in fp32.
        device : str
        cache : Cache, optional
            By default the user's.
        threshold : float, optional
            Least score of a box, 0 to 1; by default the task's.
        tile : int
            Of masks: longer side, in the image's pixels, of overlapping windows that are read
            one by one where an image is larger; 0 reads every image whole.

        Returns
        -------
        list of Prediction, Detections or Segmented
            By the task; boxes and masks are in the image's own coordinates.

        Raises
        ------
        DataError
            If an image cannot be decoded and is not to be skipped; it is named.
        UsageError
            If an argument says nothing to this task.
        """
        cache = cache or Cache()
        samples = select(gather(images), cache=cache, bad_files=bad_files)
        return list(
            self.answers(
                samples, cache=cache, engine=engine, device=device, threshold=threshold, tile=tile
            )
        )

    def answers(
        self,
        samples: Sequence[Sample],
        *,
        cache: Cache,
        engine: str | None = None,
        device: str = "auto",
        threshold: float | None = None,
        tile: int = 0,
    ) -> Iterator[Answer]:
        """Answer as ``predict``, for examples that were read already; of masks one at a time."""
        self._require_said(engine, threshold, tile)
        if self.task.kind == "segmentation":
            yield from segment(
                self.backbone, self.require_head(), samples, tile=tile, device=device
            )
        elif self.task.kind == "detection":
            least = self.task.threshold if threshold is None else threshold
            found = detect(self.backbone, self.require_head(), samples, device=device)
            yield from (one.above(least) for one in found)
        else:
            wanted = engine or runnable(self.engine, device=device)
            extractor = Extractor(cache=cache, engine=wanted, device=device)
            yield from self._classified(samples, extractor)

    def _require_said(self, engine: str | None, threshold: float | None, tile: int) -> None:
        """Refuse what the task has no use for, rather than pass over it."""
        kind = self.task.kind
        wrong = [
            f"a {name}"
            for name, is_given, belongs in (
                ("threshold", threshold is not None, kind == "detection"),
                ("tile", tile != 0, kind == "segmentation"),
                (f"choice of engine, {engine}", engine not in {None, "fp32"}, "multi" in kind),
            )
            if is_given and not belongs
        ]
        if wrong or (threshold is not None and not 0 <= threshold <= 1):
            raise UsageError(
                f"Expected a threshold from 0 to 1 for detection, a tile for segmentation and an "
                f"engine for classification only, got {' and '.join(wrong) or threshold} for "
                f"{kind}; do leave it out."
            )

    def _classified(self, samples: Sequence[Sample], extractor: Extractor) -> Iterator[Prediction]:
        chances = self.predict_probabilities(samples, extractor=extractor)
        unsure = self.task.abstains(chances)
        left_out = [None] * len(chances) if unsure is None else unsure.tolist()
        rows = zip(samples, self.task.labels(chances), chances, left_out, strict=True)
        for sample, label, chance, abstains in rows:
            yield Prediction(
                name=sample.name,
                label=label,
                probability=float(chance.max()),
                probabilities=dict(zip(self.task.classes, map(float, chance), strict=True)),
                abstains=abstains,
            )


Answer = Prediction | Detections | Segmentation
"""What a model says of one image, by its task."""


def predictions_json(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Predictions as plain values; ``abstains`` where the model has a threshold for it."""
    rows = [asdict(prediction) for prediction in predictions]
    return [{k: v for k, v in row.items() if k != "abstains" or v is not None} for row in rows]


def predictions_csv(predictions: Sequence[Prediction]) -> str:
    """Predictions as the text of a CSV file: image, label, probability, every class.

    A model that may abstain has a column for it, 0 or 1, behind the probability.

    >>> one = Prediction(name="a.jpg", label="cat", probability=0.9, probabilities={"cat": 0.9})
    >>> predictions_csv([one]).splitlines()
    ['image,label,probability,cat', 'a.jpg,cat,0.900000,0.900000']
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    classes = list(predictions[0].probabilities) if predictions else []
    may = any(one.abstains is not None for one in predictions)
    writer.writerow(["image", "label", "probability", *["abstains"] * may, *classes])
    for one in predictions:
        label = one.label if isinstance(one.label, str) else "|".join(one.label)
        first, *others = (f"{x:.6f}" for x in (one.probability, *one.probabilities.values()))
        said = [int(bool(one.abstains))] * may
        writer.writerow([one.name, label, first, *said, *others])
    return table.getvalue()
