"""Build the API reference: every module of the package, from its docstrings, into a folder."""

import dataclasses
import importlib
import inspect
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import headstart


def modules() -> list[str]:
    """Names of all modules inside the package."""
    found = pkgutil.walk_packages(headstart.__path__, "headstart.")
    return [module.name for module in found if not module.name.endswith("__main__")]


def resolve_inherited_annotations(module: str) -> None:
    """Give pdoc the types of inherited dataclass fields.

    It looks up every annotation of ``__init__`` in the module of the class, but those of inherited
    fields belong to the module of the base class.
    """
    for _, kind in inspect.getmembers(importlib.import_module(module), inspect.isclass):
        if kind.__module__ != module or not dataclasses.is_dataclass(kind):
            continue
        for base in kind.__mro__[1:]:
            names = vars(sys.modules[base.__module__])
            for field, text in inspect.get_annotations(base).items():
                if field in kind.__init__.__annotations__ and isinstance(text, str):
                    value = eval(text, dict(names))  # noqa: S307 - our own source
                    kind.__init__.__annotations__[field] = value


def build(folder: Path) -> None:
    """Write the pages; anything that pdoc cannot resolve is an error."""
    # pdoc reads the module's dictionary, which gets lazy names at their first use only
    vars(headstart).update({name: getattr(headstart, name) for name in headstart.__all__})
    names = modules()
    for module in names:
        resolve_inherited_annotations(module)
    pdoc.render.configure(docformat="numpy")
    # pdoc adds the modules of a package by itself, unless the package has __all__
    listed = [n for n in names if hasattr(sys.modules[n.rpartition(".")[0]], "__all__")]
    pdoc.pdoc("headstart", *listed, output_directory=folder)


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    build(Path(sys.argv[1]))
