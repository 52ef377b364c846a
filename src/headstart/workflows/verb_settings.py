"""Settings of ``compare`` and ``rank``: the flags of the commands, and the same as keywords."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any

from headstart.backbones.frozen import to_backbone
from headstart.data.readers import READ_SETTINGS
from headstart.errors import UnknownNameError, UsageError
from headstart.workflows.backbone_names import parse_names
from headstart.workflows.comparison_recipe import ComparisonRecipe
from headstart.workflows.recipe import Recipe, make_recipe

__all__ = [
    "COMPARE_SETTINGS",
    "RANK_SETTINGS",
    "TRIAL_SETTINGS",
    "comparison_settings",
    "ranking_recipe",
    "split_names",
]

SHARED = (
    *("task", "size", *READ_SETTINGS, "bad_files", "allow_overlap", "test_fraction"),
    *("device", "offline", "seed"),
)
RANK_SETTINGS = (*SHARED, "engine")
"""Fields of a recipe that ``rank`` uses."""
COMPARE_SETTINGS = (*SHARED, "head", "budget")
"""Fields of a recipe that ``compare`` uses."""
TRIAL_SETTINGS = tuple(field.name for field in fields(ComparisonRecipe))


def ranking_recipe(recipe: object, settings: Mapping[str, Any]) -> Recipe:
    """Make the recipe of a ranking from settings, or take the recipe that was passed.

    Raises
    ------
    UsageError
        If both are passed, or a setting is unknown or invalid; the message suggests the nearest
        name.

    Examples
    --------
    >>> ranking_recipe(None, {"group_by": "patient"}).group_by
    'patient'
    >>> ranking_recipe(None, {"mesure": "knn"})
    Traceback (most recent call last):
    headstart.errors.UnknownNameError: Unknown setting: 'mesure'. Did you mean 'measure'?
    """
    own = ("measure", "max_images", "no_cache", "cache", "observer", "progress", "recipe")
    _require_known(settings, RANK_SETTINGS, own)
    return _recipe(recipe, settings)


def comparison_settings(
    trials: object, recipe: object, settings: Mapping[str, Any]
) -> tuple[ComparisonRecipe, Recipe]:
    """Make the two values of a comparison from settings, or take those that were passed.

    Raises
    ------
    UsageError
        If a value is passed together with its settings, or a setting is unknown or invalid; the
        message suggests the nearest name.

    Examples
    --------
    >>> trials, recipe = comparison_settings(
    ...     None, None, {"methods": "probe,finetune", "fractions": "0.5,1", "budget": "1m"}
    ... )
    >>> trials.methods, trials.fractions, recipe.budget
    (('probe', 'finetune'), (0.5, 1.0), 60.0)
    """
    own = ("out", "resume", "no_cache", "cache", "observer", "progress", "trials", "recipe")
    _require_known(settings, (*TRIAL_SETTINGS, *COMPARE_SETTINGS), own)
    of_trials = {name: value for name, value in settings.items() if name in TRIAL_SETTINGS}
    of_recipe = {name: value for name, value in settings.items() if name not in TRIAL_SETTINGS}
    if trials is None:
        made = ComparisonRecipe(**{name: _trial_value(name, v) for name, v in of_trials.items()})
        return made, _recipe(recipe, of_recipe)
    if not isinstance(trials, ComparisonRecipe):
        raise UsageError(
            f"`trials` must be a ComparisonRecipe, got {reprlib.repr(trials)}. Pass its settings "
            "by name, such as methods='probe,finetune'."
        )
    _require_one("trials", of_trials)
    return trials, _recipe(recipe, of_recipe)


def split_names(value: object, name: str) -> tuple[str, ...]:
    """Return names from a sequence, or from one text with commas.

    Raises
    ------
    UsageError
        If it is neither.

    Examples
    --------
    >>> split_names("knn, log-me", "measure"), split_names(["knn"], "measure")
    (('knn', 'log-me'), ('knn',))
    """
    if isinstance(value, str):
        return tuple(filter(None, (part.strip() for part in value.split(","))))
    names = tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(part, str) for part in names):
        raise UsageError(
            f"`{name}` must be names, got {reprlib.repr(value)}. Pass a list, or a text with "
            "commas."
        )
    return names


def _trial_value(name: str, value: Any) -> Any:
    """Convert a flag or keyword of a comparison to the type of its field."""
    if name == "methods":
        return split_names(value, name)
    if name == "backbones":
        names = parse_names(value) if isinstance(value, str) else value
        is_one = hasattr(names, "named_parameters") or not isinstance(names, Iterable)
        return tuple(map(to_backbone, (names,) if is_one else names))
    if name == "fractions":
        return _fractions(value)
    default = {field.name: field.default for field in fields(ComparisonRecipe)}[name]
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number and not (value is None and default is None):
        raise UsageError(
            f"`{name}` must be a whole number, got {reprlib.repr(value)}. Pass {name}=3."
        )
    return value


def _fractions(value: Any) -> tuple[float, ...]:
    """Return the shares of the training images from numbers, or from a text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    parts = [parts] if isinstance(parts, Real) else parts
    try:
        return tuple(float(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--fractions must be numbers separated by commas, got {value!r}. Write, for example, "
            "--fractions 0.1,0.3,1."
        ) from error


def _require_known(
    settings: Mapping[str, Any], names: tuple[str, ...], others: tuple[str, ...]
) -> None:
    for name in settings:
        if name not in names:
            raise UnknownNameError("setting", name, (*names, *others))


def _require_one(name: str, settings: Mapping[str, Any]) -> None:
    if settings:
        raise UsageError(
            f"`{name}` and {', '.join(f'`{setting}`' for setting in settings)} are both set. Put "
            f"all of them into `{name}`, or pass all of them by name."
        )


def _recipe(recipe: object, settings: Mapping[str, Any]) -> Recipe:
    if recipe is None:
        return make_recipe(settings)
    if not isinstance(recipe, Recipe):
        raise UsageError(
            f"`recipe` must be a Recipe, got {reprlib.repr(recipe)}. Pass its settings by name, "
            "such as group_by='patient'."
        )
    _require_one("recipe", settings)
    return recipe
