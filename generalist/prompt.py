"""`generalist prompt`: the weights write on what they are given: images, text, and shots from a file."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from generalist.at_hand import add_weights, load_weights
from generalist.console import open_console

if TYPE_CHECKING:
    from generalist.inference.load import Generalist
    from generalist.inference.shots import Shot

DESCRIPTION = "Writes on a prompt of images and text, after shots if there are any, with the weights at hand."
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generalist prompt`."""
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"an image's path (one that ends with {', '.join(IMAGES)}) or text, in any order",
    )
    parser.add_argument(
        "--queries",
        type=Path,
        metavar="FILE",
        help="many queries instead: JSONL or YAML with an image and a question each",
    )
    parser.add_argument(
        "--shots", type=Path, metavar="FILE", help="JSONL or YAML with an image, a question and an answer each"
    )
    parser.add_argument(
        "--retrieve", type=int, metavar="N", help="show only the N shots whose images are likest, the likest last"
    )
    parser.add_argument(
        "--template", help="with {question} and {answer}; default 'question: {question} answer: {answer}'"
    )
    parser.add_argument("--choices", nargs="+", metavar="TEXT", help="take the likeliest of these instead of writing")
    parser.add_argument("--tokens", type=int, default=32, help="ids to write at most (default 32)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, takes the likeliest")
    parser.add_argument("--top-k", type=int, default=0, help="draw only from so many of the likeliest (default: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw only from the likeliest of this probability")
    parser.add_argument("--beams", type=int, default=1, help="beam search over so many texts")
    parser.add_argument("--stop", nargs="+", default=[], metavar="TEXT", help="end before any of these")
    parser.add_argument("--seed", type=int, default=0, help="decides what is drawn")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a query on standard output, and nothing else there"
    )
    add_weights(parser)


def run(arguments: argparse.Namespace, rest: list[str], console: Console) -> int:
    """Writes; returns the exit status.

    Raises:
        ValueError, ImportError, OSError: with a message for the user, before anything is computed.
    """
    if rest:
        raise ValueError(f"generalist prompt does not know {' '.join(rest)}: put text with a dash in quotes, after --")
    if bool(arguments.parts) == (arguments.queries is not None):
        raise ValueError("name the parts of one prompt, or a file of --queries; not both, and not neither")
    if arguments.retrieve is not None and (arguments.shots is None or arguments.retrieve < 1):
        raise ValueError("--retrieve takes a number above 0 and needs --shots FILE to retrieve from")
    told = open_console(stderr=True) if arguments.json else console
    from generalist.inference.shots import TEMPLATE, check_template, load_shots

    template = check_template(arguments.template) if arguments.template else TEMPLATE
    shots = load_shots(arguments.shots) if arguments.shots else []
    queries = (
        [query.parts(template) for query in load_shots(arguments.queries, answered=False)]
        if arguments.queries
        else [[part_of(text) for text in arguments.parts]]
    )
    generalist = load_weights(arguments, told)
    for number, (shown, pieces) in enumerate(answers(generalist, shots, queries, template, arguments), 1):
        if not arguments.json:
            if len(queries) > 1:
                print(f"{number}: ", end="", flush=True)
            for piece in pieces:
                print(piece, end="", flush=True)
            print(flush=True)
            continue
        line = {"query": number, "text": "".join(pieces), "shots": shown, "step": generalist.step}
        print(json.dumps(line, ensure_ascii=False), flush=True)
        sys.stdout.flush()
    return 0


def part_of(text: str) -> Any:
    """An image's path, or text.

    Raises:
        FileNotFoundError: it looks like an image's path, but there is no such file.
    """
    if not text.lower().endswith(IMAGES) or (len(text.split()) > 1 and not Path(text).is_file()):
        return text
    if not Path(text).is_file():
        raise FileNotFoundError(f"there is no image {text}")
    return Path(text)


def answers(
    generalist: "Generalist",
    shots: "list[Shot]",
    queries: list[list[Any]],
    template: str,
    arguments: argparse.Namespace,
) -> Iterator[tuple[list[int], Iterator[str]]]:
    """For each query the numbers of the shots that stand before it, counted from 1, and the pieces of what is written."""
    from generalist.inference.prompt import check_parts
    from generalist.inference.shots import Retriever

    checked = [check_parts(parts) for parts in queries]
    decoding = {name: getattr(arguments, name) for name in ("tokens", "temperature", "top_k", "top_p", "beams", "seed")}
    decoding["stop"] = tuple(arguments.stop)
    retriever, pool = None, list(range(len(shots)))
    if arguments.retrieve is not None:
        pool = [number for number, shot in enumerate(shots) if shot.image is not None]
        retriever = Retriever(generalist, [pixels for one in pool if (pixels := shots[one].pixels) is not None])
    after, read = None, None
    for parts in checked:
        if retriever is not None:
            images = [part for part in parts if not isinstance(part, str)]
            if not images:
                raise ValueError("--retrieve looks for images like the query's, and a query has none")
            chosen = [pool[int(one)] for one in retriever.nearest(images[0], arguments.retrieve)]
        else:
            chosen = pool
        if chosen != read:  # shots that stay are read once
            after = generalist.read([part for one in chosen for part in shots[one].parts(template)]) if chosen else None
            read = chosen
        if arguments.choices:
            choices = [f" {choice.strip()}" for choice in arguments.choices]
            pieces = iter([generalist.prompt(parts, after=after, choices=choices)])
        elif arguments.beams > 1:
            pieces = iter([generalist.prompt(parts, after=after, **decoding)])
        else:
            pieces = generalist.stream(parts, after=after, **decoding)
        yield [one + 1 for one in chosen], pieces
