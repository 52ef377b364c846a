"""Entry points of other packages: a small installed distribution, from its metadata to a model."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import yaml

import headstart
from headstart import plugins
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cli.app import main
from headstart.errors import ModelFileError, SetupError, UnknownNameError, UsageError
from headstart.estimators import ImageClassifier
from headstart.methods.flags import TAKEN, flags, make_method, record_values
from headstart.methods.plugin_methods import find_method, is_plugin
from headstart.workflows.recipe import make_recipe, parse_method

CODE = '''
"""A package of somebody else."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

import headstart
from headstart.methods.linear_probe import LinearProbe


@dataclass(frozen=True, kw_only=True)
class Probe(LinearProbe):
    """A linear probe with two more fields.

    Parameters
    ----------
    acme_level : int
        Level of the probe.
    acme_notes : tuple of str
        Notes, which no flag can hold.
    """

    name: ClassVar[str] = "acme-probe"

    acme_level: int = 3
    acme_notes: tuple[str, ...] = field(default=(), metadata={"flag": False})


@dataclass(frozen=True, kw_only=True)
class OtherName(Probe):
    """A method with another name in its code."""


@dataclass(frozen=True, kw_only=True)
class TakesOut(LinearProbe):
    """A method with a field that has the flag of the run."""

    name: ClassVar[str] = "takes-out"
    out: str = ""


@dataclass(frozen=True, kw_only=True)
class OtherType(LinearProbe):
    """A method with a field that has another type than that of a Headstart method."""

    name: ClassVar[str] = "other-type"
    epochs: str = ""


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 4, 1))


def pathnet():
    preprocess = {"size": 32, "mean": 0.5, "std": 0.5}
    return headstart.Backbone.from_module(network(), preprocess=preprocess)


def fails():
    raise RuntimeError("no licence")


def text():
    return "a text"


number = 7
'''
METHODS = {
    "acme-probe": "acme_code:Probe",
    "other-name": "acme_code:OtherName",
    "takes-out": "acme_code:TakesOut",
    "other-type": "acme_code:OtherType",
    "no-module": "acme_absent:Probe",
    "no-method": "acme_code:number",
    "finetune": "acme_code:Probe",
    "twice": "acme_code:Probe",
}
BACKBONES = {
    "pathnet": "acme_code:pathnet",
    "plain": "acme_code:network",
    "resnet18": "acme_code:pathnet",
    "fails": "acme_code:fails",
    "text": "acme_code:text",
    "number": "acme_code:number",
    "no-module": "acme_absent:network",
    "twice": "acme_code:pathnet",
}


def install(folder: Path, name: str, version: str, groups: dict[str, dict[str, str]]) -> None:
    """Write the metadata of an installed distribution."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder on sys.path with one package and a second one that repeats a name of it."""
    folder = tmp_path / "site"
    groups = {plugins.METHODS: METHODS, plugins.BACKBONES: BACKBONES}
    install(folder, "Acme_Vision", "1.0", groups)
    groups = {group: {"twice": "acme_code:pathnet"} for group in groups}
    install(folder, "other-vision", "2.0", groups)
    (folder / "acme_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(folder))
    flags.cache_clear()
    yield folder
    flags.cache_clear()
    sys.modules.pop("acme_code", None)


def command(*words: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["headstart", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


# ------------------------------------------------------------------------------- the lookup


def test_nothing_is_imported_before_a_name_is_used(packages) -> None:
    assert {p.name for p in plugins.installed(plugins.METHODS)} == set(METHODS)
    assert plugins.find(plugins.BACKBONES, "acme-vision/pathnet").version == "1.0"
    assert is_plugin("acme-probe")
    flags()
    assert "acme_code" not in sys.modules
    find_method("acme-probe")
    assert "acme_code" in sys.modules


def test_importing_headstart_and_its_help_import_no_plugin(packages) -> None:
    (packages / "acme_code.py").write_text("raise SystemExit(9)")
    code = (
        f"import sys; sys.path.insert(0, {str(packages)!r}); sys.argv = ['headstart', 'fit', '-h']"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nfrom headstart.cli.app import main\nmain()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--epochs" in done.stdout


def test_without_a_package_nothing_is_found() -> None:
    assert plugins.find(plugins.METHODS, "acme-probe") is None
    with pytest.raises(UnknownNameError, match=r"Unknown method: 'acme-probe'"):
        find_method("acme-probe")


def test_an_entry_point_without_a_distribution_is_left_out(monkeypatch) -> None:
    entry = EntryPoint(name="x", value="acme_code:Probe", group=plugins.METHODS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    assert plugins.installed(plugins.METHODS) == ()


# ------------------------------------------------------------------------------- methods


@pytest.mark.usefixtures("packages")
def test_a_method_has_flags_a_recipe_and_a_nearest_name() -> None:
    flag = next(flag for flag in flags("acme-probe") if flag.name == "acme_level")
    assert (flag.option, flag.kind, flag.default) == ("--acme-level", "integer", "3")
    assert flag.help == "Level of the probe."
    assert flag.methods == ("acme-probe",)
    assert "acme_notes" not in {flag.name for flag in flags("acme-probe")}
    assert "acme_level" not in {flag.name for flag in flags()}
    assert make_method("acme-probe", {"acme_level": "5"}, seed=2).acme_level == 5
    recipe = make_recipe({"method": "acme-probe", "acme_level": 4, "folds": 3})
    assert (recipe.method.acme_level, recipe.method.folds) == (4, 3)
    assert parse_method("acme-probe?acme-level=6", "classification").acme_level == 6
    with pytest.raises(UnknownNameError, match="Did you mean 'acme_level'"):
        make_recipe({"method": "acme-probe", "acme_levle": 4})
    with pytest.raises(UnknownNameError, match="Did you mean 'acme-probe'"):
        make_recipe({"method": "acme-prob"})
    record = {"name": "acme-probe", "acme_level": 2, "acme_notes": []}
    assert record_values(record) == {"acme_level": 2}
    with pytest.raises(UsageError, match=r"`acme_notes` of method acme-probe has no flag"):
        record_values({**record, "acme_notes": ["x"]})
    with pytest.raises(UsageError, match=r"--epochs belongs to method finetune or scratch"):
        make_recipe({"method": "acme-probe", "epochs": 4})


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("finetune", UsageError, r"'finetune' is Headstart's own.*acme-vision 1.0.*uninstall acme"),
        (
            "twice",
            UsageError,
            r"'twice' is declared by several packages.*acme-vision.*other-vision",
        ),
        ("no-module", SetupError, r"acme-vision 1.0 cannot be imported.*acme_absent"),
        ("no-method", SetupError, r"no-method of the package acme-vision 1.0 is not a method"),
        ("other-name", SetupError, r"has another name in its code: 'acme-probe'"),
        (
            "takes-out",
            UsageError,
            r"`out` of acme_code.TakesOut, with the type text, has the flag of the run",
        ),
        (
            "other-type",
            UsageError,
            r"`epochs` of acme_code.OtherType.*Training, with the type integer",
        ),
    ],
)
def test_a_method_that_cannot_be_used_has_a_sentence(name, error, message) -> None:
    with pytest.raises(error, match=message):
        make_recipe({"method": name})


def test_every_flag_and_keyword_of_a_run_is_refused_as_a_field() -> None:
    import inspect

    from headstart.cli import app as commands

    of_flags = {flag.name for flag in flags()}
    names = set()
    for function in (commands.fit, commands.plan, headstart.fit):
        names |= set(inspect.signature(function).parameters) - {"ctx", "settings", "seed"}
    assert names - of_flags <= TAKEN


def test_the_command_line_trains_it(packages, tmp_path, monkeypatch, capsys) -> None:
    words = ["fit", "demo:symbols", "--backbone", "pathnet", "--method", "acme-probe"]
    words += ["--acme-level", "5", "--engine", "fp32", "--out", tmp_path / "run"]
    assert command(*words, monkeypatch=monkeypatch) == 0
    record = headstart.load(tmp_path / "run").record["method"]
    assert (record["name"], record["acme_level"]) == ("acme-probe", 5)
    settings = yaml.safe_load((tmp_path / "run" / "resolved.yaml").read_text())
    assert settings["backbone"] == "acme-vision/pathnet"
    again = ["fit", "demo:symbols", "--config", tmp_path / "run" / "resolved.yaml"]
    assert command(*again, "--out", tmp_path / "again", "--json", monkeypatch=monkeypatch) == 0
    record = headstart.load(tmp_path / "again").record["method"]
    assert (record["name"], record["acme_level"]) == ("acme-probe", 5)
    capsys.readouterr()
    assert command("fit", "--method", "acme-probe", "--help", monkeypatch=monkeypatch) == 0
    assert "--acme-level" in capsys.readouterr().out
    assert command("fit", "demo:symbols", "--method=no-module", monkeypatch=monkeypatch) == 3
    assert "acme-vision 1.0 cannot be imported" in " ".join(capsys.readouterr().err.split())


# ------------------------------------------------------------------------------- backbones


@pytest.mark.usefixtures("packages")
def test_a_backbone_has_a_short_and_a_full_name_and_options() -> None:
    names = [FrozenBackbone.open(name).spec.name for name in ("pathnet", "acme-vision/pathnet")]
    assert names == ["acme-vision/pathnet"] * 2
    backbone = FrozenBackbone.open("pathnet?crop=48&until=0")
    assert backbone.spec.name == "acme-vision/pathnet?crop=48&until=0"
    assert (backbone.spec.preprocess.crop, backbone.width) == (48, 8)
    assert set(backbone.state) == {"0.weight", "0.bias"}
    assert FrozenBackbone.open("plain").spec.name == "acme-vision/plain"
    assert FrozenBackbone.open("acme-vision/resnet18").spec.name == "acme-vision/resnet18"
    assert FrozenBackbone.open("other-vision/twice").spec.name == "other-vision/twice"


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet18", UsageError, r"'resnet18' is ambiguous: Headstart has torchvision/resnet18"),
        ("twice", UsageError, r"several packages.*Pass the full name, such as acme-vision/twice"),
        ("no-module", SetupError, r"cannot be imported from acme_absent:network"),
        ("fails", SetupError, r"cannot be built by acme_code:fails \(RuntimeError: no licence\)"),
        ("text", SetupError, r"it returned a str, not an nn.Module"),
        ("number", SetupError, r"it is a int, not a function"),
        ("pathnet?channels=3", UnknownNameError, r"option of acme-vision/pathnet: 'channels'"),
        ("pathnet?until=7", UnknownNameError, r"Unknown stage: '7'"),
        ("acme-vision/pathnat", UnknownNameError, r"Did you mean 'acme-vision/pathnet'"),
    ],
)
def test_a_backbone_that_cannot_be_used_has_a_sentence(name, error, message) -> None:
    with pytest.raises(error, match=message):
        headstart.fit("demo:symbols", backbone=name)


@pytest.mark.usefixtures("packages")
def test_names_of_headstart_are_never_looked_up_in_packages(monkeypatch) -> None:
    monkeypatch.setattr(plugins, "find", lambda *_: pytest.fail("looked up"))
    assert FrozenBackbone.open("embedded/efficientnet_lite0").width == 1280
    assert resolve("torchvision/resnet18").width == 512


@pytest.mark.usefixtures("packages")
def test_the_table_of_backbones_lists_them_without_importing(monkeypatch, capsys) -> None:
    assert command("backbones", "--json", monkeypatch=monkeypatch) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["acme-vision/pathnet"]["source"] == "acme-vision 1.0"
    assert command("backbones", monkeypatch=monkeypatch) == 0
    assert "acme-vision/pathnet" in capsys.readouterr().out
    assert "acme_code" not in sys.modules


@pytest.mark.usefixtures("packages")
def test_an_estimator_takes_both_names() -> None:
    images = np.random.default_rng(0).integers(0, 255, (12, 40, 40, 3), dtype=np.uint8)
    images[::2] //= 4
    estimator = ImageClassifier(backbone="pathnet", method="acme-probe")
    estimator.fit(images, [0, 1] * 6)
    assert estimator.model_.record["method"]["name"] == "acme-probe"
    assert estimator.model_.backbone.spec.name == "acme-vision/pathnet"


# ------------------------------------------------------------------------------- saved models


def test_a_saved_model_needs_its_package(packages, tmp_path) -> None:
    run = headstart.fit(
        "demo:symbols", backbone="pathnet", engine="fp32", budget=0, out=tmp_path / "r"
    )
    images = np.random.default_rng(0).integers(0, 255, (3, 40, 40, 3), dtype=np.uint8)
    expected = run.model.predict(images)
    again = headstart.load(run.folder).predict(images)
    assert [p.label for p in again] == [p.label for p in expected]
    # The values are those of the folder, not those that the package builds.
    text = (packages / "acme_code.py").read_text()
    (packages / "acme_code.py").write_text(text.replace("manual_seed(0)", "manual_seed(1)"))
    sys.modules.pop("acme_code")
    again = headstart.load(run.folder).predict(images)
    assert np.allclose([p.probability for p in again], [p.probability for p in expected])
    # Another network of the same name is refused.
    (packages / "acme_code.py").write_text(text.replace("nn.ReLU()", "nn.Tanh()"))
    sys.modules.pop("acme_code")
    with pytest.raises(SetupError, match=r"another network than that of the training.*acme-vision"):
        headstart.load(run.folder)
    # Without the package, the error names it; the network can be passed.
    sys.path.remove(str(packages))
    message = r"backbone pathnet of the package acme-vision, which is not installed"
    with pytest.raises(SetupError, match=message):
        headstart.load(run.folder)
    namespace: dict = {}
    exec(text.partition("def pathnet")[0], namespace)
    again = headstart.load(run.folder, module=namespace["network"]).predict(images)
    assert [p.label for p in again] == [p.label for p in expected]


def test_a_hostile_name_in_a_model_folder_is_refused(packages, tmp_path) -> None:
    run = headstart.fit(
        "demo:symbols", backbone="pathnet", engine="fp32", budget=0, out=tmp_path / "r"
    )
    path = run.folder / "model.json"
    description = json.loads(path.read_text())
    for name in ("acme_code:fails/x", "--upgrade evil/x", "a" * 200 + "/x", "x"):
        description["backbone"]["name"] = name
        path.write_text(json.dumps(description))
        with pytest.raises(ModelFileError, match="name of a package and its backbone"):
            headstart.load(run.folder)
