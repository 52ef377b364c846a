"""How many trainings a comparison will run, and how long."""

from types import SimpleNamespace

import pytest

from headstart.cache import Cache
from headstart.data.checks.domains import REFERENCES
from headstart.data.dataset import Dataset, Sample
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.workflows import plan
from headstart.workflows.plan import PlannedTraining, describe_trainings, suggest_weights
from headstart.workflows.recipe import Recipe


def trainings(n_images, count, *, names=2, method=None):
    samples = tuple(Sample(image=b"", target="a") for _ in range(n_images))
    data = Dataset(samples=samples, classes=("a",))
    return [
        PlannedTraining(
            name=("backbone", i % names), method=method, backbone=None, parts=(data, None, data)
        )
        for i in range(count)
    ]


@pytest.fixture
def estimated(monkeypatch):
    """Trainings that were estimated, each at 40 s."""
    found = []

    def estimate(recipe, method, backbone, parts, *, extractor):
        found.append(method)
        return SimpleNamespace(estimated=40.0)

    monkeypatch.setattr(plan, "_plan_training", estimate)
    return found


def describe(planned, recipe=None):
    [text] = describe_trainings(planned, recipe or Recipe(), Cache(), about="5 seeds")
    return text


def test_many_images_are_estimated_once_for_each_kind(estimated):
    text = describe(trainings(1000, 10, names=2, method=Finetune()))
    assert text == "10 trainings will run in at most about 7 min: 5 seeds."  # 400 s
    assert len(estimated) == 2


def test_probes_of_few_images_are_not_worth_an_estimate(estimated):
    assert describe(trainings(100, 10, method=LinearProbe())) == "10 trainings will run: 5 seeds."
    assert estimated == []


def test_one_training_with_steps_is_estimated(estimated):
    text = describe([*trainings(10, 2, method=LinearProbe()), *trainings(10, 1, method=Finetune())])
    assert text == "3 trainings will run in at most about 2 min: 5 seeds."


def test_a_race_takes_its_budget(estimated):
    text = describe(trainings(1000, 10), Recipe(budget=9.0))
    assert text == "10 trainings will run in at most about 90 s: 5 seeds."
    assert estimated == []


def test_images_like_radiographs_name_their_weights(monkeypatch):
    prepared = SimpleNamespace(records=(), train=SimpleNamespace(is_dense=False))
    assert suggest_weights(prepared, Recipe()) == ()
    found = REFERENCES[0], 0.948
    monkeypatch.setattr(plan, "find_image_domain", lambda records: found)
    (text,) = suggest_weights(prepared, Recipe(backbone="torchvision/resnet18"))
    assert text.startswith("95 % of the images look like chest X-rays.")
    assert "better: xray/densenet121, xray/densenet121.nih, xray/chexnet." in text
    assert text.endswith("To compare, pass `--backbones torchvision/resnet18,xray/densenet121`.")
    (text,) = suggest_weights(prepared, Recipe(method=LinearProbe()))
    assert text.endswith("Pass `--backbone xray/densenet121`.")
    assert suggest_weights(prepared, Recipe(backbone="xray/chexnet")) == ()
    assert suggest_weights(prepared, Recipe(rivals=("xray/densenet121",))) == ()


def test_one_training_is_singular(estimated):
    planned = trainings(10, 1, method=LinearProbe())
    assert describe(planned) == "1 training will run: 5 seeds."
