"""Web application: the endpoints, their description for OpenAPI, and errors as JSON."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart import __version__
from headstart.errors import RequestError
from headstart.serving.metrics import Metrics
from headstart.serving.page import Page, read_page
from headstart.serving.service import Service

__all__ = ["create_app"]

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "type": "object",
    "required": ["files"],
    "properties": {
        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
    },
}
_ENTRY = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "name": {"type": "string"},
        "data": {"type": "string", "description": "Bytes of an image file, in base64."},
    },
}
_JSON = {
    "type": "object",
    "required": ["images"],
    "properties": {"images": {"type": "array", "minItems": 1, "items": _ENTRY}},
}
_TEXT = {"type": "string"}
_MODEL = {"name": "model", "in": "query", "description": "Name of a model.", "schema": _TEXT}
_NAME = {"name": "name", "in": "query", "description": "Name of a raw image.", "schema": _TEXT}
_LABEL = {"name": "label", "in": "query", "description": "Class to explain.", "schema": _TEXT}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": _FORM},
        "application/json": {"schema": _JSON},
        "application/octet-stream": _IMAGE,
        "image/*": _IMAGE,
    },
}
_ERROR = {"application/json": {"schema": {"type": "object", "properties": {"error": _TEXT}}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": _ERROR}
    for status, text in (
        (400, "The body is damaged."),
        (401, "The API key is missing or wrong."),
        (404, "There is no such model."),
        (408, "The body did not arrive in time."),
        (413, "The body is too large, or there are too many images."),
        (415, "The content type is not supported."),
        (422, "An image cannot be decoded, or has too many pixels."),
        (429, "Too many images wait. Send the request again after Retry-After seconds."),
        (503, "The server is too slow or stops."),
    )
}

Handler = Callable[[Request], Awaitable[Response]]


def create_app(service: Service, *, style: str = "") -> FastAPI:
    """Build the application of a service.

    Parameters
    ----------
    service : Service
        Its threads start and end with the application.
    style : str
        CSS of the pages.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.store.start()
        yield
        service.store.close()
        service.batcher.close()

    app = FastAPI(
        title="Headstart",
        version=__version__,
        summary="Predictions of trained models.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(HTTPException, _explain_status)
    app.add_exception_handler(ClientDisconnect, _forget)
    app.add_exception_handler(Exception, _fail)
    _add_predictions(app, service)
    _add_states(app, service)
    _add_page(app, "/", read_page("page.html", style))
    _add_page(app, "/docs", read_page("docs.html", style))
    app.add_middleware(_Measured, metrics=service.metrics, paths=_paths(app))
    return app


def _add_predictions(app: FastAPI, service: Service) -> None:
    async def predict(request: Request) -> Response:
        """Predict one or several images; as headstart predict --json."""
        return await service.predict(request)

    async def overlay(request: Request) -> Response:
        """Draw one image with its heat map (classes), boxes or mask, as PNG."""
        return await service.overlay(request)

    png: dict[int | str, dict[str, Any]] = {
        200: {"content": {"image/png": {}}, "description": "The drawing."}
    }
    rows: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/json": {}}, "description": "One row for each image."}
    }
    for path, handler, parameters, answer in (
        ("/predict", predict, [_MODEL, _NAME], rows),
        ("/overlay", overlay, [_MODEL, _NAME, _LABEL], png),
    ):
        app.post(
            path,
            response_class=Response,
            responses={**_ERRORS, **answer},
            openapi_extra={"requestBody": _BODY, "parameters": parameters},
        )(handler)


def _add_states(app: FastAPI, service: Service) -> None:
    async def models(request: Request) -> Response:
        """List the models: name, task, classes, version."""
        service.require_key(request)
        return JSONResponse([served.as_dict() for served in service.store.models()])

    async def metrics(request: Request) -> Response:
        """Metrics in the text format of Prometheus."""
        service.require_key(request)
        return PlainTextResponse(service.metrics.text())

    async def healthz(request: Request) -> Response:
        """Status 200 while the process answers."""
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        """Status 200 while the server takes images, else 503."""
        is_ready = service.batcher.is_running
        return JSONResponse({"ready": is_ready}, status_code=200 if is_ready else 503)

    for handler in (models, metrics, healthz, readyz):
        app.get(f"/{handler.__name__}", response_class=Response)(handler)


def _add_page(app: FastAPI, path: str, page: Page) -> None:
    async def show(request: Request) -> Response:
        return Response(page.html, media_type="text/html", headers=page.headers)

    app.get(path, include_in_schema=False, response_class=Response)(show)


def _paths(app: FastAPI) -> frozenset[str]:
    return frozenset(str(getattr(route, "path", "")) for route in app.routes)


async def _refuse(request: Request, error: Exception) -> Response:
    headers = {}
    if isinstance(error, RequestError) and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    status = error.status if isinstance(error, RequestError) else 400
    return JSONResponse({"error": str(error)}, status_code=status, headers=headers)


async def _explain_status(request: Request, error: Exception) -> Response:
    """Errors of the framework: an unknown path, or another method."""
    status = error.status_code if isinstance(error, HTTPException) else 400
    path = request.url.path[:80]
    message = {
        404: f"There is no page {path!r}. Open /docs for the list.",
        405: f"{request.method} is not allowed for {path!r}. Open /docs for the list.",
    }.get(status, f"The request is invalid (status {status}). Open /docs for the list.")
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse({"error": message}, status_code=status, headers=headers)


async def _forget(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # the client is gone: nobody reads it


async def _fail(request: Request, error: Exception) -> Response:
    message = "The server failed on this request. The reason is in its log."
    return JSONResponse({"error": message}, status_code=500)


class _Measured:
    """Middleware that counts responses and their time."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started_at = 500, time.perf_counter()

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.count_request(path, status, time.perf_counter() - started_at)
