"""Cost of a second query after the same shots, which are read once and share their keys and values.

    python benchmarks/shots.py [--shots 32] [--rounds 10]

With the weights that ship, or others (`--weights FOLDER`). First and second queries take turns, and the ratio of their medians
counts: times are those of a shared machine.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console

from generalist.cli.weights import add_weights, load_weights
from generalist.data.emoji import drawings, variant
from generalist.data.new_words import made_up_names
from generalist.inference.generalist import Generalist


def ask(shots: int, number: int) -> tuple[list[Any], list[Any]]:
    """Shots and a query with different images for every `number`, so that nothing is cached."""
    pool, names = drawings("names"), made_up_names("heldout")
    images = [variant(pool[(number * (shots + 1) + one) % len(pool)], number) for one in range(shots + 1)]
    shown = [part for one in range(shots) for part in (images[one], names[one % 2])]
    return shown, [images[-1]]


def measure(generalist: Generalist, shots: int, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of first and second queries, by kind of answer; every round has its own shots and queries."""
    ways: dict[str, dict[str, Any]] = {
        "a choice of two names": {"choices": made_up_names("heldout")[:2]},
        "a written name": {"tokens": 4},
    }
    times: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in ways}
    for number in range(rounds + 1):  # the first round compiles
        shown, query = ask(shots, number)
        _, other = ask(shots, number + rounds + 1)
        for way, how in ways.items():
            reading, reads = timed(generalist.read, shown)
            _, begin = timed(generalist.prompt, query, after=reading, **how)
            _, again = timed(generalist.prompt, other, after=reading, **how)
            if number:
                times[way][0].append(reads + begin)
                times[way][1].append(again)
    return times


def timed(call: Callable[..., Any], *given: Any, **how: Any) -> tuple[Any, float]:
    """The result of a call, and its seconds."""
    start = time.perf_counter()
    return call(*given, **how), time.perf_counter() - start


def main() -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_weights(parser)
    parser.add_argument("--shots", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    arguments, console = parser.parse_args(), Console()
    generalist = load_weights(arguments, console)
    if arguments.shots * 6 >= generalist.config.data.length:  # positions of an image and its name
        data = dataclasses.replace(generalist.config.data, length=8 * arguments.shots)
        generalist = generalist.with_config(dataclasses.replace(generalist.config, data=data))
        console.print(f"the context is {data.length} positions here, which these weights were not trained on")
    console.print(f"{arguments.shots} shots, {arguments.rounds} rounds, on {jax.devices()[0]}", highlight=False)
    for way, (first, second) in measure(generalist, arguments.shots, arguments.rounds).items():
        one, two = statistics.median(first), statistics.median(second)
        console.print(
            f"{way}: first query {1000 * one:.1f} ms, second {1000 * two:.1f} ms, 1/{one / two:.1f} of it",
            highlight=False,
        )


if __name__ == "__main__":
    main()
