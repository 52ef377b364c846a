"""Settings by name: the same words, the same recipe, as a command or in Python."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest

from headstart.cache import Cache
from headstart.data.transforms.augment import Augmentation
from headstart.errors import HeadstartError, UnknownNameError, UsageError
from headstart.methods import METHODS
from headstart.methods.finetune import Finetune
from headstart.methods.flags import flags
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone
from headstart.methods.scratch import Scratch
from headstart.selection.candidates import recipe_candidates
from headstart.training.optim import Training
from headstart.workflows.config import read_recipe
from headstart.workflows.fit import KEYWORDS, fit
from headstart.workflows.plan import plan
from headstart.workflows.recipe import Recipe, make_recipe, parse_method


def test_no_setting_is_the_default_recipe():
    assert make_recipe({}) == Recipe()


def test_every_field_of_a_recipe_is_a_setting():
    changed = {
        "backbone": "resnet18",
        "budget": 90.0,
        "prove": True,
        "task": "detection",
        "head": "fcos",
        "size": 64,
        "group_by": "patient",
        "masks": "gt",
        "images": "photos",
        "mask_threshold": 128,
        "class_level": 1,
        "label_from": "(.)",
        "max_pixels": 5,
        "bits": 12,
        "window": "40,400",
        "bands": "4,3,2",
        "band_range": "0,3000",
        "no_data": -9999.0,
        "image_column": "file",
        "label_column": "class",
        "label_separator": ",",
        "weight_column": "trust",
        "bad_files": "skip",
        "allow_overlap": True,
        "test_fraction": 0.5,
        "max_risk": 0.1,
        "nms": 0.4,
        "class_agnostic_nms": True,
        "max_boxes": 50,
        "engine": "fp32",
        "device": "cpu",
        "offline": True,
        "seed": 7,
    }
    names = {field.name for field in dataclasses.fields(Recipe)}
    assert set(changed) == names - {"method", "rivals"}
    assert make_recipe(changed) == Recipe(**changed)


@pytest.mark.parametrize("method", METHODS)
def test_every_flag_of_a_method_is_a_setting(method):
    """Each is known by its name; a plain object is no value of any of them."""
    for flag in flags():
        if method in flag.methods:
            with pytest.raises(UsageError, match=f"`{flag.name}` must be") as caught:
                make_recipe({"method": method, flag.name: object()})
            assert not isinstance(caught.value, UnknownNameError)


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ({"epochs": 5}, {"epochs": "5"}),
        ({"epochs": np.int64(5)}, {"epochs": "5"}),
        ({"learning_rate": 1e-4}, {"learning_rate": "1e-4"}),
        ({"learning_rate": "layer3=1e-5"}, {"learning_rate": "layer3=1e-5"}),
        ({"train_from": "layer4"}, {"train_from": "layer4"}),
        ({"augment": "light", "rotation": 3}, {"augment": "light", "rotation": "3"}),
        ({"flip": True}, {"flip": True}),
    ],
)
def test_typed_values_and_texts_are_the_same(typed, text):
    assert make_recipe({"method": "finetune", **typed}) == make_recipe(
        {"method": "finetune", **text}
    )


def test_values_arrive_in_the_method():
    settings = {"method": "finetune", "epochs": 5, "learning_rate": 1e-4, "seed": 3}
    training = Training(epochs=5, patience=0)
    wanted = Finetune.measured(training=training, learning_rate=1e-4, seed=3)
    assert make_recipe(settings).method == wanted
    assert make_recipe({"penalties": [0.1, 1]}).method == LinearProbe(penalties=(0.1, 1.0))


def test_a_method_may_be_a_value_a_name_or_none():
    method = Finetune(train_from="layer4")
    assert make_recipe({"method": method}).method is method
    assert make_recipe({"method": "linear-probe"}).method == LinearProbe()
    assert make_recipe({"method": None}).method is make_recipe({"method": "auto"}).method is None


def test_a_flag_that_is_none_is_left_out():
    settings = {"method": "finetune", "epochs": None, "train_from": None}
    assert make_recipe(settings).method == Finetune.measured()


def test_without_a_name_the_settings_decide_the_method():
    for task in ("classification", "detection", "segmentation"):
        recipe = make_recipe({"wise_ft": 0.5}, find_task=lambda _, task=task: task)
        is_measured = task == "classification"
        assert recipe.method == (Finetune.measured if is_measured else Finetune)(wise_ft=0.5)
    assert make_recipe({"folds": 3}).method == LinearProbe(folds=3)


@pytest.mark.parametrize(
    "backbones", ["vgg16,resnet18", ["vgg16", "resnet18"], ("vgg16", "resnet18")]
)
def test_several_backbones(backbones):
    recipe = make_recipe({"backbones": backbones})
    assert (recipe.backbone, recipe.rivals) == ("vgg16", ("resnet18",))


@pytest.mark.parametrize("budget", ["2m", "120s", 120, 120.0, "120", np.float32(120)])
def test_a_budget_is_a_text_or_seconds(budget):
    recipe = make_recipe({"budget": budget})
    assert recipe.budget == 120
    assert type(recipe.budget) is float


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": Finetune}, r"`method` .* got the class Finetune\. Pass Finetune\(\)"),
        ({"method": 3}, "`method` must be a method such as Finetune"),
        ({"train_from": 4}, r"`train_from` must be a text such as 'last:1', got 4 \(int\)"),
        ({"backbone": None}, "`backbone` must be a text, got None"),
        ({"backbones": 4}, "`backbones` must be a list of names, got 4"),
        ({"backbones": [4]}, "`backbones` must be a list of names"),
        ({"method": "finetune", "epochs": "five"}, "--epochs must be a whole number, got 'five'"),
        ({"method": "finetune", "epochs": 2.5}, "`epochs` must be a whole number, got 2.5"),
        ({"method": "finetune", "mixup": True}, "`mixup` must be a number, got True"),
        ({"method": "finetune", "flip": "yes"}, "`flip` must be True or False, got 'yes'"),
        ({"method": "finetune", "augment": 3}, r"`augment` must be a text \(none, light"),
        ({"penalties": ["a"]}, "`penalties` must be numbers"),
        ({"seed": 1.5}, "`seed` must be a whole number, got 1.5"),
        ({"seed": True}, "`seed` must be a whole number, got True"),
        ({"max_risk": "low"}, r"`max_risk` must be a number, got 'low' \(str\)\. Pass .*0\.02"),
        ({"allow_overlap": "no"}, "`allow_overlap` must be True or False, got 'no'"),
        ({"budget": "2x"}, "--budget must be a duration"),
        ({"budget": True}, "--budget must be a duration"),
        ({"method": Finetune(), "epochs": 5}, r"Finetune\(\.\.\.\).*`epochs`.*method='finetune'"),
        ({"method": "auto", "epochs": 5}, "--method auto takes no flags of a method, got --epochs"),
        ({"backbone": "vgg16", "backbones": ["resnet18"]}, "--backbones vgg16,resnet18"),
        ({"method": "finetun"}, "Did you mean 'finetune'"),
        ({"bad_files": "skp"}, "Did you mean 'skip'"),
        ({"learning_rat": 1}, "Unknown setting: 'learning_rat'. Did you mean 'learning_rate'"),
        ({"bakbone": "vgg16"}, "Did you mean 'backbone'"),
        ({"rivals": ("vgg16",)}, "Unknown setting: 'rivals'"),
    ],
)
def test_wrong_settings_get_a_sentence_when_they_are_passed(settings, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        make_recipe(settings)
    with pytest.raises(UsageError, match=words):  # before the missing folder is looked at
        fit(tmp_path / "missing", out=tmp_path / "run", **settings)
    assert not list(tmp_path.iterdir())


NUMBERS = (10**400, -(10**400), [10**400], "1e400", "9" * 5000, float("nan"), float("-inf"))


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: repr(value)[:12])
def test_numbers_beyond_every_range_never_end_in_a_traceback(value):
    names = {field.name for field in dataclasses.fields(Recipe)} | set(KEYWORDS)
    names |= {flag.name for method in METHODS.values() for flag in flags(method)}
    messages = {}
    for name in sorted(names):
        for method in ({}, {"method": "finetune"}):
            try:
                make_recipe({**method, name: value})
            except HeadstartError as error:
                messages[name, len(method)] = str(error)
    assert len(messages) > len(names)
    assert all(len(message) <= 1024 for message in messages.values())


def test_a_recipe_takes_values_of_its_types_only():
    with pytest.raises(UsageError, match="`rivals` must be a tuple of names"):
        Recipe(rivals="resnet18")
    with pytest.raises(UsageError, match="the class LinearProbe"):
        Recipe(method=LinearProbe)
    assert type(Recipe(seed=np.int64(3)).seed) is int


def test_a_recipe_and_settings_exclude_each_other():
    with pytest.raises(UsageError, match="`recipe` and `epochs` are both set"):
        fit("photos", Recipe(), epochs=5)
    with pytest.raises(UsageError, match=r"got 'resnet18'\. Pass settings by name"):
        fit("photos", "resnet18")


def test_settings_of_fit_reach_the_run(tmp_path):
    try:
        fit(tmp_path / "missing", out=tmp_path / "run", backbone="no-such-backbone-at-all")
    except HeadstartError as error:
        assert "no-such-backbone-at-all" in str(error)  # noqa: PT017 - any of its classes
    else:
        pytest.fail("an unknown backbone was accepted")


def test_a_cache_may_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    for settings in ({"cache": False}, {"no_cache": True}):
        rows = plan("demo:symbols", budget=0, engine="fp32", **settings)["rows"]
        assert rows
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="`cache` must be a Cache"):
        plan("demo:symbols", cache="here")
    with pytest.raises(UsageError, match="`no_cache` is True"):
        fit("demo:symbols", cache=Cache(tmp_path / "c"), no_cache=True, out=tmp_path / "run")
    with pytest.raises(UnknownNameError, match="Did you mean 'tensorboard'"):
        fit("demo:symbols", track="tensorbord", out=tmp_path / "run")


def test_finetune_by_name_is_the_measured_recipe_of_the_race():
    race = recipe_candidates(random_backbone(SMALL_ARCHITECTURE), 3, include_scratch=False)
    trained = next(c.method for c in race if c.method.train_from == "last:1")
    assert make_recipe({"method": "finetune", "seed": 3}).method == trained
    assert parse_method("finetune", "classification", seed=3) == trained
    assert make_recipe({"loss": lambda logits, targets: logits}).method.training.epochs == 8


def test_single_flags_change_the_measured_recipe():
    made = make_recipe({"epochs": 30, "augment": "none", "train_from": "all"}).method
    assert made == replace(
        Finetune.measured(train_from="all"),
        training=Training(epochs=30, patience=0),
        augmentation=Augmentation(),
    )
    assert make_recipe({"method": "finetune", "patience": 4}).method.training.patience == 4
    assert make_recipe({"method": "scratch"}).method == Scratch()
    assert make_recipe({"method": Finetune()}).method == Finetune()


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_boxes_and_masks_keep_their_defaults(task):
    assert make_recipe({"method": "finetune", "task": task}).method == Finetune()
    assert make_recipe({"method": "finetune"}, find_task=lambda _: task).method == Finetune()
    assert parse_method("finetune", task) == Finetune()


def test_stored_recipes_load_as_they_were_written(tmp_path):
    """Those of older releases have ``learning_rate: null``, which means 3e-5."""
    for method in (
        Finetune(),
        Finetune(train_from="all", training=Training(epochs=3)),
        Finetune.measured(train_from="all"),
    ):
        stored = Recipe(method=method).as_dict()
        (tmp_path / "resolved.yaml").write_text(json.dumps(stored))
        assert read_recipe(tmp_path).method == method
        again = read_recipe(tmp_path, {"epochs": 5}).method
        assert again == replace(method, training=replace(method.training, epochs=5))
    (tmp_path / "resolved.yaml").write_text("method: linear-probe")
    changed = read_recipe(tmp_path, {"method": "finetune"}).method
    assert changed == Finetune.measured()
