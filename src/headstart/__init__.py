"""Headstart: transfer learning for CNNs, from a folder of pictures to an honest model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.cache import Cache
    from headstart.data.augment import Augmentation
    from headstart.data.readers import read_dataset
    from headstart.data.samples import Dataset, Sample
    from headstart.data.truths import Boxes, Mask, Palette
    from headstart.dense import Detections, Segmented
    from headstart.dense_estimators import ImageSegmenter, ObjectDetector
    from headstart.errors import DataError, HeadstartError, SetupError, TrainingError, UsageError
    from headstart.estimators import ImageClassifier
    from headstart.evaluation import Evaluation, evaluate
    from headstart.methods.finetune import Finetune
    from headstart.methods.linear_probe import LinearProbe
    from headstart.methods.scratch import Scratch
    from headstart.model import Prediction, TransferModel
    from headstart.model_folder import load, save
    from headstart.recipe import Recipe
    from headstart.run import Run, fit
    from headstart.training.losses import Loss
    from headstart.training.optim import Training
    from headstart.training.penalties import Regularisation

__version__ = "0.1.0"

_HOMES = {
    "Augmentation": "headstart.data.augment",
    "Boxes": "headstart.data.truths",
    "Cache": "headstart.cache",
    "DataError": "headstart.errors",
    "Dataset": "headstart.data.samples",
    "Detections": "headstart.dense",
    "Evaluation": "headstart.evaluation",
    "Finetune": "headstart.methods.finetune",
    "HeadstartError": "headstart.errors",
    "ImageClassifier": "headstart.estimators",
    "ImageSegmenter": "headstart.dense_estimators",
    "LinearProbe": "headstart.methods.linear_probe",
    "Loss": "headstart.training.losses",
    "Mask": "headstart.data.truths",
    "ObjectDetector": "headstart.dense_estimators",
    "Palette": "headstart.data.truths",
    "Prediction": "headstart.model",
    "Recipe": "headstart.recipe",
    "Regularisation": "headstart.training.penalties",
    "Run": "headstart.run",
    "Sample": "headstart.data.samples",
    "Scratch": "headstart.methods.scratch",
    "Segmented": "headstart.dense",
    "SetupError": "headstart.errors",
    "Training": "headstart.training.optim",
    "TrainingError": "headstart.errors",
    "TransferModel": "headstart.model",
    "UsageError": "headstart.errors",
    "evaluate": "headstart.evaluation",
    "fit": "headstart.run",
    "load": "headstart.model_folder",
    "read_dataset": "headstart.data.readers",
    "save": "headstart.model_folder",
}
"""Where each public name lives; it is imported when first asked for, so this import is light."""

__all__ = [
    "Augmentation",
    "Boxes",
    "Cache",
    "DataError",
    "Dataset",
    "Detections",
    "Evaluation",
    "Finetune",
    "HeadstartError",
    "ImageClassifier",
    "ImageSegmenter",
    "LinearProbe",
    "Loss",
    "Mask",
    "ObjectDetector",
    "Palette",
    "Prediction",
    "Recipe",
    "Regularisation",
    "Run",
    "Sample",
    "Scratch",
    "Segmented",
    "SetupError",
    "Training",
    "TrainingError",
    "TransferModel",
    "UsageError",
    "__version__",
    "evaluate",
    "fit",
    "load",
    "read_dataset",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headstart' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
