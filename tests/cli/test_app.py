"""Command line: exit codes, JSON output, and flags that agree with the Python API."""

import dataclasses
import inspect
import json
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.cli import app as cli
from headstart.data.transforms.augment import Augmentation
from headstart.methods import METHODS
from headstart.methods.finetune import Finetune
from headstart.methods.flags import flags
from headstart.training.losses.classification import Loss
from headstart.training.optim import Training
from headstart.workflows.recipe import Recipe


def run(capsys, *arguments):
    """Exit code, standard output and standard error of one command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headstart", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli") / "photos"
    rng = np.random.default_rng(0)
    for kind in ("bright", "dark"):
        (root / kind).mkdir(parents=True)
        for i in range(10):
            image = rng.integers(0, 128, (40, 40, 3)) + (128 if kind == "bright" else 0)
            Image.fromarray(image.astype(np.uint8)).save(root / kind / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def model(photos, tmp_path_factory):
    from headstart.cache import Cache
    from headstart.workflows.fit import fit

    folder = tmp_path_factory.mktemp("cli-run")
    recipe = Recipe(engine="fp32", device="cpu")
    return fit(photos, recipe, out=folder / "photos", cache=Cache(folder / "cache")).folder


def test_fit_tells_the_story_in_order_and_writes_the_folder(photos, capsys, tmp_path):
    code, out, err = run(capsys, "fit", photos, "--out", tmp_path / "run", "--engine", "fp32")
    assert (code, err) == (0, "")
    titles = ("Data", "Race", "Plan", "Summary", "Time", "Files", "Next: open")
    places = [f"\n{out}".index(f"\n{title}") for title in titles]  # at the start of a line
    assert places == sorted(places)
    assert len(out.splitlines()) <= 55
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines() if str(tmp_path) not in line)
    assert "\x1b" not in out  # no colours and no bars where nobody watches
    assert (tmp_path / "run" / "model.json").exists()


def test_names_are_text_and_no_pictograms(capsys):
    _, out, _ = run(capsys, "data", "check", "demo:symbols", "--no-cache")
    assert "Data  demo:symbols: 480 images" in out


def test_fit_prints_one_json_document(photos, capsys, tmp_path):
    code, out, _ = run(
        capsys, "fit", photos, "--out", tmp_path / "run", "--engine", "fp32", "--json"
    )
    document = json.loads(out)
    assert code == 0
    assert document["metrics"]["accuracy"]["low"] <= document["metrics"]["accuracy"]["value"]


def test_require_lead_exits_with_four(photos, capsys, tmp_path):
    """Bright against dark is too easy: neighbours find it as well, so there is no lead."""
    code, _, err = run(
        capsys, "fit", photos, "--out", tmp_path / "r", "--engine", "fp32", "--require-lead"
    )
    assert code == 4
    assert "nearest" in err


def test_require_lead_decides_as_the_summary_does(photos, capsys, tmp_path):
    """An interval above zero is no lead if the summary's test is not significant."""
    flags = ("--engine", "fp32", "--require-lead", "--test-fraction", "0.4")
    code, out, err = run(capsys, "fit", photos, "--out", tmp_path / "r", *flags)
    text = " ".join(out.split())
    for name, phrase in (
        ("Majority class", "always predicting the most frequent class"),
        ("5-nearest neighbours", "5-nearest neighbours"),
    ):
        is_better = f"Better than {phrase} (" in text
        assert is_better or f"Compared with {phrase} (" in text or f"WORSE than {phrase} (" in text
        assert (name.lower() in err.lower()) == (not is_better)
    assert code == 4


@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_a_negative_seed_is_a_usage_error(photos, capsys, verb):
    arguments = ("model",) if verb == "evaluate" else ()
    code, _, err = run(capsys, verb, *arguments, photos, "--seed", "-1")
    assert code == 1
    assert "--seed must be at least 0, got '-1'." in " ".join(err.split())


def test_predict_prints_a_table_json_and_csv(model, photos, capsys):
    image = photos / "dark" / "0.png"
    code, table, _ = run(capsys, "predict", model, image)
    assert code == 0
    assert "dark" in table
    _, out, _ = run(capsys, "predict", model, image, "--json")
    [found] = json.loads(out)
    assert found["label"] == "dark"
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    _, out, _ = run(capsys, "predict", model, photos, "--format", "csv")
    assert len(out.splitlines()) == 21


def test_a_table_of_predictions_shows_whole_names(model, photos, capsys, tmp_path):
    folder = tmp_path / ("a folder with a long name " * 4)
    folder.mkdir()
    for name in ("one.png", "two.png"):
        (folder / name).write_bytes((photos / "dark" / "0.png").read_bytes())
    _, out, _ = run(capsys, "predict", model, folder)
    names = "".join(line[: out.index("label")].strip() for line in out.splitlines()[1:])
    for name in ("one.png", "two.png"):
        assert name in names
    assert "…" not in out


def test_evaluate_prints_the_summary(model, photos, capsys):
    code, _, err = run(capsys, "evaluate", model, photos)
    assert code == 2
    assert "16 of these 20" in err  # it has learned from these
    code, out, _ = run(capsys, "evaluate", model, photos, "--allow-overlap")
    assert code == 0
    assert "Test accuracy" in out
    _, out, _ = run(capsys, "evaluate", model, photos, "--allow-overlap", "--json")
    document = json.loads(out)
    assert document["images"] == 20
    assert "Test accuracy" in document["summary"][0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["fit"], 1, "SOURCE is missing"),
        (["fitt", "x"], 1, "Did you mean 'fit'"),
        (["fit", "photos", "--folds", "many"], 1, "folds"),
        (["fit", "no/such/folder"], 2, "no/such/folder"),
        (["fit", "demo:symbol"], 1, "symbols"),
        (["fit", "{photos}", "--backbone", "resnet5O"], 1, "Did you mean 'resnet50'"),
        (["fit", "{photos}", "--backbone", "resnet50", "--offline"], 3, "resnet50-11ad3fa6.pth"),
        (["fit", "{photos}", "--engine", "fp23"], 1, "Did you mean 'fp32'"),
        (["fit", "{photos}", "--imbalance", "balance"], 1, "Did you mean 'balanced'"),
        (["fit", "{photos}", "--method", "finetun"], 1, "Did you mean 'finetune'"),
        (
            ["fit", "{photos}", "--layer-decay", "0.7", "--folds", "3"],
            1,
            "belongs to method finetune",
        ),
        (["fit", "{photos}", "--method", "scratch", "--epochs", "1.5"], 1, "--epochs"),
        (["fit", "{photos}", "--method", "scratch", "--augment", "lite"], 1, "light"),
        (["fit", "{photos}", "--bad-files", "skipp"], 1, "Did you mean 'skip'"),
        (["fit", "{photos}", "--test-fraction", "1.5"], 1, "test_fraction"),
        (["predict", "{model}", "no.jpg"], 2, "no.jpg"),
        (["predict", "{photos}", "{photos}"], 2, "model.json"),
        (["predict", "{model}", "{photos}", "--format", "jsn"], 1, "json"),
        (["evaluate", "{model}", "no/such"], 2, "no/such"),
    ],
)
def test_errors_are_one_sentence_and_a_code(arguments, code, words, photos, model, capsys):
    given = [word.format(photos=photos, model=model) for word in arguments]
    found, out, err = run(capsys, *given)
    assert found == code
    assert words in " ".join(err.split())
    assert "Traceback" not in out + err


def test_a_bad_image_is_named_and_can_be_skipped(photos, model, capsys, tmp_path):
    (tmp_path / "good.png").write_bytes((photos / "dark" / "1.png").read_bytes())
    (tmp_path / "bad.jpg").write_bytes(b"<html>not found</html>")
    code, _, err = run(capsys, "predict", model, tmp_path)
    assert code == 2
    assert "bad.jpg" in err
    code, out, _ = run(capsys, "predict", model, tmp_path, "--bad-files", "skip", "--json")
    assert code == 0
    assert len(json.loads(out)) == 1


def test_data_check_lists_findings_and_exits_with_two(photos, capsys, tmp_path):
    code, out, _ = run(capsys, "data", "check", photos)
    assert code == 0
    assert "warning: class 'bright' has only 8 images to learn from" in out
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            source = photos / ("dark" if name == "a" else "bright") / f"{i}.png"
            (tmp_path / name / f"{i}.png").write_bytes(source.read_bytes())
    (tmp_path / "a" / "broken.png").write_bytes(b"")
    code, out, _ = run(capsys, "data", "check", tmp_path, "--json")
    assert code == 2
    kinds = [finding["kind"] for finding in json.loads(out)["findings"]]
    assert "unreadable" in kinds


def test_ctrl_c_prints_how_to_continue(monkeypatch, photos, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("headstart.workflows.fit.fit", interrupt)
    code, _, err = run(capsys, "fit", photos)
    assert code == 130
    assert "kept" in err
    assert "--resume" in err


def test_a_full_disk_is_said(monkeypatch, photos, capsys):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("headstart.workflows.fit.fit", full)
    code, _, err = run(capsys, "fit", photos)
    assert code == 3
    assert "No space left" in err


def test_offline_opens_no_socket(monkeypatch, photos, capsys, tmp_path):
    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    code, _, err = run(
        capsys, "fit", photos, "--offline", "--out", tmp_path / "r", "--engine", "fp32"
    )
    assert (code, err) == (0, "")


def test_cache_shows_and_clears(photos, capsys, tmp_path):
    probe = "--method", "linear-probe"
    run(capsys, "fit", photos, "--out", tmp_path / "run", "--engine", "fp32", *probe)
    _, out, _ = run(capsys, "cache", "show", "--json")
    assert json.loads(out)["kinds"]["features"]["entries"] == 20
    code, out, _ = run(capsys, "cache", "clear", "--kind", "features")
    assert code == 0
    _, out, _ = run(capsys, "cache", "show", "--json")
    assert "features" not in json.loads(out)["kinds"]


def test_no_cache_keeps_nothing(photos, capsys, tmp_path):
    run(capsys, "fit", photos, "--out", tmp_path / "run", "--engine", "fp32", "--no-cache")
    _, out, _ = run(capsys, "cache", "show", "--json")
    assert json.loads(out)["kinds"] == {}


def test_the_table_of_backbones_breaks_no_word_at_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = json.loads(run(capsys, "backbones", "--json")[1])
    _, table, _ = run(capsys, "backbones")
    assert max(map(len, table.splitlines())) <= 80
    words = set(table.split())
    for row in rows:
        assert {row["name"], *row["trained_on"].split()} <= words, row


def test_the_lists_are_there(capsys):
    _, out, _ = run(capsys, "backbones", "--json")
    assert "embedded/efficientnet_lite0" in [row["name"] for row in json.loads(out)]
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 0
    assert json.loads(out)["offline"] is True


def test_demo_writes_class_folders(capsys, tmp_path):
    code, out, _ = run(capsys, "demo", tmp_path / "symbols")
    assert code == 0
    assert "headstart fit" in out
    assert len([path for path in (tmp_path / "symbols").iterdir() if path.is_dir()]) == 8


def test_flags_agree_with_the_dataclasses():
    """One definition: a field of the recipe is a flag of the same default."""
    flags = {name: p.default for name, p in inspect.signature(cli.fit).parameters.items()}
    flags["rivals"] = tuple(flags["backbones"])  # the first of them is the backbone
    for field in dataclasses.fields(Recipe()):
        if field.name != "method":
            assert flags[field.name] == getattr(Recipe(), field.name), field.name
    assert flags["method"] is Recipe().method is None


@pytest.fixture
def asked(monkeypatch):
    """What the command line asks of the Python API, without doing it."""
    recipes = []

    def stop(source, recipe, **options):
        recipes.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("headstart.workflows.fit.fit", stop)
    return recipes


@pytest.mark.parametrize("method", METHODS)
def test_every_flag_of_a_method_arrives_in_it(method, asked, capsys):
    """Given its default as text, each flag leaves the method as it is; and none is unknown."""
    plain = METHODS[method](seed=3)
    given = []
    for flag in flags():
        if method in flag.methods and flag.name != "penalties":
            value = flag.default.split(" ")[0]
            if flag.kind == "switch":
                given.append(f"--no-{flag.option[2:]}")
            elif flag.name == "learning_rate":
                given += [flag.option, "1e-3"]
            elif value:
                given += [flag.option, value]
    wanted = plain
    if hasattr(plain, "learning_rate"):
        wanted = dataclasses.replace(plain, learning_rate=1e-3)
    run(capsys, "fit", "photos", "--method", method, "--seed", 3, *given)
    assert asked[0].method == wanted


def test_the_command_of_the_page_is_understood(asked, capsys):
    words = (
        "--train-from layer4 --learning-rate 1e-4 --head-learning-rate 1e-3 --epochs 10 "
        "--batch-size 32 --augment light --views 3 --batch-norm train --layer-decay 0.7 "
        "--activation-cache off --wise-ft 0.7 --label-smoothing 0.1 --mixup 0.2 "
        "--precision bf16 --optimiser sgd --ema 0.99 --soup 3 --flip-vertical"
    )
    words += " --task classification"
    run(capsys, "fit", "photos", "--method", "finetune", *words.split())
    assert asked[0].method == Finetune(
        train_from="layer4",
        learning_rate=1e-4,
        head_learning_rate=1e-3,
        batch_norm="train",
        layer_decay=0.7,
        activation_cache="off",
        wise_ft=0.7,
        mixup=0.2,
        loss=Loss(label_smoothing=0.1),
        augmentation=Augmentation(flip=True, crop=0.6, views=3, flip_vertical=True),
        training=Training(
            epochs=10,
            batch_size=32,
            patience=0,
            precision="bf16",
            optimiser="sgd",
            ema=0.99,
            soup=3,
        ),
    )


@pytest.mark.parametrize(
    ("typed", "first", "rivals"),
    [
        (
            "resnet18?mean=0.5,0.5,0.5&crop=96, vgg16",
            "resnet18?mean=0.5,0.5,0.5&crop=96",
            ["vgg16"],
        ),
        ("a?canvas=240,320,b,", "a?canvas=240,320", ["b"]),
        (",", "embedded/efficientnet_lite0", []),
    ],
)
def test_the_names_that_race_may_have_commas(typed, first, rivals, asked, capsys):
    run(capsys, "fit", "photos", "--backbones", typed)
    assert asked[0].backbone == first
    assert list(asked[0].rivals) == rivals


def test_help_shows_every_flag_under_its_methods(capsys):
    code, out, err = run(capsys, "fit", "--help")
    assert (code, err) == (0, "")
    places = [out.index(f"\n  {flag.option} ") for flag in flags()]
    assert len(set(places)) == len(flags())
    for heading in ("Options:", "Method finetune:", "Training (finetune, scratch):"):
        assert f"\n{heading}\n" in out


def test_version_is_that_of_the_package(capsys):
    assert run(capsys, "--version") == (0, f"headstart {headstart.__version__}\n", "")


def test_help_has_one_whole_line_for_each_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    lines = out[out.index("Commands:") :].splitlines()[1:]
    assert {line.split()[0] for line in lines} >= {"fit", "predict", "evaluate", "compare", "cache"}
    assert all(line.startswith("  ") and line.endswith(".") for line in lines)
    assert not any(line.endswith("...") for line in lines)


def test_auto_takes_no_flags_of_a_method(photos, capsys):
    code, _, err = run(capsys, "fit", photos, "--method", "auto", "--train-from", "last")
    assert code == 1
    assert "--train-from" in err
    assert "--method finetune" in err


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['headstart', '--help']\n"
        "from headstart.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'sklearn', 'torchvision', 'timm', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
