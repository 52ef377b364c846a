"""A recipe is a value: written down and read back, it is the same."""

import json
from dataclasses import FrozenInstanceError

import pytest
import yaml

from headstart.errors import UsageError
from headstart.methods.linear_probe import LinearProbe
from headstart.recipe import DEFAULT_BACKBONE, Recipe

RECIPES = [
    Recipe(),
    Recipe(
        backbone="torchvision/resnet18",
        method=LinearProbe(folds=3, imbalance="balanced", penalties=(1e-6, 0.1), seed=4),
        group_by=r"^(.*?)_\d+: #'\"",
        bad_files="skip",
        allow_overlap=True,
        test_fraction=0.35,
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
    with pytest.raises(UsageError, match="`seed` to be 0 or more, got -1"):
        Recipe(seed=-1)
