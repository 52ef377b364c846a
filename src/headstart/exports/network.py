"""Networks to export: normalised pixels to probabilities, and the conversion without noise."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from headstart.backbones.freezing import freeze
from headstart.errors import ExportError, UsageError
from headstart.features.engines import CONVERSION_ERRORS
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel

__all__ = ["BATCH", "OUTPUTS", "ClassNetwork", "converting", "network_of", "traced_program"]

BATCH = "pixels"
"""Name of the network's input: float32 (n, 3, height, width), normalised."""
OUTPUTS = {"classification": "probabilities"}
"""Name of the network's output, by task."""


class ClassNetwork(nn.Module):
    """Backbone, head and calibration of a classifier; the input is normalised already.

    Parameters
    ----------
    model : TransferModel
        A fitted classifier. Its parameters are copied.
    """

    def __init__(self, model: TransferModel):
        super().__init__()
        task = model.require_task(ClassificationTask)
        self.backbone = copy.deepcopy(model.backbone.module)
        self.head = model.linear_head().module()
        self.temperature, self.is_multilabel = task.temperature, task.kind == "multilabel"
        freeze(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the probabilities, shape (n, n_classes), of pixels (n, 3, height, width)."""
        logits: Tensor = self.head(self.backbone(pixels)) / self.temperature
        return logits.sigmoid() if self.is_multilabel else logits.softmax(dim=1)


def network_of(model: TransferModel) -> ClassNetwork:
    """Return the network of a model, for the task's output in `OUTPUTS`.

    Raises
    ------
    UsageError
        If the model is not fitted, or its task cannot be exported.
    """
    model.require_head()
    if model.task.name not in OUTPUTS:
        raise UsageError(
            f"A model for {model.task.name} cannot be exported, only one for "
            f"{' or '.join(OUTPUTS)}. Use `headstart predict` with the model folder."
        )
    return ClassNetwork(model)


def traced_program(model: TransferModel, target: str) -> torch.export.ExportedProgram:
    """Trace a model's network with torch.export, for any number of images.

    Parameters
    ----------
    model : TransferModel
    target : str
        Format of the file, for messages.

    Raises
    ------
    UsageError
        If the model is not fitted, or its task cannot be exported.
    ExportError
        If the network cannot be traced.
    """
    network, spec = network_of(model), model.backbone.spec
    example = torch.zeros(2, 3, *spec.preprocess.shape)
    with converting(spec.name, target), torch.no_grad():
        return torch.export.export(
            network, (example,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},)
        )


@contextlib.contextmanager
def converting(name: str, target: str) -> Iterator[None]:
    """Silence a conversion, which prints whole graphs, and raise a failure in one sentence.

    Parameters
    ----------
    name : str
        Of the backbone.
    target : str
        Format of the file.

    Raises
    ------
    ExportError
        If the network cannot be converted.

    Examples
    --------
    >>> with converting("my/net", "onnx"):  # doctest: +ELLIPSIS
    ...     raise RuntimeError("no such operator")
    Traceback (most recent call last):
    headstart.errors.ExportError: my/net cannot be exported to onnx: no such operator. ...
    """
    previous = logging.root.manager.disable
    try:
        with (
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            yield
    except CONVERSION_ERRORS as error:
        raise ExportError(
            f"{name} cannot be exported to {target}: {_cause(error)}. Use another backbone, or "
            "another format: --to onnx, openvino or pt2."
        ) from error
    finally:
        logging.disable(previous)


def _cause(error: BaseException) -> str:
    """First line of the innermost error that has a message."""
    texts: list[str] = []
    current: BaseException | None = error
    while current is not None and len(texts) < 20:
        texts += [line.strip(" .") for line in str(current).splitlines() if line.strip(" .")][:1]
        current = current.__cause__
    return texts[-1][:300] if texts else type(error).__name__
