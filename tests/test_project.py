"""What the project's files may contain: no package index, no path of a machine, plain pins."""

import importlib
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

INDEX = re.compile(
    r"pypi[.]org|pythonhosted[.]org|pytorch[.]org/whl"
    r"|(?:--index-url|--extra-index-url|--default-index|--find-links)[= ]+\S*[/:]"
    r"|(?:PIP|UV)_[A-Z_]*(?:INDEX|LINKS)[A-Z_]*\s*[=:]"
)
MACHINE = re.compile(
    r"(?<![\w./~<>{}$)*-])/(?:work|tmp|home|root|Users|opt|mnt|srv)/[\w.]|\b[A-Z]:\\+Users"
)
ROOMS = {".ci", "src", "tests", "docs", "benchmarks", "examples"}


def texts() -> Iterator[tuple[str, str]]:
    """The project's own text files: those at the top and those in its rooms."""
    # In a linked work tree .git is a file with an absolute path; it is not part of the project.
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    for room in ROOMS:
        files += [
            p for p in (ROOT / room).rglob("*") if p.is_file() and "__pycache__" not in p.parts
        ]
    for path in sorted(files):
        try:
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def tell_tales(text: str) -> list[str]:
    """A package index's host or options, and absolute paths of a machine."""
    return [match.group() for pattern in (INDEX, MACHINE) for match in pattern.finditer(text)]


def test_no_text_names_a_package_index_or_a_machine() -> None:
    read = dict(texts())
    assert {"pyproject.toml", "Makefile", ".ci/run", "src/headstart/errors.py"} <= set(read)
    assert {name: found for name, text in read.items() if (found := tell_tales(text))} == {}


@pytest.mark.parametrize(
    "parts",
    [
        ("https://", "pypi", ".org/simple"),
        ("--index", "-url https://mirror.example/simple"),
        ("PIP_", "EXTRA_INDEX_URL=https://mirror.example"),
        ("torch @ https://download.pytorch", ".org/whl/x.whl"),
        ("see ", "/home", "/ann/photos"),
        ("open('", "/tmp", "/x.png')"),
        ("C:", "\\Users\\ann"),
    ],
)
def test_a_tell_tale_is_found(parts: tuple[str, ...]) -> None:
    assert tell_tales("".join(parts))


def test_ordinary_texts_are_no_tell_tales() -> None:
    plain = "see https://example.org/home/x, ~/tmp/x, a/tmp/b, --no-emit-index-url and /dev/null"
    assert tell_tales(plain) == []


# ------------------------------------------------------------------------------------- pins

PIN = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[^\s;@/:]+)(?: ; [^/:@]+)?")


def bad_pins(constraints: str, requirements: Iterable[str]) -> list[str]:
    """Lines that are no plain pin, and requirements that no pin, or a wrong one, answers."""
    lines = constraints.splitlines()
    pins = [match for match in map(PIN.fullmatch, lines) if match]
    found = [f"not a pin: {line}" for line in lines if not PIN.fullmatch(line)]
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        versions = [pin["version"] for pin in pins if pin["name"] == name]
        if not versions:
            found.append(f"not pinned: {name}")
        found += [f"{name} {v}" for v in versions if v not in requirement.specifier]
    return found


def direct_requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    every = [*project["dependencies"], *(one for extra in extras for one in extra)]
    return [one for one in every if not one.startswith("headstart[")]


def test_every_requirement_is_pinned_without_a_host() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert bad_pins(constraints, direct_requirements()) == []


@pytest.mark.parametrize(
    "constraints",
    [
        "numpy==2.4.0\ntorch @ https://mirror.example/torch.whl",
        "--pre\nnumpy==2.4.0",
        "numpy>=2",
        "numpy==1.26.4",
        "scipy==1.17.1",
    ],
)
def test_a_bad_pin_is_found(constraints: str) -> None:
    assert bad_pins("numpy==2.4.0 ; python_full_version < '3.12'", ["Numpy>=2.0"]) == []
    assert bad_pins(constraints, ["numpy>=2.0"])


def test_the_pins_are_the_only_lock() -> None:
    locks = ["uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pylock.toml"]
    assert [name for name in locks if (ROOT / name).exists()] == []


# ---------------------------------------------------------------------------- pages in step


def missing_from(page: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name not in page]


def test_the_architecture_shows_every_module() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "headstart"
    paths = [path.relative_to(package) for path in package.rglob("*.py")]
    rooms = {part for path in paths for part in path.parts[:-1]}
    files = {path.name for path in paths}
    assert missing_from(page, sorted({f"{room}/" for room in rooms} | files)) == []
    assert missing_from(page, ["no_such_room.py"])
    assert len(page.splitlines()) <= 150


def test_the_architecture_shows_the_layers_of_the_contract() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {one["id"]: one for one in config["tool"]["importlinter"]["contracts"]}
    page = " ".join((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split())
    assert len(contracts["rooms"]["layers"]) <= 12
    assert " -> ".join(contracts["rooms"]["layers"]) in page


def test_every_room_names_its_files() -> None:
    package = ROOT / "src" / "headstart"
    for path in package.rglob("__init__.py"):
        if path.parent != package:
            inside = sorted(p.name for p in path.parent.glob("*.py") if p != path)
            assert missing_from(path.read_text(encoding="utf-8"), inside) == [], path


def test_the_index_of_the_docs_links_every_page_and_only_those() -> None:
    docs = ROOT / "docs"
    index = (docs / "README.md").read_text(encoding="utf-8")
    pages = [str(path.relative_to(docs)) for path in sorted(docs.rglob("*.md"))]
    assert missing_from(index, [f"({page})" for page in pages if page != "README.md"]) == []
    links = re.findall(r"\]\(([^):]+)\)", index)
    assert [link for link in links if not (docs / link.partition("#")[0]).exists()] == []


def named_objects(text: str) -> set[str]:
    """Dotted names of the package in a text, such as headstart.metrics.matching."""
    return set(re.findall(r"(?<![\w/.-])headstart(?:\.[A-Za-z_]\w*)+(?!\w|/)", text))


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[end:]:
                value = getattr(value, part)
        except AttributeError:
            return False
        return True
    return False


def named_files(text: str) -> set[str]:
    """Python files in a text, by their path in a room or in the project."""
    return set(re.findall(r"(?<![\w/.*<>-])(?:\w+/)+\w+\.py\b", text))


PAGES = [
    path
    for folder, pattern in (
        (ROOT, "*.md"),
        (ROOT / "docs", "**/*.md"),
        (ROOT / "benchmarks", "*.py"),
    )
    for path in sorted(folder.glob(pattern))
]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_name_only_what_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    planned = (
        text.partition("These features are planned")[2] if path.name == "CONTRIBUTING.md" else ""
    )
    before = text.partition("before: `")[2].partition("`")[0]  # old names in a changelog
    assert {n for n in named_objects(text) - named_objects(before) if not exists(n)} == set()
    rooms = (ROOT, ROOT / "src", ROOT / "src" / "headstart")
    files = named_files(text) - named_files(planned)
    assert {f for f in files if not any((room / f).is_file() for room in rooms)} == set()


def test_a_name_that_is_gone_is_found() -> None:
    assert named_objects("`headstart.judging.short`, headstart.fit(") == {
        "headstart.judging.short",
        "headstart.fit",
    }
    assert [exists(n) for n in ("headstart.fit", "headstart.judging", "headstart.cache.gone")] == [
        True,
        False,
        False,
    ]
    assert named_files("see data/readers.py and `src/headstart/cache.py`") == {
        "data/readers.py",
        "src/headstart/cache.py",
    }
