"""Build the API reference: every module of the package, from its docstrings, into a folder."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pdoc

import headstart


def modules() -> list[str]:
    """Names of all modules inside the package."""
    found = pkgutil.walk_packages(headstart.__path__, "headstart.")
    return [module.name for module in found if not module.name.endswith("__main__")]


def names_in(module: str) -> dict[str, Any]:
    """Names of a module, with those that it imports for the type checker only."""
    names = dict(vars(sys.modules[module]))
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), module, "exec"), names)  # noqa: S102 - our own
    return names


def resolve_annotations(module: str) -> None:
    """Give pdoc the types of inherited dataclass fields and of named tuples.

    It looks up the annotations of a constructor in the wrong module: inherited fields belong to the
    module of the base class, and a named tuple's constructor to no module.
    """
    for _, kind in inspect.getmembers(importlib.import_module(module), inspect.isclass):
        if kind.__module__ != module:
            continue
        if dataclasses.is_dataclass(kind):
            constructor, bases = kind.__init__, kind.__mro__[1:]
        elif hasattr(kind, "_fields"):
            constructor, bases = kind.__new__, (kind,)
        else:
            continue
        for base in bases:
            for field, annotation in inspect.get_annotations(base).items():
                text = getattr(annotation, "__forward_arg__", annotation)
                if field in constructor.__annotations__ and isinstance(text, str):
                    value = eval(text, names_in(base.__module__))  # noqa: S307 - our own source
                    constructor.__annotations__[field] = value


def resolve_aliases(modules: list[str]) -> None:
    """Replace type aliases that are texts by their types, in every module that imports them."""
    aliases = {}
    for module in modules:
        for name, annotation in inspect.get_annotations(sys.modules[module]).items():
            text = getattr(sys.modules[module], name, None)
            if "TypeAlias" in str(annotation) and isinstance(text, str):
                aliases[text] = eval(text, names_in(module))  # noqa: S307 - our own source
    for module in modules:
        for name, value in list(vars(sys.modules[module]).items()):
            if isinstance(value, str) and value in aliases:
                setattr(sys.modules[module], name, aliases[value])


def build(folder: Path) -> None:
    """Write the pages; anything that pdoc cannot resolve is an error."""
    # pdoc reads the module's dictionary, which gets lazy names at their first use only
    vars(headstart).update({name: getattr(headstart, name) for name in headstart.__all__})
    names = modules()
    for module in names:
        resolve_annotations(module)
    resolve_aliases(names)
    pdoc.render.configure(docformat="numpy")
    # pdoc adds the modules of a package by itself, unless the package has __all__
    listed = [n for n in names if hasattr(sys.modules[n.rpartition(".")[0]], "__all__")]
    pdoc.pdoc("headstart", *listed, output_directory=folder)


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    build(Path(sys.argv[1]))
