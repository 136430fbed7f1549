"""Speed of acting: environments in a batch against one at a time, and a cached step against recomputing the window.

    python benchmarks/control.py

Fresh weights of about 5 M parameters, or of a preset's size (`--preset pocket_long`), act in real environments. Ratios of one run
count, not times: the parts take turns. Beside other work, `--processor-time` measures the policy alone by what it computes.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from generalist.config.presets import PRESETS, debug
from generalist.config.run import Config
from generalist.data.batch import Batch
from generalist.data.source import KINDS
from generalist.data.sources.prose import Prose
from generalist.envs.pool import Act, EnvPool, Start
from generalist.envs.registry import get
from generalist.envs.task import EVALUATION_SEED
from generalist.experiment.prepare import prepare
from generalist.inference.generalist import Generalist
from generalist.inference.policy import ControlPolicy, shape_of
from generalist.inference.rows import stack_rows
from generalist.model.config import ModelConfig, VisionConfig
from generalist.model.transformer import count_parameters, create_separate
from generalist.run.tasks import record_missing
from generalist.system.huge_pages import use_huge_pages
from generalist.system.processes import cores

TASKS = {"metaworld": "metaworld/door-open", "babyai": "babyai/GoToLocal", "atari": "atari/freeway"}
FIVE_MILLION = ModelConfig(width=256, layers=6, heads=8, kv_heads=4, head_size=32, hidden=704)
WINDOWS = {"metaworld": 8, "babyai": 96, "atari": 16}


def settings(folder: Path, model: ModelConfig, actions: Literal["sequential", "parallel"]) -> Config:
    """One task a suite, windows as in `pocket_long`, whose weights ship."""
    base = debug()
    suites = {
        suite: KINDS[suite](tasks=name.partition("/")[2], episodes=2, steps=WINDOWS[suite])  # type: ignore[call-arg]
        for suite, name in TASKS.items()
    }
    sources = base.data.with_sources(**suites, prose=Prose(megabytes=0.3))
    data = dataclasses.replace(sources, folder=folder, only=(*suites, "prose"))
    tokens = dataclasses.replace(base.tokens, actions=actions)
    return dataclasses.replace(base, runs=folder / "runs", data=data, model=model, tokens=tokens)


def make(config: Config, console: Console) -> Generalist:
    """Fresh weights with the tokenizers that acting needs."""
    record_missing(config, console)
    tokenizers = prepare(config, console).tokenizers
    graph, params = nnx.split(create_separate(tokenizers.model_spec(), 0), nnx.Param)
    params = nnx.to_pure_dict(params)
    console.print(f"{count_parameters(params) / 1e6:.2f} M parameters on {jax.devices()[0]}", highlight=False)
    return Generalist(tokenizers, graph, params, 0)


class Playing:
    """Environments with their policy, stepped on request."""

    def __init__(self, generalist: Generalist, name: str, lanes: int):
        self._task, self._lanes = get(name), lanes
        self._policy = ControlPolicy(generalist, [self._task.layout] * lanes)
        self._pool, self._next = EnvPool(lanes, cores()), EVALUATION_SEED
        self._observations: list[Any] = [None] * lanes
        self._begin(range(lanes))

    def _begin(self, lanes) -> None:
        starts = {}
        for lane in lanes:
            starts[lane], self._next = Start(self._task, self._next), self._next + 1
        started = self._pool.run(starts)
        for lane, one in started.items():
            self._observations[lane] = one.observation
        texts, seeds = [one.instruction for one in started.values()], [starts[lane].seed for lane in started]
        self._policy.reset(list(started), texts, seeds)

    def run(self, steps: int, clock: Callable[[], float]) -> tuple[float, float]:
        """Seconds of `steps` steps of all lanes: in total, and by a clock of the policy alone."""
        total, acting = time.perf_counter(), 0.0
        for _ in range(steps):
            begun = clock()
            actions = self._policy.act(self._observations)
            acting += clock() - begun
            acted = self._pool.run({lane: Act(action) for lane, action in enumerate(actions)})
            for lane, one in acted.items():
                self._observations[lane] = one.observation
            if over := [lane for lane, one in acted.items() if one.done]:
                self._begin(over)
        return time.perf_counter() - total, acting

    def close(self) -> None:
        """Closes the environments."""
        self._pool.close()


def whole_window(generalist: Generalist, name: str, lanes: int):
    """A function that computes the last logits of a full window in every lane from its steps, without a cache."""
    task = get(name)
    layout, shape = generalist.layouts[task.layout], shape_of(generalist, task.layout)
    space = layout.observation.space
    space.seed(0)
    values = layout.observation.stack([space.sample() for _ in range(shape.window)])
    assembler = generalist.assembler
    row = assembler.concatenate(
        [assembler.instruction(task.instruction), assembler.step(layout, values, hide_actions=shape.hidden)]
    )
    frames = generalist.config.model.frame_tokens
    batch = stack_rows([row] * lanes, len(row), pad=generalist.vocabulary.pad, frame_tokens=frames)

    @jax.jit
    def last(params: Any, batch: Batch) -> jax.Array:
        model = nnx.merge(generalist.graph, params)
        hidden = model.hidden(batch)
        if shape.parallel:
            return model.action_logits(hidden[:, -1]).argmax(-1)
        return model.logits(hidden[:, -shape.dimensions :]).argmax(-1)

    return lambda: np.asarray(last(generalist.params, generalist.on_device(batch)))


def main() -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=16, help="environments per batch")
    parser.add_argument("--steps", type=int, default=40, help="steps per turn")
    parser.add_argument("--turns", type=int, default=7, help="number of turns of each part; the median is reported")
    parser.add_argument(
        "--preset", choices=PRESETS, help="preset of the model, without its encoder (default: 6 layers of width 256)"
    )
    parser.add_argument(
        "--actions", choices=("sequential", "parallel"), default="sequential", help="as `tokens.actions`"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=tuple(TASKS),
        default=tuple(TASKS),
        metavar="SUITE",
        help="suites that are measured",
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the processors' seconds of policy and window, which other work on the machine lengthens less",
    )
    arguments = parser.parse_args()
    model = FIVE_MILLION
    if arguments.preset:
        model = dataclasses.replace(PRESETS[arguments.preset]().model, vision=VisionConfig())
    use_huge_pages()
    console = Console()
    clock = time.process_time if arguments.processor_time else time.perf_counter
    table = Table("", "one at a time, steps/s", f"{arguments.lanes} in a batch, steps/s", "ratio", "policy's step of 1, ms",
                  f"of {arguments.lanes}, ms", "ratio", "whole window, ms", "of a step")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        generalist = make(settings(Path(folder), model, arguments.actions), console)
        for suite in arguments.only:
            table.add_row(suite, *measure(generalist, TASKS[suite], arguments, clock))
    console.print(table)


def measure(generalist: Generalist, name: str, arguments: argparse.Namespace, clock: Callable[[], float]) -> list[str]:
    """One row of the table."""
    lanes, steps = arguments.lanes, arguments.steps
    single, many = Playing(generalist, name, 1), Playing(generalist, name, lanes)
    window = whole_window(generalist, name, lanes)
    for playing in (single, many):
        playing.run(5, clock)  # compiles
    window()
    taken: dict[str, list[float]] = {"single": [], "alone": [], "many": [], "cached": [], "window": []}
    for _ in range(arguments.turns):
        total, acting = single.run(steps, clock)
        taken["single"].append(total / steps)
        taken["alone"].append(acting / steps)
        total, acting = many.run(steps, clock)
        taken["many"].append(total / steps / lanes)
        taken["cached"].append(acting / steps)
        begun = clock()
        for _ in range(5):
            window()
        taken["window"].append((clock() - begun) / 5)
    single.close()
    many.close()
    median = {part: float(np.median(times)) for part, times in taken.items()}
    return [
        f"{1 / median['single']:.0f}",
        f"{1 / median['many']:.0f}",
        f"{median['single'] / median['many']:.1f}",
        f"{1000 * median['alone']:.1f}",
        f"{1000 * median['cached']:.1f}",
        f"{median['cached'] / median['alone']:.1f}",
        f"{1000 * median['window']:.1f}",
        f"{median['window'] / median['cached']:.1f}",
    ]


if __name__ == "__main__":
    main()
