"""Every flag of a verb is a keyword of the same name, and the other way round."""

import inspect

import pytest
from typer.testing import CliRunner

import headstart
from headstart.cli import app as app_module
from headstart.cli import commands
from headstart.cli import data as data_module
from headstart.cli.app import app
from headstart.data.readers import READ_SETTINGS
from headstart.errors import UnknownNameError, UsageError
from headstart.methods.flags import flags
from headstart.models.transfer_model import TransferModel
from headstart.workflows.comparison_recipe import ComparisonRecipe
from headstart.workflows.evaluate import EPISODE_OPTIONS
from headstart.workflows.predict import PREDICT_SETTINGS
from headstart.workflows.recipe import Recipe
from headstart.workflows.verb_settings import (
    COMPARE_SETTINGS,
    RANK_SETTINGS,
    TRIAL_SETTINGS,
    comparison_settings,
    ranking_recipe,
)

# How much is printed, where, and the settings of an earlier run: of the terminal alone.
TERMINAL = {"ctx", "quiet", "verbose", "as_json", "open_report", "config"}
# Keywords that no text on a command line can stand for.
PYTHON = {"cache", "observer", "callbacks", "progress", "command", "recipe", "trials", "settings"}
PYTHON |= {"options", "extractor", "train", "self"}
# How boxes are chosen: read from **settings.
BOXES = {"nms", "class_agnostic_nms", "max_boxes"}
PYTHON |= {"selection"}
RECIPE = {name for name in Recipe.__dataclass_fields__ if name not in {"rivals", "method"}}

VERBS = {
    "fit": (app_module.fit, headstart.fit, RECIPE | {"method", "backbones"}),
    "plan": (commands.plan, headstart.plan, RECIPE | {"method", "backbones"}),
    "compare": (commands.compare, headstart.compare, {*TRIAL_SETTINGS, *COMPARE_SETTINGS}),
    "rank": (commands.rank, headstart.rank, set(RANK_SETTINGS)),
    "evaluate": (
        app_module.evaluate,
        headstart.evaluate,
        {*READ_SETTINGS, "bad_files", "allow_overlap", "device", *BOXES, *EPISODE_OPTIONS},
    ),
    "predict": (app_module.predict, headstart.predict, set(PREDICT_SETTINGS)),
    "explain": (commands.explain, headstart.explain, set()),
}
# The model and the data have other names in Python; --format is `output` inside the command.
RENAMED = {
    "evaluate": {"source": "data"},
    "predict": {"output": "format"},
}
# A plan trains nothing, so limits on the training of a run have no flag.
NO_FLAG = {"plan": {"max_risk", *BOXES}}


def names_of(function) -> set[str]:
    return set(inspect.signature(function).parameters)


@pytest.mark.parametrize("verb", VERBS)
def test_flags_and_keywords_agree(verb: str) -> None:
    command, function, settings = VERBS[verb]
    typed = names_of(command) - TERMINAL
    typed = {RENAMED.get(verb, {}).get(name, name) for name in typed} - PYTHON
    keywords = (names_of(function) | settings) - PYTHON - NO_FLAG.get(verb, set())
    assert typed == keywords


@pytest.mark.parametrize("verb", ["fit", "plan", "compare", "rank", "evaluate"])
def test_every_verb_that_reads_labels_takes_all_settings_of_reading(verb: str) -> None:
    command, _, settings = VERBS[verb]
    assert set(READ_SETTINGS) <= names_of(command)
    assert set(READ_SETTINGS) <= settings
    assert set(READ_SETTINGS) <= names_of(data_module.data_check)


def test_the_model_predicts_with_the_same_words() -> None:
    names = names_of(TransferModel.predict) | {"format", "out", "ids", *BOXES}
    keywords = names_of(headstart.predict) | set(PREDICT_SETTINGS)
    assert names - PYTHON == keywords - PYTHON - {"model"}
    with pytest.raises(UnknownNameError, match=r"'thresold'. Did you mean 'threshold'"):
        headstart.predict("runs/none", "x", thresold=0.5)


@pytest.mark.parametrize("verb", ["fit", "plan", "compare", "rank", "evaluate"])
def test_an_unknown_keyword_gets_the_nearest(verb: str) -> None:
    arguments = {"evaluate": ("runs/none", "x"), "rank": ("x", "resnet18")}.get(verb, ("x",))
    with pytest.raises(UnknownNameError, match=r"'group_bye'. Did you mean 'group_by'"):
        VERBS[verb][1](*arguments, group_bye="patient")
    with pytest.raises(UnknownNameError, match=r"'no_cach'. Did you mean 'no_cache'"):
        VERBS[verb][1](*arguments, no_cach=True)


def test_a_flag_of_a_method_is_no_setting_of_a_ranking() -> None:
    for name in ("epochs", "method", "backbone", "head"):
        with pytest.raises(UnknownNameError):
            ranking_recipe(None, {name: "x"})
    assert {flag.name for flag in flags()} & set(RANK_SETTINGS) == set()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"methods": "probe, finetune"}, {"methods": ("probe", "finetune")}),
        ({"methods": ["probe"]}, {"methods": ("probe",)}),
        ({"fractions": "0.1,1"}, {"fractions": (0.1, 1.0)}),
        ({"fractions": 0.5}, {"fractions": (0.5,)}),
        ({"fractions": [0.5, 1]}, {"fractions": (0.5, 1.0)}),
        ({"backbones": "resnet18?mean=0.5,0.5,0.5,vgg16"}, {}),
        ({"backbones": ["resnet18"]}, {"backbones": ("resnet18",)}),
        ({"seeds": 3, "folds": 0, "steps": None}, {"seeds": 3, "folds": 0, "steps": None}),
    ],
)
def test_a_comparison_takes_texts_and_values(settings, expected) -> None:
    trials, _ = comparison_settings(None, None, settings)
    assert {name: getattr(trials, name) for name in expected} == expected
    _, recipe = comparison_settings(None, None, {**settings, "masks": "m", "budget": "1m"})
    assert (recipe.masks, recipe.budget) == ("m", 60.0)


@pytest.mark.parametrize(
    ("trials", "recipe", "settings", "message"),
    [
        (None, None, {"seeds": "3"}, r"`seeds` must be a whole number, got '3'"),
        (None, None, {"seeds": None}, r"`seeds` must be a whole number, got None"),
        (None, None, {"fractions": "a"}, r"--fractions must be numbers"),
        (None, None, {"methods": 3}, r"`methods` must be names, got 3"),
        (None, None, {"size": "big"}, r"`size` must be a whole number, got 'big'"),
        (ComparisonRecipe(), None, {"seeds": 3}, r"`trials` and `seeds` are both set"),
        (None, Recipe(), {"masks": "m"}, r"`recipe` and `masks` are both set"),
        ({"seeds": 3}, None, {}, r"`trials` must be a ComparisonRecipe"),
        (None, {"masks": "m"}, {}, r"`recipe` must be a Recipe"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(trials, recipe, settings, message) -> None:
    with pytest.raises(UsageError, match=message):
        comparison_settings(trials, recipe, settings)


def test_the_old_values_still_work_with_settings_beside_them() -> None:
    trials, recipe = comparison_settings(ComparisonRecipe(seeds=4), None, {"group_by": "patient"})
    assert (trials.seeds, recipe.group_by) == (4, "patient")
    trials, recipe = comparison_settings(None, Recipe(size=64), {"seeds": 4})
    assert (trials.seeds, recipe.size) == (4, 64)


def test_the_commands_pass_every_setting_on(monkeypatch) -> None:
    """Each value differs from its default, and arrives."""
    arrived = {}

    def stop(source, *arguments, **keywords):
        arrived.update(keywords)
        raise UsageError("enough: 1. Stop.")

    monkeypatch.setattr("headstart.workflows.rank.rank", stop)
    monkeypatch.setattr("headstart.workflows.compare.compare", stop)
    words = "--task detection --size 64 --group-by g --masks m --images i --mask-threshold 9"
    words += " --class-level 2 --label-from d --image-column a --label-column b --label-separator c"
    words += " --weight-column w"
    words += " --bad-files skip --allow-overlap --test-fraction 0.3 --device cpu --offline --seed 7"
    expected = {"task": "detection", "size": 64, "group_by": "g", "masks": "m", "images": "i"}
    expected |= {
        "mask_threshold": 9,
        "class_level": 2,
        "label_from": "d",
        "image_column": "a",
        "label_column": "b",
    }
    expected |= {
        "label_separator": "c",
        "weight_column": "w",
        "bad_files": "skip",
        "allow_overlap": True,
    }
    expected |= {"test_fraction": 0.3, "device": "cpu", "offline": True, "seed": 7}
    for verb, names in (("rank", RANK_SETTINGS), ("compare", COMPARE_SETTINGS)):
        own = ["--backbones", "resnet18"]
        CliRunner().invoke(app, [verb, "photos", *own, *words.split()])
        assert {name: arrived[name] for name in expected} == expected
        assert set(names) <= set(arrived)
        arrived.clear()


@pytest.mark.parametrize("name", EPISODE_OPTIONS)
def test_keywords_of_episodes_belong_to_a_function_of_their_own(name: str) -> None:
    with pytest.raises(
        UsageError, match=rf"`{name}`=3 is a setting of `headstart.evaluate_episodes`"
    ):
        headstart.evaluate("runs/none", "x", **{name: 3})
    assert name in names_of(headstart.evaluate_episodes)
