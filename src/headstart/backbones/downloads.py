"""Downloads: bounded in bytes and time, verified, and written in one step.

A server, a mirror or a proxy may be wrong or hostile. No answer of it names a path: the only names
that it gives, the hash of a file and of a commit, must be hexadecimal digits.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from uuid import uuid4

from headstart.errors import UsageError, WeightsMismatchError
from headstart.files import lock_file, sweep_parts

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

__all__ = ["DownloadError", "download", "download_hub_file", "format_sha256"]

TIMEOUT = 10.0
"""Seconds without any data before a request fails; there are no retries."""
MAX_BYTES = 20 * 2**30
"""Largest download; the largest published CNN weights are about 8 GB."""
SLOWEST = 20_000
"""Bytes per second, on average, below which a download is given up ..."""
PATIENCE = 60.0
"""... after this number of seconds."""
BLOCK = 1 << 20
PART_SECONDS = 60.0
"""Age from which the unfinished file of a killed download is removed by the next one."""


class DownloadError(Exception):
    """A download that failed.

    Parameters
    ----------
    reason : str
        Why, for a list of reasons in a message.
    answered : bool
        Whether the server answered: if not, other files of it are not asked for.
    """

    def __init__(self, reason: str, *, answered: bool = False) -> None:
        super().__init__(reason)
        self.answered = answered


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except HTTPError as error:
        error.close()
        raise DownloadError(str(error), answered=True) from error
    except (OSError, HTTPException) as error:
        raise DownloadError(str(error) or type(error).__name__) from error


def download(
    url: str, path: Path, expected: str, *, headers: Mapping[str, str] | None = None
) -> str:
    """Download a file to a temporary name, verify it, and rename it.

    Parameters
    ----------
    url : str
        Address with http or https.
    path : Path
        The file to write. Its folder is made.
    expected : str
        The sha256 or its first digits; empty if it is unknown.
    headers : mapping of str to str, optional
        Headers of the first request; they are not sent to another host.

    Returns
    -------
    str
        The sha256.

    Raises
    ------
    WeightsMismatchError
        If the content has another hash. It is deleted.
    DownloadError
        If the download fails, is too large, too slow or incomplete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # what stays does no harm
        sweep_parts(path.parent, least_age=PART_SECONDS)
    part = path.with_name(f".{path.name[:100]}.{uuid4().hex}.part")
    digest = hashlib.sha256()
    with _explained():
        lock = lock_file(part)
    try:
        with (
            _explained(),
            _request(url, headers=headers) as response,
            part.open("wb") as file,
        ):
            for block in _read_bounded(response):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if not digest.hexdigest().startswith(expected):
            raise WeightsMismatchError(
                f"Expected {url} to have the sha256 {format_sha256(expected)}, got "
                f"{digest.hexdigest()}. The download was deleted. Report the wrong file to the "
                "administrator of that server, or use another one (HEADSTART_MIRROR)."
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)
    return digest.hexdigest()


def _read_bounded(response: Any) -> Iterator[bytes]:
    """Read a response up to its announced size, or the limit; give up if it is too slow."""
    announced = response.headers.get("Content-Length")
    size = int(announced) if announced is not None and announced.isdecimal() else None
    most = MAX_BYTES if size is None else size
    if most > MAX_BYTES:
        raise DownloadError(f"the server announced {most} bytes, more than {MAX_BYTES}")
    start, received = time.monotonic(), 0
    # read1 returns what has arrived: a server that sends a byte now and then cannot hold it.
    while block := response.read1(BLOCK):
        received += len(block)
        if received > most:
            raise DownloadError(f"the server sent more than {most} bytes")
        seconds = time.monotonic() - start
        if seconds > PATIENCE and received < SLOWEST * seconds:
            raise DownloadError(f"the server sent only {received} bytes in {seconds:.0f} s")
        yield block
    if size is not None and received != size:
        raise DownloadError(f"the download ended after {received} of {size} bytes")


def download_hub_file(url: str, folder: Path, revision: str, file: str) -> Path:
    """Download a file of a Hugging Face hub into the layout of the hub's client.

    Parameters
    ----------
    url : str
        Address of the file, as ``https://huggingface.co/org/model/resolve/main/config.json``.
    folder : Path
        The repository's folder in the hub's cache.
    revision, file : str
        The branch or commit, and the name of the file.

    Returns
    -------
    Path
        ``snapshots/<commit>/<file>``, a link to ``blobs/<hash>``.

    Raises
    ------
    WeightsMismatchError
        If the content has another hash than the server announced. It is deleted.
    DownloadError
        If the server cannot be reached, has no such file, or sends an invalid hash.
    """
    etag, commit, location = _hub_metadata(url)
    _require_hash("ETag", etag, {40, 64})
    _require_hash("commit", commit, {40})
    blob = folder / "blobs" / etag
    if not blob.is_file():
        same_host = urlsplit(location).netloc == urlsplit(url).netloc
        expected = etag if len(etag) == 64 else ""
        download(location, blob, expected, headers=_hub_token() if same_host else None)
    path = folder / "snapshots" / commit / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:  # Windows without the right to make links
        path.write_bytes(blob.read_bytes())
    if re.fullmatch(r"[\w.-]+", revision) and revision not in {commit, ".", ".."}:
        reference = folder / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit, encoding="utf-8")
    return path


def _hub_metadata(url: str) -> tuple[str, str, str]:
    """Hash, commit and final address of a file, from one HEAD request of the hub's client."""
    from huggingface_hub import get_hf_file_metadata

    _require_available(url)
    # The client raises errors of many classes, also those of its HTTP library.
    try:
        metadata = get_hf_file_metadata(url, timeout=TIMEOUT)
    except Exception as error:
        raise DownloadError(str(error).strip().partition("\n")[0]) from error
    return metadata.etag or "", metadata.commit_hash or "", metadata.location


def _require_available(url: str) -> None:
    """Send one HEAD request: without a network it fails sooner than the client."""
    with _explained():
        try:
            _request(url, method="HEAD").close()
        except HTTPError as error:
            error.close()
            if error.code not in {401, 403}:  # the client may have a token
                raise


def _require_hash(kind: str, value: str, lengths: set[int]) -> None:
    """Refuse what is not a hash: it becomes part of a path in a cache that others use, too."""
    if len(value) not in lengths or not re.fullmatch("[0-9a-f]*", value):
        raise DownloadError(f"the server sent the {kind} {value[:80]!r}, not hexadecimal digits")


def _hub_token() -> dict[str, str]:
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _request(url: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Any:
    from urllib.request import Request

    if not url.startswith(("https://", "http://")):
        raise UsageError(
            f"Expected an address that begins with http:// or https://, got {url[:200]!r}. Correct "
            "HEADSTART_MIRROR or HF_ENDPOINT."
        )
    request = Request(url, method=method, headers={"User-Agent": "headstart"})  # noqa: S310
    for name, value in (headers or {}).items():
        request.add_unredirected_header(name, value)
    return _opener().open(request, timeout=TIMEOUT)


@cache
def _opener() -> OpenerDirector:
    """Return an opener for http and https only; urllib's own follows a redirect to ftp, too."""
    from urllib import request

    class WebRedirects(request.HTTPRedirectHandler):
        def redirect_request(self, *arguments: Any) -> Any:
            if not arguments[-1].startswith(("https://", "http://")):
                raise DownloadError(f"the server redirects to {arguments[-1][:80]!r}")
            return super().redirect_request(*arguments)

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPErrorProcessor,
        WebRedirects,
    ):
        opener.add_handler(handler())
    return opener


def format_sha256(sha256: str) -> str:
    """Return a hash for a message; "..." marks one of which only the first digits are known.

    >>> format_sha256("3dd342df")
    '3dd342df...'
    """
    return sha256 if len(sha256) == 64 else f"{sha256}..."
