"""A comparison end to end: paired images, resumed trainings, every task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.cache import Cache
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.evaluation.comparison import (
    ScoringPlan,
    TrainingResult,
    build_curves,
    compare_with_reference,
)
from headstart.metrics.confidence_intervals import Interval
from headstart.workflows.compare import compare
from headstart.workflows.comparison_recipe import ComparisonRecipe
from headstart.workflows.events import Noted
from headstart.workflows.recipe import Recipe, parse_method, with_steps


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    from safetensors.torch import save_file

    from headstart.backbones.backbone import load
    from headstart.backbones.catalog import resolve

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    loaded = load(resolve("timm/test_resnet"), pretrained=False, seed=1)
    save_file({k: v.contiguous() for k, v in loaded.trunk.state_dict().items()}, path)
    return f"file:{path}@timm/test_resnet"


def _images(folder: Path, *, parts: tuple[str, ...] = ("",), each: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for part in parts:
        for shade, name in ((60, "dark"), (190, "light")):
            (folder / part / name).mkdir(parents=True)
            for k in range(each):
                pixels = rng.integers(shade - 50, shade + 50, (40, 40, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{k // 3}_{k}.png")
    return folder


def _trials(backbone: str, **changes: Any) -> ComparisonRecipe:
    defaults: dict[str, Any] = {
        "methods": ("scratch", "probe"),
        "backbones": (backbone,),
        "seeds": 2,
        "fractions": (0.5, 1.0),
        "folds": 0,
        "epochs": 2,
    }
    return ComparisonRecipe(**{**defaults, **changes})


def _scores(results: tuple[TrainingResult, ...]) -> list[tuple[Any, ...]]:
    return [
        (result.method, result.seed, result.fraction, result.images, result.score.value)
        for result in results
    ]


def test_a_stopped_comparison_goes_on_and_gives_the_same(backbone: str, tmp_path: Path) -> None:
    source = _images(tmp_path / "photos")
    trials, recipe = _trials(backbone), Recipe(engine="fp32", device="cpu", offline=True)
    cache = Cache(tmp_path / "cache")
    uninterrupted, _ = compare(source, trials, recipe=recipe, out=tmp_path / "one", cache=cache)
    notes: list[str] = []

    def stop(event: object) -> None:
        if isinstance(event, Noted):
            notes.append(event.text)
            if len(notes) == 5:  # two before the first training
                raise KeyboardInterrupt

    out = tmp_path / "two"
    with pytest.raises(KeyboardInterrupt):
        compare(source, trials, recipe=recipe, out=out, cache=cache, observer=stop)
    results_path = tmp_path / "two.partial" / "trainings.jsonl"
    assert len(results_path.read_text().splitlines()) == 3
    with results_path.open("a") as file:
        file.write('{"key": "cut sho')  # as a kill leaves it
    notes.clear()
    resumed, folder = compare(
        source,
        trials,
        recipe=recipe,
        out=out,
        cache=cache,
        resume=True,
        observer=lambda e: notes.append(e.text) if isinstance(e, Noted) else None,
    )
    assert len(notes) == 8
    assert notes[1].startswith("5 trainings will run")
    assert notes[0].startswith("Reused 3 of 8 trainings from ")
    assert _scores(resumed.results) == _scores(uninterrupted.results)
    assert resumed.effects == uninterrupted.effects
    assert not results_path.parent.exists()
    saved = json.loads((folder / "compare.json").read_text())
    assert len(saved["results"]) == 8
    assert len((folder / "table.csv").read_text().splitlines()) == 5
    assert {(c.seed, c.fraction): c.images for c in uninterrupted.results}[0, 0.5] < 12


def _taken_over(backbone: str, folder: Path, resume: bool) -> tuple[Any, list[str]]:
    """A comparison stopped after two trainings, begun again; every training took an hour."""
    source, notes = _images(folder / "photos"), []
    arguments = {"recipe": Recipe(engine="fp32", device="cpu", offline=True), "out": folder / "two"}
    arguments["cache"] = Cache(folder / "cache")
    trials = _trials(backbone, methods=("probe",), fractions=(1.0,), seeds=3)

    def stop(event: object) -> None:
        if isinstance(event, Noted) and event.text.startswith("2/3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(source, trials, **arguments, observer=stop)
    results_path = folder / "two.partial" / "trainings.jsonl"
    rows = [json.loads(line) for line in results_path.read_text().splitlines()]
    for row in rows:
        row["result"]["seconds"] = 3600.0
    results_path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def observe(event: object) -> None:
        if isinstance(event, Noted):
            notes.append(event.text)

    comparison, _ = compare(source, trials, **arguments, observer=observe, resume=resume)
    return comparison, notes


def test_what_was_taken_over_counts_in_the_time(backbone: str, tmp_path: Path) -> None:
    comparison, notes = _taken_over(backbone, tmp_path, resume=True)
    assert notes[0].startswith("Reused 2 of 3 trainings from ")
    assert 7200 < comparison.seconds < 7260


def test_trainings_that_are_thrown_away_are_said(backbone: str, tmp_path: Path) -> None:
    comparison, notes = _taken_over(backbone, tmp_path, resume=False)
    assert notes[0].startswith("Deleted the finished trainings in ")
    assert "--resume" in notes[0]
    assert comparison.seconds < 60


def test_resuming_nothing_is_said(backbone: str, tmp_path: Path) -> None:
    notes: list[str] = []
    compare(
        _images(tmp_path / "photos"),
        _trials(backbone, methods=("probe",), fractions=(1.0,), seeds=1),
        recipe=Recipe(engine="fp32", device="cpu", offline=True),
        out=tmp_path / "out",
        resume=True,
        observer=lambda e: notes.append(e.text) if isinstance(e, Noted) else None,
    )
    assert notes[0].startswith("Reused 0 of 1 trainings from ")


def test_one_test_part_is_redrawn_alike_for_all(backbone: str, tmp_path: Path) -> None:
    source = _images(tmp_path / "photos", parts=("train", "test"), each=8)
    trials = _trials(backbone, methods=("probe", "linear-probe"), fractions=(1.0,))
    recipe = Recipe(engine="fp32", device="cpu", offline=True)
    cache = Cache(tmp_path / "cache")
    comparison, _ = compare(source, trials, recipe=recipe, out=tmp_path / "out", cache=cache)
    assert all(len(result.draws) > 100 and result.tested == 16 for result in comparison.results)
    assert "test part of 16" in comparison.split
    assert comparison.effects[0].difference.value == 0
    assert comparison.sentences[0].endswith("not significantly different.")


def test_boxes_are_compared_by_map(backbone: str, tmp_path: Path) -> None:
    from headstart.data.readers import read_dataset

    data = read_dataset("demo:boxes").subset(range(6))
    trials = _trials(
        backbone,
        methods=("finetune?train-from=head", "scratch"),
        seeds=1,
        fractions=(1.0,),
        epochs=1,
    )
    recipe = Recipe(head="fcos?channels=64", size=64, device="cpu", offline=True)
    cache = Cache(tmp_path / "cache")
    comparison, _ = compare(data, trials, recipe=recipe, out=tmp_path / "out", cache=cache)
    assert comparison.measure == "mAP"
    assert len(comparison.results) == 2
    assert comparison.effects[0].significant is False


def test_masks_are_compared_by_iou(backbone: str, tmp_path: Path) -> None:
    from headstart.data.readers import read_dataset

    data = read_dataset("demo:masks").subset(range(8))
    methods = ("probe", "scratch")
    trials = _trials(backbone, methods=methods, seeds=1, folds=2, fractions=(1.0,), epochs=1)
    recipe = Recipe(head="fpn?width=32&pyramid=32", size=64, device="cpu", offline=True)
    cache = Cache(tmp_path / "cache")
    comparison, _ = compare(data, trials, recipe=recipe, out=tmp_path / "out", cache=cache)
    assert comparison.measure == "mean IoU"
    assert [result.tested for result in comparison.results] == [4, 4, 4, 4]
    assert {result.trains for result in comparison.results} == {"head", "everything"}
    assert all("one class everywhere" in result.rules for result in comparison.results)


def test_labels_are_compared_by_average_precision(backbone: str, tmp_path: Path) -> None:
    from headstart.data.readers import read_dataset

    data = read_dataset("demo:shapes").subset(range(40))
    trials = _trials(backbone, methods=("probe", "finetune"), seeds=1, fractions=(1.0,), epochs=1)
    recipe = Recipe(engine="fp32", device="cpu", offline=True)
    cache = Cache(tmp_path / "cache")
    comparison, folder = compare(data, trials, recipe=recipe, out=tmp_path / "out", cache=cache)
    assert comparison.measure == "mean average precision"
    assert comparison.results[0].rules["chance"] == comparison.results[1].rules["chance"]
    assert "with more seeds, such as --seeds 3" in comparison.sentences[0]
    assert "with more seeds, such as --seeds 3" in (folder / "compare.html").read_text()


def test_folds_keep_groups_whole_and_test_every_image_once(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.workflows import compare as module
    from headstart.workflows.compare import Split

    source = _images(tmp_path / "photos", each=15)
    splits: list[Split] = []
    original = module.train_on_split

    def record_split(split: Split, *args: Any, **kwargs: Any) -> TrainingResult:
        splits.append(split)
        return original(split, *args, **kwargs)

    monkeypatch.setattr(module, "train_on_split", record_split)
    trials = _trials(backbone, methods=("probe",), seeds=2, folds=5, fractions=(0.5, 1.0))
    recipe = Recipe(engine="fp32", device="cpu", offline=True, group_by=r"(\w+/\d+)_\d+\.png")
    cache = Cache(tmp_path / "cache")
    comparison, _ = compare(source, trials, recipe=recipe, out=tmp_path / "out", cache=cache)
    assert comparison.split == "5-fold cross-validation, 2 seeds"
    for seed in (0, 1):
        full_splits = [s for s in splits if s.seed == seed and s.fraction == 1]
        assert len(full_splits) == 5
        test_images = [str(sample.image) for split in full_splits for sample in split.test.samples]
        assert len(test_images) == len(set(test_images)) == 30
    for split in splits:
        groups = [{s.group for s in part.samples} for part in (split.train, split.test)]
        assert len(groups[1]) >= 2
        assert groups[0].isdisjoint(groups[1])


def test_a_race_sees_only_what_is_learned_from(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.workflows import compare as module

    raced: list[set[str]] = []
    original = module.decide

    def record_images(backbones: Any, train: Any, *args: Any, **kwargs: Any) -> Any:
        raced.append({str(sample.image) for sample in train.samples})
        return original(backbones, train, *args, **kwargs)

    monkeypatch.setattr(module, "decide", record_images)
    source = _images(tmp_path / "photos")
    trials = _trials(backbone, methods=("probe", "auto"), fractions=(1.0,))
    recipe = Recipe(engine="fp32", device="cpu", offline=True, budget=0)
    cache = Cache(tmp_path / "cache")
    comparison, _ = compare(source, trials, recipe=recipe, out=tmp_path / "out", cache=cache)
    auto = [result for result in comparison.results if result.method == "auto"]
    assert [result.images for result in auto] == [len(images) for images in raced]
    assert all(result.trains == "head, fitted" for result in auto)  # without a budget probes alone
    assert comparison.curves[1].name == "auto"


def test_what_a_race_chose_is_counted() -> None:
    results = [
        replace(result, trains="head, fitted" if k else "layer4 and head")
        for k, result in enumerate(_cells({"auto": [0.8, 0.9, 0.85]}))
    ]
    (curve,) = build_curves(results, ScoringPlan(test_share=0.2))
    assert curve.points[0].trains == "head, fitted (2 of 3); layer4 and head (1 of 3)"


@pytest.mark.parametrize("limit", [{"epochs": 2}, {"epochs": None, "steps": 2}])
def test_too_few_images_are_said_before_any_training(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, Any]
) -> None:
    from headstart.workflows import compare as module

    monkeypatch.setattr(module, "train_on_split", lambda *_, **__: pytest.fail("it was trained"))
    source = _images(tmp_path / "photos", each=12)
    trials = _trials(backbone, methods=("scratch", "finetune"), fractions=(0.1, 1.0), **limit)
    with pytest.raises(DataError, match=r"at least 3 .*images of finetune at fraction 0\.1"):
        compare(source, trials, out=tmp_path / "out", cache=Cache(tmp_path / "cache"))


def _cells(scores: dict[str, list[float]]) -> list[TrainingResult]:
    return [
        TrainingResult(
            backbone="b",
            method=name,
            seed=seed,
            fraction=1.0,
            images=80,
            tested=20,
            score=Interval(value=value, low=0.0, high=1.0, method="wilson"),
            seconds=1.0,
        )
        for name, values in scores.items()
        for seed, value in enumerate(values)
    ]


def test_effects_are_corrected_for_their_number() -> None:
    base = [0.80, 0.82, 0.79, 0.81, 0.80]
    gaps = [0.03, 0.06, 0.03, 0.05, 0.05]
    better = [b + g for b, g in zip(base, gaps, strict=True)]
    plan = ScoringPlan(test_share=0.2)
    alone = compare_with_reference(_cells({"a": base, "b": better}), plan, "accuracy")
    many = {"a": base, "b": better, "c": base[::-1], "d": [*base[2:], *base[:2]]}
    several = compare_with_reference(_cells(many), plan, "accuracy")
    assert alone[0].significant
    assert "], significantly different" in alone[0].sentence
    assert several[0].p_value == pytest.approx(3 * alone[0].p_value)
    assert several[0].difference == alone[0].difference


def test_backbones_name_the_curves_only_where_there_are_several() -> None:
    results = _cells({"probe": [0.8, 0.9]})
    assert [c.name for c in build_curves(results, ScoringPlan(test_share=0.2))] == ["probe"]


def test_files_of_one_name_keep_their_folders() -> None:
    results = [
        replace(result, backbone=f"file:{folder}/own.safetensors@timm/resnet18")
        for folder in ("first", "second")
        for result in _cells({"probe": [0.8, 0.9]})
    ]
    names = [curve.name for curve in build_curves(results, ScoringPlan(test_share=0.2))]
    assert len(set(names)) == 2
    assert names[0].startswith("file:first/")


def test_methods_are_named_with_options() -> None:
    method: Any = parse_method("finetune?train-from=all", "classification", seed=3, epochs=7)
    assert (method.train_from, method.training.epochs, method.seed) == ("all", 7, 3)
    assert parse_method("probe", "classification", epochs=7).name == "linear-probe"
    assert parse_method("auto", "detection").name == "finetune"
    with pytest.raises(UnknownNameError):
        parse_method("finetun", "classification")
    head: Any = parse_method("probe?epochs=4", "detection")
    assert (head.name, head.train_from, head.training.epochs) == ("finetune", "head", 4)
    with pytest.raises(UnknownNameError, match="Did you mean 'epochs'"):
        parse_method("finetune?epoch=1", "classification")
    with pytest.raises(UsageError, match=r"auto takes no options, got epochs=3\. Name a method"):
        parse_method("auto?epochs=3", "classification")


@pytest.mark.parametrize(("kind", "batch"), [("multiclass", 16), ("detection", 8)])
@pytest.mark.parametrize("images", [7, 40, 130])
def test_steps_are_the_same_for_few_and_many(kind: Any, batch: int, images: int) -> None:
    for name in ("scratch", "finetune"):
        method: Any = with_steps(parse_method(name, "classification", epochs=0), 200, images, kind)
        per_epoch = -(-images // batch)
        assert abs(method.training.epochs * per_epoch - 200) <= per_epoch / 2
    own: Any = with_steps(parse_method("scratch?epochs=3", "classification"), 200, images, kind)
    assert own.training.epochs == 3
    probe = parse_method("probe", "classification")
    assert with_steps(probe, 200, images, kind) is probe


def test_what_has_no_score_is_left_out() -> None:
    nan = float("nan")
    base, other = [0.80, 0.82, nan, 0.81, 0.80], [0.83, 0.88, 0.9, 0.86, nan]
    plan = ScoringPlan(test_share=0.2)
    (effect,) = compare_with_reference(_cells({"a": base, "b": other}), plan, "accuracy")
    assert effect.difference.value == pytest.approx((0.03 + 0.06 + 0.05) / 3)
    (undefined,) = compare_with_reference(
        _cells({"a": [nan, nan], "b": [0.5, 0.6]}), plan, "accuracy"
    )
    assert not undefined.significant
    assert "undefined" in undefined.sentence


@pytest.mark.parametrize(
    "wrong",
    [
        {"methods": ("probe", "probe")},
        {"seeds": 0},
        {"fractions": (0.0,)},
        {"folds": 1},
        {"steps": 0},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"must be .*, got "):
        ComparisonRecipe(**wrong)
