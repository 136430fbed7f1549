"""Speed of batches, how full they are, and whether memory stays constant, with a run's real recordings.

    python benchmarks/data.py --batches 2000
    python benchmarks/data.py --batches 500 --loaders 8     # batches eight times as large, from eight processes

Needs what `train.py` recorded. Prints a line every tenth of the way; the last one says how memory moved over the second half.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
from rich.console import Console

from generalist.config.presets import preset
from generalist.experiment.prepare import prepare
from generalist.plan.memory import with_rows


def main() -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="pocket")
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the recordings")
    parser.add_argument("--cache-megabytes", type=int, default=1024, help="memory for decoded episodes")
    parser.add_argument(
        "--loaders", type=int, default=0, help="number of processes, each of which makes a batch of the preset's size"
    )
    arguments = parser.parse_args()
    config, shards = preset(arguments.preset), max(1, arguments.loaders)
    config = with_rows(config, config.data.rows * shards, shards)
    data = replace(
        config.data,
        folder=arguments.data,
        cache_megabytes=arguments.cache_megabytes,
        shards=shards,
        loaders=arguments.loaders,
    )
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(replace(config, data=data, runs=Path(folder)), Console())
        measure(prepared.iterator, arguments.batches)
        prepared.iterator.close()


def measure(iterator, batches: int) -> None:
    """Makes and measures the batches."""
    process, begun, lines = psutil.Process(), time.perf_counter(), []
    filled = positions = 0
    for number in range(1, batches + 1):
        batch = next(iterator)
        filled, positions = filled + int((batch.segment > 0).sum()), positions + batch.segment.size
        if number % max(1, batches // 10) == 0:
            seconds, memory = time.perf_counter() - begun, resident(process) / 2**20
            lines.append(memory)
            print(
                f"{number:6d} batches, {number / seconds:6.1f} a second, {filled / seconds / 1e3:6.1f}k tokens a second, "
                f"padding {1 - filled / positions:.1%}, memory {memory:.0f} MiB",
                flush=True,
            )
    half = lines[len(lines) // 2 :]
    print(f"memory over the second half: from {min(half):.0f} to {max(half):.0f} MiB")


def resident(process: psutil.Process) -> int:
    """Bytes held by the process and its loaders; shared memory counts in each."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


if __name__ == "__main__":
    main()
