"""What the playground can do with these weights: `GET /v1/playground`."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from generalist.serve.engine import Engine
from generalist.serve.playing import playable_tasks
from generalist.serve.settings import Settings
from generalist.serve.warm_up import sees_images


class About:
    """The route."""

    def __init__(self, engine: Engine, settings: Settings, name: str, *, inspects: bool):
        limits = settings.limits
        self._found: dict[str, Any] = {
            "model": name,
            "context": engine.chat.context,
            "images": limits.images if sees_images(engine.weights) else 0,
            "image_bytes": limits.image,
            "pixels": limits.pixels,
            "inspects": inspects,
            "tasks": [{"name": task.name, "instruction": task.instruction} for task in playable_tasks(engine)],
        }

    async def about(self, request: Request) -> Response:
        """Everything that the page needs to know."""
        return JSONResponse(self._found)
