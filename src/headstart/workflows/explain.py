"""Explain: heat maps of the image regions that predictions depend on, as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headstart.cache import Cache
from headstart.data.checks.images import keep_readable, scan
from headstart.data.dataset import Dataset
from headstart.data.prepare import to_samples
from headstart.data.readers import with_image_options
from headstart.evaluation.explain import ExplainMethod
from headstart.evaluation.explain import explain as explain_samples
from headstart.models.saving import load
from headstart.models.transfer_model import TransferModel
from headstart.reports.explanations import write_explanations

__all__ = ["explain"]


def explain(
    model: TransferModel | str | Path,
    images: object,
    *,
    out: str | Path = "explanations",
    method: ExplainMethod = "grad-cam",
    label: str | None = None,
    device: str = "auto",
    max_pixels: int | None = None,
    cache: Cache | None = None,
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Draw which image regions the predictions of a classifier depend on.

    Parameters
    ----------
    model : TransferModel, str or Path
        A model, or the folder of one.
    images : path, bytes, PIL image, array, or a sequence of these
        A folder means all images below it.
    out : str or Path
        Output folder, new or empty: a heat map for every image, index.html, explanations.json.
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
    >>> explain("runs/photos", "photos/new", out="maps")  # doctest: +SKIP
    """
    title = "model" if isinstance(model, TransferModel) else Path(model).resolve().name
    model = model if isinstance(model, TransferModel) else load(model)
    data = Dataset(samples=to_samples(images), classes=())
    data = with_image_options(data, model.image_options.with_max_pixels(max_pixels))
    records = scan(data.samples, cache=cache or Cache())
    readable = keep_readable(data, records, bad_files="skip")[0].samples
    problems = tuple(
        f"{sample.name}: {record.problem}"
        for sample, record in zip(data.samples, records, strict=True)
        if record.problem is not None
    )
    explanations = explain_samples(model, readable, method=method, label=label, device_name=device)
    pairs = zip(readable, explanations, strict=True)
    return write_explanations(Path(out), pairs, title=title, unreadable=problems), problems
