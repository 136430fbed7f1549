"""Time of an action by the number of environments that act together.

    python benchmarks/acting.py
    python benchmarks/acting.py --ways in_turn --lanes 1 16

Fresh weights of 6 layers of width 256 observe 17 random numbers and choose actions of 6 numbers: one after the other, each fed
back before the next (`in_turn`), or all at once (`hidden`). The window is full, so that every step costs what it does in the
middle of an episode. The numbers of environments take turns; medians are reported.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from generalist.config.presets import debug
from generalist.data.sources.control import Classic
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy
from generalist.model.config import ModelConfig
from generalist.model.transformer import create_separate
from generalist.run.tokenizers import Tokenizers
from generalist.system.huge_pages import use_huge_pages
from generalist.tokenizers.spaces import SpaceTokenizer, TaskLayout
from generalist.tokenizers.text import TextTokenizer

LAYOUT = "classic/benchmark"
MODEL = ModelConfig(width=256, layers=6, heads=8, kv_heads=8, head_size=32, hidden=1024, activation="gelu")
OBSERVATION, ACTION = gym.spaces.Box(-np.inf, np.inf, (17,)), gym.spaces.Box(-1, 1, (6,))


def make(way: str, window: int) -> Generalist:
    """Fresh weights whose actions are chosen in one of the two ways."""
    base = debug()
    data = base.data.with_sources(classic=Classic(steps=window, hide_actions=float(way == "hidden")))
    config = dataclasses.replace(base, data=data, model=MODEL)
    text = TextTokenizer.train(["an instruction"] * 20, 512)
    settings = {"vocabulary": config.tokens.vocabulary(), "text": text}
    layout = TaskLayout(
        LAYOUT,
        SpaceTokenizer.from_space(OBSERVATION, tensors="projected", **settings),
        SpaceTokenizer.from_space(ACTION, **settings),
        config.data.suite_of(LAYOUT).acting,
    )
    tokenizers = Tokenizers(config=config, text=text, layouts={LAYOUT: layout}, projection_width=17)
    graph, params = nnx.split(create_separate(tokenizers.model_spec(), 0), nnx.Param)
    return Generalist(tokenizers, graph, nnx.to_pure_dict(params), 0)


class Acting:
    """A policy whose window is full, and the clock that measures it."""

    def __init__(self, generalist: Generalist, lanes: int, window: int, clock: Callable[[], float]):
        self._lanes, self._rng, self._clock = lanes, np.random.default_rng(0), clock
        self._policy = ControlPolicy(generalist, [LAYOUT] * lanes)
        self._policy.reset(range(lanes), [""] * lanes, range(lanes))
        self.seconds(window)

    def seconds(self, steps: int) -> float:
        """Mean seconds of a step of all lanes."""
        taken = 0.0
        for _ in range(steps):
            observations = list(self._rng.normal(size=(self._lanes, *OBSERVATION.shape)).astype(np.float32))
            begun = self._clock()
            self._policy.act(observations)
            taken += self._clock() - begun
        return taken / steps


def main() -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 16, 64], help="numbers of environments")
    parser.add_argument("--ways", nargs="+", choices=("in_turn", "hidden"), default=["in_turn", "hidden"])
    parser.add_argument("--window", type=int, default=36, help="steps in the context")
    parser.add_argument("--steps", type=int, default=20, help="steps per turn")
    parser.add_argument("--turns", type=int, default=5, help="turns of each number of environments")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the processors' seconds, which other work on the machine lengthens less",
    )
    arguments = parser.parse_args()
    clock = time.process_time if arguments.processor_time else time.perf_counter
    use_huge_pages()
    table = Table("actions", "environments", "ms per step", "environment steps per second", "times the first")
    for way in arguments.ways:
        generalist = make(way, arguments.window)
        acting = {lanes: Acting(generalist, lanes, arguments.window, clock) for lanes in arguments.lanes}
        taken: dict[int, list[float]] = {lanes: [] for lanes in acting}
        for _ in range(arguments.turns):
            for lanes, one in acting.items():
                taken[lanes].append(one.seconds(arguments.steps))
        median = {lanes: float(np.median(times)) for lanes, times in taken.items()}
        for lanes, seconds in median.items():
            ratio = seconds / median[arguments.lanes[0]]
            table.add_row(way, str(lanes), f"{1000 * seconds:.2f}", f"{lanes / seconds:.0f}", f"{ratio:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
