"""Build the API reference: every module of the package, from its docstrings, into a folder."""

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import headstart


def build(folder: Path) -> None:
    """Write the pages; anything that pdoc cannot make sense of is an error."""
    # pdoc looks into the module's dictionary, where a lazy name is not until it is asked for
    vars(headstart).update({name: getattr(headstart, name) for name in headstart.__all__})
    # of a package with __all__ pdoc shows only what that names, so its modules are named here
    modules = [found.name for found in pkgutil.iter_modules(headstart.__path__, "headstart.")]
    pdoc.render.configure(docformat="numpy")
    pdoc.pdoc("headstart", *modules, output_directory=folder)


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    build(Path(sys.argv[1]))
