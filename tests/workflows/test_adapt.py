"""The verb `adapt`, in Python and on the command line."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import headstart
from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.cli.app import app
from headstart.data.dataset import Dataset, Sample
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.linear_probe import LinearProbe
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.workflows.adapt import AUTO
from headstart.workflows.adaptation import Adaptation
from headstart.workflows.events import EpochDone

CLASSES = ("lean", "lie", "stand")


def striped(n: int, seed: int, *, contrast: float = 1.0, light: float = 0.0) -> Dataset:
    rng = np.random.default_rng(seed)
    samples = []
    y, x = np.mgrid[:32, :32]
    for number in range(n):
        label = number % 3
        bars = (((x + y, y, x)[label] + rng.integers(6)) // 4 % 2) * 120 + 60
        pixels = np.clip((bars + rng.normal(0, 12, bars.shape)) * contrast + light, 0, 255)
        image = np.repeat(pixels[..., None], 3, axis=2).astype(np.uint8)
        samples.append(Sample(image=image, target=CLASSES[label]))
    return Dataset(samples=tuple(samples), classes=CLASSES, name="stripes")


def shifted(n: int = 45) -> Dataset:
    return striped(n, 1, contrast=0.3, light=150)


def write(data: Dataset, folder: Path) -> str:
    for number, sample in enumerate(data.samples):
        path = folder / str(sample.target) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(sample.image)).save(path)
    return str(folder)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def model(cache: Cache) -> TransferModel:
    spec = resolve("timm/test_resnet")
    spec = spec.resized(32)
    state = load(spec, pretrained=False, seed=0).trunk.state_dict()
    backbone = FrozenBackbone(spec=spec, state=state, origin={"from": "test"})
    empty = TransferModel(backbone=backbone, task=ClassificationTask(classes=CLASSES))
    extractor = Extractor(cache=cache, engine="fp32", device="cpu", workers=1)
    return LinearProbe().fit(empty, striped(60, 0), extractor=extractor)


def call(model: TransferModel, cache: Cache | bool, **settings: Any) -> Adaptation:
    settings = {"source": striped(60, 0), "device": "cpu", "epochs": 1, **settings}
    target = settings.pop("target", shifted().samples)
    return headstart.adapt(model, target, cache=cache, progress=False, **settings)


def test_labels_of_the_target_change_nothing_but_the_oracle(
    model: TransferModel, cache: Cache
) -> None:
    plain = call(model, cache, method="adabn,coral")
    wrong = [replace(s, target="lie") for s in shifted().samples]
    other = call(model, cache, method="adabn,coral", target=wrong, evaluate_on=shifted(30))
    assert plain.chosen == other.chosen
    for first, second in zip(plain.results, other.results, strict=True):
        assert first.scores == second.scores
        assert first.objections == second.objections
        assert first.oracle is None
        assert second.oracle is not None
    assert [r.method for r in plain.results] == ["source", "adabn", "coral"]


def test_a_model_without_a_gain_is_kept(model: TransferModel, cache: Cache, tmp_path: Path) -> None:
    kept = call(model, cache, method="adabn", target=striped(60, 0).samples, out=tmp_path / "out")
    assert not kept.is_better
    assert kept.summary[0] == "Not better: the source model is kept."
    assert kept.summary[1].startswith("adabn: ")
    assert set(kept.distances) == {"before"}
    saved = headstart.load(kept.folder)
    assert np.array_equal(saved.linear_head().weight, model.linear_head().weight)
    for name, value in model.backbone.state.items():
        assert torch.equal(saved.backbone.state[name], value)
    decision = saved.record["adaptation"]["decision"]
    assert decision["chosen"] == "source"
    assert decision["results"][1]["objections"]


def test_source_images_are_scored_with_statistics_of_the_source(
    model: TransferModel, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = call(model, cache, method="adabn")
    monkeypatch.setattr("headstart.workflows.adapt._statistics_differ", lambda *_: False)
    mixed = call(model, cache, method="adabn")
    first, second = (r.results[1].scores for r in (tried, mixed))
    risk = "deep_embedded_validation"
    assert {k: v for k, v in first.items() if k != risk} == {
        k: v for k, v in second.items() if k != risk
    }
    assert abs(first[risk]) < abs(second[risk])  # target statistics do not fit the source


def test_auto_tries_the_cheap_methods_first(model: TransferModel, cache: Cache) -> None:
    events: list[Any] = []
    tried = call(model, cache, observer=events.append)
    assert [r.method for r in tried.results] == ["source", *AUTO]
    alone = call(model, cache, source=None, observer=events.append)
    assert [r.method for r in alone.results] == ["source", "adabn", "shot"]
    texts = [event.text for event in events if hasattr(event, "text")]
    assert "Skipped: coral needs --source." in texts
    assert "deep_embedded_validation" not in alone.results[0].scores
    assert "deep_embedded_validation" in tried.results[0].scores
    hurried = call(model, cache, budget=0)
    assert [r.method for r in hurried.results] == ["source", "adabn"]  # one is always tried


def test_ctrl_c_writes_no_model_and_resume_continues(
    model: TransferModel, cache: Cache, tmp_path: Path
) -> None:
    def press(event: Any) -> None:
        if isinstance(event, EpochDone) and event.epoch.number == 1:
            raise KeyboardInterrupt

    settings = {"method": "mcc,adabn", "epochs": 3, "out": tmp_path / "out"}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            call(model, cache, observer=press, **settings)
        files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
        assert files == {str(Path("out.partial", "mcc", "checkpoint.safetensors"))}
    events: list[Any] = []
    with pytest.raises(UsageError, match=r"settings"):  # the checkpoint of another run
        call(model, cache, resume=True, **{**settings, "epochs": 2})
    resumed = call(model, cache, resume=True, observer=events.append, **settings)
    epochs = [event.epoch.number for event in events if isinstance(event, EpochDone)]
    assert epochs == [2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    whole = call(model, cache, **{**settings, "out": None})
    for first, second in zip(whole.results, resumed.results, strict=True):
        assert first.scores == second.scores
    with pytest.raises(UsageError, match="as --out"):
        call(model, cache, resume=True)
    quick = call(model, cache=False, method="adabn", source=None, no_cache=True)
    assert quick.results[1].seconds > 0


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"method": "corall"}, UnknownNameError, "corall.*coral"),
        ({"method": "coral,coral"}, UsageError, "coral,coral"),
        ({"method": ""}, UsageError, "''"),
        ({"epoch": 3}, UnknownNameError, "epoch.*epochs"),
        ({"method": "coral", "source": None}, DataError, "coral needs labelled source"),
        ({"target": shifted(5).samples}, DataError, "at least 8 target images, got 5"),
        ({"learning_rate": -1.0}, UsageError, "learning_rate.*-1"),
        ({"method": "shot", "train_from": "head"}, UsageError, "never trains the head"),
    ],
)
def test_wrong_input_is_refused(
    model: TransferModel,
    cache: Cache,
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        call(model, cache, **settings)


@pytest.mark.parametrize("kind", ["fcos", "fpn"])
def test_boxes_and_masks_are_refused_before_anything_is_read(
    model: TransferModel, cache: Cache, kind: str
) -> None:
    dense = replace(model, head=SimpleNamespace(kind=kind))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=rf"Expected a classifier, got a model.*'{kind}'"):
        call(dense, cache, target="a folder that is not there", source="neither")


def test_classes_that_the_model_does_not_know_are_refused(
    model: TransferModel, cache: Cache
) -> None:
    data = striped(30, 0)
    other = replace(
        data,
        classes=("cat", *CLASSES[1:]),
        samples=tuple(replace(s, target="cat") if s.target == "lean" else s for s in data.samples),
    )
    with pytest.raises(DataError, match=r"\['cat'\], which the model does not know"):
        call(model, cache, source=other)


def test_the_command_writes_a_model_and_says_when_nothing_is_better(
    model: TransferModel, tmp_path: Path
) -> None:
    model.save(tmp_path / "model")
    source, target = write(striped(60, 0), tmp_path / "source"), write(shifted(), tmp_path / "new")
    command = ["adapt", str(tmp_path / "model"), "--target", target, "--source", source]
    command += ["--method", "adabn", "--device", "cpu", "--evaluate-on", target]
    command += ["--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--json"])
    document = json.loads(result.stdout)
    assert result.exit_code == (0 if document["is_better"] else 4)
    folder = Path(document["folder"])
    files = {"model.json", "model.safetensors", "card.md"}
    files |= {f"report.{ending}" for ending in ("html", "json", "md")}
    assert {path.name for path in folder.iterdir()} == files
    report = (folder / "report.md").read_text()
    assert "oracle, never used to choose" in report
    assert "| adabn |" in report
    assert "proxy a distance" in report
    same = [*command[:3], source, *command[4:]]
    result = CliRunner().invoke(app, same)
    assert result.exit_code == 4, result.output
    assert "Not better: the source model is kept." in result.output
    assert "oracle" in result.output
    assert (tmp_path / "out-2" / "model.json").is_file()  # an older folder is never changed
