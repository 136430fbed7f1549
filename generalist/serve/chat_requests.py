"""Requests for texts in OpenAI's form (chat completions): read, checked, and turned into messages.

What a client sends is checked in the order of cost: bytes, values, nesting, types, sizes in headers, and only then is an image
decoded.
"""

import base64
import binascii
import dataclasses
import json
import re
import secrets
from typing import Any

import numpy as np

from generalist.data.files import DocumentError
from generalist.data.images import Encoded, TooManyPixels, opened, read_image
from generalist.inference.sampling import Decoding
from generalist.serve.errors import ApiError, wrong
from generalist.serve.messages import Message
from generalist.serve.settings import Limits

# Fields that are known and have no effect here, whatever their value.
IGNORED = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "store")
# Fields of which only these values ask for nothing.
NOTHING: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
}
TOOLS = ("tools", "tool_choice", "functions", "function_call")
KNOWN = {
    *("model", "messages", "stream", "stream_options", "stop", "n", "temperature", "top_p", "seed", "logprobs"),
    *("top_logprobs", "max_tokens", "max_completion_tokens", *IGNORED, *NOTHING),
}
IMAGE_TYPES = {"png": b"\x89PNG", "jpeg": b"\xff\xd8\xff", "jpg": b"\xff\xd8\xff", "webp": b"RIFF", "gif": b"GIF8"}
DATA = re.compile(r"data:image/(png|jpeg|jpg|webp|gif);base64,")


@dataclasses.dataclass(frozen=True)
class Link:
    """An image that is named by its address."""

    url: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A checked request. Its images are still encoded, or links."""

    model: str
    messages: list[Message]
    """With images as `Encoded` or `Link`."""
    decoding: Decoding
    tokens: int | None
    """Maximum number of ids; None: as many as the context has room for."""
    choices: int
    likeliest: int | None
    """Number of likeliest ids with each id; None: no log-probabilities."""
    stream: bool
    usage: bool
    """Whether the stream ends with the usage."""


def parse_json(body: bytes, limits: Limits) -> dict[str, Any]:
    """A body as JSON.

    Raises:
        ApiError: it is none, or has too many or too deep values.
    """
    # Counted in the bytes: a list of empty lists takes thirty times its size when it is decoded.
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > 2 * limits.values:
        raise ApiError(400, f"the body has more than {limits.values:,} values", code="too_large")
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON ({type(error).__name__})", code="invalid_json") from error
    if _depth(found) > limits.nesting:
        raise ApiError(400, f"the body is nested more than {limits.nesting} deep", code="too_deep")
    if not isinstance(found, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return found


def chat_request(found: dict[str, Any], limits: Limits) -> ChatRequest:
    """A request for a chat.

    Raises:
        ApiError: a field is missing, unknown, of another type, or asks for more than the limits.
    """
    _check_fields(found)
    model = found.get("model")
    if not isinstance(model, str):
        raise wrong("model", "must be the name of a model, as /v1/models lists it", "missing")
    tokens = whole_number(found, "max_completion_tokens", None, 1, 1 << 24)
    tokens = tokens if tokens is not None else whole_number(found, "max_tokens", None, 1, 1 << 24)
    logprobs = _flag(found, "logprobs")
    likeliest = whole_number(found, "top_logprobs", None, 0, 20)
    if likeliest is not None and not logprobs:
        raise wrong("top_logprobs", "needs logprobs = true")
    stream, options = _flag(found, "stream"), found.get("stream_options")
    if options is not None and (not stream or not isinstance(options, dict) or options.keys() - {"include_usage"}):
        raise wrong("stream_options", "may have include_usage, with stream = true")
    return ChatRequest(
        model=model,
        messages=_messages(found.get("messages"), limits),
        decoding=_decoding(found, limits),
        tokens=tokens,
        choices=whole_number(found, "n", 1, 1, limits.choices) or 1,
        likeliest=(likeliest or 0) if logprobs else None,
        stream=stream,
        usage=_flag(options or {}, "include_usage"),
    )


def _check_fields(found: dict[str, Any]) -> None:
    """Checks that every field is known, and that none asks for what is not there."""
    if unknown := sorted(found.keys() - KNOWN):
        raise ApiError(400, f"unknown field {unknown[0][:60]!r}", param=unknown[0][:60], code="unknown_parameter")
    for name, values in NOTHING.items():
        if name in found and found[name] not in values:
            what = "this model calls no tools" if name in TOOLS else "not supported"
            raise ApiError(400, f"{name}: {what}: leave it out", param=name, code="unsupported_parameter")


def _decoding(found: dict[str, Any], limits: Limits) -> Decoding:
    """How ids are chosen, and the texts that end an answer."""
    temperature, top_p = number(found, "temperature", 1.0, 0.0, 2.0), number(found, "top_p", 1.0, 0.0, 1.0)
    seed = whole_number(found, "seed", None, -(2**63), 2**63 - 1)
    stops = found.get("stop") if found.get("stop") is not None else []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise wrong("stop", "must be a text or a list of texts that are not empty")
    if len(stops) > limits.stops or any(len(one) > limits.stop_letters for one in stops):
        raise wrong("stop", f"may be {limits.stops} texts of at most {limits.stop_letters} characters", "too_large")
    return Decoding(
        temperature=temperature,
        # With the likeliest id alone, all limits of drawing mean the same.
        top_p=top_p if temperature and top_p else 1.0,
        top_k=1 if temperature and not top_p else 0,
        stop=tuple(letters(one, "stop") for one in stops),
        seed=secrets.randbits(32) if seed is None else seed,
    )


def decoded(image: Encoded, limits: Limits) -> np.ndarray:
    """The pixels of an image, uint8 (H, W, 3).

    Raises:
        ApiError: it is none, or has too many pixels.
    """
    try:
        with opened(image) as header:
            count = header.width * header.height
        if count > limits.pixels:
            raise wrong(image.name, f"has {count:,} pixels, but may have {limits.pixels:,}", "too_large")
        return read_image(image)
    except TooManyPixels as error:
        raise wrong(
            image.name, f"has far more than the {limits.pixels:,} pixels that it may have", "too_large"
        ) from error
    except DocumentError as error:
        raise wrong(image.name, "is no image that can be read", "invalid_image") from error


def encoded(content: bytes, name: str, limits: Limits) -> Encoded:
    """The bytes of an image, checked by their size and beginning.

    Raises:
        ApiError: they are too many, or those of no image.
    """
    if len(content) > limits.image:
        raise wrong(name, f"has {len(content):,} bytes, but an image may have {limits.image:,}", "too_large")
    if not content.startswith(tuple(IMAGE_TYPES.values())):
        raise wrong(name, "is none of PNG, JPEG, WebP and GIF", "invalid_image")
    return Encoded(content, name)


def _messages(found: Any, limits: Limits) -> list[Message]:
    if not isinstance(found, list) or not found:
        raise wrong("messages", "must be a list with at least one message", "missing")
    if len(found) > limits.messages:
        raise wrong("messages", f"are {len(found):,}, but may be {limits.messages}", "too_large")
    messages = [_message(one, f"messages[{at}]", limits) for at, one in enumerate(found)]
    images = sum(not isinstance(part, str) for one in messages for part in one.content)
    if images > limits.images:
        raise wrong("messages", f"have {images} images, but may have {limits.images}", "too_large")
    count = sum(len(part) for one in messages for part in one.content if isinstance(part, str))
    if count > limits.letters:
        raise wrong("messages", f"have {count:,} characters, but may have {limits.letters:,}", "too_large")
    return messages


def _message(found: Any, where: str, limits: Limits) -> Message:
    if not isinstance(found, dict):
        raise wrong(where, "must be an object with a role and a content")
    role = found.get("role")
    role = "system" if role == "developer" else role
    if role not in ("system", "user", "assistant"):
        raise wrong(f"{where}.role", "must be system, developer, user or assistant (this model calls no tools)")
    empty = {"refusal", "audio", "annotations", "tool_calls", "function_call"}  # as answers have them
    if unknown := [
        name for name in found if name not in ("role", "content", "name") and (name not in empty or found[name])
    ]:
        raise wrong(where, f"has a field {unknown[0][:60]!r} that is not supported", "unknown_parameter")
    content = found.get("content")
    if isinstance(content, str):
        return Message(role, [letters(content, f"{where}.content")])
    if not isinstance(content, list) or not content:
        raise wrong(f"{where}.content", "must be a text or a list of texts and images")
    return Message(role, [_part(one, f"{where}.content[{at}]", role, limits) for at, one in enumerate(content)])


def _part(found: Any, where: str, role: str, limits: Limits) -> Any:
    if not isinstance(found, dict):
        raise wrong(where, "must be an object with a type")
    if found.get("type") == "text" and isinstance(found.get("text"), str) and len(found) == 2:
        return letters(found["text"], where)
    if found.get("type") == "image_url" and role == "user":
        image = found.get("image_url")
        url = image.get("url") if isinstance(image, dict) else None
        if not isinstance(url, str):
            raise wrong(f"{where}.image_url.url", "must be a text")
        begin = DATA.match(url[:40])
        if begin is None:
            if url[:8].lower().startswith(("http://", "https://")) and len(url) <= 2048:
                return Link(url)
            raise wrong(
                f"{where}.image_url.url", "must begin with data:image/png;base64, (or jpeg, webp, gif)", "invalid_image"
            )
        if len(url) > limits.image * 4 // 3 + 64:
            raise wrong(where, f"is larger than the {limits.image:,} bytes that an image may have", "too_large")
        try:
            content = base64.b64decode(url[begin.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise wrong(where, "is not Base64", "invalid_image") from error
        return encoded(content, where, limits)
    raise wrong(where, "must be a text, or in a user's message an image_url", "unsupported_content")


def letters(text: str, where: str) -> str:
    """The text, unless it has half characters (lone surrogates), which no tokenizer takes.

    Raises:
        ApiError: it has.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise wrong(where, "has a lone surrogate, which is no character") from error
    return text


def number(found: dict[str, Any], name: str, usual: float, least: float, most: float) -> float:
    """A number of a request; `usual` if there is none.

    Raises:
        ApiError: it is outside its range.
    """
    value = found.get(name)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise wrong(name, f"must be a number from {least:g} to {most:g}")
    return float(value)


def whole_number(found: dict[str, Any], name: str, usual: int | None, least: int, most: int) -> int | None:
    """A whole number of a request; `usual` if there is none.

    Raises:
        ApiError: it is none, or outside its range.
    """
    value = found.get(name)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise wrong(name, f"must be a whole number from {least} to {most}")
    return value


def _flag(found: dict[str, Any], name: str) -> bool:
    value = found.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(name, "must be true or false")
    return bool(value)


def _depth(value: Any) -> int:
    """How deep lists and maps are nested, without recursion."""
    depth, layer = 0, [value]
    while layer := [one for one in layer if isinstance(one, dict | list)]:
        depth += 1
        layer = [inner for one in layer for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


def _no_number(name: str) -> float:
    raise ValueError(f"JSON has no {name}")
