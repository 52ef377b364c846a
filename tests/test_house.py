"""Rules of ARCHITECTURE.md, section 3, checked on the syntax tree of src/.

Every rule has small sources that break it and sources that keep it, which prove that it can fail
and what it allows.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "src" / "headstart"

LONGEST_FUNCTION = 60  # lines, docstring aside
LONGEST_FILE = 600
DEEPEST_INHERITANCE = 2  # abstract -> final
DRAWN_TREES = {"errors.py"}  # a tree of exceptions is deeper, and drawn at the top of its file
VAGUE_NAMES = frozenset(
    [
        "found",
        "told",
        "kept",
        "given",
        "wanted",
        "asked",
        "held",
        "made",
        "one",
        "more",
        "how",
        "what",
        "who",
        "whole",
        "known",
        "seen",
        "said",
        "shown",
        "begin",
        "taken",
        "placed",
        "drawn",
        "bound",
    ]
)
MOST_VAGUE_STORES = 0.01  # of all assignments
QUESTION_WORDS = ("What", "How", "Where", "Which", "Who")
MOST_QUESTIONS = 0.05  # of all module docstrings
MOST_FILES_OF_A_PRIVATE_NAME = 3
DRAWERS = {"utils", "util", "helpers", "common", "core", "base", "misc", "manager", "managers"}

# Tests that stand for no single source file.
TESTS_OF_THE_WHOLE = {
    "test_call_depth.py",
    "test_dense_fit.py",
    "test_docs.py",
    "test_docs_blocks.py",
    "test_docs_figures.py",
    "test_docs_notebooks.py",
    "test_golden.py",
    "test_house.py",
    "test_project.py",
    "test_public_names.py",
    "test_public_reprs.py",
}

Found = Iterator[tuple[int, str]]


@dataclass(frozen=True)
class Source:
    """A file of the package: its path inside src/headstart and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is looked for, where alone it may stand, and sources that show that it works."""

    name: str
    find: Callable[[Source], Found]
    only_in: tuple[str, ...] = ()
    breaks: tuple[tuple[str, str], ...] = field(repr=False)
    keeps: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def broken(self, source: Source) -> list[str]:
        if any(source.path == place or self._inside(source.path, place) for place in self.only_in):
            return []
        return [f"{source.path}:{line}: {what}" for line, what in sorted(set(self.find(source)))]

    @staticmethod
    def _inside(path: str, place: str) -> bool:
        return place.endswith("/") and path.startswith(place)


# ------------------------------------------------------------------------- reading the tree


def imports(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for: `from torch import distributed as d` -> d: torch.d..."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                known[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return known


def dotted(node: ast.expr) -> str:
    """`a.b.c` as text; empty when it is not a plain chain of names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        start = dotted(node.value)
        return f"{start}.{node.attr}" if start else ""
    return ""


def full_names(tree: ast.AST) -> Found:
    """Every name that is imported or used, in full: `Image.open` -> PIL.Image.open."""
    known = imports(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute | ast.Name):
            head, dot, rest = dotted(node).partition(".")
            if head in known:
                yield node.lineno, known[head] + dot + rest
        elif isinstance(node, ast.Call) and dotted(node.func).endswith(IMPORTERS):
            yield from (
                (node.lineno, str(a.value)) for a in node.args if isinstance(a, ast.Constant)
            )


IMPORTERS = ("import_module", "__import__")


def uses(*wanted: str) -> Callable[[Source], Found]:
    """Find names that are one of `wanted`, or inside it."""

    def find(source: Source) -> Found:
        for line, name in full_names(source.tree):
            for one in wanted:
                if name == one or name.startswith(f"{one}."):
                    yield line, one

    return find


def calls_method(*wanted: str) -> Callable[[Source], Found]:
    """Find calls `anything.<wanted>(...)`."""

    def find(source: Source) -> Found:
        for node in ast.walk(source.tree):
            method = node.func if isinstance(node, ast.Call) else None
            if isinstance(method, ast.Attribute) and method.attr in wanted:
                yield method.lineno, f".{method.attr}("

    return find


def mentions_gradients(source: Source) -> Found:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in {"requires_grad", "requires_grad_"}:
            yield node.lineno, node.attr
        elif isinstance(node, ast.keyword) and node.arg == "requires_grad":
            yield node.value.lineno, "requires_grad="


def talks(source: Source) -> Found:
    yield from uses("typer", "rich", "click", "tqdm", "sys.stdout")(source)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and dotted(node.func) in {"print", "input"}:
            yield node.lineno, f"{dotted(node.func)}("


def unpickles(source: Source) -> Found:
    yield from uses("pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")(source)
    known = imports(source.tree)
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        head, dot, rest = dotted(node.func).partition(".")
        given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        if (
            known.get(head, head) + dot + rest == "torch.load"
            and given.get("weights_only") is not True
        ):
            yield node.lineno, "torch.load without weights_only=True"
        if given.get("allow_pickle"):
            yield node.lineno, "allow_pickle=True"


def asserts(source: Source) -> Found:
    yield from ((n.lineno, "assert") for n in ast.walk(source.tree) if isinstance(n, ast.Assert))


def long_functions(source: Source) -> Found:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = _lines(node) - (_lines(node.body[0]) if ast.get_docstring(node) else 0)
            if source.path.startswith("cli/"):  # a command has one argument for each flag
                lines -= node.body[0].lineno - node.lineno - 1
            if lines > LONGEST_FUNCTION:
                yield node.lineno, f"{node.name} has {lines} lines"


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def long_files(source: Source) -> Found:
    lines = len(source.text.splitlines())
    if lines > LONGEST_FILE:
        yield 1, f"{lines} lines"


def drawer_names(source: Source) -> Found:
    for part in Path(source.path).with_suffix("").parts:
        if part.lstrip("_") in DRAWERS:
            yield 1, f"{part} says nothing about what is inside"


def undeclared_names(source: Source) -> Found:
    """Public definitions without __all__, names of __all__ without definition or docstring."""
    if source.path == "__init__.py":  # lazy: held by test_public_names.py
        return
    defined = {n.name: n for n in source.tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    declared = None
    assigned = set(imports(source.tree))
    for node in source.tree.body:
        for target in _targets(node):
            assigned.add(target)
            if target == "__all__":
                declared = ast.literal_eval(node.value)  # type: ignore[attr-defined]
    if declared is None:
        if public := [name for name in defined if not name.startswith("_")]:
            yield 1, f"no __all__ for {', '.join(public)}"
        return
    for name in declared:
        if name in defined and not ast.get_docstring(defined[name]):
            yield defined[name].lineno, f"{name} has no docstring"
        elif name not in defined and name not in assigned:
            yield 1, f"{name} of __all__ is nowhere"


ERRORS = {
    "DataError",
    "HeadstartError",
    "LayoutError",
    "LeakError",
    "ModelFileError",
    "SetupError",
    "TrainingError",
    "UnreadableImageError",
    "UsageError",
    "WeightsMismatchError",
    "WeightsNotFoundError",
}
ACTIONS = [
    "Add",
    "Allow",
    "Arrange",
    "Change",
    "Check",
    "Choose",
    "Close",
    "Compare",
    "Convert",
    "Copy",
    "Correct",
    "Delete",
    "Download",
    "Fit",
    "Free",
    "Give",
    "Install",
    "Launch",
    "Leave",
    "Lower",
    "Make",
    "Measure",
    "Move",
    "Name",
    "Open",
    "Pass",
    "Put",
    "Raise",
    "Read",
    "Remove",
    "Rename",
    "Repeat",
    "Replace",
    "Report",
    "Rescale",
    "Run",
    "Save",
    "See",
    "Set",
    "Split",
    "Start",
    "Train",
    "Try",
    "Unset",
    "Update",
    "Use",
    "Wait",
    "Write",
]
_ACTIONS = "|".join(ACTIONS)
ACTION = re.compile(
    rf"(?:^|[.:;}}] )(?:{_ACTIONS})\b"  # an imperative sentence
    rf"|, or (?:{_ACTIONS.lower()})\b|\((?:{_ACTIONS.lower()})\b"
    r"|[.:] \{\}"  # a sentence that is built elsewhere
)
VALUE = re.compile(r"\{\}|\b(?:None|none|NaN|lora|fp16)\b")


def message_of(node: ast.expr) -> str:
    """Text of a message, with {} in place of every value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(message_of, node.values))
    if isinstance(node, ast.BinOp):
        return message_of(node.left) + message_of(node.right)
    return "{}"


def unclear_messages(source: Source) -> Found:
    """Error messages without a value or an action, or with the old "; do ..."."""
    for node in ast.walk(source.tree):
        if not (isinstance(node, ast.Call) and dotted(node.func) in ERRORS and node.args):
            continue
        message = message_of(node.args[0])
        if not message.replace("{}", "").strip(" .:,"):
            continue  # built elsewhere
        if "; do" in message:
            yield node.lineno, f"a message with '; do': {message}"
        elif not VALUE.search(message):
            yield node.lineno, f"a message without the value that is wrong: {message}"
        elif not (ACTION.search(message) or "must " in message or "Expected" in message):
            yield node.lineno, f"a message that does not say what to do: {message}"


def _targets(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign):
        return [dotted(target) for target in node.targets]
    return [dotted(node.target)] if isinstance(node, ast.AnnAssign) else []


# -------------------------------------------------------------------------------- the rules

NETWORK = ("socket", "urllib.request", "urllib3", "http.client", "ftplib", "requests", "httpx")
NETWORK += ("aiohttp", "huggingface_hub", "torch.hub")
DECODERS = (
    "PIL.Image.open",
    "PIL.ImageFile.Parser",
    "torchvision.io",
    "cv2",
    "imageio",
    "skimage.io",
)
LONG = "def f():\n" + "    x = 1\n" * LONGEST_FUNCTION
RULES = [
    Rule(
        name="one loop",
        find=lambda s: (*calls_method("backward", "step")(s), *uses("torch.autograd.backward")(s)),
        only_in=("training/engine.py",),
        breaks=(
            ("methods/finetune.py", "loss.backward()"),
            ("training/logistic_regression.py", "optimizer.step()"),
            ("models/transfer_model.py", "from torch.autograd import backward\nbackward(loss)"),
        ),
        keeps=(
            ("training/engine.py", "loss.backward()\noptimizer.step()"),
            ("workflows/fit.py", "step = 1\nstep(2)"),
        ),
    ),
    Rule(
        name="one place says what trains",
        find=lambda s: (*mentions_gradients(s), *calls_method("train", "eval")(s)),
        only_in=("backbones/freezing.py",),
        breaks=(
            ("features/extractor.py", "p.requires_grad = False"),
            ("models/heads/linear.py", "torch.zeros(3, requires_grad=True)"),
            ("models/transfer_model.py", "net.requires_grad_(False)"),
            ("features/engines.py", "net.eval()"),
            ("training/engine.py", "net.trunk.train(False)"),
        ),
        keeps=(
            ("backbones/freezing.py", "net.eval()"),
            ("data/splits.py", "train = data.split('train')"),
        ),
    ),
    Rule(
        name="model zoos",
        find=uses("timm", "torchvision.models"),
        only_in=("backbones/", "models/heads/"),
        breaks=(
            ("models/transfer_model.py", "import timm"),
            ("features/extractor.py", "from timm.data import resolve_data_config"),
            ("features/extractor.py", "import torchvision\ntorchvision.models.resnet18()"),
            ("features/engines.py", "from torchvision import models"),
            ("features/engines.py", "from importlib import import_module\nimport_module('timm')"),
        ),
        keeps=(
            ("backbones/backbone.py", "import timm"),
            ("data/transforms/preprocess.py", "import torchvision\ntorchvision.transforms"),
        ),
    ),
    Rule(
        name="processes",
        find=uses("torch.distributed"),
        only_in=("distributed/processes.py",),
        breaks=(
            ("training/engine.py", "import torch.distributed as dist"),
            ("metrics/classification.py", "from torch import distributed"),
            ("metrics/classification.py", "import torch\ntorch.distributed.get_rank()"),
        ),
        keeps=(("distributed/processes.py", "import torch.distributed"),),
    ),
    Rule(
        name="network",
        find=uses(*NETWORK),
        only_in=("backbones/downloads.py", "serving/server.py"),
        breaks=(
            ("data/readers.py", "from urllib.request import urlopen"),
            ("reports/report.py", "import requests"),
            ("backbones/backbone.py", "import torch\ntorch.hub.load_state_dict_from_url(u)"),
        ),
        keeps=(
            ("backbones/downloads.py", "import huggingface_hub"),
            ("backbones/catalog.py", "from urllib.parse import parse_qsl"),
            (
                "features/engines.py",
                "import threading\nrequests = threading.local()\nrequests.own = 1",
            ),
        ),
    ),
    Rule(
        name="decoding",
        find=uses(*DECODERS),
        only_in=("data/",),
        breaks=(
            ("reports/report.py", "from PIL import Image\nImage.open(path)"),
            ("models/transfer_model.py", "import PIL.Image\nPIL.Image.open(path)"),
            ("models/transfer_model.py", "from PIL.Image import open as read\nread(path)"),
            ("evaluation/explain.py", "from torchvision.io import decode_jpeg"),
        ),
        keeps=(
            ("data/images.py", "from PIL import Image\nImage.open(path)"),
            ("reports/report.py", "from PIL import Image\nImage.fromarray(pixels).save(file)"),
        ),
    ),
    Rule(
        name="batches",
        find=uses("torch.utils.data.DataLoader"),
        only_in=("data/loader.py",),
        breaks=(
            ("features/extractor.py", "from torch.utils.data import DataLoader\nDataLoader(d)"),
            ("features/extractor.py", "import torch.utils.data as td\ntd.DataLoader(d)"),
        ),
        keeps=(("data/loader.py", "from torch.utils.data import DataLoader"),),
    ),
    Rule(
        name="the terminal",
        find=talks,
        only_in=("cli/",),
        breaks=(
            ("workflows/fit.py", "print('done')"),
            ("features/extractor.py", "from rich.progress import track"),
            ("workflows/events.py", "import sys\nsys.stdout.write('x')"),
        ),
        keeps=(
            ("cli/app.py", "import typer\ntyper.echo('x')"),
            ("reports/report.py", "import sys\nsys.modules"),
        ),
    ),
    Rule(
        name="no pickle",
        find=unpickles,
        breaks=(
            ("cache.py", "import pickle"),
            ("backbones/weights.py", "import torch\ntorch.load(path)"),
            ("backbones/weights.py", "from torch import load\nload(path, weights_only=False)"),
            ("features/extractor.py", "import numpy as np\nnp.load(path, allow_pickle=True)"),
        ),
        keeps=(
            ("backbones/weights.py", "import torch\ntorch.load(path, weights_only=True)"),
            ("workflows/fit.py", "from headstart.models.saving import load\nload(path)"),
        ),
    ),
    Rule(
        name="clear messages",
        find=unclear_messages,
        breaks=(
            ("cache.py", "raise UsageError(f'Expected `n`, got {n}; do leave it out.')"),
            ("cache.py", "raise UsageError('The number is wrong. Pass --n 3.')"),
            ("cache.py", "raise DataError(f'{path} is not an image')"),
            ("cache.py", "raise DataError('a' + f'{path} cannot be read')"),
        ),
        keeps=(
            ("cache.py", "raise UsageError(f'`n` must be at least 1, got {n}.')"),
            ("cache.py", "raise DataError(f'{path} is damaged. ' 'Copy it again.')"),
            ("cache.py", "raise DataError(reason)"),
            ("cache.py", "raise ValueError('anything')"),
        ),
    ),
    Rule(name="no assert", find=asserts, breaks=(("models/transfer_model.py", "assert x > 0"),)),
    Rule(
        name="short functions",
        find=long_functions,
        breaks=(
            ("cache.py", LONG),
            ("workflows/fit.py", "class A:\n    " + LONG.replace("\n", "\n    ")),
        ),
        keeps=(
            (
                "workflows/fit.py",
                LONG.replace("    x = 1\n", '    """\n' + "\n" * 9 + '    """\n', 1),
            ),
        ),
    ),
    Rule(
        name="short files",
        find=long_files,
        breaks=(("workflows/fit.py", "x = 1\n" * (LONGEST_FILE + 1)),),
        keeps=(("workflows/fit.py", "x = 1\n" * LONGEST_FILE),),
    ),
    Rule(
        name="no drawers",
        find=drawer_names,
        breaks=(("utils.py", ""), ("data/_helpers.py", ""), ("core/model.py", "")),
        keeps=(("evaluation/baselines.py", ""), ("data/loader.py", "")),
    ),
    Rule(
        name="declared names",
        find=undeclared_names,
        breaks=(
            ("workflows/fit.py", "def fit(): ..."),
            ("workflows/fit.py", "__all__ = ['fit']\ndef fit(): ..."),
            ("workflows/fit.py", "__all__ = ['fit', 'gone']\ndef fit():\n    'Learn.'"),
        ),
        keeps=(
            (
                "workflows/fit.py",
                "__all__ = ['LIMIT', 'fit']\nLIMIT: int = 3\ndef fit():\n    'Learn.'",
            ),
            ("workflows/fit.py", "def _inside(): ..."),
        ),
    ),
]
SOURCES = [
    Source(path.relative_to(HOUSE).as_posix(), path.read_text(encoding="utf-8"))
    for path in sorted(HOUSE.rglob("*.py"))
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_house_keeps_the_rule(rule: Rule) -> None:
    assert [line for source in SOURCES for line in rule.broken(source)] == []


@pytest.mark.parametrize(
    ("rule", "planted"),
    [(r, p) for r in RULES for p in r.breaks],
    ids=lambda v: getattr(v, "name", ""),
)
def test_the_rule_can_fail(rule: Rule, planted: tuple[str, str]) -> None:
    assert rule.broken(Source(*planted))


@pytest.mark.parametrize(
    ("rule", "planted"),
    [(r, p) for r in RULES for p in r.keeps],
    ids=lambda v: getattr(v, "name", ""),
)
def test_the_rule_lets_through(rule: Rule, planted: tuple[str, str]) -> None:
    assert rule.broken(Source(*planted)) == []


# ------------------------------------------------------------- rules about all files together


def deep_classes(sources: Iterable[Source]) -> list[str]:
    """Classes that stand more than two deep in the package's own inheritance."""
    parents: dict[str, list[str]] = {}
    homes: dict[str, str] = {}
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                parents[node.name] = [_class_name(base) for base in node.bases]
                homes[node.name] = source.path

    def depth(name: str) -> int:
        return 1 + max(map(depth, parents[name]), default=0) if name in parents else 0

    return [n for n in parents if depth(n) > DEEPEST_INHERITANCE and homes[n] not in DRAWN_TREES]


def _class_name(base: ast.expr) -> str:
    base = base.value if isinstance(base, ast.Subscript) else base  # Task[T] -> Task
    return dotted(base).rpartition(".")[2]


def test_inheritance_is_abstract_to_final() -> None:
    assert deep_classes(SOURCES) == []


def test_deep_inheritance_is_found() -> None:
    first = Source("models/tasks.py", "class Task(Protocol): ...\nclass Dense(Task[int]): ...")
    second = Source("tasks/masks.py", "import x\nclass Masks(x.Dense): ...")
    assert deep_classes([first]) == []
    assert deep_classes([first, second]) == ["Masks"]
    assert deep_classes([first, Source("errors.py", second.text)]) == []


def import_contracts(work: Path, path: str, text: str) -> subprocess.CompletedProcess[str]:
    """Hold a copy of the package, with one file changed, against the contracts."""
    shutil.copy(ROOT / "pyproject.toml", work)
    shutil.copytree(HOUSE, work / "src" / "headstart", ignore=shutil.ignore_patterns("__pycache__"))
    with (work / "src" / "headstart" / path).open("a", encoding="utf-8") as file:
        file.write(text)
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(work / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_import_contracts_hold(tmp_path: Path) -> None:
    done = import_contracts(tmp_path, "errors.py", "")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("helpers.py", "", "headstart.helpers"),
        ("errors.py", "import headstart.cache\n", ".errors -> .cache"),
        ("data/images.py", "import headstart.backbones\n", "headstart.data is not allowed"),
        ("metrics/detection.py", "import headstart.evaluation\n", "headstart.metrics is not"),
        ("training/job.py", "import headstart.methods.finetune\n", "headstart.training is not"),
        ("methods/stray.py", "", "headstart.methods.stray"),
        ("data/dataset.py", "import headstart.data.splits\n", ".splits"),
    ],
)
def test_the_import_contracts_can_fail(
    tmp_path: Path, path: str, text: str, complaint: str
) -> None:
    done = import_contracts(tmp_path, path, text)
    assert done.returncode == 1
    assert complaint in done.stdout


def homeless(tests: Iterable[str], sources: Iterable[str]) -> list[str]:
    """Test files without a source: their name is test_<source>.py or test_<source>_<part>.py."""
    expected = {str(p.parent / f"test_{p.stem}") for p in map(Path, sources)}

    def has_source(test: str) -> bool:
        path = Path(test)
        words = path.stem.split("_")
        stems = ("_".join(words[: n + 1]) for n in range(1, len(words)))
        return any(str(path.parent / stem) in expected for stem in stems)

    return [
        test
        for test in tests
        if test not in TESTS_OF_THE_WHOLE
        and not test.startswith("faults/")
        and not has_source(test)
    ]


def test_every_test_file_mirrors_a_source_file() -> None:
    folder = ROOT / "tests"
    tests = [str(path.relative_to(folder)) for path in sorted(folder.rglob("test_*.py"))]
    assert homeless(tests, [source.path for source in SOURCES]) == []


def test_a_homeless_test_is_found() -> None:
    sources = ["cache.py", "data/readers.py"]
    kept = ["data/test_readers.py", "data/test_readers_boxes.py", "test_cache.py", "test_house.py"]
    assert homeless(kept, sources) == []
    assert homeless(["test_readers.py", "data/test_cache.py"], sources) == [
        "test_readers.py",
        "data/test_cache.py",
    ]


# ---------------------------------------------------------------------------------- names


def vague_share(sources: Iterable[Source]) -> float:
    """Share of assignments to names that say nothing."""
    stores = [
        node.id
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    return sum(name in VAGUE_NAMES for name in stores) / len(stores)


def test_names_say_what_a_value_is() -> None:
    assert vague_share(SOURCES) <= MOST_VAGUE_STORES


def test_vague_names_are_counted() -> None:
    source = Source("cache.py", "found = 1\nfor size in (1, 2): more, rest = size, found")
    assert vague_share([source]) == 2 / 4


def questions(sources: Iterable[Source]) -> list[str]:
    """Files whose docstring begins like a question."""
    return [s.path for s in sources if (ast.get_docstring(s.tree) or "").startswith(QUESTION_WORDS)]


def test_module_docstrings_are_statements() -> None:
    assert len(questions(SOURCES)) <= MOST_QUESTIONS * len(SOURCES)


def test_a_question_is_found() -> None:
    asking, stating = (
        Source(f"{i}.py", f'"""{text}"""') for i, text in enumerate(("How x.", "X."))
    )
    assert questions([asking, stating]) == ["0.py"]


def widespread_private_names(sources: Iterable[Source]) -> dict[str, list[str]]:
    """Private functions in more files than allowed; not ``__len__`` or ``_repr_html_``."""
    files: dict[str, set[str]] = {}
    for source in sources:
        for node in ast.walk(source.tree):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and node.name.startswith("_") and not node.name.endswith("_"):
                files.setdefault(node.name, set()).add(source.path)
    return {n: sorted(p) for n, p in files.items() if len(p) > MOST_FILES_OF_A_PRIVATE_NAME}


def test_no_private_function_name_is_everywhere() -> None:
    assert widespread_private_names(SOURCES) == {}


def test_a_widespread_private_name_is_found() -> None:
    same = [
        Source(f"{i}.py", "def _plain(): ...\ndef __len__(self): ...\ndef _repr_html_(self): ...")
        for i in range(4)
    ]
    assert list(widespread_private_names(same)) == ["_plain"]
    assert widespread_private_names(same[:3]) == {}
