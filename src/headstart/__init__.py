"""Headstart: transfer learning for CNNs, from a folder of images to an evaluated model."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.backbones.backbone import Backbone
    from headstart.cache import Cache
    from headstart.cli.progress import show_progress
    from headstart.data.dataset import Boxes, Dataset, Mask, Palette, Sample
    from headstart.data.readers import read_dataset
    from headstart.data.transforms.augment import Augmentation
    from headstart.errors import DataError, HeadstartError, SetupError, TrainingError, UsageError
    from headstart.estimators import ImageClassifier, ImageSegmenter, ObjectDetector
    from headstart.evaluation.classification import Evaluation
    from headstart.methods.few_shot import FewShot
    from headstart.methods.finetune import Finetune
    from headstart.methods.linear_probe import LinearProbe
    from headstart.methods.scratch import Scratch
    from headstart.models.exported_model import ExportedModel
    from headstart.models.inference import Detections, Segmentation
    from headstart.models.saving import load
    from headstart.models.transfer_model import Prediction, TransferModel
    from headstart.models.writing import save
    from headstart.training.job import STOP
    from headstart.training.losses.classification import Loss
    from headstart.training.optim import Training
    from headstart.training.regularisation.penalties import Regularisation
    from headstart.workflows.adapt import adapt
    from headstart.workflows.bench import bench
    from headstart.workflows.compare import compare
    from headstart.workflows.convert import convert_data
    from headstart.workflows.distill import distill
    from headstart.workflows.episodes import evaluate_episodes
    from headstart.workflows.evaluate import evaluate
    from headstart.workflows.explain import explain
    from headstart.workflows.export import export
    from headstart.workflows.fit import fit
    from headstart.workflows.plan import plan
    from headstart.workflows.predict import predict
    from headstart.workflows.rank import rank
    from headstart.workflows.recipe import Recipe
    from headstart.workflows.run import Run
    from headstart.workflows.serve import serve
    from headstart.workflows.view import view_data
    from headstart.workflows.watch import watch

__version__ = "0.1.0"

# tqdm, which other libraries import, warns in notebooks without ipywidgets. Headstart's own
# progress needs neither.
warnings.filterwarnings("ignore", message="IProgress not found")

_HOMES = {
    "STOP": "headstart.training.job",
    "Augmentation": "headstart.data.transforms.augment",
    "Backbone": "headstart.backbones.backbone",
    "Boxes": "headstart.data.dataset",
    "Cache": "headstart.cache",
    "DataError": "headstart.errors",
    "Dataset": "headstart.data.dataset",
    "Detections": "headstart.models.inference",
    "Evaluation": "headstart.evaluation.classification",
    "ExportedModel": "headstart.models.exported_model",
    "FewShot": "headstart.methods.few_shot",
    "Finetune": "headstart.methods.finetune",
    "HeadstartError": "headstart.errors",
    "ImageClassifier": "headstart.estimators",
    "ImageSegmenter": "headstart.estimators",
    "LinearProbe": "headstart.methods.linear_probe",
    "Loss": "headstart.training.losses.classification",
    "Mask": "headstart.data.dataset",
    "ObjectDetector": "headstart.estimators",
    "Palette": "headstart.data.dataset",
    "Prediction": "headstart.models.transfer_model",
    "Recipe": "headstart.workflows.recipe",
    "Regularisation": "headstart.training.regularisation.penalties",
    "Run": "headstart.workflows.run",
    "Sample": "headstart.data.dataset",
    "Scratch": "headstart.methods.scratch",
    "Segmentation": "headstart.models.inference",
    "SetupError": "headstart.errors",
    "Training": "headstart.training.optim",
    "TrainingError": "headstart.errors",
    "TransferModel": "headstart.models.transfer_model",
    "UsageError": "headstart.errors",
    "adapt": "headstart.workflows.adapt",
    "bench": "headstart.workflows.bench",
    "compare": "headstart.workflows.compare",
    "convert_data": "headstart.workflows.convert",
    "distill": "headstart.workflows.distill",
    "evaluate": "headstart.workflows.evaluate",
    "evaluate_episodes": "headstart.workflows.episodes",
    "explain": "headstart.workflows.explain",
    "export": "headstart.workflows.export",
    "fit": "headstart.workflows.fit",
    "load": "headstart.models.saving",
    "plan": "headstart.workflows.plan",
    "predict": "headstart.workflows.predict",
    "rank": "headstart.workflows.rank",
    "read_dataset": "headstart.data.readers",
    "save": "headstart.models.writing",
    "serve": "headstart.workflows.serve",
    "show_progress": "headstart.cli.progress",
    "view_data": "headstart.workflows.view",
    "watch": "headstart.workflows.watch",
}
"""Module of each public name. It is imported on first use, so that `import headstart` is fast."""

__all__ = [
    "STOP",
    "Augmentation",
    "Backbone",
    "Boxes",
    "Cache",
    "DataError",
    "Dataset",
    "Detections",
    "Evaluation",
    "ExportedModel",
    "FewShot",
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
    "Segmentation",
    "SetupError",
    "Training",
    "TrainingError",
    "TransferModel",
    "UsageError",
    "__version__",
    "adapt",
    "bench",
    "compare",
    "convert_data",
    "distill",
    "evaluate",
    "evaluate_episodes",
    "explain",
    "export",
    "fit",
    "load",
    "plan",
    "predict",
    "rank",
    "read_dataset",
    "save",
    "serve",
    "show_progress",
    "view_data",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headstart' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
