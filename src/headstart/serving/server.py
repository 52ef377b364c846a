"""Process of a server: models, threads, socket, and the end by a signal."""

from __future__ import annotations

import math
import socket
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from headstart.cache import Cache
from headstart.errors import SetupError, UsageError
from headstart.models.exported_model import AnyModel
from headstart.models.transfer_model import TransferModel
from headstart.runtime import cores, use_one_thread
from headstart.serving.app import create_app
from headstart.serving.batcher import Batcher
from headstart.serving.metrics import Metrics
from headstart.serving.model_store import ModelStore
from headstart.serving.predictor import Predictor
from headstart.serving.requests import MOST_PIXELS, Limits
from headstart.serving.service import Service

__all__ = ["Settings", "build_app", "read_keys", "run_server"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a server that are not limits.

    Parameters
    ----------
    host : str
    port : int
        0 for any free port.
    keys : tuple of str
        API keys; empty: none is needed.
    batch : int
        Most images of a batch.
    device : str

    Raises
    ------
    UsageError
        If a number is out of its range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    batch: int = 4
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, low, high in (("port", 0, 65_535), ("batch", 1, 256)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(
                    f"`{name}` must be from {low} to {high}, got {value}. Pass --{name} with such "
                    "a number."
                )


def read_keys(path: Path | None) -> tuple[str, ...]:
    """Read API keys from a file with one key in each line; without a file there are none.

    Raises
    ------
    UsageError
        If the file cannot be read, has no key, or a key that no header can hold.
    """
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--api-key-file {str(path)!r} cannot be read ({error}). Pass a text file with one "
            "key in each line, of ASCII characters."
        ) from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise UsageError(
            f"--api-key-file {str(path)!r} has no key. Write one key in each line, such as the "
            "output of `openssl rand -hex 32`."
        )
    return keys


def build_app(
    paths: Mapping[str, Path],
    settings: Settings,
    limits: Limits,
    *,
    cache: Cache,
    style: str = "",
) -> FastAPI:
    """Load the models and build the application.

    Parameters
    ----------
    paths : mapping of str to Path
        Folder or exported file by name; the first is the default.
    settings : Settings
    limits : Limits
    cache : Cache
    style : str
        CSS of the pages.

    Raises
    ------
    ModelFileError, UsageError
        If a model cannot be loaded.
    """
    metrics = Metrics()

    def prepare(model: AnyModel) -> Predictor:
        most = limits.max_pixels or min(MOST_PIXELS, model.image_options.max_pixels)
        return Predictor.of(model, cache=cache, max_pixels=most, device=settings.device)

    store = ModelStore(paths, prepare, metrics.count_reload)
    needs_torch = any(isinstance(one.predictor.model, TransferModel) for one in store.models())
    batcher = Batcher(
        workers=cores(),
        size=settings.batch,
        capacity=limits.queue,
        prepare_thread=use_one_thread if needs_torch else (lambda: None),
        on_batch=metrics.count_batch,
    )
    metrics.watch_queue(lambda: len(batcher))
    service = Service(
        store=store,
        batcher=batcher,
        limits=limits,
        metrics=metrics,
        keys=settings.keys,
        device=settings.device,
    )
    return create_app(service, style=style)


def run_server(
    app: FastAPI, settings: Settings, limits: Limits, *, on_start: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that have begun are answered first.

    Parameters
    ----------
    app : FastAPI
    settings : Settings
    limits : Limits
    on_start : callable
        Called with the address when connections are accepted.

    Raises
    ------
    SetupError
        If the address cannot be used.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(2 * limits.timeout),
    )
    with _bind(settings) as bound:
        port = bound.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        on_start(f"http://{host}:{port}")
        # Pillow warns about damaged files, in texts with numbers of the file: clients could fill
        # the log, and the memory of Python's list of warnings that were shown.
        with suppress(KeyboardInterrupt), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            uvicorn.Server(config).run(sockets=[bound])
            # A signal is raised again, as KeyboardInterrupt, after everything has ended.


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except OSError as error:
        raise SetupError(
            f"Cannot listen on {settings.host} port {settings.port}: {error}. Pass another --port "
            "or --host."
        ) from error
