"""Drawings of predictions: heat map of a class, boxes or mask on the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from headstart.data.dataset import Sample
from headstart.data.draw import draw_boxes, draw_mask, resize_to_fit
from headstart.data.loader import decode_sample
from headstart.errors import HeadstartError, UsageError
from headstart.evaluation.explain import LONG_SIDE as HEAT_SIDE
from headstart.evaluation.explain import draw_heat_map, explain
from headstart.models.inference import Detections, Segmentation
from headstart.models.prediction_files import encode_png
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import AnyPrediction, TransferModel
from headstart.serving.predictor import Predictor, require_predictions

__all__ = ["LONG_SIDES", "draw_prediction", "overlay_of"]

LONG_SIDES = 480, 1024
"""Least and most pixels of the longer side of a drawing, so that labels can be read."""


def overlay_of(
    predictor: Predictor, label: str | None, device: str
) -> Callable[[Sequence[Sample]], list[bytes | HeadstartError]]:
    """Return a function that draws images as PNG, or returns why one cannot be drawn.

    Parameters
    ----------
    predictor : Predictor
    label : str or None
        Class of the heat map; by default the most probable one. Classifiers only.
    device : str
    """

    def draw(samples: Sequence[Sample]) -> list[bytes | HeadstartError]:
        drawings: list[bytes | HeadstartError] = []
        for sample in samples:
            try:
                drawings.append(_draw(predictor, sample, label, device))
            except HeadstartError as error:
                drawings.append(error)
        return drawings

    return draw


def _draw(predictor: Predictor, sample: Sample, label: str | None, device: str) -> bytes:
    from PIL import Image

    model = predictor.model
    if isinstance(model.task, ClassificationTask):
        if not isinstance(model, TransferModel):
            raise UsageError(
                f"{model.path.name} has no gradients, so there is no heat map. Pass the model "
                "folder to `headstart serve` instead of the exported file."
            )
        decoded = Sample(image=decode_sample(sample), title=sample.name)
        explanation = next(explain(model, [decoded], label=label, device_name=device))
        pixels, part = decode_sample(decoded), explanation.part
        drawing = draw_heat_map(pixels, explanation.heat, part, long_side=HEAT_SIDE)
        return encode_png(Image.fromarray(drawing))
    if label is not None:
        raise UsageError(f"`label` {label!r} needs a classifier. Leave it out.")
    (prediction,) = require_predictions(predictor([sample]))
    return draw_prediction(sample, prediction, model.task.classes)


def draw_prediction(sample: Sample, prediction: AnyPrediction, classes: Sequence[str]) -> bytes:
    """Draw boxes or a mask on an image, resized to ``LONG_SIDES``, and encode it as PNG.

    Parameters
    ----------
    sample : Sample
    prediction : Detections or Segmentation
    classes : sequence of str

    Raises
    ------
    UsageError
        If it is the prediction of a classifier.
    """
    from PIL import Image

    decoded = decode_sample(sample)
    image, scale = resize_to_fit(decoded, int(np.clip(max(decoded.shape[:2]), *LONG_SIDES)))
    if isinstance(prediction, Segmentation):
        size = image.shape[1], image.shape[0]
        mask = Image.fromarray(prediction.mask).resize(size, Image.Resampling.NEAREST)
        pixels = draw_mask(image, np.asarray(mask), classes)
    elif isinstance(prediction, Detections):
        pixels = draw_boxes(
            image,
            prediction.boxes * scale,
            prediction.labels,
            prediction.scores,
            classes=classes,
        )
    else:
        raise UsageError(f"{prediction.name} has no boxes or mask. Use `explain` for a heat map.")
    return encode_png(Image.fromarray(pixels))
