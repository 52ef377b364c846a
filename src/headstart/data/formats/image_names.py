"""Names of images in annotation files, and the files of the folder that they mean."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

__all__ = ["InsideFolder"]


class InsideFolder:
    """Check whether a file is inside a folder after links are resolved, cached per subfolder.

    An annotation file must not make the program read files elsewhere on the disk.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.real = os.path.realpath(root)
        self.is_inside: dict[str, bool] = {}

    def __call__(self, key: str) -> bool:
        """Whether a relative path stays in the folder."""
        if key.startswith(("/", "../")) or key[1:3] == ":/" or "\0" in key:
            return False
        folder = posixpath.dirname(key)
        if folder not in self.is_inside:
            self.is_inside[folder] = self._contains(self.root / folder)
        path = self.root / key
        is_link = os.path.islink(path)  # noqa: PTH114 - false, not an error, for impossible names
        return self.is_inside[folder] and (not is_link or self._contains(path))

    def relative(self, name: str) -> str | None:
        """Return an absolute path relative to the folder; None for other paths."""
        for root in (self.real, os.path.abspath(self.root)):  # noqa: PTH100 - keeps links
            if name.startswith(f"{root.rstrip('/')}/"):
                return name[len(root.rstrip("/")) + 1 :]
        return None

    def _contains(self, path: Path) -> bool:
        return f"{os.path.realpath(path)}{os.sep}".startswith(f"{self.real.rstrip(os.sep)}{os.sep}")
