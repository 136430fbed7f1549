"""Speed of training with sequential and with parallel actions: positions per environment step, and environment steps per second.

    python benchmarks/actions.py pocket --data.only metaworld fetch classic

The arguments are those of `train.py`; missing episodes are recorded first. Both settings train the same model on batches of the
same recordings and sizes. Their steps alternate, so that other work on the machine slows both alike: the ratio is a median over
the rounds. Making batches is timed apart, for one process.
"""

import argparse
import dataclasses
import time
from typing import Literal

import jax
import numpy as np
from rich.console import Console

from generalist.config.presets import PRESETS, preset
from generalist.config.run import Config
from generalist.data.batch import Batch
from generalist.experiment.inherit import parse
from generalist.experiment.prepare import prepare
from generalist.run.tasks import record_missing
from generalist.system.huge_pages import use_huge_pages
from generalist.tokenizers.pieces import Modality
from generalist.training.flops import model_flops
from generalist.training.token_trainer import make_trainer

WARM, ROUNDS, BATCHES = 3, 15, 8


class Case:
    """A trainer of one setting with a few batches."""

    def __init__(self, config: Config, actions: Literal["sequential", "parallel"]):
        tokens = dataclasses.replace(config.tokens, actions=actions)
        config = dataclasses.replace(config, name=f"{config.name}_{actions}", tokens=tokens)
        prepared = prepare(config, Console(quiet=True))
        spec = prepared.tokenizers.model_spec()
        self._trainer = make_trainer(spec, config.training, weights=list(prepared.sources.values()))
        self._state, self._key = self._trainer.initialize({}), jax.random.key(0)
        self.flops = model_flops(spec, prepared.batch_spec, self._state.params, self._state.frozen)
        next(prepared.iterator)  # opens the files
        begun = time.perf_counter()
        batches = [next(prepared.iterator) for _ in range(BATCHES)]
        self.making = (time.perf_counter() - begun) / BATCHES
        prepared.iterator.close()
        self.steps = float(np.mean([environment_steps(batch) for batch in batches]))
        self.actions = float(np.mean([(batch.action_weight > 0).any(axis=1).sum() for batch in batches]))
        self.positions = float(np.mean([(batch.segment > 0).sum() for batch in batches]))
        self._batches = [self._trainer.place(batch) for batch in batches]

    def step(self, number: int) -> float:
        """Seconds of one training step."""
        begun = time.perf_counter()
        with jax.set_mesh(self._trainer.mesh):
            self._state, metrics = self._trainer.step(self._state, self._batches[number % BATCHES], self._key)
            jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - begun


def environment_steps(batch: Batch) -> int:
    """Steps in a batch whose observations begin with a tensor or a frame, as those of projected layouts do."""
    begins = (batch.modality == Modality.TENSOR) | (batch.modality == Modality.FRAME)
    return int((begins & (batch.local_position == 0)).sum())


def main() -> None:
    """Measures both settings and prints a table in Markdown."""
    use_huge_pages()  # as train.py does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("settings", nargs=argparse.REMAINDER, help="as those of train.py")
    arguments = parser.parse_args()
    config = parse(preset(arguments.preset), arguments.settings, prog="benchmarks/actions.py")
    record_missing(config, Console())
    cases = {name: Case(config, name) for name in ("sequential", "parallel")}
    for case in cases.values():
        for number in range(WARM):
            case.step(number)
    seconds = {name: [] for name in cases}
    for number in range(ROUNDS):
        for name, case in cases.items():
            seconds[name].append(case.step(number))
    print(
        "| actions | positions per environment step | environment steps per batch | GFLOP per step | ms per step "
        "| environment steps/s | ms to make a batch |\n|---|---|---|---|---|---|---|"
    )
    for name, case in cases.items():
        median = float(np.median(seconds[name]))
        print(
            f"| {name} | {case.positions / case.steps:.2f} | {case.steps:.0f} | {case.flops / 1e9:.1f} | {1000 * median:.0f} "
            f"| {case.steps / median:.0f} | {1000 * case.making:.0f} |"
        )
    ratio = np.median(np.array(seconds["sequential"]) / seconds["parallel"]) * cases["parallel"].steps
    print(f"\nparallel / sequential: {ratio / cases['sequential'].steps:.2f} times the environment steps per second")
    print(f"parallel actions per batch: {cases['parallel'].actions:.0f} of {config.data.actions}")


if __name__ == "__main__":
    main()
