"""A comparison end to end: paired images, resumed cells, every task."""

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
from headstart.evaluation.comparison import Cell, ScoringPlan, curves, effects
from headstart.metrics.confidence_intervals import Interval
from headstart.workflows.compare import compare
from headstart.workflows.events import Noted
from headstart.workflows.recipe import Recipe, Trials, in_steps, method_named


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    from safetensors.torch import save_file

    from headstart.backbones.backbone import load
    from headstart.backbones.catalog import resolve

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    made = load(resolve("timm/test_resnet"), pretrained=False, seed=1)
    save_file({k: v.contiguous() for k, v in made.trunk.state_dict().items()}, path)
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


def _trials(backbone: str, **changes: Any) -> Trials:
    given: dict[str, Any] = {
        "methods": ("scratch", "probe"),
        "backbones": (backbone,),
        "seeds": 2,
        "fractions": (0.5, 1.0),
        "folds": 0,
        "epochs": 2,
    }
    return Trials(**{**given, **changes})


def _scores(cells: tuple[Cell, ...]) -> list[tuple[Any, ...]]:
    return [(c.method, c.seed, c.fraction, c.images, c.score.value) for c in cells]


def test_a_stopped_comparison_goes_on_and_gives_the_same(backbone: str, tmp_path: Path) -> None:
    source = _images(tmp_path / "photos")
    trials, recipe = _trials(backbone), Recipe(engine="fp32", device="cpu", offline=True)
    cache = Cache(tmp_path / "cache")
    whole, _ = compare(source, trials, recipe=recipe, out=tmp_path / "one", cache=cache)
    done: list[str] = []

    def stop(event: object) -> None:
        if isinstance(event, Noted):
            done.append(event.text)
            if len(done) == 3:
                raise KeyboardInterrupt

    out = tmp_path / "two"
    with pytest.raises(KeyboardInterrupt):
        compare(source, trials, recipe=recipe, out=out, cache=cache, observer=stop)
    kept = tmp_path / "two.partial" / "cells.jsonl"
    assert len(kept.read_text().splitlines()) == 3
    with kept.open("a") as file:
        file.write('{"key": "cut sho')  # as a kill leaves it
    done.clear()
    again, folder = compare(
        source,
        trials,
        recipe=recipe,
        out=out,
        cache=cache,
        resume=True,
        observer=lambda e: done.append(e.text) if isinstance(e, Noted) else None,
    )
    assert len(done) == 6
    assert done[0].startswith("3 of 8 trainings are taken over from ")
    assert _scores(again.cells) == _scores(whole.cells)
    assert again.effects == whole.effects
    assert not kept.parent.exists()
    saved = json.loads((folder / "compare.json").read_text())
    assert len(saved["cells"]) == 8
    assert len((folder / "table.csv").read_text().splitlines()) == 5
    assert {(c.seed, c.fraction): c.images for c in whole.cells}[0, 0.5] < 12


def _taken_over(backbone: str, folder: Path, resume: bool) -> tuple[Any, list[str]]:
    """A comparison stopped after two trainings, begun again; every training took an hour."""
    source, done = _images(folder / "photos"), []
    given = {"recipe": Recipe(engine="fp32", device="cpu", offline=True), "out": folder / "two"}
    given["cache"] = Cache(folder / "cache")
    trials = _trials(backbone, methods=("probe",), fractions=(1.0,), seeds=3)

    def stop(event: object) -> None:
        if isinstance(event, Noted) and event.text.startswith("2/3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(source, trials, **given, observer=stop)
    kept = folder / "two.partial" / "cells.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    for row in rows:
        row["cell"]["seconds"] = 3600.0
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def tell(event: object) -> None:
        if isinstance(event, Noted):
            done.append(event.text)

    found, _ = compare(source, trials, **given, observer=tell, resume=resume)
    return found, done


def test_what_was_taken_over_counts_in_the_time(backbone: str, tmp_path: Path) -> None:
    found, told = _taken_over(backbone, tmp_path, resume=True)
    assert told[0].startswith("2 of 3 trainings are taken over from ")
    assert 7200 < found.seconds < 7260


def test_trainings_that_are_thrown_away_are_said(backbone: str, tmp_path: Path) -> None:
    found, told = _taken_over(backbone, tmp_path, resume=False)
    assert told[0].startswith("Begun anew: the 2 trainings kept in ")
    assert "--resume" in told[0]
    assert found.seconds < 60


def test_resuming_nothing_is_said(backbone: str, tmp_path: Path) -> None:
    told: list[str] = []
    compare(
        _images(tmp_path / "photos"),
        _trials(backbone, methods=("probe",), fractions=(1.0,), seeds=1),
        recipe=Recipe(engine="fp32", device="cpu", offline=True),
        out=tmp_path / "out",
        resume=True,
        observer=lambda e: told.append(e.text) if isinstance(e, Noted) else None,
    )
    assert told[0].startswith("0 of 1 trainings are taken over from ")


def test_one_test_part_is_redrawn_alike_for_all(backbone: str, tmp_path: Path) -> None:
    source = _images(tmp_path / "photos", parts=("train", "test"), each=8)
    trials = _trials(backbone, methods=("probe", "linear-probe"), fractions=(1.0,))
    recipe = Recipe(engine="fp32", device="cpu", offline=True)
    cache = Cache(tmp_path / "cache")
    found, _ = compare(source, trials, recipe=recipe, out=tmp_path / "out", cache=cache)
    assert all(len(cell.draws) > 100 and cell.tested == 16 for cell in found.cells)
    assert "test part of 16" in found.split
    assert found.effects[0].difference.value == 0
    assert found.sentences[0].endswith("cannot be told apart.")


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
    found, _ = compare(data, trials, recipe=recipe, out=tmp_path / "out", cache=cache)
    assert found.measure == "mAP"
    assert len(found.cells) == 2
    assert found.effects[0].distinguishable is False


def test_masks_are_compared_by_iou(backbone: str, tmp_path: Path) -> None:
    from headstart.data.readers import read_dataset

    data = read_dataset("demo:masks").subset(range(8))
    methods = ("probe", "scratch")
    trials = _trials(backbone, methods=methods, seeds=1, folds=2, fractions=(1.0,), epochs=1)
    recipe = Recipe(head="fpn?width=32&pyramid=32", size=64, device="cpu", offline=True)
    cache = Cache(tmp_path / "cache")
    found, _ = compare(data, trials, recipe=recipe, out=tmp_path / "out", cache=cache)
    assert found.measure == "mean IoU"
    assert [cell.tested for cell in found.cells] == [4, 4, 4, 4]
    assert {cell.trains for cell in found.cells} == {"head", "everything"}
    assert all("one class everywhere" in cell.rules for cell in found.cells)


def test_labels_are_compared_by_average_precision(backbone: str, tmp_path: Path) -> None:
    from headstart.data.readers import read_dataset

    data = read_dataset("demo:shapes").subset(range(40))
    trials = _trials(backbone, methods=("probe", "finetune"), seeds=1, fractions=(1.0,), epochs=1)
    recipe = Recipe(engine="fp32", device="cpu", offline=True)
    cache = Cache(tmp_path / "cache")
    found, folder = compare(data, trials, recipe=recipe, out=tmp_path / "out", cache=cache)
    assert found.measure == "mean average precision"
    assert found.cells[0].rules["chance"] == found.cells[1].rules["chance"]
    assert "Do ask for more seeds" in found.sentences[0]
    assert "Do ask for more seeds" in (folder / "compare.html").read_text()


def test_folds_keep_groups_whole_and_test_every_image_once(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.workflows import compare as module
    from headstart.workflows.compare import Split

    source = _images(tmp_path / "photos", each=15)
    splits: list[Split] = []
    real = module.train_cell

    def seen(split: Split, *given: Any, **more: Any) -> Cell:
        splits.append(split)
        return real(split, *given, **more)

    monkeypatch.setattr(module, "train_cell", seen)
    trials = _trials(backbone, methods=("probe",), seeds=2, folds=5, fractions=(0.5, 1.0))
    recipe = Recipe(engine="fp32", device="cpu", offline=True, group_by=r"(\w+/\d+)_\d+\.png")
    cache = Cache(tmp_path / "cache")
    found, _ = compare(source, trials, recipe=recipe, out=tmp_path / "out", cache=cache)
    assert found.split == "5-fold cross-validation, 2 seeds"
    for seed in (0, 1):
        whole = [s for s in splits if s.seed == seed and s.fraction == 1]
        assert len(whole) == 5
        tested = [str(sample.image) for split in whole for sample in split.test.samples]
        assert len(tested) == len(set(tested)) == 30
    for split in splits:
        groups = [{s.group for s in part.samples} for part in (split.train, split.test)]
        assert len(groups[1]) >= 2
        assert groups[0].isdisjoint(groups[1])


def test_a_race_sees_only_what_is_learned_from(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.workflows import compare as module

    raced: list[set[str]] = []
    real = module.decide

    def seen(backbones: Any, train: Any, *given: Any, **more: Any) -> Any:
        raced.append({str(sample.image) for sample in train.samples})
        return real(backbones, train, *given, **more)

    monkeypatch.setattr(module, "decide", seen)
    source = _images(tmp_path / "photos")
    trials = _trials(backbone, methods=("probe", "auto"), fractions=(1.0,))
    recipe = Recipe(engine="fp32", device="cpu", offline=True, budget=0)
    cache = Cache(tmp_path / "cache")
    found, _ = compare(source, trials, recipe=recipe, out=tmp_path / "out", cache=cache)
    auto = [cell for cell in found.cells if cell.method == "auto"]
    assert [cell.images for cell in auto] == [len(images) for images in raced]
    assert all(cell.trains == "head, solved" for cell in auto)  # without a budget probes alone
    assert found.curves[1].name == "auto"


def test_what_a_race_chose_is_counted() -> None:
    cells = [
        replace(cell, trains="head, solved" if k else "layer4 and head")
        for k, cell in enumerate(_cells({"auto": [0.8, 0.9, 0.85]}))
    ]
    (curve,) = curves(cells, ScoringPlan(test_share=0.2))
    assert curve.points[0].trains == "head, solved (2 of 3); layer4 and head (1 of 3)"


def test_too_few_images_are_said_before_any_training(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.workflows import compare as module

    monkeypatch.setattr(module, "train_cell", lambda *_, **__: pytest.fail("it was trained"))
    source = _images(tmp_path / "photos", each=12)
    trials = _trials(backbone, methods=("scratch", "finetune"), fractions=(0.1, 1.0))
    with pytest.raises(DataError, match=r"at least 3 .*finetune would get at fraction 0\.1"):
        compare(source, trials, out=tmp_path / "out", cache=Cache(tmp_path / "cache"))


def _cells(scores: dict[str, list[float]]) -> list[Cell]:
    return [
        Cell(
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
    judging = ScoringPlan(test_share=0.2)
    alone = effects(_cells({"a": base, "b": better}), judging, "accuracy")
    many = {"a": base, "b": better, "c": base[::-1], "d": [*base[2:], *base[:2]]}
    several = effects(_cells(many), judging, "accuracy")
    assert alone[0].distinguishable
    assert "told apart" in alone[0].sentence
    assert several[0].p_value == pytest.approx(3 * alone[0].p_value)
    assert several[0].difference == alone[0].difference


def test_backbones_name_the_curves_only_where_there_are_several() -> None:
    one = _cells({"probe": [0.8, 0.9]})
    assert [c.name for c in curves(one, ScoringPlan(test_share=0.2))] == ["probe"]


def test_files_of_one_name_keep_their_folders() -> None:
    two = [
        replace(cell, backbone=f"file:{folder}/own.safetensors@timm/resnet18")
        for folder in ("first", "second")
        for cell in _cells({"probe": [0.8, 0.9]})
    ]
    names = [curve.name for curve in curves(two, ScoringPlan(test_share=0.2))]
    assert len(set(names)) == 2
    assert names[0].startswith("file:first/")


def test_methods_are_named_with_options() -> None:
    made: Any = method_named("finetune?train-from=all", "classification", seed=3, epochs=7)
    assert (made.train_from, made.training.epochs, made.seed) == ("all", 7, 3)
    assert method_named("probe", "classification", epochs=7).name == "linear-probe"
    assert method_named("auto", "detection").name == "finetune"
    with pytest.raises(UnknownNameError):
        method_named("finetun", "classification")
    head: Any = method_named("probe?epochs=4", "detection")
    assert (head.name, head.train_from, head.training.epochs) == ("finetune", "head", 4)
    with pytest.raises(UnknownNameError, match="did you mean 'epochs'"):
        method_named("finetune?epoch=1", "classification")
    with pytest.raises(UsageError, match="name the method"):
        method_named("auto?epochs=3", "classification")


@pytest.mark.parametrize(("kind", "batch"), [("multiclass", 16), ("detection", 8)])
@pytest.mark.parametrize("images", [7, 40, 130])
def test_steps_are_the_same_for_few_and_many(kind: Any, batch: int, images: int) -> None:
    for name in ("scratch", "finetune"):
        given: Any = in_steps(method_named(name, "classification"), 200, images, kind)
        per_epoch = -(-images // batch)
        assert abs(given.training.epochs * per_epoch - 200) <= per_epoch / 2
    own: Any = in_steps(method_named("scratch?epochs=3", "classification"), 200, images, kind)
    assert own.training.epochs == 3
    probe = method_named("probe", "classification")
    assert in_steps(probe, 200, images, kind) is probe


def test_what_has_no_score_is_left_out() -> None:
    nan = float("nan")
    base, other = [0.80, 0.82, nan, 0.81, 0.80], [0.83, 0.88, 0.9, 0.86, nan]
    judging = ScoringPlan(test_share=0.2)
    (found,) = effects(_cells({"a": base, "b": other}), judging, "accuracy")
    assert found.difference.value == pytest.approx((0.03 + 0.06 + 0.05) / 3)
    (nothing,) = effects(_cells({"a": [nan, nan], "b": [0.5, 0.6]}), judging, "accuracy")
    assert not nothing.distinguishable
    assert "undefined" in nothing.sentence


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
    with pytest.raises(UsageError, match="Expected"):
        Trials(**wrong)
