"""`generalist serve`: a server that chats about images and acts for robots."""

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from generalist.cli.weights import add_placing, add_weights, load_weights

if TYPE_CHECKING:
    from generalist.serve.settings import Settings

DESCRIPTION = """Serves the weights: chats with images as in OpenAI's API (/v1/chat/completions), actions for robots in
openpi's protocol (/v1/realtime/robot/openpi). Without a token, only this machine can reach it (docs/serving.md)."""
NEEDED = ("starlette", "uvicorn", "websockets", "msgpack", "prometheus_client")
TOKEN = "GENERALIST_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist serve`."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0: any that is free (default 8000)")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"file with the token that every request must bring; or the environment's {TOKEN}. Needed with another --host",
    )
    parser.add_argument(
        "--origins",
        nargs="+",
        default=(),
        metavar="ORIGIN",
        help="other web pages that may ask, as https://example.org",
    )
    parser.add_argument(
        "--image-hosts",
        nargs="+",
        default=(),
        metavar="HOST",
        help="hosts from which images may be fetched (default none)",
    )
    parser.add_argument("--name", help="name of the model for clients (default: of the run)")
    parser.add_argument("--lanes", type=int, default=8, help="texts that are written at a time (default 8)")
    parser.add_argument(
        "--sessions", type=int, default=4, help="agents that play at a time, per shape of steps; 0: none (default 4)"
    )
    parser.add_argument(
        "--layouts", nargs="+", default=("*",), metavar="PATTERN", help="layouts that agents may play (default all)"
    )
    parser.add_argument(
        "--prefix",
        type=int,
        default=64,
        help="positions for an agent's instruction and the demonstrations that it is shown (default 64)",
    )
    parser.add_argument("--queue", type=int, default=64, help="texts that may wait for a lane (default 64)")
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds for a text (default 120)")
    parser.add_argument(
        "--grace", type=float, default=30.0, help="seconds for answers that have begun, after SIGTERM (default 30)"
    )
    parser.add_argument(
        "--inspect", action="store_true", help="the playground also shows what the model looks at, and its gates"
    )
    add_weights(parser)
    add_placing(parser)


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Serves until SIGTERM or Ctrl-C; exit status 1 if an answer that had begun could not end.

    Raises:
        ImportError: the extra `serve` is not installed.
        ValueError, OSError: with a message for the user.
    """
    started = time.monotonic()
    if rest:
        raise ValueError(f"generalist serve does not know {' '.join(rest)}")
    check_installed()
    settings = settings_of(arguments)  # checked before the weights are loaded
    from generalist.serve.settings import check_free

    check_free(settings.host, settings.port)
    weights = load_weights(arguments, console)
    from generalist.serve.guard import log_as_json
    from generalist.serve.server import Server

    log_as_json()
    server = Server(weights, settings, lambda line: console.print(line, highlight=False, markup=False))

    def ready(port: int) -> None:
        seconds = time.monotonic() - started
        console.print(
            f"ready in {seconds:.1f} s, {server.programs} programs, {server.found} of them from the cache, {server.lanes} lanes: "
            f"http://{settings.host}:{port}",
            highlight=False,
            soft_wrap=True,
        )

    return 0 if server.run(ready, lambda: load_weights(arguments, console)) else 1


def check_installed() -> None:
    """Checks that the extra `serve` is installed.

    Raises:
        ImportError: a package is missing.
    """
    import importlib.util

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"generalist serve needs {', '.join(missing)}: pip install 'generalist[serve]'")


def settings_of(arguments: argparse.Namespace) -> "Settings":
    """The settings that the arguments give.

    Raises:
        ValueError, OSError: one is invalid, or the file with the token cannot be read.
    """
    from generalist.serve.settings import Settings

    token = os.environ.get(TOKEN)
    if arguments.token_file is not None:
        token = _token_of(arguments.token_file)
    return Settings(
        host=arguments.host,
        port=arguments.port,
        token=token or None,
        origins=tuple(arguments.origins),
        hosts=tuple(arguments.image_hosts),
        name=arguments.name,
        lanes=arguments.lanes,
        sessions=arguments.sessions,
        layouts=tuple(arguments.layouts),
        prefix=arguments.prefix,
        queue=arguments.queue,
        deadline=arguments.deadline,
        grace=arguments.grace,
        inspect=arguments.inspect,
    )


def _token_of(path: Path) -> str:
    """The token in a file.

    Raises:
        ValueError: it cannot be read, or is empty.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"--token-file {path} cannot be read ({reason}): give a file with the token in it") from error
    if not token:
        raise ValueError(f"--token-file {path} is empty: write a token of at least 16 characters into it")
    return token
