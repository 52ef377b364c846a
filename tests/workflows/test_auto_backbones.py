"""``--backbones auto``: what is on this machine, the best two of it, and what is said of it."""

from types import SimpleNamespace

import numpy as np
import pytest

from headstart.backbones.catalog import resolve
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.errors import UsageError, WeightsMismatchError
from headstart.methods.pretraining import random_like
from headstart.selection import expected_gain
from headstart.workflows import auto_backbones
from headstart.workflows.auto_backbones import backbones_on_disk, read_backbones
from headstart.workflows.fit import fit
from headstart.workflows.plan import plan
from headstart.workflows.recipe import Recipe, make_recipe

SIZE = "?crop=32&resize=32"


def drawn(n=40):
    rng, samples = np.random.default_rng(0), []
    for i in range(n):
        image = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
        image[:, : 16 * (i % 2)] += 120
        samples.append(Sample(image=image, target=("full", "half")[i % 2], title=f"{i}.png"))
    return Dataset(samples=tuple(samples), classes=("full", "half"), name="halves")


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def on_disk(monkeypatch):
    """Three small networks with random weights take the place of the catalogue's files."""
    specs = [resolve(name + SIZE) for name in ("timm/test_resnet", "timm/test_efficientnet")]
    specs.append(resolve("timm/test_byobnet" + SIZE))
    made = {spec.name: random_like(spec, seed=i) for i, spec in enumerate(specs)}
    opened = []

    def read(spec, _):
        opened.append(spec.name)
        return made[spec.name]

    stand_in = SimpleNamespace(read=read, open=lambda name, offline: made[name])
    monkeypatch.setattr(auto_backbones, "FrozenBackbone", stand_in)
    monkeypatch.setattr(auto_backbones, "backbones_on_disk", lambda: tuple(specs))
    monkeypatch.setattr(auto_backbones, "locate", lambda spec, *, offline: offline)
    return SimpleNamespace(names=[spec.name for spec in specs], opened=opened)


def recipe(**changes):
    settings = {"backbones": "auto", "device": "cpu", "engine": "fp32", "budget": 30.0}
    return make_recipe(settings | changes)


def test_what_is_here_is_found_by_file_and_sorted_by_size(monkeypatch):
    assert "embedded/efficientnet_lite0" in [spec.name for spec in backbones_on_disk()]
    here = {"torchvision/resnet50", "torchvision/resnet18"}
    monkeypatch.setattr(auto_backbones, "is_on_disk", lambda spec: spec.name in here)
    found = [spec.name for spec in backbones_on_disk()]
    assert found == ["torchvision/resnet18", "torchvision/resnet50"]


def test_the_best_two_race_and_the_reasons_name_all(on_disk, cache):
    notes = []
    backbones, reasons = read_backbones([], recipe(), drawn(), cache, notes.append)
    assert sorted(on_disk.opened) == sorted(on_disk.names)
    assert len(backbones) == 2
    assert {b.spec.name for b in backbones} < set(on_disk.names)
    assert all(name in reasons[0] for name in on_disk.names)
    assert reasons[0].startswith("--backbones auto: 3 backbones of the catalogue on this machine.")
    raced = " and ".join(b.spec.name for b in backbones)
    assert f"with the best two scores: {raced}. Nothing was downloaded." in reasons[0]
    assert notes[-1].text == reasons[0]


def test_what_would_take_too_long_is_named_and_not_scored(on_disk, cache, monkeypatch):
    monkeypatch.setattr(auto_backbones, "RANKING_SHARE", 1e-9)
    backbones, reasons = read_backbones([], recipe(), drawn(), cache, lambda _: None)
    assert [b.spec.name for b in backbones] == on_disk.names[:1]
    assert "with the best score: " in reasons[0]
    assert reasons[1].startswith("--backbones auto: not scored")
    assert all(name in reasons[1] for name in on_disk.names[1:])


def test_damaged_weights_of_a_backbone_that_nobody_named_do_not_end_the_run(
    on_disk, cache, monkeypatch
):
    def locate(spec, *, offline):
        if spec.name == on_disk.names[0]:
            raise WeightsMismatchError("damaged")

    monkeypatch.setattr(auto_backbones, "locate", locate)
    backbones, reasons = read_backbones([], recipe(), drawn(), cache, lambda _: None)
    assert len(backbones) == 2
    assert f"the weights of {on_disk.names[0]} are damaged" in reasons[-1]


def test_without_a_budget_the_default_backbone_is_used(cache):
    backbones, (reason,) = read_backbones([], recipe(budget=0), drawn(), cache, lambda _: None)
    assert [b.spec.name for b in backbones] == ["embedded/efficientnet_lite0"]
    assert "the time budget is 0 s" in reason


def test_a_run_and_its_plan_race_them(on_disk, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(expected_gain, "race_candidates", lambda *_: None)
    planned = plan(drawn(), recipe(budget=60.0), cache=cache)
    assert planned["why"][0].startswith("--backbones auto: 3 backbones")
    run = fit(drawn(), recipe(budget=60.0), out=tmp_path / "run", cache=cache)
    decision = run.model.record["decision"]
    assert decision["why"][0].startswith("--backbones auto: 3 backbones")
    probed = {row["backbone"].split("&until")[0] for row in decision["rows"]}
    assert len({name for name in on_disk.names if any(name in row for row in probed)}) == 2
    assert run.recipe.rivals == ()
    assert run.recipe.backbone != "auto"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbones": "auto,resnet18"}, "auto stands alone"),
        ({"backbones": "auto", "backbone": "resnet18"}, "are both set"),
        ({"backbones": "auto", "method": "finetune"}, "cannot be combined with a race"),
    ],
)
def test_auto_stands_alone(settings, message):
    with pytest.raises(UsageError, match=message):
        make_recipe(settings)


def test_auto_needs_classes():
    data = Dataset(samples=(), classes=("cell",), kind="detection", name="cells")
    with pytest.raises(UsageError, match="--backbones auto needs classes of images, but 'cells'"):
        recipe().resolved_for(data)
    assert Recipe(rivals=["auto"]).is_auto
