"""Measure models: time for one image, throughput, size on disk and score, by runtime."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.cache import Cache, open_cache
from headstart.errors import UnknownNameError, UsageError
from headstart.evaluation.summary import primary_metric
from headstart.exports.check_images import check_images
from headstart.files import scratch_folder
from headstart.metrics.confidence_intervals import Interval
from headstart.models.exported_model import AnyModel, ExportedModel
from headstart.models.saving import load
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.models.writing import TENSORS
from headstart.runtime import machine
from headstart.serving.predictor import Predictor, require_predictions
from headstart.workflows.evaluate import evaluate_model
from headstart.workflows.events import Observer, Progressed, shown
from headstart.workflows.export import FORMATS, Export, export

__all__ = ["BENCH_FORMATS", "Bench", "Measurement", "bench", "parse_target"]

BENCH_FORMATS = ("torch", "onnx", "onnx-int8", "openvino")
"""Runtimes that can be measured: those that ``headstart predict`` can use."""
INT8 = "onnx-int8"
BATCH = 16
"""Images that are predicted together to measure the throughput."""
SMALLER = "headstart fit TRAINING_IMAGES --backbone torchvision/mobilenet_v3_small"
"""Command that is proposed if nothing is fast enough."""
WARM_UP = 3
"""Predictions of each runtime that are not measured."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One model in one runtime.

    Parameters
    ----------
    model : str
        Folder of the model.
    format : str
    milliseconds : mapping of str to float
        Time from an image file in memory to the prediction, one image at a time: ``p50``, ``p95``
        and ``p99``, the percentiles.
    throughput : float
        Images per second, in batches.
    size : int
        Bytes of all files that this runtime needs.
    score : Interval, optional
        The primary metric, if labelled images were given.
    """

    model: str
    format: str
    milliseconds: Mapping[str, float]
    throughput: float
    size: int
    score: Interval | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return all values as plain types, for JSON."""
        return {
            "model": self.model,
            "format": self.format,
            "milliseconds": dict(self.milliseconds),
            "images_per_second": self.throughput,
            "bytes": self.size,
            "score": None if self.score is None else self.score.as_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measurements of several models and runtimes, made in turns on one machine.

    Parameters
    ----------
    rows : tuple of Measurement
    measure : str, optional
        Name of the score.
    target : float, optional
        Largest accepted time for an image, in milliseconds.
    images : int
        Timed images for each row.
    """

    rows: tuple[Measurement, ...]
    measure: str | None
    target: float | None
    images: int

    @property
    def best(self) -> Measurement | None:
        """The row within the target that has the highest score, or is the fastest without scores.

        None if no row is within the target, or there is no target. Equal scores: the faster row.
        """
        fitting = [row for row in self.rows if row.milliseconds["p95"] <= (self.target or 0.0)]
        return min(fitting, key=_rank, default=None)

    def sentences(self) -> list[str]:
        """Say which row is within the target, or what to do if none is."""
        if self.target is None:
            return []
        limit, best = f"{self.target:g} ms", self.best
        if best is None:
            fastest = min(self.rows, key=lambda row: row.milliseconds["p95"])
            finding = (
                f"No row is within {limit} for 95 % of the images. The fastest is "
                f"{fastest.model} ({fastest.format}): {fastest.milliseconds['p95']:.1f} ms."
            )
            return [finding, f"Train a smaller backbone: `{SMALLER}`."]
        reason = "the fastest" if best.score is None else f"the highest {self.measure}"
        score = "" if best.score is None else f", {self.measure} {best.score}"
        advice = [] if best.score else ["Pass --data IMAGES to choose by the score."]
        choice = (
            f"Within {limit} for 95 % of the images, {reason}: {best.model} ({best.format}), "
            f"{best.milliseconds['p95']:.1f} ms{score}."
        )
        return [choice, *advice]

    def as_dict(self) -> dict[str, Any]:
        """Return all values as plain types, for JSON."""
        return {
            "machine": machine(),
            "images": self.images,
            "batch": BATCH,
            "measure": self.measure,
            "target_milliseconds": self.target,
            "rows": [row.as_dict() for row in self.rows],
            "best": None if self.best is None else self.best.as_dict(),
            "summary": self.sentences(),
        }


def bench(
    models: str | Path | Sequence[str | Path],
    *,
    data: object = None,
    formats: str | Sequence[str] = ("torch", "onnx"),
    target: str | float | None = None,
    images: int = 100,
    int8: object = None,
    cache: Cache | bool | None = None,
    progress: bool | None = None,
) -> Bench:
    """Measure saved models in several runtimes on the CPU, in turns.

    Parameters
    ----------
    models : str, Path or a sequence of these
        Folders of saved models.
    data : str, Path, Dataset or object, optional
        Labelled images, as for `headstart.evaluate`, for the scores.
    formats : str or sequence of str
        Of "torch", "onnx", "onnx-int8" and "openvino"; a text has commas between them.
    target : str or float, optional
        Largest accepted time for an image: "20ms", "0.5s", or milliseconds.
    images : int
        Images that are timed for each model and runtime, at least 20.
    int8 : str, Path, Dataset or object, optional
        Labelled images for "onnx-int8", as for `headstart.export`. Any loss is accepted: pass
        ``data`` to see it.
    cache : Cache or bool, optional
        By default the user's; False for an empty one.
    progress : bool, optional
        As for `headstart.fit`.

    Returns
    -------
    Bench

    Raises
    ------
    UsageError
        If an argument is invalid, or a model cannot be exported.
    ModelFileError
        If a model's folder is damaged.
    DataError
        If the labelled images cannot be used.
    MissingExtraError
        If a package of the extra ``export`` is missing.

    Examples
    --------
    >>> result = bench(["runs/a", "runs/b"], data="test/")  # doctest: +SKIP
    >>> [row.milliseconds["p95"] for row in result.rows]  # doctest: +SKIP
    [41.2, 9.8, 30.5, 7.1]
    """
    folders = [models] if isinstance(models, (str, Path)) else list(models)
    names = _split_formats(formats)
    _require_int8_images(names, int8)
    limit = None if target is None else parse_target(target)
    if not folders:
        raise UsageError(f"`models` is {models!r}. Pass at least one model folder.")
    if isinstance(images, bool) or not isinstance(images, int) or images < 20:
        raise UsageError(f"--images is {images!r}. Pass a whole number of at least 20.")
    with (
        open_cache(cache) as store,
        shown(progress, None) as notify,
        _opened(folders, names, int8, notify) as opened,
    ):
        scores: list[tuple[str, Interval]] = []
        for name, _, model, _ in opened:
            if data is not None:
                notify(Progressed(step=f"evaluating {name}", done=0, total=0))
                scores.append(_score(model, data, store))
        measures = sorted({measure for measure, _ in scores})
        if len(measures) > 1:
            raise UsageError(
                f"The models have different scores: {', '.join(measures)}. Pass models of one task."
            )
        predictors = [Predictor.of(model, cache=store, device="cpu") for _, _, model, _ in opened]
        seconds, rates = _measure(predictors, images, notify)
    rows = tuple(
        Measurement(
            model=name,
            format=kind,
            milliseconds=_percentiles(seconds[i]),
            throughput=rates[i],
            size=size,
            score=scores[i][1] if scores else None,
        )
        for i, (name, kind, _, size) in enumerate(opened)
    )
    return Bench(rows=rows, measure=next(iter(measures), None), target=limit, images=images)


def parse_target(target: str | float) -> float:
    """Convert a time such as ``20ms`` to milliseconds.

    Raises
    ------
    UsageError
        If it is not a positive time.

    Examples
    --------
    >>> [parse_target(value) for value in ("20ms", "0.5s", "20", 7.5)]
    [20.0, 500.0, 20.0, 7.5]
    """
    text, value = str(target).strip(), float("nan")
    unit = next((unit for unit in ("ms", "s") if text.endswith(unit)), "")
    with suppress(ValueError):
        value = float(text.removesuffix(unit)) * (1000.0 if unit == "s" else 1.0)
    if not 0 < value < math.inf:
        raise UsageError(f"--target is {target!r}. Pass a time above 0, such as --target 20ms.")
    return value


def _rank(row: Measurement) -> tuple[float, float]:
    return (0.0 if row.score is None else -row.score.value, row.milliseconds["p95"])


def _split_formats(formats: str | Sequence[str]) -> list[str]:
    listed = formats.split(",") if isinstance(formats, str) else formats
    names = list(dict.fromkeys(name.strip() for name in listed))
    for name in names:
        if name not in BENCH_FORMATS:
            raise UnknownNameError("format", name, BENCH_FORMATS)
    if not names:
        raise UsageError(f"`formats` is {formats!r}. Pass --formats torch,onnx.")
    return names


Opened = tuple[str, str, AnyModel, int]
"""Folder, format, model and bytes of its files."""


@contextmanager
def _opened(
    folders: Sequence[str | Path], formats: Sequence[str], int8: object, notify: Observer
) -> Iterator[list[Opened]]:
    """Export each model to each format in a temporary folder, and open all of them."""
    with scratch_folder(name="bench") as scratch:
        opened: list[Opened] = []
        for number, folder in enumerate(folders):
            model = load(folder)
            _require_formats(model, folder, formats)
            for kind in formats:
                if kind == "torch":
                    size = sum((Path(folder) / name).stat().st_size for name in _model_files())
                    opened.append((str(folder), kind, model, size))
                    continue
                notify(Progressed(step=f"exporting {folder} to {kind}", done=0, total=0))
                exported = _export(model, kind, scratch / f"{number}-{kind}", int8)
                opened.append((str(folder), kind, ExportedModel.open(exported.path), exported.size))
        yield opened


def _export(model: TransferModel, kind: str, path: Path, int8: object) -> Export:
    if kind == INT8:
        return export(model, "onnx", out=f"{path}.onnx", int8=int8, allow_loss=True)
    return export(model, kind, out=f"{path}{FORMATS[kind][-1]}")


def _require_int8_images(formats: Sequence[str], int8: object) -> None:
    if (INT8 in formats) != (int8 is not None):
        raise UsageError(
            f"--formats is {','.join(formats)!r}, and --int8 "
            f"{'is missing' if int8 is None else 'is given'}. Pass both {INT8} in --formats and "
            "--int8 IMAGES (labelled images for the calibration), or neither."
        )


def _require_formats(model: TransferModel, folder: str | Path, formats: Sequence[str]) -> None:
    others = [name for name in formats if name != "torch"]
    if others and not isinstance(model.task, ClassificationTask):
        raise UsageError(
            f"{folder} is for {model.task.name}, which cannot be exported to {', '.join(others)}. "
            "Pass --formats torch."
        )


def _model_files() -> tuple[str, str]:
    return (TENSORS, "model.json")


def _score(model: AnyModel, data: object, cache: Cache) -> tuple[str, Interval]:
    evaluation = evaluate_model(model, data, cache=cache, device="cpu").evaluation
    measure = primary_metric(evaluation)
    return measure, evaluation.metrics[measure]


def _percentiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(seconds, q)) * 1000 for q in (50, 95, 99)}


def _measure(
    predictors: Sequence[Predictor], images: int, notify: Observer
) -> tuple[NDArray[np.float64], list[float]]:
    """Seconds of single images, shape (predictors, images), and images per second in batches."""
    content = next(iter(check_images((224, 224)).values()))
    samples = [predictor.sample("photograph", content) for predictor in predictors]

    def seconds(i: int, count: int) -> float:
        started = perf_counter()
        require_predictions(predictors[i]([samples[i]] * count))
        return perf_counter() - started

    places = range(len(predictors))
    for i in places:
        for _ in range(WARM_UP):
            seconds(i, 1)
        seconds(i, BATCH)
    single = np.zeros((len(predictors), images))
    for turn in range(images):
        notify(Progressed(step="measuring", done=turn + 1, total=images))
        for i in places:
            single[i, turn] = seconds(i, 1)
    batches = np.array(
        [[seconds(i, BATCH) for i in places] for _ in range(max(3, images // BATCH))]
    )
    return single, [float(BATCH / value) for value in np.median(batches, axis=0)]
