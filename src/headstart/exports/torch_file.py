"""File of a model for torch without Headstart: a program of torch.export (.pt2)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.exports.network import converting, traced_program
from headstart.models.graph_files import Run
from headstart.models.transfer_model import TransferModel

__all__ = ["open_torch_file", "torch_file"]


def torch_file(model: TransferModel, entries: Mapping[str, str]) -> bytes:
    """Write a model as a program of torch.export; the input is a batch of normalised pixels.

    Parameters
    ----------
    model : TransferModel
        A fitted classifier.
    entries : mapping of str to str
        The file's metadata: its extra files.

    Raises
    ------
    UsageError
        If the model is not fitted, or its task cannot be exported.
    ExportError
        If the network cannot be converted.
    """
    import torch

    program, file = traced_program(model, "pt2"), io.BytesIO()
    with converting(model.backbone.spec.name, "pt2"):
        torch.export.save(program, file, extra_files=dict(entries))
    return file.getvalue()


def open_torch_file(path: Path, entries: Mapping[str, str]) -> tuple[Run, dict[str, str]]:
    """Open a file that was written by this process, and read its entries again.

    Do not open files of others: torch may run code that is in them.
    """
    import torch

    read = dict.fromkeys(entries, "")
    module = torch.export.load(path, extra_files=read).module()

    def run(pixels: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(pixels)).numpy())

    return run, read
