"""Boxes and short answers that a model writes, for the parts of an evaluation that ask for places."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from generalist.eval.held_out.scenes import Generate

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

BOX_TOKENS = 8  # a box has four, and its end one
ENTRY_TOKENS = 24  # a box, its name, and what stands between two
ANSWER_TOKENS = 10  # as of TextVQA's answers (Flamingo, appendix B)
WRITTEN_AT_ONCE = 64


def answer_writer(generalist: "Generalist", tokens: int = BOX_TOKENS) -> Generate:
    """Writes the answers to questions, by default for a place, of at most `tokens` ids."""
    # It imports JAX, which reading a results file does not need.
    from generalist.inference.prompt import Decoding, prompt

    def generate(documents: list[list[Any]]) -> list[str]:
        chunks = [documents[start : start + WRITTEN_AT_ONCE] for start in range(0, len(documents), WRITTEN_AT_ONCE)]
        return [text for chunk in chunks for text in prompt(generalist, chunk, Decoding(tokens=tokens))]

    return generate


def has_room(generalist: "Generalist", tokens: int) -> Callable[[list[Any]], bool]:
    """Tells whether a row has room for a document and an answer of `tokens` ids."""
    from generalist.inference.prompt import context

    return lambda document: len(generalist.assembler.document(document, is_open=True)) + tokens <= context(generalist)
