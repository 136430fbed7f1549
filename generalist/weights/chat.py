"""Chat templates: how a published language model was taught to read messages.

A template is a text with Jinja's blocks: `chat_template.jinja` in the model's folder, or `chat_template` of its
`chat_template.json` or `tokenizer_config.json`.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from generalist.weights import chat_renderer
from generalist.weights.folder import WeightsError, read_json

LARGEST = 1 << 17  # bytes of a template: published ones have up to 20,000
ROLES = ("system", "user", "assistant")
PATIENCE = 20  # seconds for the renderer's process, which counts its CPU time itself: beside other work it takes longer
TIME_IS_UP = getattr(signal, "SIGPROF", 0)  # ends a process whose CPU time is used up; not on Windows

Message = Mapping[str, Any]
"""`role`, one of `ROLES`, and `content`: a text, or a list of `{"type": "image"}` and `{"type": "text", "text": ...}`."""


def chat_text(folder: Path, messages: Sequence[Message]) -> str:
    """The text of messages as the model reads them, up to where its answer begins. Control tokens are written out.

    Args:
        folder: of the model.
        messages: from the first on.

    Raises:
        ValueError: a message lacks its role or content, or contains a control token.
        WeightsError: the folder has no template, or one that is damaged, too large, or does what is not allowed.
    """
    template, tokens = _stored(folder)
    for message in messages:
        if set(message) != {"role", "content"} or message["role"] not in ROLES or not _is_content(message["content"]):
            raise ValueError(
                f"a message has a role ({', '.join(ROLES)}) and a content, which is text, got {message!r:.80}"
            )
    # Null, not missing: templates ask whether these two are none, as transformers gives them.
    absent = {"tools": None, "documents": None}
    values = {"messages": [dict(one) for one in messages], "add_generation_prompt": True, **absent, **tokens}
    asked = json.dumps({"template": template, "values": values})
    try:
        # -I: neither the environment nor the current folder decides what is imported.
        done = subprocess.run(
            [sys.executable, "-I", chat_renderer.__file__],
            input=asked,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"{folder}: its chat template takes more than {PATIENCE} s") from error
    if done.returncode == -TIME_IS_UP:
        raise WeightsError(f"{folder}: its chat template takes more than {chat_renderer.SECONDS} s of CPU time")
    try:
        found = json.loads(done.stdout)
    except ValueError as error:
        raise WeightsError(
            f"{folder}: its chat template takes more than {chat_renderer.MEMORY >> 20} MiB, or brings its process down"
        ) from error
    if "error" in found:
        raise WeightsError(f"{folder}: its chat template cannot be used ({found['error']})")
    return found["text"]


def _is_content(content: Any) -> bool:
    """Whether it is a text, or a list of texts and images as templates take them."""
    if not isinstance(content, list):
        return isinstance(content, str)
    return all(one == {"type": "image"} or (set(one) == {"type", "text"} and one["type"] == "text") for one in content)


def _stored(folder: Path) -> tuple[str, dict[str, str]]:
    """The template, and the control tokens that it may name, such as `bos_token`."""
    settings = _settings(folder / "tokenizer_config.json")
    path = folder / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > LARGEST:
            raise WeightsError(f"{path} is larger than {LARGEST:,} bytes: no published chat template is")
        try:
            template: Any = path.read_text(encoding="utf-8")
        except ValueError as error:
            raise WeightsError(f"{path} is not UTF-8") from error
    else:
        # Older folders of models with images have a file for it alone.
        template = _settings(folder / "chat_template.json").get("chat_template", settings.get("chat_template"))
        if isinstance(template, list):  # several by their names
            named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
            template = named.get("default")
    if not isinstance(template, str):
        raise WeightsError(
            f"{folder} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json), so it was not "
            "taught to chat: prompt it with plain text"
        )
    if len(template) > LARGEST:
        raise WeightsError(f"{folder}: its chat template is larger than {LARGEST:,} bytes: no published one is")
    # Older files have an object for each, newer ones its text.
    contents = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in settings.items()
        if name.endswith("_token")
    }
    return template, {name: value for name, value in contents.items() if isinstance(value, str)}


def _settings(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
