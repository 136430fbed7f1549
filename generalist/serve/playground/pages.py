"""The playground's files: one page with its style and scripts, from this folder alone.

They say nothing about the weights, so a browser gets them without the token, which the page then asks its user for.
"""

from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from generalist.eval.report.colours import palette
from generalist.eval.report.rows_page import CELLS, SCRIPT

FOLDER = Path(__file__).parent
PAGE = "/"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    # Nothing but this server's own files: no inline script or style, no other host, no frame around the page.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def files() -> dict[str, tuple[str, str]]:
    """Content and media type of each file, by its path on the server."""
    own = [path for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES]
    found = {f"/playground/{path.name}": (path.read_text(encoding="utf-8"), TYPES[path.suffix]) for path in own}
    found[PAGE] = found.pop("/playground/index.html")
    # How rows look and are drawn is that of `generalist data view`.
    found["/playground/rows.js"] = (SCRIPT.read_text(encoding="utf-8"), TYPES[".js"])
    found["/playground/rows.css"] = (_rows_style(), TYPES[".css"])
    return found


def routes() -> list[BaseRoute]:
    """One route per file."""
    return [Route(path, _giving(*file), methods=["GET"]) for path, file in files().items()]


def _giving(content: str, kind: str) -> Callable[[Request], Response]:
    return lambda request: Response(content, media_type=kind, headers=HEADERS)


def _rows_style() -> str:
    dark = f"{{ {palette(dark=True)} }}"
    return (
        f":root {{ {palette(dark=False)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {dark} }}\n"
        f":root[data-theme=dark] {dark}\n{CELLS}"
    )
