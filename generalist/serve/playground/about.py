"""What the playground can do with these weights: `GET /v1/playground`."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from generalist.data import emoji
from generalist.serve.drawings import NO_CODES, Drawer, png
from generalist.serve.engine import Engine
from generalist.serve.playing import playable_tasks
from generalist.serve.settings import Settings
from generalist.serve.warm_up import sees_images

SAMPLES = ("red apple", "dog face", "bicycle")


def samples() -> list[dict[str, str]]:
    """Drawings to try, each with the text of its question, if the package with the drawings is installed."""
    try:
        known = {one.name: one for split in emoji.SPLITS for one in emoji.drawings(split)}
    except emoji.MissingImages:
        return []
    found = [known[name].image() for name in SAMPLES if name in known]
    return [{"image": "data:image/png;base64," + png(image), "text": emoji.CAPTION} for image in found]


class About:
    """The route."""

    def __init__(self, engine: Engine, settings: Settings, name: str, *, inspects: bool, drawer: Drawer | None):
        limits = settings.limits
        self._found: dict[str, Any] = {
            "model": name,
            "context": engine.chat.context,
            "images": limits.images if sees_images(engine.weights) else 0,
            "image_bytes": limits.image,
            "pixels": limits.pixels,
            "inspects": inspects,
            "samples": samples() if sees_images(engine.weights) else [],
            "draws": drawer is not None,
            "no_drawing": NO_CODES,
            "tasks": [{"name": task.name, "instruction": task.instruction} for task in playable_tasks(engine)],
        }

    async def about(self, request: Request) -> Response:
        """Everything that the page needs to know."""
        return JSONResponse(self._found)
