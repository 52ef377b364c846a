"""Request bodies: images in multipart forms, in JSON as base64, or as the raw body; and limits."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from headstart.errors import RequestError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

__all__ = ["MOST_PIXELS", "Limits", "Upload", "is_key", "parse_body"]

JSON_EXAMPLE = '{"images": [{"name": "cat.jpg", "data": "<base64>"}]}'
MOST_NAME_CHARACTERS = 500
MOST_PIXELS = 50_000_000
"""Largest width times height of an image by default: three bytes for each are in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a server, so that no request can exhaust its memory or block the others.

    Parameters
    ----------
    max_body : int
        Largest body of a request in megabytes.
    max_images : int
        Most images in one request.
    max_pixels : int or None
        Largest width times height of an image. None: ``MOST_PIXELS``, or that of the training, if
        it is less.
    timeout : float
        Most seconds for receiving a body, and again for its predictions.
    queue : int
        Most images that wait for the model; further requests get the status 429.

    Raises
    ------
    UsageError
        If a limit is below 1.

    Examples
    --------
    >>> Limits(max_body=2).body_bytes
    2000000
    """

    max_body: int = 32
    max_images: int = 64
    max_pixels: int | None = None
    timeout: float = 30.0
    queue: int = 256

    def __post_init__(self) -> None:
        for name in ("max_body", "max_images", "max_pixels", "timeout", "queue"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise UsageError(
                    f"`{name}` must be at least 1, got {value!r}. Pass --{name.replace('_', '-')} "
                    "with a larger number."
                )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Limits:
        """Make the limits from keywords.

        Raises
        ------
        UnknownNameError
            If there is no such limit.

        Examples
        --------
        >>> Limits.of({"queue": 8}).queue
        8
        """
        names = [one.name for one in fields(cls)]
        for name in settings:
            if name not in names:
                raise UnknownNameError("limit", name, names)
        return cls(**settings)

    @property
    def body_bytes(self) -> int:
        """Largest body in bytes."""
        return self.max_body * 1_000_000

    @property
    def most_bytes(self) -> int:
        """Most bytes of all bodies that are being received or predicted."""
        return 8 * self.body_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An image file in a request: its name and its bytes."""

    name: str
    content: bytes


def parse_body(
    content_type: str, body: bytes, *, name: str = "image", max_images: int = 64
) -> list[Upload]:
    """Read the images in a request.

    Parameters
    ----------
    content_type : str
        Header of the request: ``multipart/form-data``, ``application/json``, ``image/...``, or
        ``application/octet-stream``, which an empty text stands for.
    body : bytes
    name : str
        Name of an image that is the whole body.
    max_images : int

    Returns
    -------
    list of Upload
        At least one.

    Raises
    ------
    RequestError
        If the body has no images, too many, or is damaged.

    Examples
    --------
    >>> parse_body("image/png", b"bytes", name="a.png")
    [Upload(name='a.png', content=b'bytes')]
    >>> parse_body("application/json", b'{"images": ["Ynl0ZXM="]}')
    [Upload(name='image 1', content=b'bytes')]
    """
    kind = content_type.split(";", 1)[0].strip().lower()
    if not body:
        raise RequestError("The body is empty. Send an image.")
    if kind == "multipart/form-data":
        uploads = _parse_form(content_type, body, max_images)
    elif kind == "application/json":
        uploads = _parse_json(body, max_images)
    elif kind.startswith("image/") or kind in {"", "application/octet-stream", "application/dicom"}:
        uploads = [Upload(name=_clean_name(name), content=body)]
    else:
        raise RequestError(
            f"The content type {kind[:80]!r} is not supported. Send multipart/form-data, "
            "application/json, image/... or application/octet-stream.",
            status=415,
        )
    for upload in uploads:
        if not upload.content:
            raise RequestError(f"The image {upload.name!r} is empty. Send the bytes of an image.")
    return uploads


def is_key(given: str, keys: Sequence[str]) -> bool:
    """Whether a text is one of the keys, in a time that does not depend on where they differ.

    >>> is_key("secret", ["other", "secret"]), is_key("", ["secret"])
    (True, False)
    """
    content = given.encode("utf-8", "surrogateescape")
    matches = [hmac.compare_digest(content, key.encode()) for key in keys]
    return any(matches)


def _parse_json(body: bytes, max_images: int) -> list[Upload]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is no JSON ({error!s:.100}). Send {JSON_EXAMPLE}.") from error
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list) or not images:
        raise RequestError(f"The JSON has no list of images. Send {JSON_EXAMPLE}.")
    _require_number(len(images), max_images)
    return [_decode_entry(entry, number) for number, entry in enumerate(images, start=1)]


def _decode_entry(entry: Any, number: int) -> Upload:
    fields = entry if isinstance(entry, dict) else {"data": entry}
    name, data = fields.get("name", f"image {number}"), fields.get("data")
    if not isinstance(name, str) or not isinstance(data, str):
        raise RequestError(
            f"Image {number} of the JSON must have texts as `name` and `data`, got "
            f"{type(name).__name__} and {type(data).__name__}. Send {JSON_EXAMPLE}."
        )
    if data.startswith("data:"):
        data = data.partition(",")[2]
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"The data of image {number} are no base64 ({error!s:.60}). Encode the bytes of the "
            "image file with base64, without line breaks."
        ) from error
    return Upload(name=_clean_name(name), content=content)


class _Form:
    """Files of a multipart form, collected by the callbacks of the parser."""

    def __init__(self, max_images: int) -> None:
        self.uploads: list[Upload] = []
        self.is_whole = False
        self._max_images = max_images
        self._field, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._content = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        """Return the functions that the parser calls."""
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._content.extend(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin_part(self) -> None:
        _require_number(len(self.uploads) + 1, self._max_images)
        self._headers, self._content = {}, bytearray()

    def _end_header(self) -> None:
        self._headers[bytes(self._field).lower()] = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def _end(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        file_name = options.get(b"filename")
        if file_name is None:
            field = options.get(b"name", b"").decode("utf-8", "replace")
            raise RequestError(
                f"The form field {field[:80]!r} has no file name. Send each image as a file, as "
                "`curl -F files=@cat.jpg` does."
            )
        name = _clean_name(file_name.decode("utf-8", "replace"))
        self.uploads.append(Upload(name=name, content=bytes(self._content)))

    def _finish(self) -> None:
        self.is_whole = True


def _parse_form(content_type: str, body: bytes, max_images: int) -> list[Upload]:
    from python_multipart.exceptions import ParseError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestError("The multipart form has no boundary. Send it as `curl -F` does.")
    form = _Form(max_images)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except ParseError as error:
        raise RequestError(
            f"The multipart form is damaged ({error!s:.100}). Send it as `curl -F` does."
        ) from error
    if not form.is_whole:
        raise RequestError("The multipart form ends too early. Send it as `curl -F` does.")
    if not form.uploads:
        raise RequestError("The multipart form has no files. Send images: -F files=@cat.jpg.")
    return form.uploads


def _require_number(number: int, max_images: int) -> None:
    if number > max_images:
        raise RequestError(
            f"The request has more than {max_images} images. Send them in several requests.",
            status=413,
        )


def _clean_name(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()[:MOST_NAME_CHARACTERS] or "image"
