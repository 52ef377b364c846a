"""A user's own network as backbone: stages, equality with its forward pass, refusals, every use."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import mobilenet_v2, resnet18

import headstart
from headstart.backbones.backbone import Backbone, load
from headstart.backbones.freezing import freeze
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.own_module import bind, randomise
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import UnknownNameError, UsageError, WeightsMismatchError
from headstart.workflows.compare import compare
from headstart.workflows.comparison_recipe import ComparisonRecipe
from headstart.workflows.events import Noted
from headstart.workflows.rank import rank
from headstart.workflows.recipe import Recipe

ROOT = Path(__file__).parents[2]
SMALL = {"size": 32, "mean": 0.5, "std": 0.5, "crop": 1}


class Block(nn.Module):
    """A residual block: its inside cannot be divided."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x):
        return functional.relu(self.norm(self.conv(x)) + self.skip(x))


class Tiny(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.one = Block(8, 12, 2)
        self.two = Block(12, width, 2)

    def forward(self, x):
        return self.two(self.one(functional.relu(self.norm(self.conv(x)))))


class Deep(nn.Module):
    """Maps of strides 4, 8, 16 and 32, as detectors need them."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, 8, 4), (8, 8, 2), (8, 16, 2), (16, 16, 2)]
        self.blocks = nn.Sequential(*(Block(*size) for size in sizes))

    def forward(self, x):
        return self.blocks(x)


class Branching(Tiny):
    def forward(self, x):
        x = super().forward(x)
        return x if x.mean() > 0 else x + 1


class Output(dict):
    """Values by key and by attribute, as the outputs of `transformers` are."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Block(8, 12, 2), Block(12, 16, 2)])

    def forward(self, hidden_state, output_hidden_states=False):
        for stage in self.stages:
            hidden_state = stage(hidden_state)
        return Output(last_hidden_state=hidden_state)


class ForImages(nn.Module):
    """As a CNN of `transformers`: keyword arguments, an object with `last_hidden_state`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.encoder = Encoder()
        self.pooler = nn.AdaptiveAvgPool2d(1)

    def forward(self, pixel_values, output_hidden_states=None, return_dict=None):
        embedded = self.embedder(pixel_values)
        maps = self.encoder(embedded, output_hidden_states=False)["last_hidden_state"]
        return Output(last_hidden_state=maps, pooler_output=self.pooler(maps))


class FeatureMaps(Tiny):
    def forward(self, x):
        first = self.one(functional.relu(self.norm(self.conv(x))))
        return Output(feature_maps=(first, self.two(first)))


class Shared(nn.Module):
    """One layer that is used twice: no stage may end between its uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.down = nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x):
        return self.down(self.down(self.stem(x)))


def seeded(build, *arguments):
    torch.manual_seed(1)
    return build(*arguments)


def names(backbone):
    return [(stage.name, stage.channels, stage.stride) for stage in backbone.stages]


@pytest.mark.parametrize(
    ("build", "stages"),
    [
        (Tiny, [("conv", 8, 2), ("one", 12, 4), ("two", 16, 8)]),
        (
            Deep,
            [
                (f"blocks.{i}", c, s)
                for i, (c, s) in enumerate([(8, 4), (8, 8), (16, 16), (16, 32)])
            ],
        ),
        (ForImages, [("embedder", 8, 2), ("encoder.stages.0", 12, 4), ("encoder.stages.1", 16, 8)]),
        (FeatureMaps, [("conv", 8, 2), ("one", 12, 4), ("two", 16, 8)]),
        (Branching, [("trunk", 16, 8)]),
        (Shared, [("stem", 8, 2), ("down", 8, 8)]),
    ],
)
def test_the_stages_are_found_and_are_the_forward_pass(build, stages) -> None:
    network = freeze(seeded(build))
    backbone = freeze(Backbone.from_module(network, preprocess={"size": 64}))
    assert names(backbone) == stages
    x = torch.randn(3, 3, 64, 64)
    expected = network(x)
    for name in ("last_hidden_state", "feature_maps"):
        expected = expected[name] if isinstance(expected, dict) and name in expected else expected
    expected = expected[-1] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(backbone.run(x), expected)
    torch.testing.assert_close(backbone.pooled(x), expected.mean((2, 3)))
    halves = x
    for stage in backbone.stages:  # one by one, as frozen and trained parts run
        halves = backbone.run(halves, start=stage.name, stop=stage.name)
    torch.testing.assert_close(halves, expected)
    assert all(backbone.find_stage(name) for name in backbone.state_dict())


def test_a_library_network_gets_the_stages_of_the_catalogue() -> None:
    backbone = Backbone.from_module(mobilenet_v2().features, preprocess={"size": 64})
    assert [stage.stride for stage in backbone.stages] == [2, 4, 8, 16, 32]
    assert backbone.width == 1280


@pytest.mark.parametrize(
    "stages",
    [["maxpool", "layer2", "layer4"], {"stem": "maxpool", "low": "layer2", "high": "layer4"}],
)
def test_named_stages_remove_the_classifier(stages) -> None:
    network = freeze(seeded(resnet18))
    backbone = freeze(Backbone.from_module(network, stages=stages, preprocess={"size": 64}))
    assert [stage.name for stage in backbone.stages] == list(stages)
    assert not [name for name in backbone.state_dict() if ".fc." in name]
    x = torch.randn(2, 3, 64, 64)
    expected = network.layer4(
        network.layer3(
            network.layer2(
                network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(x)))))
            )
        )
    )
    torch.testing.assert_close(backbone.run(x), expected)


def test_stages_before_the_end_drop_what_follows() -> None:
    backbone = Backbone.from_module(seeded(Tiny), stages=["norm", "one"], preprocess=SMALL)
    assert names(backbone) == [("norm", 8, 2), ("one", 12, 4)]
    assert not [name for name in backbone.state_dict() if ".two." in name]


def test_it_is_copied_and_in_float32() -> None:
    network = seeded(Tiny).double().train()
    backbone = Backbone.from_module(network, preprocess=SMALL)
    before = backbone.trunk.conv.weight.clone()
    with torch.no_grad():
        network.conv.weight.zero_()
    assert backbone.trunk.conv.weight.dtype == torch.float32
    assert torch.equal(backbone.trunk.conv.weight, before)
    assert network.training
    assert network.conv.weight.requires_grad


def test_the_preprocessing_and_what_was_assumed() -> None:
    given = Preprocess(resize=40, crop=32, interpolation="bicubic", mean=(0.1,) * 3, std=(1.0,) * 3)
    assert Backbone.from_module(Tiny(), preprocess=given).spec.preprocess == given
    backbone = Backbone.from_module(Tiny(), preprocess={"size": 28, "mean": 0.5})
    assert backbone.spec.preprocess.mean == (0.5, 0.5, 0.5)
    assert backbone.spec.preprocess.resize == 32
    note = FrozenBackbone.open(backbone).note
    assert "conv (1/2)" in note
    assert "Assumed: crop 0.875, std 0.229 0.224 0.225, interpolation bilinear;" in note
    assert "Assumed" not in FrozenBackbone.open(Backbone.from_module(Tiny(), preprocess=given)).note


class Fails(Tiny):
    def forward(self, x):
        raise ValueError("boom")


class GivesText(Tiny):
    def forward(self, x):
        return "maps"


class Tied(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(3, 8, 3, 2, 1)
        self.again.weight = self.conv.weight


def with_nan() -> nn.Module:
    network = Tiny()
    with torch.no_grad():
        network.one.conv.weight[0] = float("nan")
    return network


def with_flags() -> nn.Module:
    network = Tiny()
    network.one.register_buffer("flags", torch.zeros(2, dtype=torch.bool))
    return network


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (lambda: Tiny, {}, "got the class Tiny. Pass Tiny()"),
        (lambda: 3, {}, "must be an nn.Module, got 3"),
        (nn.ReLU, {}, "ReLU has 0 parameters"),
        (lambda: nn.LazyConv2d(3, 3), {}, "'weight' of LazyConv2d has no values yet"),
        (
            Fails,
            {},
            "The forward pass of Fails failed on images of shape (2, 3, 32, 32): ValueError: boom",
        ),
        (lambda: nn.Conv2d(1, 3, 3), {}, "Pass a network for RGB images"),
        (GivesText, {}, "returns a str"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 5)),
            {},
            "has the shape (2, 5), but a backbone gives maps (n, channels, h, w)",
        ),
        (Tiny, {"stages": ["conv", "on"]}, "Unknown stage: 'on'. Did you mean 'one'?"),
        (Tiny, {"stages": ["two", "one"]}, "not in the order of the forward pass"),
        (Tiny, {"stages": ["one", "one"]}, "a list of different submodules"),
        (Tiny, {"stages": "one"}, "a list of different submodules"),
        (Branching, {"stages": ["one", "two"]}, "depends on the values of tensors"),
        (Shared, {"stages": ["stem", "down"]}, None),
        (Tiny, {"stages": ["one.conv", "two"]}, "A stage cannot end at 'one.conv'"),
        (with_nan, {}, "'one.conv.weight' holds NaN or infinity"),
        (with_flags, {}, "'one.flags' has the type torch.bool"),
        (Tied, {}, "Give each layer parameters of its own"),
        (Tiny, {"preprocess": {"sizes": 3}}, "Unknown preprocess: 'sizes'. Did you mean 'size'?"),
        (Tiny, {"preprocess": {"size": "big"}}, "`size` must be pixels above 0, got 'big'"),
        (Tiny, {"preprocess": {"size": 32, "crop": 2}}, "`crop` must be a share"),
        (Tiny, {"preprocess": {"mean": "x"}}, "`mean` must be one or three numbers, got 'x'"),
        (Tiny, {"preprocess": {"std": (1, 2)}}, "`std` must be one or three numbers"),
        (Tiny, {"preprocess": 224}, "`preprocess` must be a dict, got 224"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_by_name(build, arguments, message) -> None:
    arguments = {"preprocess": SMALL, **arguments}
    if message is None:
        assert Backbone.from_module(build(), **arguments).stages
        return
    with pytest.raises(UsageError, match=re.escape(message)):
        Backbone.from_module(build(), **arguments)


def test_identity_depends_on_weights_stages_and_code() -> None:
    class First(Tiny):
        pass

    def identity(network, **arguments):
        return FrozenBackbone.of(
            Backbone.from_module(network, preprocess=SMALL, **arguments)
        ).identity

    same = identity(seeded(Tiny))
    assert identity(seeded(Tiny)) == same
    assert identity(Tiny()) != same
    assert identity(seeded(Tiny), stages=["one", "two"]) != same
    assert identity(seeded(First)) != same
    changed = seeded(First)
    changed_code = type("First", (Tiny,), {"forward": lambda self, x: Tiny.forward(self, x) * 2})
    changed.__class__ = changed_code
    assert identity(changed) != identity(seeded(First))


def test_random_weights_need_a_reset_of_every_layer() -> None:
    spec = Backbone.from_module(seeded(Tiny), preprocess=SMALL).spec
    first, again = (load(spec, pretrained=False, seed=3).state_dict() for _ in range(2))
    assert torch.equal(first["trunk.conv.weight"], again["trunk.conv.weight"])
    assert not torch.equal(first["trunk.conv.weight"], seeded(Tiny).conv.weight)
    network = Tiny()
    network.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(UsageError, match=r"has no method `reset_parameters`\. Add it"):
        randomise(network)


def test_the_code_of_a_model_must_be_that_of_its_training() -> None:
    spec = Backbone.from_module(seeded(Tiny), preprocess=SMALL).spec
    assert bind(spec, Tiny).build().conv.weight.shape == (8, 3, 3, 3)
    assert bind(spec, Tiny()).architecture == spec.architecture
    with pytest.raises(UsageError, match="other layers or other settings"):
        bind(spec, lambda: Tiny(20))
    with pytest.raises(UsageError, match=r"must be an nn.Module, got None"):
        bind(spec, lambda: None)


# ------------------------------------------------------------------------- in every workflow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of every kind of method, all with one network."""
    folder, notes = tmp_path_factory.mktemp("runs"), []
    network = seeded(Tiny)
    settings = {
        "linear-probe": {},
        "finetune": {"epochs": 1, "train_from": "two", "batch_norm": "adapt"},
        "scratch": {"epochs": 1},
    }
    backbone = Backbone.from_module(network, preprocess=SMALL)

    def note(event):
        if isinstance(event, Noted):
            notes.append(event.text)

    made = {
        method: headstart.fit(
            "demo:symbols",
            backbone=backbone,
            method=method,
            out=folder / method,
            observer=note,
            engine="fp32",
            device="cpu",
            **values,
        )
        for method, values in settings.items()
    }
    return made, notes


def test_every_method_learns_on_it(runs) -> None:
    made, notes = runs
    assert sum("stages conv (1/2), one (1/4), two (1/8)" in note for note in notes) == len(made)
    before = made["linear-probe"].model.backbone.state
    tuned = made["finetune"].model.backbone.state
    moved = {name.partition(".")[0] for name in tuned if not torch.equal(tuned[name], before[name])}
    assert moved == {"two"}  # what is frozen stays, bit for bit
    recorded = (made["finetune"].folder / "resolved.yaml").read_text()
    assert recorded.startswith("backbone: module/Tiny-")


@pytest.mark.parametrize("method", ["linear-probe", "finetune", "scratch"])
def test_a_saved_model_loads_with_its_code_and_predicts_the_same(runs, method) -> None:
    run = runs[0][method]
    images = [np.full((40, 40, 3), shade, dtype=np.uint8) for shade in (10, 120, 240)]
    loaded = headstart.load(run.folder, module=Tiny)
    expected = run.model.predict(images)
    for before, after in zip(expected, loaded.predict(images), strict=True):
        np.testing.assert_array_equal(before.probabilities, after.probabilities)
    with pytest.raises(UsageError, match=r"Tiny-\w+, a network of your own, whose code is not in"):
        headstart.load(run.folder)


class Renamed(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.second = self.one
        del self.one

    def forward(self, x):
        return self.two(self.second(functional.relu(self.norm(self.conv(x)))))


def test_another_network_is_refused_when_a_model_is_loaded(runs, tmp_path) -> None:
    folder = runs[0]["finetune"].folder
    with pytest.raises(UsageError, match="it has another name, other layers"):
        headstart.load(folder, module=Renamed)
    Renamed.__name__ = "Tiny"
    try:
        with pytest.raises(UsageError, match="it has another name, other layers"):
            headstart.load(folder, module=Renamed)
    finally:
        Renamed.__name__ = "Renamed"
    extra = seeded(Tiny)
    extra.register_buffer("table", torch.zeros(3))  # `repr` does not show it
    loaded = headstart.load(folder, module=extra)  # no stage uses it
    assert loaded.backbone.spec.name == runs[0]["finetune"].model.backbone.spec.name
    extra.one.register_buffer("table", torch.zeros(3))
    with pytest.raises(
        WeightsMismatchError, match=r"missing one\.table\. Pass the code that built"
    ):
        headstart.load(folder, module=extra)


def test_module_is_refused_where_it_is_not_needed(tmp_path) -> None:
    run = headstart.fit("demo:symbols", method="linear-probe", out=tmp_path / "run", engine="fp32")
    with pytest.raises(UsageError, match=r"which Headstart builds by itself\. Leave out `module`"):
        headstart.load(run.folder, module=Tiny)


@pytest.mark.parametrize(("source", "head"), [("demo:boxes", "retinanet"), ("demo:masks", "unet")])
def test_boxes_and_masks_are_learned_on_its_maps(source, head, tmp_path) -> None:
    run = headstart.fit(
        source,
        backbone=Backbone.from_module(seeded(Deep), preprocess={"size": 64}),
        size=64,
        head=head,
        method="finetune",
        epochs=1,
        out=tmp_path / "run",
        device="cpu",
    )
    loaded = headstart.load(run.folder, module=Deep)
    assert loaded.head.taps == run.model.head.taps
    assert all(tap.startswith("blocks.") for tap in loaded.head.taps)


def test_a_comparison_and_a_ranking_take_modules(tmp_path) -> None:
    recipe = Recipe(engine="fp32", device="cpu")
    modules = [Backbone.from_module(seeded(Tiny), preprocess=SMALL), Tiny(20)]
    ranking = rank("demo:symbols", modules, recipe=recipe, measure=["h-score"], max_images=100)
    assert {row.backbone.rpartition("-")[0] for row in ranking.rows} == {"module/Tiny"}
    assert len({row.backbone for row in ranking.rows}) == 2
    trials = ComparisonRecipe(methods=("probe",), backbones=modules[:1], seeds=1, folds=0)
    comparison, _ = compare("demo:symbols", trials, recipe=recipe, out=tmp_path / "comparison")
    assert comparison.results[0].backbone == FrozenBackbone.open(modules[0]).spec.name
    with pytest.raises(UsageError, match="one or more different names"):
        ComparisonRecipe(backbones=(modules[0], modules[0]))


def test_the_estimators_take_a_module() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    images[::2] //= 4
    labels = ["dark", "light"] * 6
    backbone = Backbone.from_module(seeded(Tiny), preprocess=SMALL)
    classifier = headstart.ImageClassifier(backbone=backbone, folds=2, engine="fp32")
    assert list(classifier.fit(images, labels).predict(images[:2])) == ["dark", "light"]


def test_a_recipe_takes_modules_and_refuses_other_values() -> None:
    recipe = Recipe(backbone=Tiny(), rivals=(Tiny(20), "resnet18"))
    assert recipe.backbone.spec.source == "module"
    assert recipe.as_dict()["backbone"].startswith("module/Tiny-")
    assert recipe.as_dict()["rivals"][1] == "resnet18"
    assert Recipe(backbone=recipe.backbone).backbone is recipe.backbone
    with pytest.raises(UsageError, match="`backbone` must be a text, got 3"):
        Recipe(backbone=3)
    with pytest.raises(UnknownNameError, match="'sizes'"):
        headstart.Backbone.from_module(Tiny(), preprocess={"sizes": 1})


def test_the_page_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "own_backbone.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    printed, names_of_page = io.StringIO(), {"__name__": "page"}
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(block, names_of_page)
    assert printed.getvalue().startswith("stem 16 2\nmiddle 32 4\ntop 64 8\n")
    assert "['stem', 'low', 'high'] 512\n" in printed.getvalue()
