"""Messages of a chat as the prompt of the weights.

Published language models have a chat template of their own. Other weights read a document of images and texts, as in training, in
which an earlier exchange is a shot:

    system      the text                            a chunk of its own at the beginning
    user        images and texts in their order
    assistant   an answer to the user before it     ends a shot: [image, question, " answer"]
    user        the last message: what the model continues
"""

import dataclasses
from typing import Any

import numpy as np

from generalist.inference.prompt import chat_parts, context
from generalist.inference.weights import Weights
from generalist.tokenizers.sequence import CHUNK_END, Sequence
from generalist.weights.chat import chat_text
from generalist.weights.folder import WeightsError


@dataclasses.dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: str
    """system, user or assistant."""
    content: list[Any]
    """Texts, and images as uint8 (H, W, 3)."""

    @property
    def text(self) -> str:
        """Its texts, one after the other."""
        return "".join(part for part in self.content if isinstance(part, str))

    @property
    def images(self) -> list[np.ndarray]:
        """Its images."""
        return [part for part in self.content if isinstance(part, np.ndarray)]


def parts_of(messages: list[Message]) -> list[Any]:
    """The parts of a prompt, as `Generalist.prompt` takes them.

    Raises:
        ValueError: the last message is not the user's, an answer follows no user's message, or there is nothing in them.
    """
    parts: list[Any] = []
    asked: Message | None = None
    for message in messages:
        if message.role == "system":
            parts += [message.text, CHUNK_END] if message.text else []
        elif message.role == "user":
            # Two messages of the user are one question.
            content = [*(asked.content if asked is not None else []), *message.content]
            asked = Message("user", content)
        elif asked is None or not message.text.strip():
            raise ValueError("an assistant's message must follow one of the user, and have a text")
        else:
            # As a shot of a file: answers begin with a space. The end is marked, since text may follow instead of an image.
            parts += [*_given(asked), f" {message.text.strip()}", CHUNK_END]
            asked = None
    if asked is None:
        raise ValueError("the last message must be the user's: the model continues it")
    parts += _given(asked)
    if not parts:
        raise ValueError("the messages are empty: give them at least one letter")
    return parts


def _given(message: Message) -> list[Any]:
    """The parts of a message without empty texts."""
    return [part for part in message.content if not isinstance(part, str) or part]


def _templated(message: Message) -> dict[str, Any]:
    """A message as `chat_parts` takes it."""
    return {"role": message.role, "content": message.content if message.images else message.text}


class Prompter:
    """Makes the prompts of weights.

    Raises:
        WeightsError: the weights have a chat template that cannot be used.
    """

    def __init__(self, weights: Weights):
        self._weights = weights
        _ = weights.tokenizers.text.longest  # looked up now, and not when the first client waits
        self.chats = False
        """Whether the weights have a chat template."""
        folder = weights.tokenizers.folder
        if weights.tokenizers.published is not None and folder is not None:
            try:
                chat_text(folder, [{"role": "user", "content": "hello"}])
                self.chats = True
            except WeightsError as error:
                if "has no chat template" not in str(error):
                    raise

    def sequence(self, messages: list[Message]) -> Sequence:
        """The prompt of messages.

        Raises:
            ValueError: the messages are no prompt for these weights, or too long for their context.
        """
        letters, room = sum(len(one.text) for one in messages), context(self._weights)
        if letters >= room * self._weights.tokenizers.text.longest:  # known before it is tokenized, which takes a while
            raise ValueError(
                f"the messages have {letters:,} characters, more than fit into the model's context of {room} positions: "
                "shorten them"
            )
        if self._weights.config.model.vision.row_ends and any(one.images for one in messages):
            raise ValueError(
                "these weights cut an image into a changing number of tiles, for which no programs are compiled ahead: leave "
                "images out here, or use Generalist.prompt"
            )
        if self.chats:
            parts, plain = chat_parts(self._weights, [_templated(one) for one in messages])
            sequence = plain.assembler.document(parts, is_open=True)
        else:
            sequence = self._weights.assembler.document(parts_of(messages), is_open=True)
        if not len(sequence):
            raise ValueError("the prompt is empty: give it at least one letter")
        if len(sequence) >= room:
            raise ValueError(
                f"the messages take {len(sequence)} positions, but may take {room - 1} of the model's context of {room}, so that "
                "an answer has room: shorten them"
            )
        return sequence

    def stops(self, messages: list[Message]) -> tuple[str, ...]:
        """Texts that end an answer besides those that are asked for: after shots, what stands between shots."""
        shots = any(message.role != "user" for message in messages)
        return self._weights.assembler.marks.stops if shots and not self.chats else ()
