"""Predictor: a model that is loaded once and predicts small batches, as `headstart predict`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headstart.cache import Cache
from headstart.data.dataset import Sample
from headstart.data.loader import decode_sample
from headstart.data.pixel_values import ImageOptions
from headstart.errors import HeadstartError, UnreadableImageError
from headstart.features.engines import runnable_engine
from headstart.features.extractor import Extractor, SplitPoint
from headstart.models.exported_model import AnyModel, ExportedModel
from headstart.models.inference import build_network
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import AnyPrediction, TransferModel, class_predictions

__all__ = ["Answer", "Predictor", "require_predictions"]

Answer = AnyPrediction | HeadstartError
"""Prediction of an image, or the reason why there is none."""

Predict = Callable[[Sequence[Sample]], list[AnyPrediction]]


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model that is ready to predict. Call it with samples; threads may share it.

    Parameters
    ----------
    model : TransferModel or ExportedModel
    options : ImageOptions
        How images are decoded, and how large they may be.
    """

    model: AnyModel
    options: ImageOptions
    _predict: Predict = field(repr=False)

    @classmethod
    def of(
        cls, model: AnyModel, *, cache: Cache, max_pixels: int | None = None, device: str = "auto"
    ) -> Predictor:
        """Prepare a model: compile its network, and run it once on a grey image.

        Parameters
        ----------
        model : TransferModel or ExportedModel
        cache : Cache
            Keeps converted networks; no predictions are stored.
        max_pixels : int, optional
            Largest width times height of an image; by default that of the training.
        device : str

        Raises
        ------
        UsageError
            If the model is not fitted, or does not run on the device.
        """
        options = model.image_options.with_max_pixels(max_pixels)
        if isinstance(model, TransferModel) and isinstance(model.task, ClassificationTask):
            predict = _classify(model, model.task, cache=cache, device=device)
        else:
            predict = _predict_samples(model, cache=cache, device=device)
        predict([Sample(image=np.full((64, 64, 3), 127, np.uint8))])
        return cls(model, options, predict)

    def __call__(self, samples: Sequence[Sample]) -> list[Answer]:
        """Predict images; one that cannot be decoded does not affect the others."""
        answers: list[Answer | None] = []
        decoded: list[Sample] = []
        for sample in samples:
            try:
                decoded.append(Sample(image=decode_sample(sample), title=sample.name))
                answers.append(None)
            except UnreadableImageError as error:
                answers.append(error)
        predictions = iter(self._predict(decoded) if decoded else ())
        return [next(predictions) if answer is None else answer for answer in answers]

    def sample(self, name: str, content: bytes) -> Sample:
        """Return the sample of an image file."""
        return Sample(image=content, title=name, options=self.options)


def require_predictions(answers: Sequence[Answer]) -> list[AnyPrediction]:
    """Return the predictions, if there is one for every image.

    Raises
    ------
    HeadstartError
        The error of the first image that has one.

    Examples
    --------
    >>> require_predictions([])
    []
    """
    predictions: list[AnyPrediction] = []
    for answer in answers:
        if isinstance(answer, HeadstartError):
            raise answer
        predictions.append(answer)
    return predictions


def _classify(
    model: TransferModel, task: ClassificationTask, *, cache: Cache, device: str
) -> Predict:
    """Build the function of a classifier: the network is compiled once, nothing is cached."""
    head = model.linear_head()
    engine = runnable_engine(model.engine, device=device)
    engine = "fp32" if engine == "auto" else engine  # as for a few images: engines.choose_engine
    extractor = Extractor(cache=cache, engine=engine, device=device)
    run = extractor.runner(model.backbone, SplitPoint(engine=engine))

    def predict(samples: Sequence[Sample]) -> list[AnyPrediction]:
        # Row by row: in one product the last digits would depend on the other images.
        logits = [head.logits(row[None]) for row in run(samples, None)]
        probabilities = np.concatenate([task.probabilities(row) for row in logits])
        return list(class_predictions(task, samples, probabilities))

    return predict


def _predict_samples(model: AnyModel, *, cache: Cache, device: str) -> Predict:
    if isinstance(model, ExportedModel):
        model.require_device(device)
        settings: dict[str, Any] = {}
    else:
        network = build_network(model.backbone, model.require_head(), device)
        settings = {"network": network}

    def predict(samples: Sequence[Sample]) -> list[AnyPrediction]:
        return list(model.predict_samples(samples, cache=cache, device=device, **settings))

    return predict
