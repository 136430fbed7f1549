"""The door of the server: who may come in, and how much they may bring. Everything passes it, HTTP and websockets."""

import asyncio
import json
import logging
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from generalist.serve.errors import ApiError
from generalist.serve.metrics import Metrics
from generalist.serve.settings import Limits, Settings, is_loopback

log = logging.getLogger("generalist.serve")


class Guard:
    """ASGI middleware: the token, the page that asks, counts and logs. Logs have no contents, and no tokens."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        routes: frozenset[str],
        open_pages: frozenset[str] = frozenset(),
    ):
        self._app, self._settings, self._metrics, self._routes = app, settings, metrics, routes
        self._open_pages = open_pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or one websocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            elif message["type"] == "websocket.close" and not status:
                status = 403
            await send(message)

        try:
            refused = self._too_long(scope) or self._refused(Headers(scope=scope), self._is_open(scope))
            if refused is None:
                await self._app(scope, receive, noting)
            elif scope["type"] == "websocket":
                await receive()
                await noting({"type": "websocket.close", "code": 1008, "reason": refused.message[:100]})
            else:
                await JSONResponse(refused.body, refused.status, refused.headers)(scope, receive, noting)
        finally:
            path = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.requested(path, status)
            fields = {"route": path, "status": status, "seconds": round(time.monotonic() - started, 4)}
            log.info("request", extra={"fields": fields})

    def _too_long(self, scope: Scope) -> ApiError | None:
        size = (
            len(scope["raw_path"])
            + len(scope["query_string"])
            + sum(len(one) + len(of) for one, of in scope["headers"])
        )
        limit = self._settings.limits.header
        return ApiError(431, f"the headers may have {limit:,} bytes", code="too_large") if size > limit else None

    def _is_open(self, scope: Scope) -> bool:
        """Whether it asks for a file that everyone may have: the playground's, which a browser opens without a token."""
        return scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] in self._open_pages

    def _refused(self, headers: Headers, is_open: bool) -> ApiError | None:
        settings = self._settings
        if settings.token is not None and not is_open:
            # openpi's client sends `Api-Key`, all others `Bearer`.
            kind, _, given = headers.get("authorization", "").partition(" ")
            same = secrets.compare_digest(given.encode("latin-1", "replace"), settings.token.encode())
            if kind.lower() not in ("bearer", "api-key") or not same:
                return ApiError(401, "this server needs its token: Authorization: Bearer ...", code="invalid_api_key")
        host = headers.get("host", "")
        if is_loopback(settings.host) and not _is_own(host):
            # A page elsewhere whose name was made to resolve to this machine (DNS rebinding).
            return ApiError(403, "the request is for another host", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin not in settings.origins and origin.partition("://")[2] != host:
            return ApiError(403, "pages of other origins may not ask this server (--origins)", code="wrong_origin")
        return None


def _is_own(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:  # such as an open bracket
        return False
    return name is not None and is_loopback(name)


class Bodies:
    """Reads bodies of requests, no more of them at a time than the limits allow."""

    def __init__(self, limits: Limits):
        self._limits, self._held = limits, 0

    async def read(self, request: Request) -> bytes:
        """The body of a request.

        Raises:
            ApiError: it is too large, comes too slowly, or too much is being received.
        """
        limits = self._limits
        if request.headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "a body must not be compressed", code="unsupported_encoding")
        said = request.headers.get("content-length", "0")
        if not said.isdigit() or len(said) > 12 or int(said) > limits.body:
            raise ApiError(413, f"the body may have {limits.body:,} bytes", code="too_large")
        content, held = bytearray(), 0
        try:
            async with asyncio.timeout(limits.seconds):
                async for block in request.stream():
                    if len(content) + len(block) > limits.body:
                        raise ApiError(413, f"the body may have {limits.body:,} bytes", code="too_large")
                    if self._held + len(block) > limits.bodies:
                        raise ApiError(429, "too much is being received: try again later", code="busy")
                    self._held, held = self._held + len(block), held + len(block)
                    content += block
        except TimeoutError as error:
            raise ApiError(408, f"the body did not come within {limits.seconds:g} s", code="timeout") from error
        finally:
            self._held -= held
        return bytes(content)


class JsonLines(logging.Formatter):
    """Logs as one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as a line."""
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as_json() -> None:
    """Writes the server's logs, and what uvicorn says of errors, on standard error as lines of JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name, level in (("generalist.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False  # libraries give the root logger a handler, which would write every line again
