"""Boxes and short answers that a model writes, for the parts of an evaluation that ask for places."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from generalist.eval.held_out.scenes import Generate

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist

BOX_TOKENS = 8  # a box has four, and its end one
ENTRY_TOKENS = 24  # a box, its name, and what stands between two
ANSWER_TOKENS = 10  # as of TextVQA's answers (Flamingo, appendix B); more if a known answer is longer
WRITTEN_AT_ONCE = 64


def answer_writer(generalist: "Generalist", tokens: int = BOX_TOKENS) -> Generate:
    """Writes the answers to questions, by default for a place, of at most `tokens` ids."""
    # It imports JAX, which reading a results file does not need.
    from generalist.inference.prompt import Decoding, prompt

    fits = has_room(generalist)

    def generate(documents: list[list[Any]]) -> list[str]:
        # Of documents that are read together, the longest decides how much room all have: those with little are read alone.
        roomy = [fits(one, tokens) for one in documents]
        together, alone = ([at for at, one in enumerate(roomy) if one is wanted] for wanted in (True, False))
        chunks = [together[start : start + WRITTEN_AT_ONCE] for start in range(0, len(together), WRITTEN_AT_ONCE)]
        texts = [""] * len(documents)
        for chunk in (*chunks, *([at] for at in alone)):
            written = prompt(generalist, [documents[at] for at in chunk], Decoding(tokens=tokens))
            for at, text in zip(chunk, written, strict=True):
                texts[at] = text
        return texts

    return generate


def answer_tokens(generalist: "Generalist", answer: str) -> int:
    """Number of ids that an answer may have, so that the known one can be written, and its end."""
    return max(ANSWER_TOKENS, len(generalist.assembler.encode(f" {answer}")) + 1)


def has_room(generalist: "Generalist") -> Callable[[list[Any], int], bool]:
    """Tells whether a row has room for a document and an answer of a number of ids."""
    from generalist.inference.prompt import context

    def fits(document: list[Any], tokens: int) -> bool:
        return len(generalist.assembler.document(document, is_open=True)) + tokens <= context(generalist)

    return fits
