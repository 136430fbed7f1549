"""Renders a chat template in a process of its own: `python -I chat_renderer.py`, a JSON object on standard input, another one on
standard output. It imports nothing of ours.

A template is a program that came with the weights. Jinja's sandbox keeps it from reaching anything, and the process has limits of
memory and time, which a sandbox alone has not.
"""

import datetime
import json
import signal
import sys
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 1 << 30  # bytes, with the interpreter's own
SECONDS = 0.5  # of CPU time for a template: published ones take a hundredth of it
LONGEST = 1 << 20  # characters that a template may give


class Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`, with which some templates mark what training predicts: the text inside."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        """The nodes between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(template: str, values: dict[str, Any]) -> str:
    """The text of a template. Blocks and functions are those that transformers gives templates.

    Raises:
        jinja2.TemplateError: the template is damaged, refuses the messages, or does what the sandbox forbids.
        ValueError: the text is too long.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    found, length = [], 0
    for piece in environment.from_string(template).generate(**values):
        found.append(piece)
        length += len(piece)
        if length > LONGEST:
            raise ValueError(f"its text is longer than {LONGEST:,} characters")
    return "".join(found)


def _json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Not Jinja's own filter, which writes letters such as < as escapes.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def main() -> None:
    """Reads a template and its values, and writes its text or what is wrong with it."""
    asked = json.load(sys.stdin)
    try:
        import resource  # not on Windows
    except ImportError:
        pass
    else:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        # The signal is not caught: it ends the process also within an operation that takes long.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        found = {"text": render(asked["template"], asked["values"])}
    # Whatever a template does wrong is told to who named it.
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"[:300]}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
