"""Serve saved models over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headstart.cache import open_cache
from headstart.errors import MissingExtraError, UsageError
from headstart.serving.requests import Limits

__all__ = ["model_paths", "serve"]

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def serve(
    models: str | Path | Mapping[str, str | Path] | Iterable[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: str | Path | None = None,
    batch: int = 4,
    device: str = "auto",
    on_start: Callable[[str], None] | None = None,
    **limits: Any,
) -> None:
    """Serve models over HTTP until SIGTERM or Ctrl-C.

    Parameters
    ----------
    models : str, Path, mapping, or sequence of str
        Model folder or exported file; several by name, as a mapping or as texts ``name=folder``.
        The first is the default.
    host : str
        Address to listen on. By default only this machine can connect.
    port : int
        0 for any free port.
    api_key_file : str or Path, optional
        Text file with one key in each line, of which clients must send one.
    batch : int
        Most images that are predicted together.
    device : str
    on_start : callable, optional
        Called with the address of the server.
    **limits
        ``max_body`` in megabytes, ``max_images``, ``max_pixels``, ``timeout`` in seconds and
        ``queue`` in images, as `headstart.serving.requests.Limits`.

    Raises
    ------
    ModelFileError
        If a model is damaged.
    UsageError
        If a name is used twice, or a number is out of its range.
    MissingExtraError
        If a package of the extra ``serve`` is missing.
    SetupError
        If the address cannot be used.

    Examples
    --------
    >>> serve({"cats": "runs/cats", "cells": "runs/cells/model.onnx"})  # doctest: +SKIP
    """
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingExtraError(package, extra="serve")
    from headstart.reports.page import page_template
    from headstart.serving.server import Settings, build_app, read_keys, run_server

    given = {name: value for name, value in limits.items() if value is not None}
    checked = Limits.of(given)
    keys = read_keys(None if api_key_file is None else Path(api_key_file))
    settings = Settings(host=host, port=port, keys=keys, batch=batch, device=device)
    paths = model_paths(models)
    style = page_template("report.css").render()  # the look of the reports
    with open_cache(None) as cache:
        app = build_app(paths, settings, checked, cache=cache, style=style)
        run_server(app, settings, checked, on_start=on_start or (lambda address: None))


def model_paths(
    models: str | Path | Mapping[str, str | Path] | Iterable[str],
) -> dict[str, Path]:
    """Paths of models by name. A path without a name has that of its folder.

    Raises
    ------
    UsageError
        If there is no model, or a name is used twice.

    Examples
    --------
    >>> model_paths(["runs/cats", "cells=runs/b/model.onnx"])
    {'cats': PosixPath('runs/cats'), 'cells': PosixPath('runs/b/model.onnx')}
    """
    if isinstance(models, Mapping):
        return {str(name): Path(path) for name, path in models.items()}
    words = [models] if isinstance(models, str | Path) else list(models)
    paths: dict[str, Path] = {}
    for word in words:
        name, path = _split(word)
        if name in paths:
            raise UsageError(
                f"The name {name!r} stands for {paths[name]} and {path}. Write one of them as "
                f"NAME={path}."
            )
        paths[name] = path
    if not paths:
        raise UsageError(f"`models` is {models!r}, without a model. Pass a folder: runs/photos.")
    return paths


def _split(word: str | Path) -> tuple[str, Path]:
    name, sign, path = str(word).partition("=")
    if sign and name and "/" not in name and not Path(word).exists():
        return name, Path(path)
    absolute = Path(word).absolute()  # a link keeps its name: it may point to a new version later
    is_file = absolute.suffix.lower() in {".onnx", ".xml"}
    return (absolute.parent.name if is_file else absolute.name), Path(word)
