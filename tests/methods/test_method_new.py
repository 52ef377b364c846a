"""A new method is one file and one row: everything else follows from its dataclass."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import headstart
from headstart.backbones.backbone import load as load_backbone
from headstart.backbones.catalog import resolve
from headstart.cache import Cache
from headstart.cli.app import main
from headstart.methods import METHODS
from headstart.methods.flags import flags, make_method
from headstart.workflows.compare import compare
from headstart.workflows.comparison_recipe import ComparisonRecipe
from headstart.workflows.events import EpochDone
from headstart.workflows.recipe import Recipe

MODULE = '''
"""Train the head alone, at one learning rate, from random values."""

from dataclasses import dataclass
from typing import ClassVar

from headstart.backbones.freezing import plan_freezing
from headstart.methods.method import (
    Outline, described, estimate_gradient_seconds, require_two_of_each, resume_identity,
)
from headstart.training.inputs import InputSource
from headstart.training.network import Network, find_split_point
from headstart.training.settings import Settings, SharedSettings
from headstart.training.trainer import held_out, objective_for, train_network, trained_model


@dataclass(frozen=True, kw_only=True)
class HeadOnly(SharedSettings):
    """Train the head alone.

    Parameters
    ----------
    head_rate : float
        Learning rate of the head.
    """

    name: ClassVar[str] = "head-only"
    resumes: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = True

    head_rate: float = 1e-2

    def check(self, train):
        require_two_of_each(train)

    def outline(self, model, train, *, extractor):
        plan = self._plan(model)
        return Outline(title="head only", trains="one linear layer, by gradient", plan=plan)

    def expected_seconds(self, model, train, val=None, *, extractor, pace=1.0):
        return estimate_gradient_seconds(
            self, model, self._plan(model), (train, val),
            fits_head=False, extractor=extractor, pace=pace,
        )

    def fit(self, model, train, val=None, *, extractor, session=None):
        if val is None:
            train, val = held_out(train, self.seed)
        plan, head = self._plan(model), model.initial_head(train, seed=self.seed)
        settings = Settings.of(self, train.kind, head_learning_rate=self.head_rate)
        objective = objective_for((train, val), settings, backbone=model.backbone)
        split_point = find_split_point(plan, head)
        source = InputSource(
            backbone=model.backbone, extractor=extractor, split_point=split_point, seed=self.seed
        )
        output = train_network(
            Network(model.backbone.copy(), head, plan, split_point=split_point),
            objective, settings, input_source=source, session=session,
            identity={"method": resume_identity(self)},
        )
        return trained_model(
            model, output, objective, backbone=model.backbone, plan=plan, method=described(self)
        )

    def _plan(self, model):
        return plan_freezing(model.backbone.module, train_from="head", learning_rate=1e-4)
'''
BACKBONE = "timm/test_resnet"


@pytest.fixture
def head_only(tmp_path, monkeypatch):
    """The method's file, imported, and its row in METHODS."""
    path = tmp_path / "head_only.py"
    path.write_text(MODULE)
    spec = importlib.util.spec_from_file_location("head_only", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "head_only", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, "head-only", module.HeadOnly)
    flags.cache_clear()
    yield module.HeadOnly
    flags.cache_clear()


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for number, name in enumerate(("dark", "light")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(16):
            pixels = rng.integers(0, 120, (40, 40, 3)) + 120 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def backbone(tmp_path):
    module = load_backbone(resolve(BACKBONE), pretrained=False, seed=1)
    path = tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in module.trunk.state_dict().items()}, path)
    return f"file:{path}@{BACKBONE}?resize=40&crop=32"


@pytest.mark.usefixtures("head_only")
def test_it_has_flags_with_help() -> None:
    flag = next(flag for flag in flags() if flag.name == "head_rate")
    assert (flag.option, flag.kind, flag.default) == ("--head-rate", "number", "0.01")
    assert flag.help == "Learning rate of the head."
    assert "head-only" in next(flag for flag in flags() if flag.name == "epochs").methods
    method = make_method("head-only", {"head_rate": "0.5", "epochs": "3"}, seed=2)
    assert (method.head_rate, method.training.epochs, method.seed) == (0.5, 3, 2)


@pytest.mark.usefixtures("head_only")
def test_the_command_line_trains_it_and_the_files_record_it(
    photos, backbone, tmp_path, monkeypatch
) -> None:
    command = [
        "fit",
        photos,
        "--backbone",
        backbone,
        "--method",
        "head-only",
        "--head-rate",
        "0.05",
    ]
    command += ["--epochs", "2", "--engine", "fp32", "--device", "cpu", "--out", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", ["headstart", *map(str, command)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    record = headstart.load(tmp_path / "run").record
    assert record["method"]["name"] == "head-only"
    assert record["method"]["head_rate"] == 0.05
    recipe = yaml.safe_load((tmp_path / "run" / "resolved.yaml").read_text())
    assert recipe["method"]["name"] == "head-only"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "head-only" in page or "head only" in page
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "head-only" in json.dumps(report)


class KilledError(Exception):
    """The process of the training ends here."""


def test_a_stopped_training_resumes_to_the_same_weights(
    head_only, photos, backbone, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("headstart.training.engine.CHECKPOINT_SECONDS", -1)
    method = head_only(training=headstart.Training(epochs=3, batch_size=8, patience=9))
    recipe = Recipe(backbone=backbone, method=method, engine="fp32", device="cpu")
    options = {"recipe": recipe, "cache": Cache(tmp_path / "cache")}
    whole = headstart.fit(photos, out=tmp_path / "whole", **options)

    def kill(event):
        if isinstance(event, EpochDone) and event.epoch.number == 2:
            raise KilledError

    with pytest.raises(KilledError):
        headstart.fit(photos, out=tmp_path / "run", observer=kill, **options)
    events = []
    run = headstart.fit(
        photos, out=tmp_path / "run", observer=events.append, resume=True, **options
    )
    # An exception in an observer keeps the run's state: epoch 2 is not trained again.
    assert [e.epoch.number for e in events if isinstance(e, EpochDone)] == [3]
    first, second = (load_file(r.folder / "model.safetensors") for r in (whole, run))
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("head_only")
def test_it_is_compared_and_has_an_expected_duration(photos, backbone, tmp_path) -> None:
    trials = ComparisonRecipe(
        methods=("probe", "head-only?epochs=1"), backbones=(backbone,), seeds=2, folds=0
    )
    recipe = Recipe(engine="fp32", device="cpu")
    cache = Cache(tmp_path / "cache")
    comparison, folder = compare(photos, trials, recipe=recipe, out=tmp_path / "c", cache=cache)
    assert {result.method for result in comparison.results} == {"probe", "head-only?epochs=1"}
    assert "head-only" in (folder / "compare.html").read_text()
    from headstart.workflows.plan import plan

    named = Recipe(
        backbone=backbone, method=make_method("head-only", {}), engine="fp32", device="cpu"
    )
    assert plan(photos, named, cache=cache)["estimated"] > 0
