"""Models by name. A model whose files change is loaded again while the old one still predicts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headstart.errors import HeadstartError, RequestError
from headstart.models.exported_model import open_model
from headstart.models.writing import DESCRIPTION, TENSORS
from headstart.serving.predictor import Predictor

__all__ = ["ModelStore", "ServedModel", "file_stamps"]

Stamps = tuple[tuple[int, int, int], ...]
POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedModel:
    """A loaded model under its name.

    Parameters
    ----------
    name : str
    path : Path
    predictor : Predictor
    stamps : tuple
        Times, sizes and inodes of the model's files when they were read.
    version : int
        1 for the first load; each reload adds 1.
    problem : str or None
        Why newer files could not be loaded.
    """

    name: str
    path: Path
    predictor: Predictor
    stamps: Stamps
    version: int = 1
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return a description for clients."""
        model = self.predictor.model
        return {
            "name": self.name,
            "task": model.task.kind,
            "classes": list(model.task.classes),
            "max_pixels": self.predictor.options.max_pixels,
            "version": self.version,
            "problem": self.problem,
        }


def file_stamps(path: Path) -> Stamps:
    """Times, sizes and inodes of a model's files; 0 for a file that is missing.

    >>> file_stamps(Path("no-such-folder"))
    ((0, 0, 0), (0, 0, 0))
    """
    if path.is_dir() or not path.suffix:
        paths = [path / DESCRIPTION, path / TENSORS]
    else:
        paths = [path, path.with_suffix(".bin")]
    return tuple(map(_stamp, paths))


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_mtime_ns, status.st_size, status.st_ino


class ModelStore:
    """The models of a server.

    Parameters
    ----------
    paths : mapping of str to Path
        Folder or exported file by name; the first is the default.
    prepare : callable
        From an opened model to its predictor.
    on_reload : callable, optional
        Called with the name and whether the reload succeeded.

    Raises
    ------
    ModelFileError, UsageError
        If a model cannot be loaded.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        prepare: Callable[[Any], Predictor],
        on_reload: Callable[[str, bool], None] = lambda name, is_loaded: None,
    ) -> None:
        self._prepare = prepare
        self._on_reload = on_reload
        self._stopped = threading.Event()
        self._models = {name: self._load(name, path) for name, path in paths.items()}
        self._thread = threading.Thread(target=self._watch, name="reload", daemon=True)

    def models(self) -> list[ServedModel]:
        """Return all models, the default first."""
        return list(self._models.values())

    def find(self, name: str | None) -> ServedModel:
        """Return a model by name, or the default.

        Raises
        ------
        RequestError
            If there is no such model (404).
        """
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            names = ", ".join(self._models)
            raise RequestError(
                f"Unknown model: {name[:80]!r}. Pass ?model= with one of: {names}.", status=404
            )
        return self._models[name]

    def start(self) -> None:
        """Watch the files of the models in a thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def refresh(self) -> None:
        """Load the models whose files have changed. One that cannot be loaded stays as it is."""
        for name, served in list(self._models.items()):
            stamps = file_stamps(served.path)
            if stamps == served.stamps or not any(map(any, stamps)):
                continue  # a folder that is being replaced may be missing for a moment
            try:
                loaded = self._load(name, served.path)
                self._models[name] = replace(loaded, version=served.version + 1)
            except (HeadstartError, OSError, RuntimeError) as error:
                self._models[name] = replace(served, stamps=stamps, problem=str(error))
            self._on_reload(name, self._models[name].problem is None)

    def _load(self, name: str, path: Path) -> ServedModel:
        stamps = file_stamps(path)  # before reading: a change in between is found the next time
        predictor = self._prepare(open_model(path))
        return ServedModel(name=name, path=path, predictor=predictor, stamps=stamps)

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            self.refresh()
