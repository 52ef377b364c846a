"""Predict classes, boxes or masks with a model, and write the predictions to files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.cache import Cache, open_cache
from headstart.data.checks.images import Finding
from headstart.data.dataset import Sample
from headstart.data.prepare import BadFiles, inspect_samples, to_samples
from headstart.errors import UnknownNameError, UsageError
from headstart.models.coco_ids import CocoIds, read_coco_ids
from headstart.models.exported_model import AnyModel, open_model
from headstart.models.heads.detection_config import SELECTION_SETTINGS
from headstart.models.prediction_files import FORMATS, require_format, write_predictions
from headstart.models.transfer_model import AnyPrediction

__all__ = ["PREDICT_SETTINGS", "PredictedImages", "predict", "predict_images"]

PREDICT_SETTINGS = (
    "threshold",
    *SELECTION_SETTINGS,
    "tile",
    "bad_files",
    "engine",
    "device",
    "max_pixels",
)
"""Settings that decide what is read and predicted: flags of the command, and keywords."""
FOLDER = Path("predictions")
"""Folder of the formats that are always files."""
PRINTED = ("table", "json", "csv")
"""Formats that need no folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedImages:
    """Predictions of images, computed one after the other when they are iterated.

    Parameters
    ----------
    samples : tuple of Sample
    predictions : iterator of Prediction, Detections or Segmentation
        One for each sample; iterated once.
    classes : tuple of str
    format : str
    folder : Path or None
        Folder for the files; None if no files are requested.
    ids : CocoIds or None
    findings : tuple of Finding
        Files of which pages or frames are left out.
    """

    samples: tuple[Sample, ...]
    predictions: Iterator[AnyPrediction]
    classes: tuple[str, ...]
    format: str = "table"
    folder: Path | None = None
    ids: CocoIds | None = None
    findings: tuple[Finding, ...] = ()

    def write(self, kept: list[AnyPrediction] | None = None) -> None:
        """Write the predictions to the folder, and add them to a list, if one is passed."""
        if self.folder is not None:
            pairs = zip(self.samples, self._kept(kept), strict=True)
            write_predictions(self.folder, self.format, pairs, self.classes, self.ids)

    def _kept(self, kept: list[AnyPrediction] | None) -> Iterator[AnyPrediction]:
        for prediction in self.predictions:
            if kept is not None:
                kept.append(prediction)
            yield prediction


def predict(
    model: AnyModel | str | Path,
    images: object,
    *,
    format: str = "table",  # noqa: A002 - the flag --format
    out: str | Path | None = None,
    ids: str | Path | None = None,
    cache: Cache | bool | None = None,
    **options: Any,
) -> list[Any]:
    """Predict the class, the objects or the mask of every image, in order.

    Parameters
    ----------
    model : TransferModel, ExportedModel, str or Path
        A model, the folder of a saved one, or an exported file.
    images : path, bytes, PIL image, array, or a sequence of these
        A folder stands for all images below it.
    format : str
        Files to write, as ``--format``: ``json`` or ``csv``; for boxes also ``coco``, ``yolo`` and
        ``overlay``; for masks ``masks`` and ``overlay``. ``table`` writes nothing.
    out : str or Path, optional
        Folder of the files, new or empty; by default ``predictions``. ``json`` and ``csv`` need it.
    ids : str or Path, optional
        COCO file whose ids the format ``coco`` uses.
    cache : Cache or bool, optional
        By default the user's; False for an empty one.
    **options
        ``threshold``, ``nms``, ``class_agnostic_nms``, ``max_boxes``, ``tile``, ``bad_files``,
        ``engine``, ``device`` and ``max_pixels``, as `TransferModel.predict`.

    Returns
    -------
    list of Prediction, Detections or Segmentation
        By the task; boxes and masks are in the image's own coordinates.

    Raises
    ------
    ModelFileError
        If the model's folder is damaged.
    DataError
        If an image cannot be decoded and ``bad_files`` is "error". The message names it.
    UsageError
        If a keyword is unknown, an argument is not for this task, or the folder has files.

    Examples
    --------
    >>> predict("runs/cells", "photos/", format="coco", out="found")  # doctest: +SKIP
    """
    for name in options:
        if name not in PREDICT_SETTINGS:
            names = (*PREDICT_SETTINGS, "cache", "format", "ids", "out")
            raise UnknownNameError("setting", name, names)
    if format in {"json", "csv"} and out is None:
        raise UsageError(
            f"`format` is {format!r}, which is written to a folder, but `out` is None. Pass "
            "out='found', or leave `format` out: the predictions are returned."
        )
    with open_cache(cache) as store:
        predicted = predict_images(
            model, images, format=format, out=out, ids=ids, cache=store, **options
        )
        if predicted.folder is None:
            return list(predicted.predictions)
        kept: list[AnyPrediction] = []
        predicted.write(kept)
        return kept


def predict_images(
    model: AnyModel | str | Path,
    images: object,
    *,
    cache: Cache,
    format: str = "table",  # noqa: A002 - the flag --format
    out: str | Path | None = None,
    ids: str | Path | None = None,
    bad_files: BadFiles = "error",
    max_pixels: int | None = None,
    **options: Any,
) -> PredictedImages:
    """Check all settings, read the images, and return the predictions, to be computed.

    Parameters
    ----------
    model, images, cache, format, out, ids
        As in `predict`.
    bad_files, max_pixels, **options
        See `PREDICT_SETTINGS`.

    Raises
    ------
    UsageError
        If a setting does not fit the model's task, or ``out`` is set for a table.
    """
    selection = {name: options.pop(name) for name in SELECTION_SETTINGS if name in options}
    opened = model if isinstance(model, AnyModel) else open_model(model)
    loaded = opened.with_selection(**selection)
    require_format(format, loaded.task.name)
    if out is not None and format == "table":
        formats = ", ".join(FORMATS[loaded.task.name][1:])
        raise UsageError(
            f"--out is {str(out)!r}, but a table is not written to files. Pass --format with one "
            f"of {formats}, or remove --out."
        )
    coco_ids = None if ids is None else read_coco_ids(Path(ids), format)
    samples, findings = inspect_samples(
        to_samples(images),
        cache=cache,
        bad_files=bad_files,
        options=loaded.image_options.with_max_pixels(max_pixels),
    )
    return PredictedImages(
        samples=samples,
        predictions=loaded.predict_samples(samples, cache=cache, **options),
        classes=tuple(loaded.task.classes),
        format=format,
        folder=_folder(format, out),
        ids=coco_ids,
        findings=findings,
    )


def _folder(output_format: str, out: str | Path | None) -> Path | None:
    if out is not None:
        return Path(out)
    return None if output_format in PRINTED else FOLDER
