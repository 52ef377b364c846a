"""Names of images in annotation files, and the files of the folder that they mean."""

from __future__ import annotations

import os
import posixpath
import re
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote

from headstart.data.formats.layouts import Listing, format_list
from headstart.errors import DataError

__all__ = ["ImageNames", "InsideFolder"]

_UPLOADED = re.compile(r"(?<![^/])[0-9a-f]{8}-(?=[^/]+$)")  # Label Studio puts it before names


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


class ImageNames:
    """Images of a folder, by the names that annotation files state.

    Tools state a path relative to the annotations, a bare name, an absolute path of another
    machine, or an address. The end of it is compared with the images of the folder.
    """

    def __init__(self, listing: Listing) -> None:
        self.root = listing.root
        self.images = frozenset(listing.images)
        self.is_inside = InsideFolder(listing.root)
        self.by_basename: dict[str, list[str]] = defaultdict(list)
        for key in listing.images:
            self.by_basename[posixpath.basename(key)].append(key)

    def key_of(self, stated: str, folder: str, where: str) -> str:
        """Return the path of the image, relative to the root; of a missing one where it should be.

        Parameters
        ----------
        stated : str
            The name or path in the file.
        folder : str
            Folder of the file, relative to the root.
        where : str
            Words for the file in messages.

        Raises
        ------
        DataError
            If the name is empty, or several images have it.
        """
        name = _plain_name(stated)
        if not name:
            raise DataError(
                f"Expected the name of an image in {where}, got {stated!r:.80}. Correct the file."
            )
        relative = self.is_inside.relative(name) or posixpath.normpath(
            posixpath.join(folder, name.lstrip("/"))
        )
        if relative in self.images:
            return relative
        matches = self._matches(name) or self._matches(re.sub(_UPLOADED, "", name))
        if len(matches) > 1:
            shared = [len(posixpath.commonprefix([f"{folder}/", key])) for key in matches]
            nearest = [key for key, n in zip(matches, shared, strict=True) if n == max(shared)]
            if len(nearest) > 1:
                raise DataError(
                    f"Expected one image for {stated!r} in {where}, got {len(nearest)} of this "
                    f"name: {format_list(sorted(nearest))}. Write the path of the image, or rename "
                    "the images."
                )
            matches = nearest
        # A missing image is reported by the data checks, at the path where it should be.
        return matches[0] if matches else posixpath.join(folder, posixpath.basename(name))

    def _matches(self, name: str) -> list[str]:
        """Images whose path has the longest common end with a name."""
        keys = self.by_basename.get(posixpath.basename(name), [])
        parts = name.strip("/").split("/")
        for start in range(len(parts)):
            end = "/" + "/".join(parts[start:])
            if matches := [key for key in keys if f"/{key}".endswith(end)]:
                return matches
        return []


def _plain_name(stated: str) -> str:
    """Path in a stated name: without the protocol of an address, and with forward slashes."""
    name = stated.replace("\\", "/").strip()
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", name) or "?d=" in name:
        name = unquote(name.partition("?d=")[2] or name.partition("://")[2].partition("?")[0])
    name = re.sub(r"^[a-zA-Z]:/", "/", name)
    return "" if "\0" in name or not posixpath.basename(name) else posixpath.normpath(name)
