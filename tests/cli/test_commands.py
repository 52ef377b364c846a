"""Commands plan, rank, compare and explain, as they are typed."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from headstart.cli import app as cli


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    from safetensors.torch import save_file

    from headstart.backbones.backbone import load
    from headstart.backbones.catalog import resolve

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    made = load(resolve("timm/test_resnet"), pretrained=False, seed=1)
    save_file({k: v.contiguous() for k, v in made.trunk.state_dict().items()}, path)
    return f"file:{path}@timm/test_resnet"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence") / "photos"
    rng = np.random.default_rng(0)
    for shade, name in ((60, "dark"), (190, "light")):
        (folder / name).mkdir(parents=True)
        for k in range(12):
            pixels = rng.integers(shade - 50, shade + 50, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


def _typed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str, str]:
    """Exit code, standard output and standard error of one command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headstart", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    told = capsys.readouterr()
    return stop.value.code, told.out, " ".join(told.err.split())


def _compare(photos: Path, backbone: str, out: Path, *more: object) -> list[str]:
    least = ["--methods", "scratch,probe", "--seeds", "2", "--folds", "0", "--steps", "2"]
    given = ["compare", photos, "--backbones", backbone, "--out", out, "--offline", *least, *more]
    return [str(one) for one in given]


def test_compare_writes_one_document(photos: Path, backbone: str, tmp_path: Path) -> None:
    out = tmp_path / "found"
    given = _compare(photos, backbone, out, "--json")
    result = CliRunner().invoke(cli.app, given)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["folder"] == str(out)
    assert [curve["method"] for curve in found["curves"]] == ["scratch", "probe"]
    files = {"compare.html", "compare.json", "compare.png", "log.jsonl", "table.csv"}
    assert {path.name for path in out.iterdir()} == files
    assert len(found["results"]) == 4


def test_compare_says_what_each_got_and_what_simple_rules_reach(
    photos: Path, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    code, told, errors = _typed(capsys, *_compare(photos, backbone, out, "--fractions", "0.5,1"))
    assert (code, errors) == (0, "")
    for part in ("majority", "random", "head, fitted", "everything", "at most 2 steps", str(out)):
        assert part in told
    found = json.loads((out / "compare.json").read_text())
    scratch = [cell for cell in found["results"] if cell["method"] == "scratch"]
    assert {cell["steps"] for cell in scratch} == {2}  # however many images
    assert {cell["images"] for cell in scratch} >= {10, 20}
    assert {cell["rules"]["random guess"] for cell in found["results"]} == {0.5}
    first = (out / "table.csv").read_text().splitlines()[0]
    assert "majority class,random guess,trains,parameters,steps" in first


def test_compare_without_a_cache_leaves_nothing_behind(
    photos: Path, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.cache import Cache

    rooms = tmp_path / "rooms"
    rooms.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(rooms))
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "own"))
    opened, closed = [], []
    begin, end = Cache.__init__, Cache.close

    def opening(self: Cache, *given: Any, **more: Any) -> None:
        begin(self, *given, **more)
        opened.append(self.folder)

    def closing(self: Cache) -> None:
        closed.append(self.folder)
        end(self)

    monkeypatch.setattr(Cache, "__init__", opening)
    monkeypatch.setattr(Cache, "close", closing)
    given = _compare(photos, backbone, tmp_path / "found", "--no-cache", "--methods", "probe")
    result = CliRunner().invoke(cli.app, given)
    assert result.exit_code == 0, result.output
    assert opened
    assert all(folder.is_relative_to(rooms) for folder in opened)
    # A cache of an earlier test may be closed here too, when its memory is freed.
    assert set(opened) == {folder for folder in closed if folder.is_relative_to(rooms)}
    assert list(rooms.iterdir()) == []


def test_compare_stopped_by_hand_goes_on_where_it_was(
    photos: Path,
    backbone: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from headstart.workflows import compare

    trained, real = [], compare.train_on_split

    def third_is_stopped(*given: Any, **more: Any) -> Any:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(given)
        return real(*given, **more)

    monkeypatch.setattr(compare, "train_on_split", third_is_stopped)
    given = _compare(photos, backbone, tmp_path / "found")
    code, _, errors = _typed(capsys, *given)
    assert code == 130
    assert "--resume to continue a training or a comparison" in errors
    assert "Traceback" not in errors
    monkeypatch.setattr(
        compare, "train_on_split", lambda *a, **k: trained.append(a) or real(*a, **k)
    )
    code, told, errors = _typed(capsys, *given, "--resume")
    assert (code, errors) == (0, "")
    assert len(trained) == 4  # two before, two after
    assert "4/4" in told
    code, _, _ = _typed(capsys, *given[:-2], "--steps", "2", "--resume")
    assert code == 0
    assert len(trained) == 8  # what was finished is no comparison to go on with


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["--methods", "scratch,finetun"], "Did you mean 'finetune'"),
        (["--methods", "probe,probe"], "different names"),
        (["--backbones", "torchvision/resnet81"], "resnet18"),
        (["--fractions", "0.1;1"], "0.1,0.3,1"),
        (["--fractions", "10"], "at most 1"),
        (["--steps", "5", "--epochs", "5"], "Remove one of --epochs and --steps"),
        (["--folds", "1"], "folds"),
        (["--bad-files", "skipp"], "skip"),
        (["--seeds", "0"], "seeds"),
    ],
)
def test_compare_refuses_in_one_sentence(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: list[str],
    told: str,
) -> None:
    given = ["compare", photos, "--out", tmp_path / "found", "--offline", *changed]
    code, out, errors = _typed(capsys, *given)
    assert code == 1
    assert told in errors
    assert "Traceback" not in out + errors
    assert not (tmp_path / "found").exists()


def test_compare_of_a_wrong_path_is_a_problem_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    code, _, errors = _typed(capsys, "compare", tmp_path / "fotos", "--out", tmp_path / "found")
    assert code in {1, 2}
    assert "fotos" in errors
    assert not (tmp_path / "found").exists()


def test_a_plan_sees_the_split_that_fit_would(
    photos: Path, backbone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["plan", photos, "--backbone", backbone, "--offline", "--budget", "0", "--json"]
    usual, fewer = (
        json.loads(_typed(capsys, *given, *more)[1]) for more in ([], ["--test-fraction", "0.5"])
    )
    assert usual["images"] > fewer["images"] > 0
    (photos / "dark" / "broken.png").write_bytes(b"no image")
    try:
        code, _, told = _typed(capsys, *given)
        assert code == 2
        assert "broken.png" in told
        found = json.loads(_typed(capsys, *given, "--bad-files", "skip")[1])
        assert found["images"] == usual["images"]
    finally:
        (photos / "dark" / "broken.png").unlink()
    code, _, told = _typed(capsys, *given, "--task", "detection")
    assert code == 2
    assert "detection" in told


def test_one_flag_names_the_backbones(
    photos: Path, backbone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("plan", "fit"):
        both = ("--backbone", backbone, "--backbones", "resnet18")
        code, _, told = _typed(capsys, verb, photos, *both)
        assert code == 1
        assert f"--backbones {backbone},resnet18" in told


def test_all_findings_are_written_to_a_file(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(13):
            pixels = rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)
            for copy in "ab":
                Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{copy}{i}.png")
    out = tmp_path / "findings.csv"
    arguments = ["data", "check", str(tmp_path / "photos"), "--out", str(out)]
    shown = " ".join(CliRunner().invoke(cli.app, arguments).stdout.split())
    assert f"… and 16 more findings (16 duplicate): all in {tmp_path}" in shown.replace("/ ", "/")
    assert shown.count("the same image 2 times: cat/") == 10
    lines = out.read_text().splitlines()
    assert lines[0] == "severity,finding,message,images"
    assert sum(",duplicate," in line for line in lines) == 26
    again = CliRunner().invoke(cli.app, arguments)
    assert "Pass another --out" in str(again.exception)
    plain = " ".join(CliRunner().invoke(cli.app, arguments[:3]).stdout.split())
    assert "pass --out findings.csv for a file with all" in plain
