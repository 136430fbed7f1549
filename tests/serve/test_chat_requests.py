"""Requests as OpenAI's clients send them: what is taken, what means nothing, and what is refused by name."""

from typing import Any

import pytest

from generalist.serve.chat_requests import ChatRequest, chat_request
from generalist.serve.errors import ApiError
from generalist.serve.messages import Message, parts_of
from generalist.serve.settings import Limits
from generalist.tokenizers.sequence import CHUNK_END

HELLO = [{"role": "user", "content": "hello"}]


def request(**fields: Any) -> ChatRequest:
    return chat_request({"model": "m", "messages": HELLO} | fields, Limits())


def test_fields_that_are_null_are_left_out() -> None:
    names = ("stop", "n", "temperature", "top_p", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs")
    found = request(**dict.fromkeys((*names, "stream", "stream_options", "tools", "response_format"), None), seed=1)
    assert found == request(seed=1)
    assert (found.choices, found.tokens, found.likeliest, found.stream, found.usage) == (1, None, None, False, False)
    assert (found.decoding.temperature, found.decoding.top_p, found.decoding.stop) == (1.0, 1.0, ())


def test_fields_without_an_effect_are_taken() -> None:
    more = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "prompt_cache_key": "k"}
    nothing = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}}
    zeros = {"frequency_penalty": 0, "presence_penalty": 0.0, "modalities": ["text"], "parallel_tool_calls": True}
    assert request(seed=1, **more, **nothing, **zeros) == request(seed=1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"top_k": 5}, "top_k"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": True}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as error:
        request(**fields)
    assert (error.value.status, error.value.param) == (400, param)


def test_how_ids_are_chosen() -> None:
    assert request(temperature=1, top_p=0).decoding.top_k == 1, "the likeliest alone"
    assert request(temperature=0, top_p=0.5).decoding.top_p == 1.0, "of no meaning then"
    assert request(seed=-3).decoding.seed == -3
    assert request(max_tokens=5, max_completion_tokens=7).tokens == 7
    assert request(stop="a").decoding.stop == ("a",)
    assert request(logprobs=True).likeliest == 0 and request(logprobs=True, top_logprobs=4).likeliest == 4
    assert len({request().decoding.seed for _ in range(4)}) > 1, "one is drawn"
    stream = request(stream=True, stream_options={"include_usage": True})
    assert stream.stream and stream.usage and not request(stream=True, stream_options={}).usage


def test_messages_that_are_no_prompt() -> None:
    system, user = Message("system", ["be brief"]), Message("user", ["hello"])
    assert parts_of([system, user]) == ["be brief", CHUNK_END, "hello"]
    for messages, fault in (
        ([system], "last message must be the user's"),
        ([user, Message("assistant", ["x"])], "last message must be the user's"),
        ([Message("assistant", ["x"]), user], "must follow one of the user"),
        ([user, Message("assistant", [" "]), user], "have a text"),
        ([Message("user", [""])], "empty: give them at least one letter"),
    ):
        with pytest.raises(ValueError, match=fault):
            parts_of(messages)
