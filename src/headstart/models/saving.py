"""Load a model: model.json and model.safetensors, as models/writing.py writes them.

A model folder can come from an untrusted source. Loading checks each part on its own, then checks
that the parts fit together. It runs no code from the folder, reads no other file, downloads
nothing, and builds no network that is larger than the tensors in the folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from errno import EFBIG
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.backbones.catalog import names
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.plugin_backbones import build_plugin
from headstart.backbones.spec import BackboneSpec
from headstart.errors import ModelFileError, SetupError, UsageError
from headstart.features.engines import ENGINES
from headstart.files import read_bounded
from headstart.models.build import HEADS
from headstart.models.heads.detection import MAX_SIDE, BoxHead
from headstart.models.heads.detection_config import MAX_VALUE, BoxShape
from headstart.models.heads.head import Head
from headstart.models.heads.linear import LinearHead
from headstart.models.heads.segmentation import MaskHead
from headstart.models.tasks import ClassificationTask, DetectionTask, SegmentationTask, Task
from headstart.models.transfer_model import TransferModel
from headstart.models.writing import (
    DESCRIPTION,
    FORMAT,
    TENSORS,
    VERSION,
    fitting_tensors,
    save,
)
from headstart.plugins import BACKBONES, find

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.backbones.backbone import Backbone

__all__ = ["assemble_model", "load", "save", "shorten"]

TASKS: Mapping[str, type[ClassificationTask | DetectionTask | SegmentationTask]] = {
    "classification": ClassificationTask,
    "detection": DetectionTask,
    "segmentation": SegmentationTask,
}

FILE_OPTIONS = re.compile("pretrained|weights|checkpoint|cache|file|url|hub|dir$|(?<!drop)_path$")
"""Names of options that make a library read or download files."""
BATCH_COUNTER = "num_batches_tracked"
"""Ending of the names of BatchNorm's counters, the only integer tensors of a head."""

DAMAGED = "The model folder is damaged: copy it again."
MAX_BYTES = {DESCRIPTION: 16_000_000, "header": 16_000_000, TENSORS: 16_000_000_000}


def assemble_model(
    description: Mapping[str, Any], content: bytes, *, module: object = None
) -> TransferModel:
    """Build a model from the contents of its two files.

    Parameters
    ----------
    description : mapping
        Contents of model.json.
    content : bytes
        Contents of model.safetensors.
    module : torch.nn.Module or callable, optional
        As for ``load``.

    Raises
    ------
    ModelFileError
        If a part is invalid, or the parts do not fit together. With other invalid values a
        library may raise an exception of its own.
    """
    from safetensors.torch import load as from_bytes

    task = _read_task(description["task"])
    spec = BackboneSpec.from_dict(description["backbone"])
    _require_safe_spec(spec)
    if spec.source == "module" or module is not None:
        spec = _bind_module(spec, module)
    state, head_state = _split_tensors(from_bytes(content))
    backbone = FrozenBackbone(spec=spec, state=state, origin=description["weights"])
    head = _read_head(description["head"], task, head_state)
    _require_matching_parts(backbone, head, len(task.classes))
    return TransferModel(
        backbone=backbone,
        task=task,
        head=head,
        engine=description["engine"],
        record=description["record"],
    )


def _bind_module(spec: BackboneSpec, module: object) -> BackboneSpec:
    """Give a network of the user's own, or of another package, its code."""
    if module is None and spec.source == "module" and not spec.name.startswith("module/"):
        return _bind_installed(spec)
    if module is None:
        raise UsageError(
            f"The model was trained on {spec.name}, a network of your own, whose code is not in "
            "the model folder. Pass it: headstart.load(folder, module=build), where `build` is "
            "the network, or a function without arguments that makes it."
        )
    if spec.source != "module":
        raise UsageError(
            f"`module` is {shorten(module)}, but the model was trained on {spec.name}, which "
            "Headstart builds by itself. Leave out `module`."
        )
    from headstart.backbones.own_module import bind

    return bind(spec, module)


def _bind_installed(spec: BackboneSpec) -> BackboneSpec:
    """Give a backbone the code of the installed package that declares it.

    The name comes from the folder, so it is only looked up among the declared names.
    """
    package, _, name = spec.name.partition("?")[0].partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,80}/[\w.-]{1,80}", f"{package}/{name}"):
        raise ModelFileError(
            f"Expected the name of a package and its backbone, got {shorten(spec.name)}. {DAMAGED}"
        )
    plugin = find(BACKBONES, f"{package}/{name}")
    if plugin is None:
        raise SetupError(
            f"The model was trained on the backbone {name} of the package {package}, which is not "
            f"installed or no longer has it. Install it, if you trust it: pip install {package}. "
            "Or pass the network: headstart.load(folder, module=build)."
        )
    from headstart.backbones.backbone import Backbone
    from headstart.backbones.own_module import bind

    module = build_plugin(plugin)
    try:
        return bind(spec, module.spec.build if isinstance(module, Backbone) else module)
    except UsageError as error:
        raise SetupError(
            f"The {plugin} is another network than that of the training. Install the version of "
            f"{package} that the model was trained with. Details: {error}"
        ) from error


def _read_task(values: Mapping[str, Any]) -> Task:
    classes, name = values.get("classes"), values.get("name")
    if not isinstance(name, str) or name not in TASKS:
        raise ModelFileError(
            f"Expected a task among {', '.join(TASKS)}, got the task {shorten(name)}. Load the "
            "model with the release of Headstart that wrote it."
        )
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise ModelFileError(
            f"{DESCRIPTION}: `classes` must be a list of strings, got {shorten(classes)}. {DAMAGED}"
        )
    if duplicates := sorted(name for name, n in Counter(classes).items() if n > 1):
        raise ModelFileError(
            f"{DESCRIPTION}: `classes` has names that occur more than once: {shorten(duplicates)}. "
            f"{DAMAGED}"
        )
    task = TASKS[name].from_dict(values)
    thresholds = task.thresholds if isinstance(task, ClassificationTask) else ()
    if not all(0 <= threshold <= 1 for threshold in thresholds):
        raise ModelFileError(
            f"{DESCRIPTION}: `thresholds` must lie from 0 to 1, got {shorten(thresholds)}. "
            f"{DAMAGED}"
        )
    return task


def _read_head(values: Mapping[str, Any], task: Task, tensors: Mapping[str, Tensor]) -> Head:
    kind = values.get("kind")
    if kind not in HEADS[task.name]:
        raise ModelFileError(
            f"Expected a head for {task.name} ({', '.join(HEADS[task.name])}), got "
            f"{shorten(kind)}. {DAMAGED}"
        )
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    match task:
        case DetectionTask():
            return BoxHead.from_dict(values, arrays)
        case SegmentationTask():
            return MaskHead.from_dict(values, arrays)
    if unexpected := sorted(arrays.keys() - {"weight", "bias"}):
        raise ModelFileError(
            f"Expected a head of weight and bias, got also {shorten(unexpected)}. {DAMAGED}"
        )
    return LinearHead.from_state(arrays, n_outputs=len(task.classes))


def _split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the backbone and of the head; all must be float32, but for counters."""
    import torch

    parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "head": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ModelFileError(
                f"Expected tensors of a backbone and a head, got {shorten(name)}. {DAMAGED}"
            )
        # Counters and position tables of a backbone are integers; statistics never are.
        is_table = part == "backbone" and ".running_" not in name
        may_be_integer = is_table or name.endswith(BATCH_COUNTER)
        if tensor.dtype != torch.float32 and not (may_be_integer and tensor.dtype == torch.int64):
            raise ModelFileError(
                f"Expected {shorten(name)} to be in float32, got {tensor.dtype}. {DAMAGED}"
            )
        parts[part][rest] = tensor
    for name, tensor in parts["head"].items():
        if not torch.isfinite(tensor).all():
            raise ModelFileError(
                f"Expected a head of finite numbers, got NaN or infinity in {shorten(name)}. "
                f"{DAMAGED}"
            )
        if name.endswith("running_var") and (tensor < 0).any():
            raise ModelFileError(
                f"Expected variances of at least 0 in the head, got {float(tensor.min())} in "
                f"{shorten(name)}. {DAMAGED}"
            )
    return parts["backbone"], parts["head"]


def _require_matching_parts(backbone: FrozenBackbone, head: Head, n_classes: int) -> None:
    """Build the network from its tensors and compare it with the description of its shape."""
    from headstart.backbones.backbone import build_from_state

    # Stages and width are left out, so that they are measured and not taken from the description.
    built = build_from_state(replace(backbone.spec, stages=(), width=0), backbone.state)
    width = backbone.spec.width or built.width
    if isinstance(head, LinearHead):
        if not built.width == head.width == width:
            raise ModelFileError(
                f"Expected a head for the {built.width} features of {backbone.spec.architecture}, "
                f"got one for {head.width}. {DAMAGED}"
            )
        return
    if width != built.width or (backbone.spec.stages and backbone.spec.stages != built.stages):
        raise ModelFileError(
            f"Expected the stages of {backbone.spec.architecture}, got a description of others: "
            f"{shorten(backbone.spec.stages)}. {DAMAGED}"
        )
    if isinstance(head, BoxHead | MaskHead):
        _require_matching_maps(backbone, built, head, n_classes)


def _require_matching_maps(
    backbone: FrozenBackbone, built: Backbone, head: BoxHead | MaskHead, n_classes: int
) -> None:
    """Compare a dense head with the stages that it reads, the canvas, and the classes."""
    shape = head.shape
    channels = shape.widths if isinstance(shape, BoxShape) else shape.channels
    head_maps = list(zip(head.taps, channels, shape.strides, strict=True))
    stages = [(stage.name, stage.channels, stage.stride) for stage in built.stages]
    if not head_maps or head_maps != [stage for stage in stages if stage in head_maps]:
        raise ModelFileError(
            f"Expected a head on stages of {backbone.spec.architecture} ({shorten(stages)}), got "
            f"one on {shorten(head_maps)}. {DAMAGED}"
        )
    canvas = backbone.spec.preprocess.canvas
    if shape.canvas != canvas or shape.n_classes != n_classes:
        raise ModelFileError(
            f"Expected a head for {n_classes} classes on images of {canvas}, got one for "
            f"{shape.n_classes} on {shape.canvas}. {DAMAGED}"
        )


def _require_safe_spec(spec: BackboneSpec) -> None:
    """Refuse a network that makes a library read files, download, or exhaust the memory."""
    library, _, name = spec.architecture.partition("/")
    is_own = library == "module" and spec.source == "module"  # the user passes its code
    # Other torchvision networks may download weights by default, so only the catalog's are allowed.
    is_listed = is_own or library == "timm" or f"{library}/{name}" in names()
    options = dict(spec.model_options)
    if (
        not is_listed
        or not re.fullmatch(r"(timm|torchvision)/\w+|module/\w+-[0-9a-f]+", spec.architecture)
        or (not is_own and any(FILE_OPTIONS.search(option) for option in options))
        or not all(_is_safe_option(value) for value in (*options.values(), spec.until))
    ):
        raise ModelFileError(
            "Expected the name of a timm or torchvision network and options of its layers, got "
            f"{shorten([spec.architecture, options])}. Do not use a model from a source that you "
            "do not trust."
        )
    preprocess = spec.preprocess
    sizes = (preprocess.resize, preprocess.crop, *preprocess.shape)
    if not all(type(size) is int and size <= MAX_SIDE for size in sizes) or not all(
        math.isfinite(number) for number in (*preprocess.mean, *preprocess.std)
    ):
        raise ModelFileError(
            f"Expected images of at most {MAX_SIDE} pixels a side and finite colours, got "
            f"{shorten(preprocess)}. {DAMAGED}"
        )


def _is_safe_option(value: object) -> bool:
    if isinstance(value, int | float):
        return abs(value) <= MAX_VALUE
    return isinstance(value, str) and len(value) <= 64


def shorten(value: object) -> str:
    """Return the first 200 characters of any value, on one line, for a message.

    >>> shorten("a" * 300) == "'" + "a" * 199
    True
    """
    text = repr(value) if not isinstance(value, Exception) else str(value)
    return " ".join(text.split())[:200]


def load(folder: str | Path, *, module: object = None) -> TransferModel:
    """Read a model. The hash and the shapes of everything in the folder are checked.

    Parameters
    ----------
    folder : str or Path
        A run's folder.
    module : torch.nn.Module, or callable without arguments, optional
        For a model on a network of your own: that network with any values, or a function or class
        that makes it. Its code is not in the folder.

    Raises
    ------
    UsageError
        If ``module`` is missing, not needed, or another network than that of the training.
    SetupError
        If the backbone is of another package, which is not installed or cannot be used.
    ModelFileError
        If the folder has no model, or one that is damaged, unknown or unsafe.
    """
    folder = Path(folder)
    description = _read_description(folder)
    content = _read_tensors(fitting_tensors(folder), str(description["files"][TENSORS]))
    try:
        return assemble_model(description, content, module=module)
    except ModelFileError:
        raise
    except (UsageError, SetupError) as error:
        if module is not None or description["backbone"].get("source") == "module":
            raise
        raise _unfitting_parts(folder, error) from error
    # With invalid values the libraries can raise any exception.
    except Exception as error:
        raise _unfitting_parts(folder, error) from error


def _unfitting_parts(folder: Path, error: Exception) -> ModelFileError:
    return ModelFileError(
        f"Expected {folder} to be a model, got parts that do not fit together "
        f"({shorten(error)}). Copy the model again, or train it again."
    )


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) if folder.is_dir() else ""
        got = f"a folder with {inside or 'nothing'}" if folder.is_dir() else "no such folder"
        raise ModelFileError(
            f"Expected {folder} to be a run's folder with {DESCRIPTION}, got {got}. "
            "Pass the folder that `headstart fit` wrote."
        )
    try:
        description = json.loads(_read_limited(path, MAX_BYTES[DESCRIPTION]))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(
            f"Expected {path} to be JSON, got another file ({shorten(error)}). Pass the folder "
            "that `headstart fit` wrote."
        ) from error
    # The message shows nothing of the file: a link could lead to a private one.
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ModelFileError(
            f'Expected {path} to describe a Headstart model ("format": "{FORMAT}"), got another '
            "file. Pass the folder that `headstart fit` wrote."
        )
    if description.get("version") != VERSION:
        raise ModelFileError(
            f"Expected version {VERSION} of the model's format, got "
            f"{shorten(description.get('version'))}. Load the model with the release of Headstart "
            "that wrote it."
        )
    _require_sections(description, path)
    _use_current_names(description)
    return description


def _use_current_names(description: Mapping[str, Any]) -> None:
    """Rename the keys of model folders from releases that wrote "pictures" for "images"."""
    task, record = description["task"], description["record"]
    forgetting = record.get("forgetting")
    source = forgetting.get("source") if isinstance(forgetting, dict) else None
    for values in (task.get("selected"), forgetting, source, record.get("data")):
        if isinstance(values, dict) and "pictures" in values:
            values["images"] = values.pop("pictures")


def _require_sections(description: Mapping[str, Any], path: Path) -> None:
    sections = ("task", "backbone", "weights", "head", "files", "record")
    wrong = [name for name in sections if not isinstance(description.get(name), dict)]
    if description.get("engine") not in ("auto", *ENGINES):
        wrong.append("engine")
    # The file's name is fixed: a description cannot point outside its folder.
    if not wrong and set(description["files"]) != {TENSORS}:
        wrong.append("files")
    if not wrong and description["head"].get("kind") not in [*chain(*HEADS.values())]:
        wrong.append("head")
    if wrong:
        raise ModelFileError(
            f"Expected {path} to describe {', '.join(sections)} and engine, and to name {TENSORS} "
            f"only; missing or invalid: {', '.join(wrong)}. Copy the model again, or load it with "
            "the release of Headstart that wrote it."
        )


def _read_tensors(path: Path, expected_hash: str) -> bytes:
    """Bytes of the tensors' file. Size and header are checked before all of it is read."""
    start = _read_limited(path, MAX_BYTES[TENSORS], n_bytes=8)
    header_size = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
    available = path.stat().st_size - 8
    if not 0 < header_size <= min(available, MAX_BYTES["header"]):
        raise ModelFileError(
            f"Expected {path} to be a safetensors file with a header of at most "
            f"{MAX_BYTES['header']:,} bytes, got a header of {header_size:,} bytes in a file with "
            f"{available:,}. {DAMAGED}"
        )
    content = _read_limited(path, MAX_BYTES[TENSORS])
    actual_hash = hashlib.sha256(content).hexdigest()
    if actual_hash != expected_hash:
        raise ModelFileError(
            f"Expected {path} to have the SHA-256 of {DESCRIPTION}, {shorten(expected_hash)}, got "
            f"{actual_hash}. Copy the model again, or train it again."
        )
    return content


def _read_limited(path: Path, most_bytes: int, *, n_bytes: int = -1) -> bytes:
    """Read a file of a model folder, see `read_bounded`."""
    try:
        if not path.is_file():
            raise ModelFileError(f"Expected {path} to be a file, got none. {DAMAGED}")
        return read_bounded(path, most_bytes, n_bytes=n_bytes)
    except OSError as error:
        if error.errno == EFBIG:
            raise ModelFileError(
                f"Expected {path} to be at most {most_bytes:,} bytes, got "
                f"{path.stat().st_size:,}. Do not use a model from a source that you do not trust."
            ) from error
        raise ModelFileError(f"Cannot read {path}: {error}. Check its permissions.") from error
