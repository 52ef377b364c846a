"""What is compared, and how often, as a value; methods by their names and options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from headstart.data.samples import Kind
from headstart.errors import UnknownNameError, UsageError
from headstart.flags import flags, make_method
from headstart.methods import METHODS
from headstart.methods.method import Method
from headstart.recipe import DEFAULT_BACKBONE, default_method

__all__ = ["Trials", "in_steps", "method_named"]

ALIASES = {"probe": "linear-probe"}


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What is compared, and how often.

    Parameters
    ----------
    methods : tuple of str
        ``scratch``, ``probe`` (for boxes and masks: the head alone) or ``finetune``, with options
        if need be, as in ``finetune?train-from=all&epochs=5``; or ``auto``, what wins a race on
        the pictures to learn from. The first is the reference.
    backbones : tuple of str
    seeds : int
        How often everything is repeated, from the recipe's seed on.
    fractions : tuple of float
        Shares of the training pictures to learn from, each inside the next.
    folds : int, optional
        Of a cross-validation a seed; 0 for one split a seed. By default 5 for fewer than 200
        pictures of classes, else 0. Has no meaning where the data bring a test part.
    epochs : int, optional
        Of every method that trains by gradient, unless its own options say another.
    steps : int, optional
        Of gradient descent instead, the same however many pictures there are: as many whole
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


def in_steps(method: Method, steps: int, pictures: int, kind: Kind) -> Method:
    """Give a method that trains by gradient so many epochs that it takes about ``steps`` steps.

    Parameters
    ----------
    method : Method
        Returned as it is where it is solved, or where its own options say how many epochs.
    steps : int
    pictures : int
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
    per_epoch = training.for_kind(kind).for_pictures(pictures).steps_per_epoch(pictures)
    epochs = max(1, round(steps / per_epoch))
    return replace(method, training=replace(training, epochs=epochs))  # type: ignore[type-var]
