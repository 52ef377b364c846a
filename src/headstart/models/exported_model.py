"""Model in an exported file: predictions with ONNX Runtime or OpenVINO, without torch.

The file comes from `headstart.export`. It holds the network and a description: classes,
preprocessing, calibration, licence. Nothing here imports torch, except for the preprocessing of
files that take normalised pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.cache import Cache, open_cache
from headstart.data.dataset import Dataset, Sample, brief, html_table
from headstart.data.loader import decode_sample, load_batch, map_bounded
from headstart.data.pixel_values import ImageOptions
from headstart.data.prepare import BadFiles, readable_samples, to_samples
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import ModelFileError, UsageError
from headstart.features.extractor import Progress
from headstart.models.graph_files import Run, open_graph, read_description, suffix_of
from headstart.models.saving import load
from headstart.models.tasks import ClassificationTask, Task
from headstart.models.transfer_model import (
    AnyPrediction,
    TransferModel,
    align_classes,
    class_predictions,
)
from headstart.runtime import cores

__all__ = ["AnyModel", "ExportedModel", "open_model"]

TaskT = TypeVar("TaskT", bound=Task)

BATCH_SIZE = 8
"""Images of one run of a file that takes batches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedModel:
    """A model in an exported file. `ExportedModel.open` reads it.

    Parameters
    ----------
    path : Path
    task : ClassificationTask
    preprocess : Preprocess
    takes_images : bool
        Whether the file takes images (uint8, any size) or batches of normalised pixels.
    record : mapping
        What the file keeps of the training: how images are decoded, digests of the training images.
    description : mapping
        All entries of the description in the file.
    """

    path: Path
    task: ClassificationTask
    preprocess: Preprocess
    takes_images: bool
    record: Mapping[str, Any]
    description: Mapping[str, Any]
    run: Run = field(repr=False)

    def __repr__(self) -> str:
        return (
            f"ExportedModel({str(self.path)!r}, {self.task.kind}, {len(self.task.classes)} "
            f"classes: {brief(self.task.classes)})"
        )

    def _repr_html_(self) -> str:
        rows = {
            "file": str(self.path),
            "input": "an image" if self.takes_images else "a batch of normalised pixels",
            "classes": f"{len(self.task.classes)}: {brief(self.task.classes)}",
        }
        return html_table(f"ExportedModel, {self.task.kind}", rows)

    @classmethod
    def open(cls, path: str | Path) -> ExportedModel:
        """Read an exported file: .onnx with ONNX Runtime, .xml with OpenVINO.

        Parameters
        ----------
        path : str or Path

        Raises
        ------
        ModelFileError
            If the file is damaged, or `headstart export` did not write it.
        MissingExtraError
            If the runtime is not installed.
        """
        return cls.of(Path(path), *open_graph(Path(path)))

    @classmethod
    def of(cls, path: Path, run: Run, entries: Mapping[str, str]) -> ExportedModel:
        """Build the model of a file that is open already.

        Parameters
        ----------
        path : Path
        run : callable
            From an image or a batch to one row for each image.
        entries : mapping of str to str
            Metadata of the file.

        Raises
        ------
        ModelFileError
            If the metadata are not a valid description.
        """
        description = read_description(path, entries)
        return cls(
            path=path,
            task=description["task"],
            preprocess=description["preprocessing"],
            takes_images=description["input"] == "image",
            record=description["record"],
            description=description,
            run=run,
        )

    @property
    def image_options(self) -> ImageOptions:
        """How images are decoded, as in training."""
        return ImageOptions.of(self.record.get("image_options", {}))

    def require_task(self, task_type: type[TaskT]) -> TaskT:
        """Return the task, if it is of this type.

        Raises
        ------
        UsageError
            If the model has another task.
        """
        if not isinstance(self.task, task_type):
            raise UsageError(
                f"{self.path} is for {self.task.name}. Pass a file that was exported from a model "
                f"for {task_type.__name__.removesuffix('Task').lower()}."
            )
        return self.task

    def require_device(self, device: str) -> None:
        """Refuse another device than the CPU.

        Raises
        ------
        UsageError
            If the device is neither "auto" nor "cpu".
        """
        if device not in {"auto", "cpu"}:
            raise UsageError(
                f"{self.path} runs on the CPU, got device {device!r}. Pass --device cpu, or the "
                "model folder."
            )

    def with_selection(self, **selection: Any) -> ExportedModel:
        """Return the model itself; it has no boxes to select.

        Raises
        ------
        UsageError
            If a setting is given.
        """
        self._refuse(selection)
        return self

    def align_classes(self, data: Dataset) -> Dataset:
        """Return the same images with this model's classes, as `TransferModel.align_classes`."""
        return align_classes(self.task, data)

    def predict(
        self,
        images: object,
        *,
        bad_files: BadFiles = "error",
        cache: Cache | None = None,
        max_pixels: int | None = None,
    ) -> list[Any]:
        """Predict every image, in order, as `TransferModel.predict`.

        Parameters
        ----------
        images : path, bytes, PIL image, array, or a sequence of these
        bad_files : {"error", "skip"}
        cache : Cache, optional
            By default nothing is kept.
        max_pixels : int, optional

        Raises
        ------
        DataError
            If an image cannot be decoded and ``bad_files`` is "error". The message names it.
        """
        options = self.image_options.with_max_pixels(max_pixels)
        with open_cache(cache or False) as store:
            samples = readable_samples(
                to_samples(images), cache=store, bad_files=bad_files, options=options
            )
        return list(self.predict_samples(samples))

    def predict_samples(
        self,
        samples: Sequence[Sample],
        *,
        cache: Cache | None = None,
        device: str = "auto",
        **settings: Any,
    ) -> Iterator[AnyPrediction]:
        """Predict as ``predict``, for samples that were read already.

        Raises
        ------
        UsageError
            If a setting is given that an exported file does not have.
        """
        self.require_device(device)
        self._refuse(settings)
        probabilities = self.predict_probabilities(samples)
        yield from class_predictions(self.task, samples, probabilities)

    def predict_probabilities(
        self, samples: Sequence[Sample], *, progress: Progress | None = None
    ) -> NDArray[np.float64]:
        """Calibrated probabilities, shape (n, n_classes), in the order of ``task.classes``."""
        rows = []
        for row in self._outputs(samples):
            rows.append(row)
            if progress is not None:
                progress("features", len(rows), len(samples))
        return np.array(rows, dtype=np.float64).reshape(len(samples), len(self.task.classes))

    def _outputs(self, samples: Sequence[Sample]) -> Iterator[NDArray[Any]]:
        """The output of the file for every image, in order."""
        load_item: Callable[[Any], NDArray[Any]] = decode_sample
        items: Sequence[Any] = samples
        if not self.takes_images:
            starts = range(0, len(samples), BATCH_SIZE)
            items = [samples[start : start + BATCH_SIZE] for start in starts]
            load_item = self._normalised
        with ThreadPoolExecutor(cores()) as executor:
            for pixels in map_bounded(load_item, items, executor, cores() + 1):
                yield from self.run(pixels)

    def _normalised(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        import torch

        pixels = torch.from_numpy(load_batch(samples, self.preprocess)).permute(0, 3, 1, 2)
        return np.ascontiguousarray(self.preprocess.normalise(pixels).numpy())

    def _refuse(self, settings: Mapping[str, Any]) -> None:
        given = {name: value for name, value in settings.items() if value not in {None, 0}}
        if given:
            names = ", ".join(f"`{name}`={value!r}" for name, value in given.items())
            raise UsageError(
                f"{names} cannot be used with {self.path}, an exported {self.task.kind} model. "
                "Leave it out, or pass the model folder."
            )


AnyModel = TransferModel | ExportedModel
"""A model with torch, or an exported file."""


def open_model(path: str | Path) -> AnyModel:
    """Open a model's folder, or an exported file by the ending of its name.

    Raises
    ------
    ModelFileError
        If the folder or the file is damaged.
    """
    path = Path(path)
    if path.is_dir() or not suffix_of(path):
        return load(path)
    if not path.is_file():
        raise ModelFileError(f"There is no file {str(path)!r}. Check the path.")
    return ExportedModel.open(path)
