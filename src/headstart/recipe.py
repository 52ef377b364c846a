"""Everything that decides a run, as a value."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from headstart.data.prepare import BadFiles
from headstart.data.samples import DENSE, Dataset
from headstart.errors import UnknownNameError, UsageError
from headstart.methods.method import Method, described
from headstart.race import BUDGET

__all__ = ["DEFAULT_BACKBONE", "TASKS", "Recipe", "default_method", "task_of"]

DEFAULT_BACKBONE = "embedded/efficientnet_lite0"
TASKS = ("classification", "detection", "segmentation")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run, the pictures aside.

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
        It may carry options, or be a published one, as for ``headstart.blank.blank``.
    size : int
        Longer side, in pixels, that pictures of boxes and masks are read at, rounded up to a
        multiple of 32; 0 is 320.
    group_by : str, optional
        Column or regular expression that names each picture's group.
    bad_files : {"error", "skip"}
        What to do with files that cannot be decoded.
    allow_overlap : bool
        Go on although the same picture lies on both sides of a split.
    test_fraction : float
        Share of the pictures to test on, where the data bring no split.
    max_risk : float, optional
        Share of a classifier's answers that may be wrong, between 0 and 1: where it is less sure
        than that takes, it abstains. The threshold is chosen on pictures held out of training.
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
                f"Expected one class a picture where a risk is wanted, got {data.kind} in "
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
