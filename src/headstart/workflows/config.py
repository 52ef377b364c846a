"""Read the settings of a run again: the file ``resolved.yaml`` that a run writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from headstart.errors import UnknownNameError, UsageError
from headstart.files import read_yaml
from headstart.methods.flags import PRESET, flags, record_values
from headstart.workflows.recipe import Recipe, make_recipe

__all__ = ["read_recipe"]


def read_recipe(
    path: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    find_task: Callable[[Recipe], str] | None = None,
) -> Recipe:
    r"""Read the recipe of an earlier run.

    Parameters
    ----------
    path : str or Path
        A ``resolved.yaml``, or the folder of a run. It may leave out settings.
    settings : mapping, optional
        As for `make_recipe`: each replaces the setting of the file. Another method replaces the
        file's method with all its settings.
    find_task : callable, optional
        As for `make_recipe`.

    Raises
    ------
    UnknownNameError
        If the file has an unknown setting; the message suggests the nearest name.
    UsageError
        If the file cannot be read, or a value has another type or is out of its range.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "resolved.yaml")
    ...     _ = path.write_text("seed: 3\nmethod: {name: finetune, training: {epochs: 5}}\n")
    ...     recipe = read_recipe(path, {"epochs": 7})
    >>> recipe.seed, recipe.method.training.epochs
    (3, 7)
    """
    overrides = {name: value for name, value in (settings or {}).items() if value is not None}
    values = _read_yaml(Path(path))
    _require_known(values, Path(path))
    record = values.pop("method", None)
    saved = {**values, **_method_values(record, overrides, Path(path))}
    if "backbone" in overrides or "backbones" in overrides:
        saved = {name: v for name, v in saved.items() if name not in {"backbone", "rivals"}}
    if rivals := saved.pop("rivals", None):
        saved["backbones"] = (saved.pop("backbone", Recipe.backbone), *_names(rivals))
    is_unlimited = "budget" not in overrides and saved.get("budget") == math.inf
    if is_unlimited:
        del saved["budget"]
    is_stored = isinstance(record, dict) and "method" in saved
    recipe = make_recipe({**saved, **overrides}, find_task=find_task, is_stored=is_stored)
    if is_unlimited:
        recipe = replace(recipe, budget=math.inf)
    return recipe if "seed" in overrides else _with_method_seed(recipe, record)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    file = path / "resolved.yaml" if path.is_dir() else path
    try:
        values = read_yaml(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"--config {file} cannot be read: {error}. Pass the resolved.yaml of a run, such as "
            "--config runs/photos/resolved.yaml."
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise UsageError(
            f"--config {file} is not valid YAML{line}: {getattr(error, 'problem', error)}. Correct "
            "it, or pass the resolved.yaml of a run."
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(
            f"--config {file} must hold settings such as `seed: 0`, got a "
            f"{type(values).__name__}. Pass the resolved.yaml of a run."
        )
    return values


def _require_known(values: Mapping[Any, Any], path: Path) -> None:
    names = [field.name for field in fields(Recipe)]
    for name in values:
        if name not in names:
            raise UnknownNameError(f"setting in {path}", str(name), names)


def _method_values(record: Any, overrides: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings of the file's method, unless another method is given."""
    if record is None:
        return {}
    if isinstance(record, str):
        record = {"name": record}
    if not isinstance(record, dict) or not isinstance(record.get("name"), str):
        raise UsageError(
            f"`method` in {path} must have a name, such as `method: {{name: finetune}}`, got "
            f"{record!r}. Add the name, or remove `method`."
        )
    if overrides.get("method", record["name"]) != record["name"]:
        return {}
    values = record_values(record)
    if PRESET in overrides:  # a preset sets all of them
        augmentation = {flag.name for flag in flags() if flag.group.startswith("Augmentation")}
        values = {name: value for name, value in values.items() if name not in augmentation}
    return {"method": record["name"], **values}


def _names(rivals: Any) -> tuple[str, ...]:
    if isinstance(rivals, list) and all(isinstance(name, str) for name in rivals):
        return tuple(rivals)
    raise UsageError(f"`rivals` must be a list of backbones, got {rivals!r}. Write `rivals: []`.")


def _with_method_seed(recipe: Recipe, record: Any) -> Recipe:
    """Keep the seed of the method where it differs from the seed of the run."""
    seed = record.get("seed") if isinstance(record, dict) else None
    method = recipe.method
    is_same = method is not None and seed is not None and method.name == record["name"]
    if not is_same or not isinstance(seed, int):
        return recipe
    return replace(recipe, method=replace(method, seed=seed))  # type: ignore[type-var]
