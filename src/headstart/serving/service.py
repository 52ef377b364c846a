"""Service: from a request to its response, without the web framework's routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from headstart.data.dataset import Sample
from headstart.errors import HeadstartError, RequestError
from headstart.metrics.validation import json_text
from headstart.models.prediction_files import as_json
from headstart.serving.batcher import Batcher, Predict
from headstart.serving.metrics import Metrics
from headstart.serving.model_store import ModelStore, ServedModel
from headstart.serving.overlay import overlay_of
from headstart.serving.requests import Limits, Upload, is_key, parse_body

__all__ = ["Service"]

LARGE_BODY = 200_000
"""Bytes from which a body is parsed in a thread, so that other requests need not wait."""
NAMED_ERRORS = 5


@dataclass(kw_only=True, eq=False)
class Service:
    """The parts of a server, and what each endpoint does.

    Parameters
    ----------
    store : ModelStore
    batcher : Batcher
    limits : Limits
    metrics : Metrics
    keys : tuple of str
        API keys of which a client must send one; empty: none is needed.
    device : str
    """

    store: ModelStore
    batcher: Batcher
    limits: Limits
    metrics: Metrics
    keys: tuple[str, ...] = ()
    device: str = "auto"
    _held_bytes: int = field(default=0, init=False)

    def require_key(self, request: Request) -> None:
        """Refuse a request without a valid API key.

        Raises
        ------
        RequestError
            If keys are set and the request has none of them (401).
        """
        if not self.keys:
            return
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not is_key(request.headers.get("x-api-key", bearer), self.keys):
            raise RequestError(
                "The API key is missing or wrong. Send the header `X-API-Key: KEY`, or "
                "`Authorization: Bearer KEY`.",
                status=401,
            )

    async def predict(self, request: Request) -> Response:
        """Predict the images of a request: the document of `headstart predict --json`."""
        self.require_key(request)
        served = self.store.find(request.query_params.get("model"))
        async with self._receive(request) as uploads:
            answers = await self._run(served, served.predictor, uploads)
        self.metrics.count_images(served.name, len(answers))
        rows = as_json(answers, tuple(served.predictor.model.task.classes))
        return Response(json_text(rows), media_type="application/json")

    async def overlay(self, request: Request) -> Response:
        """Draw the prediction of one image, as PNG."""
        self.require_key(request)
        served = self.store.find(request.query_params.get("model"))
        label = request.query_params.get("label")
        async with self._receive(request) as uploads:
            if len(uploads) != 1:
                raise RequestError(f"Got {len(uploads)} images. Send one image to draw.")
            draw = overlay_of(served.predictor, label, self.device)
            (drawing,) = await self._run(served, draw, uploads)
        return Response(drawing, media_type="image/png")

    @asynccontextmanager
    async def _receive(self, request: Request) -> AsyncIterator[list[Upload]]:
        """Read the body, within the limits, and parse it; its bytes count until the response."""
        body = bytearray()
        self._require_length(request)
        try:
            try:
                async with asyncio.timeout(self.limits.timeout):
                    async for chunk in request.stream():
                        self._held_bytes += len(chunk)
                        body += chunk
                        self._require_room(len(body))
            except TimeoutError:
                raise RequestError(
                    f"The body did not arrive within {self.limits.timeout:g} s. Send a smaller "
                    "image, or start the server with a larger --timeout.",
                    status=408,
                ) from None
            yield await self._parse(request, bytes(body))
        finally:
            self._held_bytes -= len(body)

    def _require_length(self, request: Request) -> None:
        """Refuse a body before it is sent, if its header announces too many bytes."""
        announced = request.headers.get("content-length", "")
        self._require_room(int(announced) if announced.isdecimal() else 0)

    def _require_room(self, length: int) -> None:
        if length > self.limits.body_bytes:
            raise RequestError(
                f"The body has more than {self.limits.max_body} MB. Send fewer or smaller images, "
                "or start the server with a larger --max-body.",
                status=413,
            )
        if self._held_bytes > self.limits.most_bytes:
            raise RequestError(
                f"All requests together have more than {self.limits.most_bytes // 1_000_000} MB. "
                "Send the request again later.",
                status=429,
                retry_after=1,
            )

    async def _parse(self, request: Request, body: bytes) -> list[Upload]:
        content_type = request.headers.get("content-type", "")
        name = request.query_params.get("name", "image")
        settings: dict[str, Any] = {"name": name, "max_images": self.limits.max_images}
        if len(body) < LARGE_BODY:
            return parse_body(content_type, body, **settings)
        return await asyncio.to_thread(parse_body, content_type, body, **settings)

    async def _run(
        self, served: ServedModel, predict: Predict, uploads: Sequence[Upload]
    ) -> list[Any]:
        samples: list[Sample] = [
            served.predictor.sample(upload.name, upload.content) for upload in uploads
        ]
        waiting = self.batcher.submit(predict, samples)
        try:
            async with asyncio.timeout(self.limits.timeout):
                answers = [await asyncio.wrap_future(future) for future in waiting]
        except TimeoutError:
            raise RequestError(
                f"The prediction took more than {self.limits.timeout:g} s. Send fewer images, or "
                "start the server with a larger --timeout.",
                status=503,
                retry_after=5,
            ) from None
        finally:
            for future in waiting:
                future.cancel()  # does nothing to images that are predicted already
        errors = [answer for answer in answers if isinstance(answer, HeadstartError)]
        if errors:
            raise _unpredicted_error(errors)
        return answers


def _unpredicted_error(errors: Sequence[HeadstartError]) -> RequestError:
    texts = [str(error) for error in errors[:NAMED_ERRORS]]
    if len(errors) > NAMED_ERRORS:
        texts.append(f"{len(errors) - NAMED_ERRORS} more images have errors.")
    return RequestError("\n".join(texts), status=422)
