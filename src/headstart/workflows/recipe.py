"""Everything that decides a run, as a value."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from headstart.data.dataset import DENSE, Dataset, Kind
from headstart.data.prepare import BadFiles
from headstart.errors import UnknownNameError, UsageError
from headstart.methods import METHODS
from headstart.methods.flags import flags, make_method
from headstart.methods.method import Method, described
from headstart.selection.rules import BUDGET

__all__ = [
    "DEFAULT_BACKBONE",
    "TASKS",
    "Recipe",
    "Trials",
    "default_method",
    "in_steps",
    "method_named",
    "task_of",
]

DEFAULT_BACKBONE = "embedded/efficientnet_lite0"
TASKS = ("classification", "detection", "segmentation")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run, the images aside.

    Parameters
    ----------
    backbone : str
        A name of the backbone grammar, such as ``torchvision/resnet18``.
    method : Method, optional
        How the model learns; by default what wins a race (``headstart.advice``) where classes are
        learned, and the head with the backbone's last stage (``Finetune()``) for boxes and masks.
    rivals : tuple of str
        Other backbones that a race may choose.
    budget : float
        Seconds for a race and the training of its winner; 0 for linear probes alone.
    task : {"auto", "classification", "detection", "segmentation"}
        What is learned; ``auto`` is what the data say, anything else is held against them.
    head : str
        For boxes ``faster-rcnn``, ``retinanet``, ``fcos`` or ``ssdlite``; for masks ``unet``,
        ``unetplusplus``, ``deeplabv3plus``, ``fpn`` or ``deeplabv3``; ``auto`` is the first.
        It may carry options, or be a published one, as for ``headstart.models.build.create_model``.
    size : int
        Longer side, in pixels, that images of boxes and masks are read at, rounded up to a
        multiple of 32; 0 is 320.
    group_by : str, optional
        Column or regular expression that names each image's group.
    bad_files : {"error", "skip"}
        What to do with files that cannot be decoded.
    allow_overlap : bool
        Go on although the same image lies on both sides of a split.
    test_fraction : float
        Share of the images to test on, where the data bring no split.
    max_risk : float, optional
        Share of a classifier's answers that may be wrong, between 0 and 1: where it is less sure
        than that takes, it abstains. The threshold is chosen on images held out of training.
    engine : {"auto", "fp32", "bf16", "openvino", "openvino-bf16"}
        Arithmetic of the frozen backbone; ``auto`` measures.
    device : {"auto", "cpu", "cuda", "mps"}
    offline : bool, optional
        Open no socket; None asks the environment.
    seed : int
        Decides the split, a head on maps, and the bootstrap, 0 or more; a method has a seed of its
        own: the command line, and the default method, take this one.

    Raises
    ------
    UnknownNameError
        If there is no such task.
    UsageError
        If the seed, the size or the budget is negative, the share to test on is none, or a
        method is named where backbones race.
    """

    backbone: str = DEFAULT_BACKBONE
    method: Method | None = None
    rivals: tuple[str, ...] = ()
    budget: float = BUDGET
    task: str = "auto"
    head: str = "auto"
    size: int = 0
    group_by: str | None = None
    bad_files: BadFiles = "error"
    allow_overlap: bool = False
    test_fraction: float = 0.2
    max_risk: float | None = None
    engine: str = "auto"
    device: str = "auto"
    offline: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.task not in {"auto", *TASKS}:
            raise UnknownNameError("task", self.task, ["auto", *TASKS])
        object.__setattr__(self, "rivals", tuple(self.rivals))  # a list, where JSON brought it
        if not self.budget >= 0:
            raise UsageError(f"Expected `budget` to be 0 or more seconds, got {self.budget}.")
        if self.rivals and self.method is not None:
            raise UsageError(
                f"Expected no method where backbones race, got {self.method.name}; do leave it "
                "out, or name one backbone."
            )
        if self.size < 0:
            raise UsageError(f"Expected `size` to be 0 or more pixels, got {self.size}.")
        if self.seed < 0:
            raise UsageError(f"Expected `seed` to be 0 or more, got {self.seed}.")
        if self.max_risk is not None and not 0 < self.max_risk < 1:
            raise UsageError(
                f"Expected `max_risk` to lie between 0 and 1, got {self.max_risk}; do give a share "
                "such as 0.02."
            )
        if not 0 < self.test_fraction < 1:
            raise UsageError(
                "Expected `test_fraction` to lie between 0 and 1, got "
                f"{self.test_fraction}; do give a share such as 0.2."
            )

    def settled(self, data: Dataset) -> Recipe:
        """Return the recipe with what it left open decided by the data's kind.

        The task always; the method of boxes and masks. That of classes is left to a race.

        Raises
        ------
        UsageError
            If the data are of another task than was asked for; it says why.

        Examples
        --------
        >>> found = Recipe(seed=3).settled(Dataset(samples=(), classes=("cell",), kind="detection"))
        >>> found.task, found.method.train_from, found.method.seed
        ('detection', 'last:1', 3)
        """
        if self.max_risk is not None and data.kind != "multiclass":
            raise UsageError(
                f"Expected one class an image where a risk is wanted, got {data.kind} in "
                f"{data.name!r}; do leave --max-risk out: its answers have thresholds of their own."
            )
        task = task_of(data)
        if self.task not in {"auto", task}:
            raise UsageError(
                f"Expected data for {self.task} in {data.name!r}, got {data.kind} "
                f"({data.notes[0] if data.notes else 'by its targets'}); do use --task {task}, or "
                "give data with other labels."
            )
        method = self.method
        if method is None and data.is_dense:
            if self.rivals:
                raise UsageError(
                    f"Expected one backbone for {data.kind}, got {len(self.rivals) + 1}; do "
                    "compare them with `headstart compare`."
                )
            method = default_method(task, self.seed)
        return replace(self, task=task, method=method)

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, for resolved.yaml."""
        method = None if self.method is None else described(self.method)
        return json.loads(json.dumps({**asdict(self), "method": method}))  # type: ignore[no-any-return]


def task_of(data: Dataset) -> str:
    """Name the task that data are for.

    >>> task_of(Dataset(samples=(), classes=(), kind="multilabel"))
    'classification'
    """
    return data.kind if data.kind in DENSE else "classification"


def default_method(task: str, seed: int = 0) -> Method:
    """Make the method that a task is learned with where none is named, and none is raced."""
    if task in DENSE:
        from headstart.methods.finetune import Finetune

        return Finetune(seed=seed)
    from headstart.methods.linear_probe import LinearProbe

    return LinearProbe(seed=seed)


ALIASES = {"probe": "linear-probe"}


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What is compared, and how often.

    Parameters
    ----------
    methods : tuple of str
        ``scratch``, ``probe`` (for boxes and masks: the head alone) or ``finetune``, with options
        if need be, as in ``finetune?train-from=all&epochs=5``; or ``auto``, what wins a race on
        the images to learn from. The first is the reference.
    backbones : tuple of str
    seeds : int
        How often everything is repeated, from the recipe's seed on.
    fractions : tuple of float
        Shares of the training images to learn from, each inside the next.
    folds : int, optional
        Of a cross-validation a seed; 0 for one split a seed. By default 5 for fewer than 200
        images of classes, else 0. Has no meaning where the data bring a test part.
    epochs : int, optional
        Of every method that trains by gradient, unless its own options say another.
    steps : int, optional
        Of gradient descent instead, the same however many images there are: as many whole
        epochs as come nearest.

    Raises
    ------
    UsageError
        If there is nothing to compare, or a name is there twice.
    """

    methods: tuple[str, ...] = ("scratch", "probe", "finetune")
    backbones: tuple[str, ...] = (DEFAULT_BACKBONE,)
    seeds: int = 5
    fractions: tuple[float, ...] = (1.0,)
    folds: int | None = None
    epochs: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, names in (("methods", self.methods), ("backbones", self.backbones)):
            if not names or len(set(names)) < len(names):
                raise UsageError(
                    f"Expected `{name}` to be different names, got {', '.join(names) or 'none'}."
                )
        if self.epochs is not None and self.steps is not None:
            raise UsageError("Expected `epochs` or `steps`, got both; do leave one out.")
        for name in ("epochs", "steps"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise UsageError(f"Expected `{name}` of 1 or more, got {given}.")
        if self.folds is not None and (self.folds < 0 or self.folds == 1):
            raise UsageError(f"Expected `folds` of 2 or more, or 0 for none, got {self.folds}.")
        if self.seeds < 1:
            raise UsageError(f"Expected `seeds` of 1 or more, got {self.seeds}.")
        if not self.fractions or not all(0 < one <= 1 for one in self.fractions):
            raise UsageError(
                f"Expected `fractions` above 0 and up to 1, got {list(self.fractions)}."
            )

    def budget(self) -> str:
        """What all trainings are given, in words.

        >>> Trials(steps=300).budget()
        '300 steps at most for all that train by gradient, in whole epochs'
        """
        if self.steps is not None:
            most = _counted(self.steps, "step")
            return f"{most} at most for all that train by gradient, in whole epochs"
        if self.epochs is not None:
            return f"{_counted(self.epochs, 'epoch')} at most for all that train by gradient"
        return "each method's own options and defaults"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count > 1)}"


def method_named(text: str, task: str, *, seed: int = 0, epochs: int | None = None) -> Method:
    """Make a method of its name and options.

    Raises
    ------
    UnknownNameError, UsageError
        If there is no such method or option.

    Examples
    --------
    >>> method_named("finetune?train-from=all&epochs=5", "classification").training.epochs
    5
    """
    name, _, query = text.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    given: dict[str, Any] = {key.replace("-", "_"): value for key, value in pairs}
    if name == "probe" and task != "classification":  # what is frozen and what learns are the same
        name, given = "finetune", {"train_from": "head", **given}
    if name == "auto":
        if given:
            raise UsageError(f"Expected auto without options, got {query}; do name the method.")
        name = default_method(task).name
    name = ALIASES.get(name, name)
    if name not in METHODS:
        raise UnknownNameError("method", name, [*METHODS, *ALIASES, "auto"])
    known = {flag.name: flag for flag in flags()}
    for key, value in given.items():
        if key not in known:
            own = [flag.option[2:] for flag in flags() if name in flag.methods]
            raise UnknownNameError(f"option of {name}", key.replace("_", "-"), own)
        if known[key].kind == "switch":
            given[key] = value.lower() not in {"false", "no", "off", "0"}
    if epochs is not None and name in known["epochs"].methods:
        given.setdefault("epochs", str(epochs))
    return make_method(name, given, seed=seed)


def in_steps(method: Method, steps: int, images: int, kind: Kind) -> Method:
    """Give a method that trains by gradient so many epochs that it takes about ``steps`` steps.

    Parameters
    ----------
    method : Method
        Returned as it is where it is solved, or where its own options say how many epochs.
    steps : int
    images : int
        That gradients are taken of.
    kind : str
        Of the data; decides how large a batch is.

    Examples
    --------
    >>> scratch = method_named("scratch", "classification")
    >>> [in_steps(scratch, 300, n, "multiclass").training.epochs for n in (32, 320, 3200)]
    [150, 15, 3]
    """
    training = getattr(method, "training", None)
    if training is None or training.epochs:
        return method
    per_epoch = training.for_kind(kind).for_images(images).steps_per_epoch(images)
    epochs = max(1, round(steps / per_epoch))
    return replace(method, training=replace(training, epochs=epochs))  # type: ignore[type-var]
