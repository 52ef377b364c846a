"""Shared flags: other names, completion, files of settings, and how much is printed."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from headstart.cli import app as cli
from headstart.data.transforms.augment import Augmentation
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.scratch import Scratch
from headstart.training.optim import Training
from headstart.workflows.recipe import Recipe


def run(capsys, *arguments):
    """Exit code, standard output and standard error of one command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headstart", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    captured = capsys.readouterr()
    return stop.value.code, captured.out, " ".join(captured.err.split())


@pytest.fixture
def recipes(monkeypatch):
    """Recipes that commands make; nothing is trained."""
    made = []

    def stop(source, recipe, **options):
        made.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("headstart.workflows.fit.fit", stop)
    monkeypatch.setattr("headstart.workflows.plan.plan", stop)
    return made


def write(path, recipe, **changes):
    """Write a recipe as a run does."""
    path.write_text(yaml.safe_dump({**recipe.as_dict(), **changes}, sort_keys=False))
    return path


@pytest.mark.parametrize("words", [[], ["fit"], ["plan"], ["data"], ["data", "check"], ["cache"]])
def test_short_help_is_help(words, capsys):
    code, short, _ = run(capsys, *words, "-h")
    assert code == 0
    assert "Usage: headstart" in short
    assert short == run(capsys, *words, "--help")[1]


def test_other_names_are_the_same_commands_and_shown_once(capsys, recipes):
    _, text, _ = run(capsys, "--help")
    assert text.count("train is fit") == text.count("val is evaluate") == 1
    assert "\n  train " not in text
    for name, other in (("fit", "train"), ("evaluate", "val")):
        help_texts = [run(capsys, word, "-h")[1] for word in (name, other)]
        assert help_texts[0] == help_texts[1].replace(f"headstart {other}", f"headstart {name}")
    words = "train photos --method finetune --epochs 3 --task classification"
    run(capsys, *words.split())
    assert recipes[0].method.training.epochs == 3


def test_a_shell_completes_commands_and_flags(capsys, monkeypatch):
    monkeypatch.setenv("_HEADSTART_COMPLETE", "complete_bash")
    for words, expected in (("headstart ev", "evaluate"), ("headstart fit --epo", "--epochs")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        assert run(capsys)[1].split() == [expected]


def test_plan_has_the_flags_of_fit(capsys, recipes):
    given = ("--method", "finetune", "--epochs", "4", "--train-from", "all")
    common = ("--seed", "2", "--task", "classification")
    for verb in ("fit", "plan"):
        run(capsys, verb, "photos", *given, *common)
    run(capsys, "plan", "photos", "--method", "finetune?train-from=all&epochs=4", *common)
    assert recipes[0] == recipes[1] == recipes[2]


@pytest.mark.parametrize(
    ("given", "method"),
    [
        (["--epochs", "5"], "finetune"),
        (["--layer-decay", "0.7", "--wise-ft", "0.5"], "finetune"),
        (["--folds", "3"], "linear-probe"),
    ],
)
def test_flags_of_a_method_add_it_and_say_so(given, method, capsys, recipes):
    _, out, _ = run(capsys, "fit", "demo:symbols", *given)
    text = " ".join(out.split())
    assert recipes[0].method.name == method
    assert f"Note Added --method {method}, because {', '.join(given[::2])}" in text
    run(capsys, "fit", "demo:symbols", "--method", method, *given)
    assert recipes[1] == recipes[0]
    assert "Added --method" not in capsys.readouterr().out


def test_flags_of_two_methods_are_refused(capsys, recipes):
    code, _, err = run(capsys, "fit", "demo:symbols", "--epochs", "5", "--folds", "3")
    assert code == 1
    assert "belongs to method" in err
    assert recipes == []


SAVED = [
    Recipe(),
    Recipe(method=LinearProbe(seed=1), seed=1, budget=math.inf, engine="fp32"),
    Recipe(rivals=("vgg16", "resnet18"), max_risk=0.02, budget=7.5),
    Recipe(method=Scratch(training=Training(epochs=3, clip=0.5)), size=64, offline=True),
    Recipe(
        method=Finetune(
            train_from="layer4", learning_rate=1e-5, augmentation=Augmentation(flip=True), seed=4
        ),
        group_by="patient",
    ),
]


@pytest.mark.parametrize("recipe", SAVED)
def test_what_a_run_wrote_is_read_again(recipe, capsys, recipes, tmp_path):
    run(capsys, "fit", "photos", "--config", write(tmp_path / "resolved.yaml", recipe))
    run(capsys, "fit", "photos", "--config", tmp_path)  # the folder of the run
    assert recipes == [recipe, recipe]


def test_flags_replace_single_settings_of_the_file(capsys, recipes, tmp_path):
    saved = SAVED[-1]
    path = write(tmp_path / "resolved.yaml", saved)
    method = saved.method
    for given, expected in (
        (["--budget", "9s"], replace(saved, budget=9.0)),
        (["--backbone", "vgg16"], replace(saved, backbone="vgg16")),
        (["--seed", "7"], replace(saved, seed=7, method=replace(method, seed=7))),
        (["--train-from", "all"], replace(saved, method=replace(method, train_from="all"))),
        (["--method", "linear-probe"], replace(saved, method=LinearProbe())),
        (["--method", "auto"], replace(saved, method=None)),
        (
            ["--augment", "light", "--no-flip"],
            replace(
                saved,
                method=replace(method, augmentation=Augmentation(crop=0.6)),
            ),
        ),
    ):
        run(capsys, "fit", "photos", "--config", path, *given)
        assert recipes.pop() == expected, given


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sead: 3", "Did you mean 'seed'?"),
        ("method: {name: finetun}", "Did you mean 'finetune'?"),
        ("method: {name: finetune, train_form: all}", "Did you mean 'train_from'?"),
        ("method: {name: finetune, training: {epoch: 3}}", "Did you mean 'training.epochs'?"),
        ("method: {name: finetune, training: 3}", "`training` of method finetune must have"),
        ("method: {name: finetune, training: {epochs: many}}", "must be a whole number"),
        ("method: {name: finetune, training: {epochs: 1.5}}", "must be a whole number"),
        ("method: 3", "`method` in"),
        ("size: big", "`size` must be a whole number, got 'big'"),
        ("seed: true", "`seed` must be a whole number, got True"),
        ("budget: soon", "--budget must be a duration"),
        ("rivals: vgg16", "`rivals` must be a list"),
        ("test_fraction: 2", "`test_fraction` must be between 0 and 1"),
        ("[1, 2]", "must hold settings"),
        ("seed: [1", "is not valid YAML in line 1"),
    ],
)
def test_a_wrong_file_of_settings_is_explained(text, words, capsys, recipes, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    code, out, err = run(capsys, "fit", "photos", "--config", path)
    assert code == 1
    assert words in err
    assert "Traceback" not in out + err
    assert recipes == []


def test_a_missing_file_of_settings_is_named(capsys, tmp_path):
    code, _, err = run(capsys, "fit", "photos", "--config", tmp_path / "no.yaml")
    assert code == 1
    assert "no.yaml cannot be read" in err
    assert "resolved.yaml" in err


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("options") / "photos"
    rng = np.random.default_rng(0)
    for base, name in ((0, "dark"), (128, "light")):
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(base, base + 128, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_quiet_prints_the_summary_and_the_files(photos, capsys, tmp_path):
    given = ("--engine", "fp32", "--method", "linear-probe", "--out", tmp_path / "run")
    code, out, err = run(capsys, "fit", photos, "--quiet", *given)
    assert (code, err) == (0, "")
    titles = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert titles == ["Summary", "Files"]
    assert "Test accuracy" in out
    code, out, err = run(capsys, "fit", photos, "--config", tmp_path / "run", "--quiet")
    assert (code, err) == (0, "")


def test_verbose_prints_every_step_with_its_time(photos, capsys, tmp_path):
    given = ("--engine", "fp32", "--method", "linear-probe", "--out", tmp_path / "run")
    _, out, _ = run(capsys, "fit", photos, "--verbose", *given)
    steps = [line.strip() for line in out.splitlines() if " in " in line and ": 20 in " in line]
    assert len(steps) >= 2  # the scan, and the features
    assert all(line.endswith(" s") for line in steps)


@pytest.mark.parametrize("verb", ["fit", "plan", "compare", "rank"])
def test_quiet_and_verbose_exclude_each_other(verb, capsys, photos):
    more = ("--backbones", "embedded/efficientnet_lite0") if verb == "rank" else ()
    code, _, err = run(capsys, verb, photos, *more, "--quiet", "--verbose")
    assert code == 1
    assert "Remove one of them" in err
