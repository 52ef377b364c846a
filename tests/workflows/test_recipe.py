"""A recipe is a value: written down and read back, it is the same."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
import yaml

from headstart.data.dataset import Dataset
from headstart.errors import UsageError
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.workflows.recipe import DEFAULT_BACKBONE, TASKS, Recipe, task_of

RECIPES = [
    Recipe(method=LinearProbe()),
    Recipe(
        backbone="torchvision/resnet18",
        method=LinearProbe(folds=3, imbalance="balanced", penalties=(1e-6, 0.1), seed=4),
        group_by=r"^(.*?)_\d+: #'\"",
        bad_files="skip",
        allow_overlap=True,
        test_fraction=0.35,
        task="detection",
        head="fcos",
        size=256,
        engine="bf16",
        device="cpu",
        offline=True,
        seed=11,
    ),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_survives_yaml(recipe):
    values = recipe.as_dict()
    assert yaml.safe_load(yaml.safe_dump(values, sort_keys=False)) == values
    assert json.loads(json.dumps(values, allow_nan=False)) == values


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_can_be_built_again_from_what_was_written(recipe):
    values = yaml.safe_load(yaml.safe_dump(recipe.as_dict()))
    method = values.pop("method")
    assert method.pop("name") == "linear-probe"
    penalties = tuple(method.pop("penalties"))
    assert Recipe(**values, method=LinearProbe(**method, penalties=penalties)) == recipe


def test_a_recipe_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Recipe().seed = 1
    assert Recipe().backbone == DEFAULT_BACKBONE


def test_a_negative_seed_is_refused():
    with pytest.raises(UsageError, match="`seed` must be 0 or more, got -1"):
        Recipe(seed=-1)


def test_backbones_race_without_a_method():
    with pytest.raises(UsageError, match="name one backbone"):
        Recipe(method=LinearProbe(), rivals=("resnet18",))
    with pytest.raises(UsageError, match="budget"):
        Recipe(budget=-1)


def test_a_recipe_without_a_method_survives_json():
    values = json.loads(json.dumps(Recipe().as_dict()))
    assert Recipe(**values) == Recipe()


@pytest.mark.parametrize("change", [{"task": "captions"}, {"size": -1}, {"test_fraction": 1.0}])
def test_what_cannot_be_meant_is_refused(change):
    with pytest.raises(UsageError, match=r"task|size|test_fraction"):
        Recipe(**change)


@pytest.mark.parametrize(
    ("kind", "task", "method"),
    [
        ("multiclass", "classification", None),  # which a race decides
        ("multilabel", "classification", None),
        ("detection", "detection", Finetune(seed=3)),
        ("segmentation", "segmentation", Finetune(seed=3)),
    ],
)
def test_the_data_decide_what_is_left_open(kind, task, method):
    data = Dataset(samples=(), classes=("a",), kind=kind)
    recipe = Recipe(seed=3).resolved_for(data)
    assert (recipe.task, recipe.method) == (task, method)
    assert Recipe(task=task, method=method).resolved_for(data).method is method


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "detection", "segmentation"])
def test_data_of_another_task_are_refused_with_what_they_are_and_why(kind):
    data = Dataset(samples=(), classes=("a",), kind=kind, notes=("as the folders say",))
    for task in set(TASKS) - {task_of(data)}:
        with pytest.raises(UsageError, match=rf"{task}.*{kind} \(as the folders say\)"):
            Recipe(task=task).resolved_for(data)


def test_several_backbones_for_boxes_need_a_budget():
    data = Dataset(samples=(), classes=("cell",), kind="detection", name="cells")
    several = Recipe(rivals=("resnet18",))
    with pytest.raises(UsageError, match=r"2 backbones for detection .* --budget 20m"):
        several.resolved_for(data)
    assert replace(several, budget=60.0).resolved_for(data).method is None
