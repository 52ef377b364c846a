"""Settings of a run, as a value."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, get_args
from urllib.parse import parse_qsl

from headstart.backbones.frozen import FrozenBackbone, name_of, to_backbone
from headstart.data.dataset import DENSE, Dataset, Kind, html_fields
from headstart.data.prepare import BadFiles
from headstart.errors import UnknownNameError, UsageError
from headstart.methods.finetune import RECIPE, with_measured_recipe
from headstart.methods.flags import flags, make_method, typed_values
from headstart.methods.method import Method, described, with_loss
from headstart.methods.plugin_methods import find_method
from headstart.models.heads.detection_config import SELECTION_SETTINGS, BoxSelection
from headstart.selection.rules import BUDGET
from headstart.workflows.backbone_names import (
    AUTO,
    DEFAULT_BACKBONE,
    are_backbones,
    parse_backbones,
    parse_names,
)
from headstart.workflows.duration import parse_duration

__all__ = [
    "DEFAULT_BACKBONE",
    "TASKS",
    "Recipe",
    "default_method",
    "make_recipe",
    "parse_backbones",
    "parse_duration",
    "parse_method",
    "parse_names",
    "task_of",
    "with_steps",
]

TASKS = ("classification", "detection", "segmentation")

ALIASES = {"probe": "linear-probe"}

EXPECTED: Mapping[str, tuple[Any, str]] = {
    "str": (str, "a text"),
    "BadFiles": (str, "a text"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "True or False"),
}
"""Type of a setting's values, and its name in messages, by the annotation of its field."""

SAMPLES: Mapping[str, Any] = {
    "group_by": "patient",
    "masks": "masks",
    "images": "images",
    "mask_threshold": 128,
    "class_level": 1,
    "label_from": "([a-z]+)_",
    "max_pixels": 300_000_000,
    "bits": 12,
    "window": "40,400",
    "bands": "4,3,2",
    "band_range": "2%,98%",
    "no_data": -9999,
    "image_column": "file",
    "label_column": "class",
    "label_separator": ",",
    "weight_column": "weight",
    "max_risk": 0.02,
    "nms": 0.5,
    "offline": True,
}
"""Values for messages about settings whose default is None."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run; with the images they decide its result.

    Parameters
    ----------
    backbone : str, or torch.nn.Module
        A name of the backbone grammar, such as ``torchvision/resnet18``, or a network of your own
        (`headstart.Backbone.from_module`).
    method : Method, optional
        Training method. By default a race chooses it for classes
        (``headstart.selection.race``), and with a ``budget`` for boxes and masks. Without one it is
        ``Finetune()`` for these, which trains the head and the backbone's last resolution.
    rivals : tuple of str
        Other backbones that the race may choose; ``("auto",)`` for the best two on this machine.
    budget : float, optional
        Seconds for a run with a race, from reading the images to the report; 0 for linear probes
        only. None is 120 for classes. Boxes and masks race only if it is set and not 0.
    prove : bool
        Keep the linear probe unless another candidate is significantly better. By default the
        candidate that is expected to be best is chosen.
    task : {"auto", "classification", "detection", "segmentation"}
        ``auto`` takes the task from the labels; another value must agree with them.
    head : str
        For boxes ``faster-rcnn``, ``retinanet``, ``fcos`` or ``ssdlite``; for masks ``unet``,
        ``unetplusplus``, ``deeplabv3plus``, ``fpn`` or ``deeplabv3``; ``auto`` is the first.
        It may have options, or be a published head, as in ``headstart.models.build.create_model``.
    size : int
        Longer side, in pixels, to which images with boxes and masks are resized, rounded up to a
        multiple of 32; 0 is 320.
    group_by : str, optional
        Column or regular expression that names each image's group.
    masks, images : str, optional
        Folder of the masks and folder of the images, if the names in the data do not tell.
    mask_threshold : int, optional
        Values of masks from this on are the object, smaller ones the background.
    class_level, label_from : int, str, optional
        Level of the folders that are classes, from 1; or a regular expression that finds the class
        in the relative path of each image.
    max_pixels, bits, window, bands, band_range, no_data : optional
        How images are decoded: see `headstart.data.pixel_values.ImageOptions`.
    image_column, label_column : str, optional
        Columns of a table, if their names are not among the usual ones.
    label_separator : str, optional
        Text between several labels in one cell of a table; ``none`` keeps each cell as one label.
    weight_column : str, optional
        Column of the images' weights in a table, 0 or more.
    bad_files : {"error", "skip"}
        Action for files that cannot be decoded.
    allow_overlap : bool
        Continue although the same image is on both sides of a split.
    test_fraction : float
        Share of test images, if the data has no split of its own.
    max_risk : float, optional
        Largest share of wrong predictions of a classifier, between 0 and 1. It abstains below a
        confidence threshold, which is chosen on images held out of training.
    nms, class_agnostic_nms, max_boxes : float, bool, int
        For boxes, as `headstart.models.heads.detection_config.BoxSelection`: the overlap of the
        non-maximum suppression (None is the head's own), whether it compares all classes, and the
        largest number of boxes for an image. The model stores them.
    engine : {"auto", "fp32", "bf16", "openvino", "openvino-bf16"}
        Arithmetic of the frozen backbone; ``auto`` measures.
    device : {"auto", "cpu", "cuda", "mps"}
    offline : bool, optional
        Open no network connection; None reads the environment (HEADSTART_OFFLINE).
    seed : int
        Seed of the split, of a head on maps, and of the bootstrap, 0 or more. A method has its own
        seed; the command line and the default method use this one.

    Raises
    ------
    UnknownNameError
        If there is no such task, or no such value of ``bad_files``.
    UsageError
        If a value has another type or is out of its range, or a method is named together with
        ``rivals``.
    """

    backbone: str | FrozenBackbone = DEFAULT_BACKBONE
    method: Method | None = None
    rivals: tuple[str | FrozenBackbone, ...] = ()
    budget: float | None = None
    prove: bool = False
    task: str = "auto"
    head: str = "auto"
    size: int = 0
    group_by: str | None = None
    masks: str | None = None
    images: str | None = None
    mask_threshold: int | None = None
    class_level: int | None = None
    label_from: str | None = None
    max_pixels: int | None = None
    bits: int | None = None
    window: str | None = None
    bands: str | None = None
    band_range: str | None = None
    no_data: float | None = None
    image_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    weight_column: str | None = None
    bad_files: BadFiles = "error"
    allow_overlap: bool = False
    test_fraction: float = 0.2
    max_risk: float | None = None
    nms: float | None = None
    class_agnostic_nms: bool = False
    max_boxes: int = 100
    engine: str = "auto"
    device: str = "auto"
    offline: bool | None = None
    seed: int = 0

    def _repr_html_(self) -> str:
        return html_fields(self)

    def __post_init__(self) -> None:
        _require_types(self)
        if self.task not in {"auto", *TASKS}:
            raise UnknownNameError("task", self.task, ["auto", *TASKS])
        if self.bad_files not in get_args(BadFiles):
            raise UnknownNameError("bad_files", self.bad_files, get_args(BadFiles))
        if self.budget is not None and not self.budget >= 0:
            raise UsageError(f"`budget` must be 0 or more seconds, got {self.budget}.")
        if self.rivals and self.method is not None:
            raise UsageError(
                f"Method {self.method.name} cannot be combined with a race of several backbones. "
                "Remove --method, or name one backbone with --backbone."
            )
        if self.size < 0:
            raise UsageError(f"`size` must be 0 or more pixels, got {self.size}.")
        if self.seed < 0:
            raise UsageError(f"`seed` must be 0 or more, got {self.seed}.")
        if self.max_risk is not None and not 0 < self.max_risk < 1:
            raise UsageError(
                f"`max_risk` must be between 0 and 1, got {self.max_risk}. Pass a share such as "
                "--max-risk 0.02."
            )
        _ = self.selection  # fails on a value out of its range
        if not 0 < self.test_fraction < 1:
            raise UsageError(
                f"`test_fraction` must be between 0 and 1, got {self.test_fraction}. Pass a share "
                "such as --test-fraction 0.2."
            )

    @property
    def race_seconds(self) -> float:
        """Budget of a race in seconds.

        >>> Recipe().race_seconds, Recipe(budget=60).race_seconds
        (120.0, 60)
        """
        return BUDGET if self.budget is None else self.budget

    @property
    def is_auto(self) -> bool:
        """Whether the best two backbones on this machine race."""
        return self.rivals == (AUTO,)

    @property
    def selection(self) -> BoxSelection:
        """Non-maximum suppression and the largest number of boxes of a detector."""
        values = {name: getattr(self, name) for name in SELECTION_SETTINGS}
        return BoxSelection(**values)

    def resolved_for(self, data: Dataset) -> Recipe:
        """Return the recipe with the task of the data, and for boxes and masks with a method.

        A race chooses the method for classes later; with a budget for boxes and masks, too.

        Raises
        ------
        UsageError
            If the data has another task than the recipe.

        Examples
        --------
        >>> data = Dataset(samples=(), classes=("cell",), kind="detection")
        >>> recipe = Recipe(seed=3).resolved_for(data)
        >>> recipe.task, recipe.method.train_from, recipe.method.seed
        ('detection', 'last:1', 3)
        """
        if self.max_risk is not None and data.kind != "multiclass":
            raise UsageError(
                f"--max-risk needs data with one class per image, but {data.name!r} is for "
                f"{data.kind}, which has thresholds of its own. Remove --max-risk."
            )
        if self.selection != BoxSelection() and data.kind != "detection":
            raise UsageError(
                f"--nms, --class-agnostic-nms and --max-boxes are for boxes, but {data.name!r} is "
                f"for {data.kind}. Remove them."
            )
        task = task_of(data)
        if self.task not in {"auto", task}:
            raise UsageError(
                f"--task {self.task} does not fit {data.name!r}, whose labels are for {data.kind} "
                f"({data.notes[0] if data.notes else 'from its targets'}). Pass --task {task}, or "
                f"data with labels for {self.task}."
            )
        method = self.method
        if method is None and data.is_dense:
            if self.rivals:
                if self.is_auto:
                    raise UsageError(
                        f"--backbones auto needs classes of images, but {data.name!r} is for "
                        f"{data.kind}. Name one backbone with --backbone, or use `headstart rank`."
                    )
                if not self.budget:
                    raise UsageError(
                        f"A race of {len(self.rivals) + 1} backbones for {data.kind} needs a time "
                        "limit. Pass --budget 20m, or name one backbone with --backbone."
                    )
            if not self.budget:  # a training usually takes longer than the budget of classes
                method = default_method(task, self.seed)
        return replace(self, task=task, method=method)

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, for resolved.yaml."""
        method = None if self.method is None else described(self.method)
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values["rivals"] = tuple(name_of(backbone) for backbone in self.rivals)
        values |= {"backbone": name_of(self.backbone), "method": method}
        # Not `to_jsonable`, which turns an infinite budget into None.
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


def _require_types(recipe: Recipe) -> None:
    """Refuse values of another type; NumPy numbers become plain ones."""
    for field in fields(recipe):
        value: Any = getattr(recipe, field.name)
        if field.name == "backbone":
            value = to_backbone(value)
            object.__setattr__(recipe, field.name, value)
            if isinstance(value, FrozenBackbone):
                continue
        annotation = str(field.type).replace(" | FrozenBackbone", "")
        kind = annotation.removesuffix(" | None")
        if kind not in EXPECTED or (value is None and kind != annotation):
            continue
        expected, words = EXPECTED[kind]
        if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
            sample = SAMPLES.get(field.name, field.default)
            raise UsageError(
                f"`{field.name}` must be {words}, got {reprlib.repr(value)} "
                f"({type(value).__name__}). Pass a value such as {field.name}={sample!r}."
            )
        if kind in {"int", "float"} and type(value) not in {int, float}:
            object.__setattr__(recipe, field.name, int(value) if kind == "int" else float(value))
    _require_method(recipe.method)
    rivals: Any = recipe.rivals
    if isinstance(rivals, list | tuple):  # JSON gives a list
        object.__setattr__(recipe, "rivals", tuple(map(to_backbone, rivals)))
    if not are_backbones(recipe.rivals):
        raise UsageError(
            f"`rivals` must be a tuple of names, got {reprlib.repr(recipe.rivals)}. Pass a value "
            "such as ('resnet18',)."
        )


def _require_method(method: object) -> None:
    if isinstance(method, type):
        name = method.__name__
        raise UsageError(
            f"`method` must be a method with its settings, got the class {name}. Pass {name}()."
        )
    if method is not None and not hasattr(method, "fit"):
        raise UsageError(
            f"`method` must be a method such as Finetune(), got {reprlib.repr(method)}. Pass a "
            "method with its settings; its name is enough for `headstart.fit`."
        )


def make_recipe(
    settings: Mapping[str, Any],
    *,
    find_task: Callable[[Recipe], str] | None = None,
    is_stored: bool = False,
    other_names: Iterable[str] = (),
) -> Recipe:
    """Make a recipe from settings: those of the command line, by the same names.

    Parameters
    ----------
    settings : mapping
        Fields of `Recipe` and flags of the methods by their names in Python. ``backbones`` names
        several backbones, as a sequence or separated by commas. ``method`` is a name or a method;
        ``budget`` is in seconds, or a duration such as ``"2m"``; ``loss`` is a function of logits
        and targets. A flag of a method that is None is left out.
    find_task : callable, optional
        Called with the recipe so far if only the data can decide the method; returns the task.
    is_stored : bool
        The settings of the method come from a file, so that missing ones have the defaults of its
        fields. Otherwise ``finetune`` by name is the measured recipe, if the data has classes.
    other_names : iterable of str
        Other keywords of the caller, for the message about an unknown setting.

    Raises
    ------
    UnknownNameError
        If there is no such setting, method or value; the message suggests the nearest name.
    UsageError
        If a value has another type or is out of its range, or settings exclude each other.

    Examples
    --------
    >>> recipe = make_recipe({"method": "finetune", "epochs": 5, "budget": "2m"})
    >>> recipe.method.training.epochs, recipe.budget
    (5, 120.0)
    >>> make_recipe({"epoch": 5})
    Traceback (most recent call last):
    headstart.errors.UnknownNameError: Unknown setting: 'epoch'. Did you mean 'epochs'?
    """
    own = {field.name for field in fields(Recipe)} - {"rivals"} | {"backbones"}
    named = str(settings.get("method") or "")  # of another object there is no such method
    names = own | {flag.name for flag in flags(named)} | {"loss"}
    for name in settings:
        if name not in names:
            raise UnknownNameError("setting", name, names.union(other_names))
    values = {name: value for name, value in settings.items() if name in own}
    flag_values = {name: value for name, value in settings.items() if name not in own}
    method, loss = values.pop("method", None), flag_values.pop("loss", None)
    if loss is not None:  # of logits and targets: the data need not be read for their task
        method, find_task = "finetune" if method is None else method, None
    first, rivals = parse_backbones(
        values.pop("backbone", DEFAULT_BACKBONE), values.pop("backbones", ())
    )
    if values.get("budget") is not None:
        values["budget"] = parse_duration(values["budget"])
    recipe = Recipe(**values, backbone=first, rivals=rivals)
    made = _make_method(method, flag_values, recipe, find_task, is_stored)
    return replace(recipe, method=made if loss is None else with_loss(made, loss))


def _make_method(
    method: Any,
    flag_values: Mapping[str, Any],
    recipe: Recipe,
    find_task: Callable[[Recipe], str] | None,
    is_stored: bool,
) -> Method | None:
    """Create the method; without a name, choose it by the flags that are set and by the data."""
    name = method if isinstance(method, str) else ""
    flag_values = typed_values(flag_values, name)  # before the data are read
    used = [flag for flag in flags(name) if flag.name in flag_values]
    if method is not None and not isinstance(method, str):
        _require_method(method)
        if used:
            raise UsageError(
                f"`method` is {type(method).__name__}(...), which has its own settings, but "
                f"{', '.join(f'`{flag.name}`' for flag in used)} is set as well. Put it into the "
                f"method, or pass method={method.name!r}."
            )
        chosen: Method = method
        return chosen
    if method == "auto" and used:
        raise UsageError(
            f"--method auto takes no flags of a method, got "
            f"{', '.join(flag.option for flag in used)}. Name the method, for example --method "
            "finetune."
        )
    if method == "auto" or (method is None and not used):
        return None
    if method is None:
        tunes = all("finetune" in flag.methods for flag in used)
        probes = all("linear-probe" in flag.methods for flag in used)
        task = _find_task(recipe, find_task) if tunes and probes else "classification"
        method = "finetune" if tunes and not probes else default_method(task).name
        if not tunes and not probes and all("few-shot" in flag.methods for flag in used):
            method = "few-shot"
    if method == "finetune" and not is_stored and not flag_values.keys() >= RECIPE.keys():
        flag_values = with_measured_recipe(flag_values, _find_task(recipe, find_task))
    return make_method(method, flag_values, seed=recipe.seed)


def _find_task(recipe: Recipe, find_task: Callable[[Recipe], str] | None) -> str:
    """Return the recipe's task; where it is open, that of the data."""
    if recipe.task != "auto":
        return recipe.task
    return find_task(recipe) if find_task else "classification"


def task_of(data: Dataset) -> str:
    """Return the task of a dataset.

    >>> task_of(Dataset(samples=(), classes=(), kind="multilabel"))
    'classification'
    """
    return data.kind if data.kind in DENSE else "classification"


def default_method(task: str, seed: int = 0) -> Method:
    """Return the method of a task that is used without a named method and without a race."""
    if task in DENSE:
        from headstart.methods.finetune import Finetune

        return Finetune(seed=seed)
    from headstart.methods.linear_probe import LinearProbe

    return LinearProbe(seed=seed)


def parse_method(text: str, task: str, *, seed: int = 0, epochs: int | None = None) -> Method:
    """Make a method from its name and options; 0 ``epochs`` are chosen by the number of images.

    Raises
    ------
    UnknownNameError, UsageError
        If there is no such method or option.

    Examples
    --------
    >>> parse_method("finetune?train-from=all&epochs=5", "classification").training.epochs
    5
    """
    name, _, query = text.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    options: dict[str, Any] = {key.replace("-", "_"): value for key, value in pairs}
    if name == "probe" and task != "classification":  # trains the head on a frozen backbone, too
        name, options = "finetune", {"train_from": "head", **options}
    if name == "auto":
        if options:
            raise UsageError(
                f"Method auto takes no options, got {query}. Name a method, such as "
                f"finetune?{query}."
            )
        name = default_method(task).name
    name = ALIASES.get(name, name)
    find_method(name, other_names=(*ALIASES, "auto"))
    flags_by_name = {flag.name: flag for flag in flags(name)}
    for key, value in options.items():
        if key not in flags_by_name:
            own = [f.option[2:] for f in flags_by_name.values() if name in f.methods]
            raise UnknownNameError(f"option of {name}", key.replace("_", "-"), own)
        if flags_by_name[key].kind == "switch":
            options[key] = value.lower() not in {"false", "no", "off", "0"}
    if epochs is not None and name in flags_by_name["epochs"].methods:
        options.setdefault("epochs", str(epochs))
    if name == "finetune":
        options = with_measured_recipe(options, task)
    return make_method(name, options, seed=seed)


def with_steps(method: Method, steps: int, images: int, kind: Kind) -> Method:
    """Set the epochs of a method that trains by gradient so that it takes about ``steps`` steps.

    Parameters
    ----------
    method : Method
        Returned unchanged if it does not train by gradient, or if its options set the epochs.
    steps : int
    images : int
        Number of images that gradients are computed for.
    kind : str
        Kind of the data; decides the batch size.

    Examples
    --------
    >>> scratch = parse_method("scratch", "classification")
    >>> [with_steps(scratch, 300, n, "multiclass").training.epochs for n in (32, 320, 3200)]
    [150, 15, 3]
    """
    training = getattr(method, "training", None)
    if training is None or training.epochs:
        return method
    per_epoch = training.for_kind(kind).for_images(images).steps_per_epoch(images)
    epochs = max(1, round(steps / per_epoch))
    return replace(method, training=replace(training, epochs=epochs))  # type: ignore[type-var]
