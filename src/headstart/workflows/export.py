"""Export a model as a file for another runtime, with a certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import fingerprint
from headstart.cache import open_cache
from headstart.data.dataset import Sample
from headstart.data.prepare import readable_samples, to_samples
from headstart.errors import SetupError, UnknownNameError, UsageError
from headstart.exports.certificate import TOLERANCES, Certificate, certify
from headstart.exports.check_images import check_images
from headstart.features.extractor import Extractor
from headstart.files import scratch_folder, write_whole
from headstart.metrics.validation import json_text
from headstart.models.exported_model import ExportedModel
from headstart.models.graph_files import INPUTS, runtime_name, to_entries
from headstart.models.saving import load
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.runtime import versions
from headstart.workflows.quantise import Int8Check, choose_images, int8_file

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["FORMATS", "Export", "export"]

FORMATS = {"onnx": (".onnx",), "openvino": (".bin", ".xml"), "pt2": (".pt2",)}
"""Endings of the files, by format. The last one is the file that a runtime opens."""
DEFAULT_NAME = "model"


@dataclass(frozen=True, kw_only=True)
class Export:
    """An exported file and its certificate.

    Parameters
    ----------
    path : Path
        The file.
    certificate : Certificate
        With ``int8``: that of the same file in float32.
    certificate_path : Path
        The certificate as JSON, beside the file.
    int8 : Int8Check, optional
        Accuracy before and after, if the file has 8-bit integers.
    """

    path: Path
    certificate: Certificate
    certificate_path: Path
    int8: Int8Check | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that a runtime needs: ``path``, and for OpenVINO the .bin with the weights."""
        beside = (self.path.with_suffix(ending) for ending in _endings(self.path)[:-1])
        return (self.path, *beside)

    @property
    def size(self) -> int:
        """Bytes of all ``files`` together."""
        return sum(file.stat().st_size for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """Return all values as plain types, for JSON."""
        return {
            "file": str(self.path),
            "files": [str(file) for file in self.files],
            "bytes": self.size,
            "certificate_file": str(self.certificate_path),
            "certificate": self.certificate.as_dict(),
            **({} if self.int8 is None else {"int8": self.int8.as_dict()}),
        }


def export(
    model: TransferModel | str | Path,
    to: str = "onnx",
    *,
    out: str | Path | None = None,
    input: str | None = None,  # noqa: A002 - the flag's name
    images: object = None,
    int8: object = None,
    allow_loss: bool = False,
) -> Export:
    """Export a classifier as one file, and check that its predictions are those of the model.

    Parameters
    ----------
    model : TransferModel, str or Path
        A model, or the folder of a saved one.
    to : {"onnx", "openvino", "pt2"}
        Format of the file: for ONNX Runtime, for OpenVINO (a second file, .bin, has the weights),
        or a program for ``torch.export.load``.
    out : str or Path, optional
        The new file. By default ``model`` with the format's ending, in the model's folder, or in
        the current folder for a model in memory.
    input : {"image", "batch"}, optional
        ``image``, only with "onnx" and its default: the file takes one image, uint8 of shape
        (height, width, 3) and any size, and preprocesses it. ``batch``, the default of the other
        formats: the file takes normalised pixels, float32 of shape (n, 3, height, width).
    images : path, bytes, PIL image, array, or a sequence of these, optional
        Images to check in addition to the photographs that are always checked.
    int8 : str, Path, Dataset or object, optional
        Labelled images, as for `headstart.fit`: the file gets 8-bit integers. Training images of
        the model calibrate it; its accuracy is compared with float32 on the others. Only with
        "onnx".
    allow_loss : bool
        Accept an 8-bit file that loses more than 1 point of accuracy beyond chance.

    Returns
    -------
    Export

    Raises
    ------
    UsageError
        If the model is not fitted, its task cannot be exported, or the file exists.
    ExportError
        If the network cannot be converted, the file disagrees with the model, or 8-bit integers
        lose too much. No file is kept.
    DataError
        If the images cannot be used.
    MissingExtraError
        If a package of the extra ``export`` is missing.
    SetupError
        If the file cannot be written.

    Examples
    --------
    >>> exported = export("runs/photos", to="onnx", out="photos.onnx")  # doctest: +SKIP
    >>> exported.certificate.agrees  # doctest: +SKIP
    True
    """
    if to not in FORMATS:
        raise UnknownNameError("format", to, FORMATS)
    takes_images = _takes_images(to, input)
    _require_int8_format(to, int8, allow_loss)
    path = _choose_path(model, to, out)
    loaded = model if isinstance(model, TransferModel) else load(model)
    entries = to_entries(_describe(loaded, "image" if takes_images else "batch"))
    labelled = None if int8 is None else choose_images(loaded, int8)
    network = None if labelled is None else _convert(loaded)
    contents = _contents(loaded, to, entries, takes_images=takes_images, network=network)
    beside = path.with_name(f"{path.name}.certificate.json")
    check: Int8Check | None = None
    try:
        with scratch_folder(path.parent, path.name) as folder:
            for suffix, content in contents.items():
                (folder / f"{DEFAULT_NAME}{suffix}").write_bytes(content)
            draft = _open_draft(folder / f"{DEFAULT_NAME}{path.suffix.lower()}", entries)
            certificate = _certify(loaded, draft, images)
            certificate.require_agreement()
            if labelled is not None and network is not None:
                contents[path.suffix.lower()], check = int8_file(
                    loaded, network, entries, labelled, draft, folder=folder, allow_loss=allow_loss
                )
        exported = Export(path=path, certificate=certificate, certificate_path=beside, int8=check)
        _write_all(
            {
                beside: json_text(_certificate_record(exported), indent=1).encode(),
                **{path.with_suffix(suffix): content for suffix, content in contents.items()},
            }
        )
    except OSError as error:
        raise SetupError(
            f"Cannot write {path}: {error}. Free disk space, or pass another --out."
        ) from error
    return exported


def _certificate_record(exported: Export) -> dict[str, Any]:
    """The certificate as plain types; with 8-bit integers also their own rule and numbers."""
    record = exported.certificate.as_dict()
    return record if exported.int8 is None else {**record, "int8": exported.int8.as_dict()}


def _require_int8_format(to: str, int8: object, allow_loss: bool) -> None:
    if int8 is not None and to != "onnx":
        raise UsageError(
            f"`int8` writes a file for ONNX Runtime, but `to` is {to!r}. Pass --to onnx, or leave "
            "--int8 out."
        )
    if allow_loss and int8 is None:
        raise UsageError(
            f"`allow_loss` is {allow_loss}, but `int8` is {int8}. Pass --int8 IMAGES too, or leave "
            "--allow-loss out."
        )


def _convert(model: TransferModel) -> ModelProto:
    from headstart.exports import onnx_file

    return onnx_file.convert(model)


def _endings(path: Path) -> tuple[str, ...]:
    """Endings of all files of the format to which ``path`` belongs."""
    return next(endings for endings in FORMATS.values() if endings[-1] == path.suffix.lower())


def _takes_images(to: str, input_kind: str | None) -> bool:
    if input_kind is not None and input_kind not in INPUTS:
        raise UnknownNameError("input", input_kind, INPUTS)
    if input_kind == "image" and to != "onnx":
        raise UsageError(
            f"`input` is 'image', but a file of --to {to} cannot hold the preprocessing. Pass "
            "--input batch, or --to onnx."
        )
    return input_kind == "image" or (input_kind is None and to == "onnx")


def _write_all(files: Mapping[Path, bytes]) -> None:
    """Write all files, or none of them."""
    try:
        for path, content in files.items():
            write_whole(path, content)
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        raise


def _open_draft(path: Path, entries: Mapping[str, str]) -> ExportedModel:
    if path.suffix != ".pt2":
        return ExportedModel.open(path)
    from headstart.exports.torch_file import open_torch_file

    return ExportedModel.of(path, *open_torch_file(path, entries))


def _choose_path(model: TransferModel | str | Path, to: str, out: str | Path | None) -> Path:
    suffix = FORMATS[to][-1]
    if out is None:
        folder = Path() if isinstance(model, TransferModel) else Path(model)
        path = folder / f"{DEFAULT_NAME}{suffix}"
    else:
        path = Path(out)
        if path.suffix.lower() != suffix:
            raise UsageError(
                f"--out {str(out)!r} must end with {suffix}, the ending of the format {to}. Pass "
                f"--out {str(path.with_suffix(suffix))!r}."
            )
    for ending in FORMATS[to]:
        if path.with_suffix(ending).exists():
            raise UsageError(
                f"{path.with_suffix(ending)} exists already. Remove it, or pass another --out."
            )
    if out is not None and not path.parent.is_dir():
        raise UsageError(
            f"The folder {str(path.parent)!r} of --out does not exist. Create it, or pass another "
            "--out."
        )
    return path


def _contents(
    model: TransferModel,
    to: str,
    entries: Mapping[str, str],
    *,
    takes_images: bool,
    network: ModelProto | None,
) -> dict[str, bytes]:
    """Contents of the files by their endings."""
    if to == "openvino":
        from headstart.exports.openvino_file import openvino_files

        return openvino_files(model, entries)
    if to == "pt2":
        from headstart.exports.torch_file import torch_file

        return {".pt2": torch_file(model, entries)}
    from headstart.exports.onnx_file import onnx_file

    content = onnx_file(model, entries, takes_images=takes_images, network=network)
    return {".onnx": content}


def _describe(model: TransferModel, input_kind: str) -> dict[str, Any]:
    """Everything that a file's user must know, as JSON values."""
    record, spec = model.record, model.backbone.spec
    kept = ("image_options", "learned_from", "training_descriptors")
    return {
        "task": model.task.as_dict(),
        "classes": list(model.task.classes),
        "preprocessing": spec.preprocess.as_dict(),
        "input": input_kind,
        "backbone": spec.name,
        "licence": spec.licence,
        "weights": dict(model.backbone.origin),
        "weights_hash": _hash_weights(model),
        "saved_with": versions(),
        "record": {name: record[name] for name in kept if name in record},
    }


def _certify(model: TransferModel, exported: ExportedModel, images: object) -> Certificate:
    """Compare both on drawn images and on the user's."""
    task = model.require_task(ClassificationTask)
    options = model.image_options
    files = check_images(model.backbone.spec.preprocess.shape)
    drawn = [Sample(image=content, title=name) for name, content in files.items()]
    with open_cache(no_cache=True) as cache:
        samples = readable_samples(
            [*drawn, *(() if images is None else to_samples(images))],
            cache=cache,
            bad_files="error",
            options=options,
        )
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        reference = model.predict_probabilities(samples, extractor=extractor)
    return certify(
        task,
        [sample.name for sample in samples],
        reference,
        _worst_probabilities(exported, samples, reference),
        runtime=runtime_name(exported.path),
        tolerance=TOLERANCES["image" if exported.takes_images else "batch"],
    )


def _worst_probabilities(
    exported: ExportedModel, samples: Sequence[Sample], reference: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Probabilities of the file; of batches and of single images those that differ more."""
    together = exported.predict_probabilities(samples)
    if exported.takes_images:
        return together
    alone = np.concatenate([exported.predict_probabilities([sample]) for sample in samples])
    distances = [np.abs(values - reference).max(axis=1) for values in (alone, together)]
    return np.where((distances[0] > distances[1])[:, None], alone, together)


def _hash_weights(model: TransferModel) -> str:
    """SHA-256 of all values of the backbone and the head."""
    import torch

    head = {f"head.{n}": torch.from_numpy(v) for n, v in model.require_head().state().items()}
    return fingerprint({**{f"backbone.{n}": v for n, v in model.backbone.state.items()}, **head})
