"""The server's routes as one ASGI application."""

from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from generalist.serve.compilations import Compilations
from generalist.serve.completions import Completions
from generalist.serve.demonstrations import Teacher
from generalist.serve.drawings import Drawer, Drawings
from generalist.serve.engine import Engine
from generalist.serve.errors import ApiError
from generalist.serve.guard import Guard
from generalist.serve.inspection import Inspection, Inspector
from generalist.serve.metrics import Metrics
from generalist.serve.playground import pages
from generalist.serve.playground.about import About
from generalist.serve.playing import Episodes
from generalist.serve.robot import Robots
from generalist.serve.settings import Settings


def application(
    engine: Engine,
    settings: Settings,
    metrics: Metrics,
    compilations: Compilations,
    inspector: Inspector | None = None,
    drawer: Drawer | None = None,
) -> Starlette:
    """The application for an engine that is ready.

    Args:
        compilations: counted from now on.
        inspector: compiled; None: what the model looks at is not shown.
        drawer: compiled; None: the weights cannot draw.
    """
    name = settings.name or engine.weights.config.name
    completions, teacher = Completions(engine, settings, name), Teacher(engine, settings.prefix)
    robots, episodes = Robots(engine, teacher, name), Episodes(engine, completions, teacher)
    before = compilations.count
    metrics.watch("compilations_after_ready", "Programs compiled since ready: 0.", lambda: compilations.count - before)
    for key in engine.counts():
        metrics.watch(key, f"Now {key}.", partial(_count, engine, key))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok" if engine.alive else "failed"}, 200 if engine.alive else 500)

    async def ready(request: Request) -> Response:
        open = engine.alive and not engine.stopping
        return JSONResponse({"status": "ready" if open else "stopping"}, 200 if open else 503)

    async def numbers(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    routes: list[BaseRoute] = [
        Route("/healthz", health),
        Route("/readyz", ready),
        Route("/metrics", numbers),
        Route("/v1/models", completions.models),
        Route("/v1/models/{name}", completions.model),
        Route("/v1/chat/completions", completions.chat, methods=["POST"]),
        Route("/v1/images/generations", Drawings(engine, drawer, completions, settings).draw, methods=["POST"]),
        Route("/v1/playground", About(engine, settings, name, inspects=inspector is not None, drawer=drawer).about),
        Route("/v1/play", episodes.play, methods=["POST"]),
        *pages.routes(),
        # openpi's client knows a host and a port alone.
        WebSocketRoute("/", robots.openpi),
        WebSocketRoute("/v1/realtime/robot/openpi", robots.openpi),
        WebSocketRoute("/v1/realtime/robot/json", robots.json),
    ]
    if inspector is not None:
        routes.append(
            Route("/v1/inspect", Inspection(engine, inspector, completions).inspect, methods=["POST"]),
        )
    known = frozenset(route.path for route in routes if isinstance(route, Route | WebSocketRoute))
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Guard, settings=settings, metrics=metrics, routes=known, open_pages=frozenset(pages.files()))
        ],
        exception_handlers={ApiError: _told, HTTPException: _http, Exception: _failed},
    )
    app.state.episodes = episodes
    return app


def _count(engine: Engine, key: str) -> int:
    return engine.counts()[key]


async def _told(request: Request, error: Any) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


async def _http(request: Request, error: Any) -> Response:
    message = str(error.detail)
    if error.status_code == 404:
        message = "there is no such route here: docs/serving.md and docs/playground.md list those that there are"
    return await _told(request, ApiError(error.status_code, message))


async def _failed(request: Request, error: Exception) -> Response:
    # Starlette raises the error again behind the response, and uvicorn logs it.
    return await _told(request, ApiError(500, "the server failed on this request"))
